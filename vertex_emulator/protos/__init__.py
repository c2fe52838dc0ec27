"""What the emulator's own messages are."""
