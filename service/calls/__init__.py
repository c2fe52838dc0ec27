"""One call, from its first byte to its status."""
