"""No variable that a provider's library reads changes what is asked, or fails a call: the server's settings say all."""

import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.providers import registry
from service.providers.offers import offers
from tests.faults.processes import server
from tests.providers.conftest import LINES
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

LIBRARIES = ("google", "grpc", "httpcore", "httpx", "httpx2", "langchain", "langsmith", "openai", "vertexai")

READS = re.compile(r"environ|getenv|from_env|env_var|_ENV\b")
NAME = re.compile(r"""["']([A-Z][A-Z0-9]*_[A-Z0-9_]+)["']""")

# How connections are made is the environment's to say, and so is how much is written to stderr.
OF_CONNECTIONS = re.compile(
    r"SSL_CERT_(FILE|DIR)|SSLKEYLOGFILE|.*_PROXY|GRPC_.*|.*CERTIFICATE.*|.*_LOG(GING)?(_.*)?|.*MTLS.*"
)

KEYS = {"OPENAI_API_KEY": "k", "AZURE_OPENAI_API_KEY": "k"}

# What the server itself reads, and says so.
OWN = {*KEYS, "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "OPENAI_API_VERSION", "AZURE_OPENAI_ENDPOINT"}


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    async with Emulator(rest_port=0) as running:
        yield running


def read_by_libraries() -> set[str]:
    """The names of variables that the modules of providers' libraries read, as far as they are loaded."""
    registry.imported([offer for line in LINES.values() for offer in offers(line.format(rest="h"))])
    found: set[str] = set()
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and path.endswith(".py") and name.partition(".")[0].partition("_")[0] in LIBRARIES:
            for line in Path(path).read_text().splitlines():
                if READS.search(line):
                    found.update(NAME.findall(line))
    return found


async def asked(emulator: Emulator, **environ: str) -> list[Any]:
    """What reaches upstream of the same request to each provider, and what comes back."""
    emulator.reset()
    emulator.script.play(default=answer("Base", "ball."))
    rest = str(emulator.rest_address)
    lines = [f"{name}={LINES[name].format(rest=rest).partition('=')[2]}" for name in LINES]
    environ |= {"VERTEX_EMULATOR_REST_HOST": rest, **KEYS}
    said = []
    async with (
        server(emulator.address, "--models", ",".join(lines), environ=environ) as served,
        served.caller() as caller,
    ):
        for name in LINES:
            messages = await caller.ask("hi", model=name, config={"temperature": 0.5, "max_output_tokens": 7})
            text = "".join(message.text for message in messages)
            said.append((name, text, pb.FinishReason.Name(messages[-1].completed.finish_reason)))
    bodies = [
        (call.transport, call.request.SerializeToString() if call.request else b"", call.body)
        for call in emulator.calls
    ]
    heads = [call.header("authorization") for call in emulator.calls]
    return [said, bodies, heads]


@pytest.mark.process
async def test_what_a_library_reads_changes_nothing(emulator: Emulator) -> None:
    names = {name for name in read_by_libraries() - OWN if not OF_CONNECTIONS.fullmatch(name)}
    assert {"OPENAI_BASE_URL", "OPENAI_ORG_ID", "GOOGLE_API_KEY"} <= names
    clean = await asked(emulator)
    for value in ("1", "poison"):
        assert await asked(emulator, **dict.fromkeys(sorted(names - os.environ.keys()), value)) == clean, value
