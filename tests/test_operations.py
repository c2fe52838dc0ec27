"""docs/operations.md's walk through all of it runs as it stands, but for its ports."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ports import free_port
from tests.test_readme import README, ROOT, run

pytestmark = pytest.mark.process

PAGE = (ROOT / "docs" / "operations.md").read_text()
(WALK,) = re.findall(r"^## Try all of it on this machine\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
FILES, EMULATOR, SERVE, ASK, GRPCURL = re.findall(r"^```bash\n(.*?)^```", WALK, re.DOTALL | re.MULTILINE)
ISSUER, CLIENT = re.findall(r"^```python\n(.*?)^```", WALK, re.DOTALL | re.MULTILINE)
(NODE,) = re.findall(r"^```js\n(.*?)^```", WALK, re.DOTALL | re.MULTILINE)
SAID = "Baseball is a game."


@dataclass(frozen=True)
class Walk:
    """What runs, in a reader's folder."""

    folder: Path
    at: Callable[[str], str]
    """An example, with ports that are free here."""
    log: Path
    """Of the server."""

    async def shell(self, example: str) -> str:
        """What it says."""
        return await run("bash", "-ec", _on_this_path(self.at(example)), cwd=self.folder)

    async def said(self, words: str) -> None:
        async with asyncio.timeout(60):
            while words not in self.log.read_text():  # noqa: ASYNC110 - another process's doing
                await asyncio.sleep(0.05)


def _on_this_path(example: str) -> str:
    return f"export PATH={Path(sys.executable).parent}:$PATH\n{example}"


@asynccontextmanager
async def _running(command: str, folder: Path, log: Path) -> AsyncIterator[None]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TOKENWIRE_")}
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-ec", _on_this_path(f"exec {command.strip()}")),
            cwd=folder,
            env=environ,
            stderr=file,
            stdout=file,
        )
    try:
        yield
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.fixture
async def walk(tmp_path: Path) -> AsyncIterator[Walk]:
    ports = {port: str(free_port()) for port in ("50051", "8087", "9464")}

    def at(example: str) -> str:
        return re.sub("|".join(ports), lambda found: ports[found[0]], example)

    found = Walk(tmp_path, at, tmp_path / "server.log")
    async with AsyncExitStack() as stack:
        await found.shell(FILES)
        (tmp_path / "issuer.py").write_text(ISSUER)
        await run(sys.executable, "issuer.py", cwd=tmp_path)
        await stack.enter_async_context(_running(at(EMULATOR), tmp_path, tmp_path / "emulator.log"))
        await stack.enter_async_context(_running(at(SERVE), tmp_path, found.log))
        await found.said("ready after")
        yield found


async def test_the_walk_through_all_of_it_runs_as_it_stands(walk: Walk) -> None:
    told = await walk.shell(ASK)
    assert told.count(SAID) == 2
    assert "nobody gets in" in told
    assert "does not know you" in told
    assert re.search(r'^tokenwire_quota_used{caller="billing",quota="requests_per_minute"} [01]', told, re.MULTILINE)
    assert re.search(r"^tokenwire_certificate_expiry_time_seconds [0-9.e+]+$", told, re.MULTILINE)
    (walk.folder / "example.py").write_text(walk.at(CLIENT))
    assert await run(sys.executable, "example.py", cwd=walk.folder) == SAID
    assert await by_grpcurl(walk) == SAID
    log = walk.log.read_text()
    assert '"level": "warning"' not in log
    assert '"caller": "billing"' in log
    assert '"caller": "search"' in log


async def by_grpcurl(walk: Walk) -> str:
    """As buf curl sends it: grpcurl itself comes from no package index, and takes the same body, header and path."""
    found = re.fullmatch(r"grpcurl -cacert (\S+) -H \"(.+?)\" -d '(.+)' \\\n +(\S+) (\S+)\n", walk.at(GRPCURL))
    assert found is not None
    ca, header, body, address, method = found.groups()
    command = f'buf curl --cacert {ca} --protocol grpc -H "{header}" --reflect-header "{header}" -d \'{body}\''
    told = await walk.shell(f"{command} https://{address}/{method}")
    chunks: list[dict[str, Any]] = []
    decoder = json.JSONDecoder()
    while told.strip():
        chunk, end = decoder.raw_decode(told.lstrip())
        chunks.append(chunk)
        told = told.lstrip()[end:]
    return "".join(chunk.get("text", "") for chunk in chunks)


async def test_node_is_answered_and_reads_when_to_come_again(walk: Walk) -> None:
    (install,) = re.findall(r"`(npm install [^`]+)`", WALK)
    assert install in README
    await run("sh", "-ec", install, cwd=walk.folder)
    (walk.folder / "protos").symlink_to(ROOT / "protos")
    (walk.folder / "example.js").write_text(walk.at(NODE))
    assert await run("node", "example.js", cwd=walk.folder) == SAID
    callers = walk.folder / "callers.toml"
    callers.write_text(callers.read_text().replace("requests_per_minute = 100", "requests_per_minute = 0"))
    async with asyncio.timeout(60):
        while (told := await run("node", "example.js", cwd=walk.folder)) == SAID:  # noqa: ASYNC110 - read by and by
            await asyncio.sleep(0.1)
    found = re.fullmatch(r"RESOURCE_EXHAUSTED .+; again in (\d+) s (\d+)\n", told)
    assert found is not None, told
    assert 0 < int(found[2]) <= int(found[1]) * 1000 <= 60_000
