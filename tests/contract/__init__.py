"""What real clients call, replayed with the real libraries."""
