"""What Envoy adds, what a crowd behind it costs, and what replicas that come and go do to calls."""
