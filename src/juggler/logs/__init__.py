"""What backends print and what we log ourselves, kept to be read: one bounded ring of lines each.

backend's pipes -> lifecycle.output -> logs.launches (cleaned, masked) -> logs.ring -> logs.book -> control API
our own records -> logs.handler (masked)                               ----^
"""
