"""tokenwire.v1 to and from the vocabulary; no I/O."""
