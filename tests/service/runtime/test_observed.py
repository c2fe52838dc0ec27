"""The metrics of a running server, read as Prometheus reads them."""

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.admission import api_keys
from service.errors import UpstreamUnavailable
from service.generation.events import Event, Finished, FinishReason, Started, Text, Usage
from service.providers.retry import Policy, Retrying
from service.runtime.observed import Observed
from service.runtime.server import Server
from service.settings import SettingError, Settings
from service.testing import FakeProvider
from tests.ports import free_port
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

MODEL = "gemini-2.5-flash"
USAGE = Usage(input_tokens=5, output_tokens=7, reasoning_tokens=4, total_tokens=16)
ANSWER: list[Event] = [
    Started(MODEL),
    Text("SECRET answer"),
    Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=USAGE),
]


class Watched:
    """A server whose metrics can be read."""

    def __init__(self, port: int, channel: grpc.aio.Channel) -> None:
        self.port = port
        self.stub: Any = GenerationServiceStub(channel)

    async def text(self) -> str:
        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(read)

    async def values(self, name: str) -> dict[tuple[str, ...], float]:
        """By the values of its labels, where it isn't 0."""
        return {
            tuple(sample.labels.values()): sample.value
            for family in text_string_to_metric_families(await self.text())
            for sample in family.samples
            if sample.name == name and sample.value
        }


Watch = Callable[..., Any]


@pytest.fixture
def watch() -> Watch:
    @asynccontextmanager
    async def watched(model: FakeProvider, **more: Any) -> AsyncIterator[Watched]:
        settings = Settings(port=0, model=MODEL, metrics_port=free_port(), **more)
        observed = Observed.of(settings)
        server = Server(settings, watch=observed.watch)
        port = await server.start()
        async with observed.opened(server.readings):
            retrying = Retrying(model, Policy(base_seconds=0.001), watch=observed.watch)
            await server.announce_serving(retrying)
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Watched(settings.metrics_port, channel)
            await server.stop(0)
        assert observed.listening is not None
        observed.listening.close()

    return watched


async def test_a_call_is_seen_from_outside(watch: Watch) -> None:
    async with watch(FakeProvider(ANSWER)) as server:
        assert not await server.values("tokenwire_messages_total")
        assert len([_ async for _ in server.stub.Generate(pb.GenerateRequest(prompt="hi"))]) == 3
        assert await server.values("tokenwire_messages_total") == {(MODEL,): 3}
        assert await server.values("rpc_server_call_duration_seconds_count") == {
            ("tokenwire.v1.GenerationService/Generate", "OK"): 1
        }
        assert await server.values("tokenwire_upstream_attempts_total") == {(MODEL, "OK"): 1}
        about = ("chat", "gcp.vertex_ai", MODEL, MODEL)
        assert await server.values("gen_ai_client_token_usage_sum") == {(*about, "input"): 5, (*about, "output"): 11}


async def test_attempts_that_fail_are_counted_each(watch: Watch) -> None:
    async with watch(FakeProvider([UpstreamUnavailable("away")])) as server:
        with pytest.raises(grpc.aio.AioRpcError):
            [_ async for _ in server.stub.Generate(pb.GenerateRequest(prompt="hi"))]
        assert await server.values("tokenwire_upstream_attempts_total") == {(MODEL, "UPSTREAM_UNAVAILABLE"): 3}
        assert await server.values("tokenwire_retries_total") == {(MODEL,): 2}
        assert await server.values("tokenwire_errors_total") == {("UPSTREAM_UNAVAILABLE",): 1}


async def test_what_is_open_is_seen_while_it_is(watch: Watch) -> None:
    async with watch(FakeProvider([Started(MODEL), Text("a")], endless=True)) as server:
        call = server.stub.Generate(pb.GenerateRequest(prompt="hi"))
        await call.read()
        await call.read()
        assert await server.values("tokenwire_open_streams") == {(): 1}
        assert await server.values("tokenwire_upstream_attempts_open") == {(): 1}
        call.cancel()
        async with asyncio.timeout(10):
            while await server.values("tokenwire_open_streams"):
                pass
        assert await server.values("tokenwire_cancellations_total") == {("caller",): 1}
        assert not await server.values("tokenwire_orphans")


async def test_callers_of_the_callers_file_have_their_quotas(watch: Watch, tmp_path: Path) -> None:
    keys, callers = tmp_path / "keys", tmp_path / "callers.toml"
    _, key = api_keys.new(str(keys), "billing")
    callers.write_text('[callers.billing]\napi_keys = ["billing"]\ntokens_per_day = 100\n')
    async with watch(FakeProvider(ANSWER), api_keys=str(keys), callers=str(callers)) as server:
        metadata = (("authorization", f"Bearer {key}"),)
        [_ async for _ in server.stub.Generate(pb.GenerateRequest(prompt="hi"), metadata=metadata)]
        with pytest.raises(grpc.aio.AioRpcError):
            [_ async for _ in server.stub.Generate(pb.GenerateRequest(prompt="hi"))]
        assert (await server.values("tokenwire_quota_used"))["billing", "tokens_per_day"] == 16
        assert await server.values("tokenwire_quota_limit") == {("billing", "tokens_per_day"): 100}
        assert await server.values("tokenwire_unauthenticated_total") == {(): 1}
        assert key not in await server.text()


async def test_nothing_of_a_caller_or_a_model_is_in_them(watch: Watch) -> None:
    async with watch(FakeProvider(ANSWER), project="SECRET-project") as server:
        asked = pb.GenerateRequest(prompt="SECRET prompt", request_id="SECRET-id", labels={"secret": "secret"})
        [_ async for _ in server.stub.Generate(asked)]
        with pytest.raises(grpc.aio.AioRpcError):
            [_ async for _ in server.stub.Generate(pb.GenerateRequest(prompt="hi", model="SECRET-model"))]
        text = await server.text()
    assert "SECRET" not in text.upper().replace("TOKENWIRE_SECRET", "")


async def test_a_client_that_says_nothing_holds_the_others_up_for_a_moment_only(watch: Watch) -> None:
    async with watch(FakeProvider(ANSWER)) as server:
        with socket.create_connection(("127.0.0.1", server.port)):
            assert "tokenwire_orphans 0.0" in await server.text()


def test_a_port_that_is_taken_is_told_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError) as caught:
            Observed.of(Settings(metrics_port=port))
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{port}: Address already in use. "
        "Set TOKENWIRE_METRICS_PORT to one that nothing else uses"
    )
