"""How the system shares its cores out to a server's processes."""

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import pytest

from service.runtime import scheduling
from tests.conftest import StartProcess
from tests.service.runtime.test_workers import children
from vertex_emulator import Emulator

pytestmark = pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux has SCHED_BATCH")


def policies(pid: int) -> list[tuple[str, int]]:
    """Those of a process's threads, with their names."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            found.append(((thread / "comm").read_text().strip(), os.sched_getscheduler(int(thread.name))))
    return found


@pytest.mark.parametrize(
    ("workers", "told", "wanted"),
    [("1", "", "SCHED_BATCH"), ("2", "batch", "SCHED_BATCH"), ("2", "normal", "SCHED_OTHER")],
)
async def test_each_worker_runs_as_it_is_told(
    emulator: Emulator, start_process: StartProcess, workers: str, told: str, wanted: str
) -> None:
    del emulator
    flags = ("--scheduling", told) if told else ()
    server = await start_process("--workers", workers, *flags)
    await server.said("ready after")
    serving = {server.process.pid}
    if workers == "2":
        while len(children(server)) != 2:  # noqa: ASYNC110 - the greeter says nothing when it goes
            await asyncio.sleep(0.01)
        serving = children(server)
        # The parent, which looks after the workers.
        assert {policy for _, policy in policies(server.process.pid)} == {os.SCHED_OTHER}
    for pid in serving:
        assert os.sched_getscheduler(pid) == getattr(os, wanted), "the event loop's thread"
        of_grpc = {policy for name, policy in policies(pid) if name.startswith("event_engine")}
        assert of_grpc == {getattr(os, wanted)}


def test_a_system_that_refuses_it_is_told_of_and_does_no_harm(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    scheduling.batch()
    (said,) = lines
    assert "doesn't let this process choose SCHED_BATCH (Operation not permitted)" in said
