"""Commands that start programs, and end them: the demo, and Envoy in front of the service."""
