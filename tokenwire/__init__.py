"""What callers import."""
