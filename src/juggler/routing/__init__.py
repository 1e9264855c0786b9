"""Where a request goes, and what it may do there. Pure."""
