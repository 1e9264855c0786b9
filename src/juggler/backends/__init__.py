"""What each server program needs said differently: one module per type, see ``base.Backend``."""
