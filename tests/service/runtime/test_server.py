"""Transport: health, reflection, ports, and going away in good order."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from service.generation.events import Text
from service.runtime.server import SERVICE
from service.settings import SettingError
from service.testing import FakeProvider
from tests.conftest import Serve, Served, detail, failure
from tests.hostile import http2
from tests.service.calls.test_servicer import HELLO, Silent
from tokenwire.v1 import generation_service_pb2 as pb

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING

NO_ERROR = bytes(4)

PINGING_SECONDS = 6  # left to itself, gRPC ends a connection after three pings


async def check(served: Served, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_is_not_serving_until_the_model_is_ready(serve: Serve, service: str) -> None:
    served = await serve(None)
    assert await check(served, service) == NOT_SERVING
    await served.server.announce_serving(FakeProvider(HELLO))
    assert await check(served, service) == SERVING


async def test_draining_tells_watchers_refuses_new_calls_and_lets_running_streams_finish(serve: Serve) -> None:
    model = Gated(HELLO)
    served = await serve(model, drain_delay=1)
    stub: Any = health_pb2_grpc.HealthStub(served.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == SERVING
    running = asyncio.ensure_future(served.ask())
    await model.begun.wait()

    stopping = asyncio.ensure_future(served.server.stop(30))
    assert (await watch.read()).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert not stopping.done()

    model.gate.set()
    assert (await running)[-1].HasField("completed")
    # Whoever watches health does not hold the server up.
    await asyncio.wait_for(stopping, 10)


async def read_on(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_streams_that_outlast_the_grace_are_told_so_and_leave_the_model(serve: Serve) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model, drain_delay=0)
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await call.read()
    await served.server.stop(0.05)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_on(call)
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert detail(caught.value, ErrorInfo).metadata["last_sequence"] == "1"
    await model.left.wait()


@pytest.mark.parametrize("drain_delay", [0, 600])
async def test_a_hurry_ends_a_long_grace_and_a_long_delay(serve: Serve, drain_delay: float) -> None:
    model = Silent(HELLO[:2])
    served = await serve(model, drain_delay=drain_delay)
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await call.read()
    stopping = asyncio.ensure_future(served.server.stop(3600))
    await asyncio.sleep(0)
    served.server.hurry()
    await asyncio.wait_for(stopping, 10)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_on(call)
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await model.left.wait()


@pytest.mark.parametrize("way", ["stop", "hurry", "leave"])
async def test_a_caller_that_never_pauses_hears_a_word_of_ours_or_that_nobody_listens(serve: Serve, way: str) -> None:
    """As the greeter leaves, and as a server stops, in its own time or in a hurry.

    gRPC would cancel what it has received and not handed over.
    """
    served = await serve(FakeProvider(HELLO), drain_delay=0)
    heard: list[tuple[grpc.StatusCode, str]] = []

    async def ask_on(begun: asyncio.Event) -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(served.address, options=own) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                try:
                    await stub.Check(health_pb2.HealthCheckRequest())
                    begun.set()
                except grpc.aio.AioRpcError as error:
                    if "failed to connect" in (error.details() or ""):
                        return
                    heard.append(failure(error))

    events = [asyncio.Event() for _ in range(20)]
    callers = [asyncio.ensure_future(ask_on(event)) for event in events]
    for event in events:
        await event.wait()
    if way == "hurry":
        served.server.hurry()
    await (served.server.leave() if way == "leave" else served.server.stop(10))
    await asyncio.wait_for(asyncio.gather(*callers), 10)
    assert set(heard) <= {(grpc.StatusCode.UNAVAILABLE, "DRAINING")}


async def test_a_caller_whose_call_has_just_ended_is_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be so busy that the next call comes late. gRPC would cancel it if it came in the wrong moment."""
    patient(monkeypatch)
    served = await serve(FakeProvider(HELLO), drain_delay=0)
    await served.ask()
    stopping = asyncio.ensure_future(served.server.stop(10))
    await asyncio.sleep(0.5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await asyncio.wait_for(stopping, 10)


async def test_a_caller_that_has_left_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    patient(monkeypatch)
    served = await serve(FakeProvider(HELLO), drain_delay=0)
    await served.ask()
    await served.channel.close()
    await asyncio.wait_for(served.server.stop(10), 10)


async def test_a_hurry_leaves_the_model_while_calls_are_still_held(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written then nobody wants, and it is billed."""
    patient(monkeypatch)
    model = Silent(HELLO[:2])
    served = await serve(model, drain_delay=0)
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await call.read()
    await check(served)  # a call that has just ended, whose caller may return
    stopping = asyncio.ensure_future(served.server.stop(3600))
    await until(lambda: not served.server._guard._open.is_set())
    served.server.hurry()
    await asyncio.wait_for(model.left.wait(), 10)
    assert not stopping.done()
    await returned(served)
    await asyncio.wait_for(stopping, 10)


async def returned(served: Served) -> None:
    """The caller for whom the server waits."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_who_leaves_before_its_status_is_sent_is_logged_as_gone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    patient(monkeypatch)
    model = Gated(HELLO)
    served = await serve(model, drain_delay=0)
    running = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await model.begun.wait()
    await check(served)
    stopping = asyncio.ensure_future(served.server.stop(3600))
    await until(lambda: not served.server._guard._open.is_set())
    model.gate.set()
    read: Any = await running.read()
    while not read.HasField("completed"):
        read = await running.read()
    running.cancel()
    await until(lambda: any("Generate code=CANCELLED" in line for line in lines))
    assert not stopping.done()
    running = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await returned(served)
    await asyncio.wait_for(stopping, 10)


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_RETURN_SECONDS", "LONGEST_HOLD_SECONDS"):
        monkeypatch.setattr(f"service.calls.guard.{name}", 3600)


@pytest.mark.parametrize("way", ["stop", "hurry"])
async def test_a_server_without_a_thread_to_be_had_stops_all_the_same(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def none(*_: Any) -> None:
        raise RuntimeError("can't start new thread")

    model = Silent(HELLO[:2])
    served = await serve(model, drain_delay=0)
    await check(served)  # a caller that may return
    call = served.stub.Generate(pb.GenerateRequest(prompt="hi"))
    await call.read()
    monkeypatch.setattr("asyncio.to_thread", none)
    stopping = asyncio.ensure_future(served.server.stop(0.05 if way == "stop" else 3600))
    if way == "hurry":
        await until(lambda: not served.server._guard._open.is_set())
        served.server.hurry()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_on(call)
    assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    await asyncio.wait_for(stopping, 10)


async def test_a_call_that_ends_while_others_are_held_ends_once_its_caller_is_told_to_go(serve: Serve) -> None:
    """So that the caller asks another server next."""
    model = Gated(HELLO)
    served = await serve(model, drain_delay=0)
    with http2.Connection(served.address, patience=10) as caller:
        caller.hello().send(http2.call(pb.GenerateRequest(prompt="hi").SerializeToString()))
        await model.begun.wait()
        stopping = asyncio.ensure_future(served.server.stop(10))
        await until(lambda: not served.server._guard._open.is_set())  # calls are held
        model.gate.set()
        frames = await asyncio.to_thread(lambda: list(caller.frames()))
        await stopping
    trailers = next(
        n for n, (kind, flags, *_) in enumerate(frames) if kind == http2.HEADERS and flags & http2.END_STREAM
    )
    assert http2.status_in(frames[trailers][3]) == 0
    assert http2.GOAWAY in [kind for kind, *_ in frames[:trailers]]


async def test_who_watches_the_greeter_or_asks_it_for_its_schema_hears_that_it_leaves(serve: Serve) -> None:
    served = await serve(None)
    health: Any = health_pb2_grpc.HealthStub(served.channel)
    watch = health.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == NOT_SERVING
    schema = reflection_pb2_grpc.ServerReflectionStub(served.channel).ServerReflectionInfo()
    await schema.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await schema.read()
    await asyncio.wait_for(served.server.leave(), 5)
    for call in (watch, schema):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await read_on(call)
        assert failure(caught.value) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")


async def test_a_health_check_is_answered_beside_a_request_that_takes_all_there_is_to_read(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO), max_unfinished_bytes=1)  # one request at a time
    with http2.Connection(served.address, patience=10) as stalled:
        stalled.hello().send(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers()))
        await until(lambda: len(served.server._guard._calls) == 1)
        (waiting,) = served.server._guard._calls
        assert [await check(served) for _ in range(20)] == [SERVING] * 20
        assert not waiting.done(), "the request has to give way"


async def test_a_request_that_comes_during_a_drain_is_not_waited_for(serve: Serve) -> None:
    served = await serve(Gated(HELLO), drain_delay=600)
    stopping = asyncio.ensure_future(served.server.stop(600))
    await asyncio.sleep(0)
    with http2.Connection(served.address, patience=10) as late:
        late.hello().send(http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers()))
        trailers = await asyncio.to_thread(late.until, http2.HEADERS, flags=http2.END_STREAM)
        assert http2.status_in(trailers) == grpc.StatusCode.UNAVAILABLE.value[0]
    served.server.hurry()
    await stopping


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def test_an_old_connection_is_told_to_go_and_its_streams_are_not_cut(serve: Serve) -> None:
    model = Gated(HELLO)
    served = await serve(model, max_connection_age=0.1)
    body = http2.grpc_message(pb.GenerateRequest(prompt="hi").SerializeToString())
    with http2.Connection(served.address, patience=10) as old:
        old.hello().send(
            http2.frame(http2.HEADERS, http2.END_HEADERS, 1, http2.call_headers())
            + http2.frame(http2.DATA, http2.END_STREAM, 1, body)
        )
        await model.begun.wait()
        goaway = await asyncio.to_thread(old.until, http2.GOAWAY)
        assert goaway is not None
        assert goaway[4:8] == NO_ERROR
        await asyncio.sleep(0.5)  # gRPC's clock for those who don't go has begun
        model.gate.set()
        trailers = await asyncio.to_thread(old.until, http2.HEADERS, flags=http2.END_STREAM)
        assert http2.status_in(trailers) == 0
        await asyncio.to_thread(old.until_closed)


