"""How Linux shares its cores out to a server process."""

import os

from ..telemetry import call_log


def batch() -> None:
    """Put this thread, and those that it starts from now on, under SCHED_BATCH (man 7 sched), where the system has it.

    A thread that wakes up doesn't push aside the one that runs: it waits until that one is done. gRPC hands each
    message from one thread of its own to the next and to the event loop, so a core would be changed over several times
    for each chunk.
    """
    if not hasattr(os, "SCHED_BATCH"):
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a container may forbid it
        if not call_log.is_first():
            return
        text = "the system doesn't let this process choose SCHED_BATCH (%s), so a chunk costs a tenth more CPU; "
        call_log.say(f"{text}--scheduling normal doesn't ask for it", error.strerror)
