"""Ports for programs that tests start."""

import contextlib
import random
import socket


def free_port() -> int:
    """Nobody listens there, and the system gives it to nobody by chance: it is below those for outgoing connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)  # two processes of a test run may be seeded alike
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
