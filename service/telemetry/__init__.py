"""What the server's owner sees; never a prompt."""
