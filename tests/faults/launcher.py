"""`python -m tests.faults.launcher [--gc-off] FLAGS`: the server as it is, which also answers SIGUSR1.

On that signal it writes how many asyncio tasks there are: nobody outside of a process can count them.
"""

import asyncio
import gc
import os
import signal
import sys
from types import FrameType

from service.__main__ import main


def tell_tasks(_number: int, _frame: FrameType | None) -> None:
    os.write(2, f"tasks={len(asyncio.all_tasks())}\n".encode())


if __name__ == "__main__":
    flags = sys.argv[1:]
    if flags[:1] == ["--gc-off"]:
        gc.disable()
        del flags[0]
    signal.signal(signal.SIGUSR1, tell_tasks)
    sys.exit(main(flags))
