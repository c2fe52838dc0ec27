"""What answers: a script, or SmolLM2."""
