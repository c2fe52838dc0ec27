"""No prompt, answer, instruction, project or credential is told: not in logs, metrics, traces or statuses.

What Envoy logs of calls is looked at in tests/edge/test_command.py.
"""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import httpx
from google.protobuf.wrappers_pb2 import StringValue
from google.rpc.error_details_pb2 import DebugInfo, ErrorInfo, Help, LocalizedMessage, QuotaFailure

from service.admission import api_keys
from tests.collector import collecting
from tests.faults.processes import ServerChild, pieces, server
from tests.ports import free_port
from tokenwire.v1 import content_pb2 as pb
from tokenwire.v1.generation_service_pb2 import GenerateRequest
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, message_bytes, silence, status, text_bytes, thought

CANARIES = {
    "prompt": "canary-robin",
    "answer": "canary-wren",
    "instruction": "canary-finch",
    "project": "canary-heron-1",
    "key": "canary-stork",
    "token": "canary-swan",
}
ALL = " ".join(CANARIES.values())


class Trap:
    """A port that nobody may ever knock at."""

    def __init__(self) -> None:
        self.port = 0
        self.knocked = asyncio.Event()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Trap"]:
        async def knock(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.knocked.set()
            writer.close()

        listening = await asyncio.start_server(knock, "127.0.0.1", 0)
        async with listening:
            self.port = listening.sockets[0].getsockname()[1]
            yield self


def environ(trap: Trap, tmp_path: Path) -> dict[str, str]:
    """What a stray shell profile could hold."""
    key = tmp_path / "key.json"
    key.write_text(f'{{"type": "authorized_user", "refresh_token": "{CANARIES["key"]}"}}')
    tracing = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")
    return {
        **dict.fromkeys(tracing, "true"),
        "LANGCHAIN_HANDLER": "langchain",
        "LANGSMITH_GATEWAY": f"http://127.0.0.1:{trap.port}",
        "LANGSMITH_GATEWAY_API_KEY": CANARIES["key"],
        "LANGSMITH_ENDPOINT": f"http://127.0.0.1:{trap.port}",
        "LANGCHAIN_ENDPOINT": f"http://127.0.0.1:{trap.port}",
        "LANGSMITH_API_KEY": CANARIES["key"],
        "GOOGLE_CLOUD_PROJECT": CANARIES["project"],
        "GOOGLE_APPLICATION_CREDENTIALS": str(key),
    }


ANSWERS = {
    "plain": answer(CANARIES["answer"], thought(CANARIES["answer"])),
    "refused": answer(
        status(
            "INVALID_ARGUMENT",
            ALL,
            ErrorInfo(reason=ALL, domain=ALL, metadata={"consumer": ALL}),
            DebugInfo(stack_entries=[ALL], detail=ALL),
            Help(links=[Help.Link(description=ALL, url=ALL)]),
            LocalizedMessage(locale="en", message=ALL),
            QuotaFailure(violations=[QuotaFailure.Violation(subject=ALL, description=ALL)]),
            StringValue(value=ALL),
            trailing_metadata={"x-canary": ALL},
        )
    ),
    "away": answer(status("UNAVAILABLE", ALL), uses=0, user_text="away"),
    "broken": answer(CANARIES["answer"], status("INTERNAL", ALL)),
    "cut": answer(CANARIES["answer"], finish=None),
    "no message": answer(message_bytes(b"\xff\xff" + ALL.encode())),
    "no text": answer(CANARIES["answer"], text_bytes(b"\xff\xfe" + ALL.encode())),
}


async def ask(served: ServerChild, word: str, token: str = "", timeout: float | None = None, **fields: Any) -> Any:  # noqa: ASYNC109 - the call's
    """How a call ended: its error, or None."""
    async with served.caller() as caller:
        request = GenerateRequest(
            prompt=f"{CANARIES['prompt']} {word}",
            system_instruction=CANARIES["instruction"],
            messages=[
                pb.Message(role=pb.ROLE_USER, parts=[pb.Part(text=CANARIES["prompt"])]),
                pb.Message(role=pb.ROLE_MODEL, parts=[pb.Part(text=CANARIES["answer"])]),
            ],
            **fields,
        )
        metadata = (("authorization", f"Bearer {token or CANARIES['token']}"),)
        try:
            async for _ in caller.stub.Generate(request, timeout=timeout, metadata=metadata):
                pass
        except grpc.aio.AioRpcError as error:
            return error
        return None


async def test_nothing_said_in_confidence_is_told_to_those_who_watch(upstream: Emulator, tmp_path: Path) -> None:
    keys, port = str(tmp_path / "keys"), free_port()
    _, key = api_keys.new(keys, "somebody")
    with collecting() as collector:
        async with (
            Trap().open() as trap,
            server(
                upstream.address,
                *("--log-level", "debug", "--api-keys", keys, "--metrics-port", str(port)),
                module=("tests.faults.leaky",),
                environ={**environ(trap, tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": collector.address},
            ) as leaky,
        ):
            ended = {}
            for word, one in ANSWERS.items():
                upstream.reset()
                upstream.script.play(one)
                ended[word] = await ask(leaky, word, key)
            upstream.reset()
            upstream.script.play(answer(CANARIES["answer"], silence(), uses=0))
            ended["late"] = await ask(leaky, "late", key, timeout=0.3)
            ended["bug"] = await ask(leaky, "bug", key)
            ended["invalid"] = await ask(leaky, "invalid", key, config={"temperature": 3})
            ended["nobody"] = await ask(leaky, "nobody")
            async with leaky.caller() as caller:
                call = caller.stub.Generate(
                    GenerateRequest(prompt=CANARIES["prompt"]), metadata=(("authorization", f"Bearer {key}"),)
                )
                await pieces(call, 1)
                call.cancel()
            await leaky.said("code=CANCELLED")
            async with httpx.AsyncClient(trust_env=False) as client:
                metrics = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
            leaky.signal(signal.SIGTERM)
            assert await asyncio.wait_for(leaky.process.wait(), 30) == 0
            await leaky.said("stopped")
            assert not trap.knocked.is_set(), "prompts would have been sent to LangSmith"
    assert ended.pop("plain") is None
    assert all(ended.values()), ended
    for word, error in ended.items():
        statuses = f"{error} {error.details()} {error.trailing_metadata()} {error.initial_metadata()}"
        assert not told_in(statuses, key), word
    assert not told_in(leaky.words, key), leaky.words
    assert "says something that is not shown" in leaky.words
    assert "builtins.RuntimeError" in leaky.words
    assert "refused=" in leaky.words
    assert 'tokenwire_errors_total{reason="UPSTREAM_REJECTED"} 1.0' in metrics
    assert not told_in(metrics, key), metrics
    assert len(collector.spans) > len(ended)
    for body in collector.bodies:
        assert not told_in(body.decode("latin-1"), key), body


def told_in(words: str, *more: str) -> set[str]:
    return {canary for canary in (*CANARIES.values(), "canary", *more) if canary in words}


async def test_the_trap_is_sprung_when_tracing_is_switched_on(upstream: Emulator, tmp_path: Path) -> None:
    upstream.script.play(answer("word"))
    async with (
        Trap().open() as trap,
        server(upstream.address, environ={**environ(trap, tmp_path), "TOKENWIRE_LANGSMITH": "true"}) as tracing,
    ):
        assert await ask(tracing, "traced") is None
        await asyncio.wait_for(trap.knocked.wait(), 30)
