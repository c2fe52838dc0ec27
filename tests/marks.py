"""Tests that not every system can run, each with what that system lacks. On Linux all of them run."""

import os
import sys
from pathlib import Path

import pytest

needs_terminal = pytest.mark.skipif(
    not hasattr(os, "openpty"),
    reason="it looks at what a terminal shows, and Windows has no pseudo terminals to look at",
)

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="it forks a process in which gRPC runs, and Windows can't fork processes"
)

needs_file_modes = pytest.mark.skipif(
    sys.platform == "win32",
    reason="Windows has no file modes such as 0600: there the user's own folder keeps others out",
)

needs_peak = pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="only Linux's /proc tells the peak of one process: getrusage begins with that of its parent",
)
