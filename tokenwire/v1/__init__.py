"""The contract's generated stubs."""