@pytest.mark.thorough
async def test_a_caller_that_pings_each_second_is_not_thrown_out(serve: Serve) -> None:
    """Neither without a call nor beside a silent stream."""
    model = Gated(HELLO)
    served = await serve(model, keepalive=1, keepalive_timeout=1)  # and it is pinged as well
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_timeout_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with (
        grpc.aio.insecure_channel(served.address, options=options) as idle,
        grpc.aio.insecure_channel(served.address, options=options) as busy,
    ):
        await asyncio.gather(idle.channel_ready(), busy.channel_ready())
        running = asyncio.ensure_future(Served(served.server, served.address, busy).ask())
        await model.begun.wait()
        left = [
            asyncio.ensure_future(one.wait_for_state_change(grpc.ChannelConnectivity.READY)) for one in (idle, busy)
        ]
        done, _ = await asyncio.wait([*left, running], timeout=PINGING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        assert not done
        for one in left:
            one.cancel()
        model.gate.set()
        assert (await running)[-1].HasField("completed")


async def services(served: Served) -> set[str]:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = [one async for one in stub.ServerReflectionInfo(iter([asked]))]
    return {one.name for one in answer.list_services_response.service}


async def test_reflection_tells_the_services_and_their_schema(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO))
    assert SERVICE in await services(served)
    assert "grpc.health.v1.Health" in await services(served)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)
    (answer,) = [one async for one in stub.ServerReflectionInfo(iter([asked]))]
    files = [FileDescriptorProto.FromString(one) for one in answer.file_descriptor_response.file_descriptor_proto]
    assert "tokenwire/v1/generation_service.proto" in {one.name for one in files}


