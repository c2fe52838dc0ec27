"""The service config beside the contract: gRPC's own clients retry what may be retried, when the server says so."""

import asyncio
import json
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from service.errors import UpstreamQuota
from service.generation.events import Event, Finished, FinishReason, Started, Text
from service.runtime.server import Server
from service.settings import Settings
from service.testing import FakeProvider
from tests.conftest import Serve, detail, failure
from tests.ports import free_port
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub

CONFIG = Path(__file__).parents[2] / "protos/tokenwire/v1/service_config.json"
SAID: list[Event | BaseException] = [
    Started("m"),
    Text("a"),
    Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None),
]
HELLO = pb.GenerateRequest(prompt="hello")


def channel(address: str) -> grpc.aio.Channel:
    options = [("grpc.service_config", CONFIG.read_text()), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(address, options=options)


async def kinds(address: str) -> list[str | None]:
    async with channel(address) as opened:
        answer = GenerationServiceStub(opened).Generate(HELLO, timeout=30)
        return [message.WhichOneof("event") async for message in answer]


def test_its_names_are_those_of_the_contract() -> None:
    config = json.loads(CONFIG.read_text())
    name = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name
    assert config["healthCheckConfig"]["serviceName"] == name
    assert [one["service"] for method in config["methodConfig"] for one in method["name"]] == [name]


async def test_a_client_that_is_started_before_the_server_gets_its_answer() -> None:
    port = free_port()
    asking = asyncio.ensure_future(kinds(f"127.0.0.1:{port}"))
    await asyncio.sleep(0.3)  # so that its first attempt finds nobody
    server = Server(Settings(port=port))
    await server.start()
    try:
        await server.announce_serving(FakeProvider(SAID))
        assert (await asking)[-1] == "completed"
    finally:
        await server.stop(0)


def pushback(error: grpc.aio.AioRpcError) -> int:
    """In milliseconds: the same as RetryInfo, which it stands beside for gRPC's own retries."""
    metadata = error.trailing_metadata()
    assert metadata is not None
    told = int(str(metadata["grpc-retry-pushback-ms"]))
    assert told == detail(error, RetryInfo).retry_delay.ToMilliseconds()
    return told


async def test_a_call_that_finds_the_server_draining_is_told_when_to_ask_again(serve: Serve) -> None:
    served = await serve(FakeProvider(SAID), drain_delay=1)
    await served.ask("hello")
    stopping = asyncio.ensure_future(served.server.stop(30))
    await asyncio.sleep(0)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("hello")
    assert failure(caught.value)[1] == "DRAINING"
    assert pushback(caught.value) > 0
    await stopping


@pytest.mark.parametrize(("told", "milliseconds"), [(None, 5000), (0.3, 300), (37.0, 37_000)])
async def test_a_call_that_meets_a_quota_is_told_when_to_ask_again(
    serve: Serve, told: float | None, milliseconds: int
) -> None:
    served = await serve(FakeProvider([UpstreamQuota("The quota is used up", retry_after=told)]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("hello")
    assert failure(caught.value)[1] == "UPSTREAM_QUOTA"
    assert pushback(caught.value) == milliseconds


async def test_a_call_that_finds_the_server_starting_is_asked_again(serve: Serve) -> None:
    served = await serve(None)
    asking = asyncio.ensure_future(kinds(served.address))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("hello")
    assert failure(caught.value)[1] == "STARTING"
    assert pushback(caught.value) > 0
    await asyncio.sleep(0.3)
    await served.server.announce_serving(FakeProvider(SAID))
    assert (await asking)[-1] == "completed"
