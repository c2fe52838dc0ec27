"""SIGHUP means "read anew" where files are followed, from the first moment on; else it stops the server."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from service.admission import api_keys
from service.runtime import workers
from tests.service.runtime.test_workers import below
from tokenwire import AsyncClient, NotAllowedError
from vertex_emulator import Emulator
from vertex_emulator.script import answer

pytestmark = pytest.mark.skipif(not workers.possible(), reason="workers are forked, which is for Linux")


class Starting:
    """A server from its first moment on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.words = ""

    async def read(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.words += line.decode()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not true():
                assert self.process.returncode is None, self.words
                await asyncio.sleep(0.001)

    def takes_hang_up(self) -> bool:
        """Whether Python has got as far as our first line."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) & 1 << signal.SIGHUP - 1)

    def everybody(self, number: signal.Signals) -> None:
        for pid in (self.process.pid, *below(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@asynccontextmanager
async def starting(emulator: Emulator, *command: str) -> AsyncIterator[Starting]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *command, "--port", "0", "--emulator", emulator.address),
        stderr=asyncio.subprocess.PIPE,
    )
    found = Starting(process)
    reading = asyncio.ensure_future(found.read())
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


@pytest.mark.parametrize("command", [["service", "--workers", "1"], ["tokenwire.cli", "serve", "--workers", "2"]])
async def test_it_never_ends_a_server_that_follows_files_and_what_changed_meanwhile_counts(
    emulator: Emulator, tmp_path: Path, command: list[str]
) -> None:
    emulator.script.play(default=answer("Hello"))
    keys = str(tmp_path / "keys")
    old, secret = api_keys.new(keys, "old")
    async with starting(emulator, *command, "--api-keys", keys) as server:
        await server.until(server.takes_hang_up)
        assert server.words == ""

        async def pester() -> None:
            while True:
                server.everybody(signal.SIGHUP)
                await asyncio.sleep(0.001)

        pestering = asyncio.ensure_future(pester())
        await server.until(lambda: "listening on" in server.words)
        await asyncio.to_thread(api_keys.revoke, keys, old.id)
        _, other = await asyncio.to_thread(api_keys.new, keys, "new")
        await server.until(lambda: "ready after" in server.words)
        address = server.words.partition("listening on ")[2].partition(";")[0]
        async with AsyncClient(address, token=secret) as before, AsyncClient(address, token=other) as after:
            async with asyncio.timeout(20):
                while not await _is_known(after) or await _is_known(before):  # noqa: ASYNC110 - each worker reads
                    await asyncio.sleep(0.01)
            pestering.cancel()
            assert await _is_known(after)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
        assert "Traceback" not in server.words


async def test_it_ends_any_other_server_also_before_it_is_known_what_it_means(emulator: Emulator) -> None:
    async with starting(emulator, "service") as server:
        await server.until(server.takes_hang_up)
        server.process.send_signal(signal.SIGHUP)
        assert await asyncio.wait_for(server.process.wait(), 30) == 0
        assert server.words == ""


async def _is_known(client: AsyncClient) -> bool:
    try:
        await client.models()
    except NotAllowedError:
        return False
    return True
