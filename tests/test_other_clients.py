"""gRPC's retries as another implementation has them: Node's client, with the service config beside the contract."""

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.runtime.server import Server
from service.settings import Settings
from service.testing import FakeProvider
from tests.conftest import Serve
from tests.faults.processes import eventually
from tests.service.test_service_config import SAID
from tests.test_readme import README, ROOT, run

pytestmark = pytest.mark.process

PROGRAM = """
const fs = require("fs");
const grpc = require("@grpc/grpc-js");
const options = { includeDirs: ["protos", "protos/third_party"], enums: String, oneofs: true };
const definition = require("@grpc/proto-loader").loadSync("tokenwire/v1/generation_service.proto", options);
const { GenerationService } = grpc.loadPackageDefinition(definition).tokenwire.v1;
const config = fs.readFileSync("protos/tokenwire/v1/service_config.json", "utf8");
const channel = { "grpc.service_config": config };
const client = new GenerationService(process.argv[2], grpc.credentials.createInsecure(), channel);
const call = client.Generate({ prompt: "hello" }, { deadline: Date.now() + 30_000 });
console.log("asked");
call.on("data", ({ event }) => console.log(event));
call.on("error", ({ code, details }) => console.log(grpc.status[code], details));
call.on("close", () => client.close());
"""


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages that the README names, and the program."""
    folder = tmp_path_factory.mktemp("node")
    (install,) = re.findall(r"`(npm install [^`]+)`", README)
    await run("sh", "-ec", install, cwd=folder)
    (folder / "protos").symlink_to(ROOT / "protos")
    (folder / "ask.js").write_text(PROGRAM)
    return folder


@asynccontextmanager
async def asking(node: Path, address: str) -> AsyncIterator[asyncio.StreamReader]:
    """Node's client, which has just asked; gives what it tells."""
    process = await asyncio.create_subprocess_exec(
        "node", "ask.js", address, cwd=node, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    try:
        assert (await process.stdout.readline()).decode() == "asked\n"
        yield process.stdout
        assert await asyncio.wait_for(process.wait(), 30) == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_a_client_that_is_started_before_the_server_gets_its_answer(node: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with asking(node, f"127.0.0.1:{port}") as told:
        await asyncio.sleep(0.3)  # so that its first attempt finds nobody
        server = Server(Settings(port=port))
        await server.start()
        try:
            await server.announce_serving(FakeProvider(SAID))
            assert (await asyncio.wait_for(told.read(), 30)).decode().split() == ["started", "text", "completed"]
        finally:
            await server.stop(0)


async def test_a_call_that_finds_the_server_starting_is_asked_again(node: Path, serve: Serve, lines: list[str]) -> None:
    served = await serve(None)
    async with asking(node, served.address) as told:
        await eventually(lambda: any("reason=STARTING" in line for line in lines))
        await served.server.announce_serving(FakeProvider(SAID))
        assert (await asyncio.wait_for(told.read(), 30)).decode().split() == ["started", "text", "completed"]