async def test_reflection_can_be_switched_off(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO), reflection=False)
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(served.channel)
    assert await stub.ServerReflectionInfo().code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_port_in_use_is_told_with_what_to_set(serve: Serve) -> None:
    from service.runtime.server import Server  # noqa: PLC0415 - only here
    from service.settings import Settings  # noqa: PLC0415 - only here

    first = await serve(FakeProvider(HELLO))
    port = int(first.address.rpartition(":")[2])
    with pytest.raises(SettingError, match=rf"cannot listen on 127.0.0.1:{port}.*TOKENWIRE_PORT"):
        await Server(Settings(port=port)).start()


async def test_a_request_far_beyond_the_limit_is_refused_and_the_next_one_served(serve: Serve) -> None:
    served = await serve(FakeProvider(HELLO), max_prompt_bytes=1000, max_inline_bytes=1000)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("x" * 5_000_000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await served.ask())[-1].HasField("completed")


class Gated(FakeProvider):
    """Waits for `gate` before its last event; `begun` is set when it gets there."""

    def __init__(self, events: Any) -> None:
        super().__init__(events)
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()

    async def _play(self) -> Any:
        async for event in super()._play():
            if not isinstance(event, Text) and self.open and event is self.events[-1]:
                self.begun.set()
                await self.gate.wait()
            yield event
