"""Signals as they come to a process: a terminal's Ctrl-C may come several times, and in any moment."""

import signal
import subprocess
import time


def repeat(
    number: signal.Signals, process: "subprocess.Popen[str] | subprocess.Popen[bytes]", *, seconds: float = 30
) -> None:
    """Send it until the process has ended; TimeoutError."""
    end = time.monotonic() + seconds
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise TimeoutError(f"{number.name} doesn't end it within {seconds:g} s")
        process.send_signal(number)
        time.sleep(0.001)
