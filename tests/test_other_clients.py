"""gRPC's retries as its other clients have them, Node's and C++'s, with the service config beside the contract."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.runtime.server import Server
from service.settings import Settings
from service.testing import FakeProvider
from tests.conftest import Serve
from tests.faults.processes import eventually
from tests.ports import free_port
from tests.service.test_service_config import SAID
from tests.test_readme import README, ROOT, run

pytestmark = pytest.mark.process

NODE = """
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

CPP = r"""
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

// Which event a GenerateResponse holds, from its bytes: an optional varint, then the event's field.
std::string event(grpc::ByteBuffer& message) {
  grpc::Slice slice;
  message.DumpToSingleSlice(&slice);
  const uint8_t* byte = slice.begin();
  if (byte != slice.end() && *byte == (1 << 3)) {
    for (++byte; *byte & 0x80; ++byte) {
    }
    ++byte;
  }
  if (byte == slice.end()) return "nothing";
  switch (*byte >> 3) {
    case 2: return "started";
    case 3: return "text";
    case 8: return "completed";
    default: return "something else";
  }
}

int main(int argc, char** argv) {
  std::ifstream file("protos/tokenwire/v1/service_config.json");
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON({std::istreambuf_iterator<char>(file), {}});
  if (argc > 2) arguments.SetInt("grpc.inhibit_health_checking", 1);
  grpc::GenericStub stub(grpc::CreateCustomChannel(argv[1], grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  grpc::CompletionQueue queue;
  void* tag;
  bool ok;
  auto next = [&] { return queue.Next(&tag, &ok) && ok; };

  auto call = stub.PrepareCall(&context, "/tokenwire.v1.GenerationService/Generate", &queue);
  const std::string prompt = "hello";
  grpc::Slice request(std::string{char(1 << 3 | 2), char(prompt.size())} + prompt);
  call->StartCall(nullptr);
  std::cout << "asked" << std::endl;
  next();
  call->WriteLast(grpc::ByteBuffer(&request, 1), grpc::WriteOptions(), nullptr);
  next();
  grpc::ByteBuffer message;
  for (call->Read(&message, nullptr); next(); call->Read(&message, nullptr)) std::cout << event(message) << std::endl;
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
  if (!status.ok()) std::cout << status.error_code() << " " << status.error_message() << std::endl;
}
"""


Client = Sequence[str | Path]
"""A command, which wants an address."""


@pytest.fixture(scope="module", params=["Node", "C++"])
async def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """A program that asks once, tells each event and how it ended."""
    if request.param == "C++":
        return await cpp(tmp_path_factory.mktemp("cpp"))
    folder = tmp_path_factory.mktemp("node")
    (install,) = re.findall(r"`(npm install [^`]+)`", README)
    await run("sh", "-ec", install, cwd=folder)
    program = folder / "ask.js"
    program.write_text(NODE)
    return "node", program


async def cpp(folder: Path) -> Client:
    source, program = folder / "ask.cc", folder / "ask"
    source.write_text(CPP)
    flags = await run("pkg-config", "--cflags", "--libs", "grpc++", cwd=folder)
    await run("g++", "-std=c++17", str(source), "-o", str(program), *flags.split(), cwd=folder)
    return (program,)


@asynccontextmanager
async def asking(client: Client, address: str, *flags: str) -> AsyncIterator[asyncio.StreamReader]:
    """A client that has just asked; gives what it tells."""
    process = await asyncio.create_subprocess_exec(
        *client, address, *flags, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
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


async def test_a_client_that_is_started_before_the_server_gets_its_answer(client: Client) -> None:
    port = free_port()
    async with asking(client, f"127.0.0.1:{port}") as told:
        await asyncio.sleep(0.3)  # so that its first attempt finds nobody
        server = Server(Settings(port=port))
        await server.start()
        try:
            await server.announce_serving(FakeProvider(SAID))
            assert (await asyncio.wait_for(told.read(), 30)).decode().split() == ["started", "text", "completed"]
        finally:
            await server.stop(0)


async def test_a_call_that_finds_the_server_starting_is_asked_again(
    client: Client, serve: Serve, lines: list[str]
) -> None:
    served = await serve(None)
    # C++ looks at the server's health, and else sends it nothing as long as it starts.
    async with asking(client, served.address, "whatever its health") as told:
        await eventually(lambda: any("reason=STARTING" in line for line in lines))
        await served.server.announce_serving(FakeProvider(SAID))
        assert (await asyncio.wait_for(told.read(), 30)).decode().split() == ["started", "text", "completed"]
