"""What tokenwire is compared with. Each is started with the upstream's address and says where it listens."""
