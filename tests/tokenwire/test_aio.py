"""The client for asyncio on a real socket: what is its own. What it shares with the blocking one is in test_client."""

import asyncio
import inspect
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.hostile.http2 import ACK, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, settings
from tests.tokenwire.fake_service import MODELS, UNFINISHED, FakeService, Refusal, completed, thought
from tokenwire import (
    Answer,
    AsyncAnswer,
    AsyncClient,
    BusyError,
    CallCancelledError,
    Client,
    DeadlineError,
    IncompleteError,
    InvalidRequestError,
    ServiceError,
    TokenwireError,
    UnavailableError,
    UnfinishedError,
    model,
    user,
)
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import GenerationConfig

CANCEL = 8
"""HTTP/2's code for a stream that isn't needed any more."""


@pytest.fixture
async def client(service: FakeService) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(service.address) as client:
        yield client


async def happens(event: threading.Event) -> bool:
    return await asyncio.to_thread(event.wait, 10)


async def idle(service: FakeService) -> None:
    """Wait until no call runs."""
    async with asyncio.timeout(10):
        while service.running:  # noqa: ASYNC110 - it runs in threads
            await asyncio.sleep(0.005)


# ---- as the blocking one


@pytest.mark.parametrize(("one", "other"), [(Client, AsyncClient), (Answer, AsyncAnswer)])
def test_both_clients_have_the_same_names_parameters_and_docstrings(one: type, other: type) -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert public(one) == public(other)
    for name in public(one):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert inspect.getdoc(ours)
        assert inspect.getdoc(ours) == inspect.getdoc(theirs), name
        if callable(ours):
            assert inspect.signature(ours).parameters == inspect.signature(theirs).parameters, name


async def test_the_request_carries_what_was_asked(client: AsyncClient, service: FakeService) -> None:
    history = [user("What is baseball?"), model("A game.")]
    async with client.generate("And cricket?", messages=history, config={"temperature": 0.0}, timeout=60) as answer:
        assert [piece async for piece in answer.text()] == ["Hello", " there."]
    (request,), (deadline,) = service.requests, service.deadlines
    config = GenerationConfig(temperature=0.0)
    assert request == pb.GenerateRequest(prompt="And cricket?", messages=history, config=config)
    assert deadline is not None
    assert 30 < deadline < 61


async def test_events_come_in_order_and_completed_is_the_last(client: AsyncClient, service: FakeService) -> None:
    service.will_answer("Base", thought("Hm."), "ball.", completed())
    async with client.generate("x") as answer:
        events = [message.WhichOneof("event") async for message in answer]
    assert events == ["started", "text", "reasoning", "text", "completed"]
    assert (answer.pieces, answer.completed.usage.output_tokens) == (2, 7)
    assert [part.WhichOneof("data") for part in answer.message.parts] == ["text", "reasoning", "text"]


async def test_the_first_piece_is_handed_out_before_the_second_is_made(
    client: AsyncClient, service: FakeService
) -> None:
    gate = threading.Event()
    service.will_answer("first", gate, "second", completed())
    async with client.generate("x") as answer:
        text = answer.text()
        assert await anext(text) == "first"
        gate.set()
        assert [piece async for piece in text] == ["second"]


@pytest.mark.parametrize(("reason", "error"), UNFINISHED.items(), ids=str)
async def test_text_raises_for_every_finish_reason_but_stop(
    client: AsyncClient, service: FakeService, reason: pb.FinishReason.ValueType, error: type[UnfinishedError]
) -> None:
    service.will_answer("Base", "ball", completed(reason))
    async with client.generate("x") as answer:
        text = answer.text()
        assert [await anext(text), await anext(text)] == ["Base", "ball"]
        with pytest.raises(UnfinishedError) as caught:
            await anext(text)
    assert type(caught.value) is error
    assert caught.value.text == "Baseball"
    with pytest.raises(error):
        answer.raise_for_finish()


async def test_without_the_check_text_ends_quietly(client: AsyncClient, service: FakeService) -> None:
    service.will_answer("Base", completed(pb.FINISH_REASON_MAX_TOKENS))
    async with client.generate("x") as answer:
        assert [piece async for piece in answer.text(check=False)] == ["Base"]
    assert answer.completed.finish_reason == pb.FINISH_REASON_MAX_TOKENS


BROKEN = [
    (("a", "b"), IncompleteError, "NO_COMPLETED"),
    (("a", completed(), "b"), IncompleteError, "SEQUENCE_GAP"),
    (("a", pb.GenerateResponse(sequence=7, text="b"), completed()), IncompleteError, "SEQUENCE_GAP"),
    (("a", completed(), Refusal(grpc.StatusCode.INTERNAL, "INTERNAL")), ServiceError, "INTERNAL"),
    (("a", Refusal(grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT")), IncompleteError, "UPSTREAM_CUT"),
    (("a", Refusal(grpc.StatusCode.CANCELLED)), UnavailableError, "CALL_DROPPED"),
    ((Refusal(grpc.StatusCode.CANCELLED),), UnavailableError, "CALL_DROPPED"),
    ((Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY"),), BusyError, "SERVER_BUSY"),
]


@pytest.mark.parametrize(("script", "error", "reason"), BROKEN)
async def test_what_breaks_off_raises_as_with_the_blocking_client(
    client: AsyncClient, service: FakeService, script: tuple[str, ...], error: type[TokenwireError], reason: str
) -> None:
    service.will_answer(*script)
    with pytest.raises(TokenwireError) as caught:
        async with client.generate("x") as answer:
            _ = [piece async for piece in answer.text()]
    service.will_answer(*script)
    with pytest.raises(TokenwireError) as wanted, Client(service.address) as blocking:
        list(blocking.generate("x").text())
    assert (type(caught.value), caught.value.reason) == (error, reason)
    assert vars(caught.value) == vars(wanted.value)
    with pytest.raises(IncompleteError):
        _ = answer.completed


async def test_the_deadline_is_told_in_words(client: AsyncClient, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    with pytest.raises(DeadlineError, match=r"not complete within 0.2 s"):
        async with client.generate("x", timeout=0.2) as answer:
            _ = [message async for message in answer]


async def test_a_service_that_is_not_running_fails_at_once(nobody: str) -> None:
    async with AsyncClient(nobody) as client:
        with pytest.raises(UnavailableError, match="not running"):
            await client.models()


async def test_models_and_tokens(client: AsyncClient, service: FakeService) -> None:
    assert await client.models() == list(MODELS)
    assert await client.count_tokens("x", model="fake-2") == 42
    assert service.counted == [pb.CountTokensRequest(prompt="x", model="fake-2")]
    service.refuses_to_count = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "EMPTY_PROMPT")
    with pytest.raises(InvalidRequestError, match="no question"):
        await client.count_tokens()


async def test_what_is_no_message_is_the_services_failure() -> None:
    """grpc.aio hands out None for it."""

    async def stream(_: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        await context.write(b"\xff\xff")
        await asyncio.Event().wait()

    async def one(_: bytes, __: object) -> bytes:
        return b"\xff\xff"

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Generate": grpc.unary_stream_rpc_method_handler(stream),
        "ListModels": grpc.unary_unary_rpc_method_handler(one),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("tokenwire.v1.GenerationService", handlers)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with AsyncClient(address) as client:
        with pytest.raises(ServiceError):
            await anext(aiter(client.generate("x")))
        with pytest.raises(ServiceError):
            await client.models()
    await server.stop(0)


async def test_a_stream_that_is_reset_as_cancelled_is_a_service_going_away() -> None:
    """As gRPC's own core leaves it (https://github.com/grpc/grpc/issues/41785): without any status of ours."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PREFACE))
        writer.write(settings())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind == SETTINGS and not flags & ACK:
                    writer.write(frame(SETTINGS, ACK, 0))
                if kind == HEADERS:
                    writer.write(frame(RST_STREAM, 0, stream, CANCEL.to_bytes(4, "big")))
        writer.close()

    def ask(address: str) -> None:
        with Client(address) as client:
            list(client.generate("x"))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        with pytest.raises(UnavailableError, match="dropped the call") as told:
            await asyncio.to_thread(ask, address)
        async with AsyncClient(address) as client:
            with pytest.raises(UnavailableError, match="dropped the call"):
                await anext(aiter(client.generate("x")))
            with pytest.raises(UnavailableError, match="dropped the call"):
                await client.models()
    assert told.value.code is grpc.StatusCode.CANCELLED


# ---- cancelling


@pytest.mark.parametrize("pieces", [(), ("first",)])
async def test_leaving_the_block_cancels_the_call(
    client: AsyncClient, service: FakeService, pieces: tuple[str, ...]
) -> None:
    service.will_answer(*pieces, threading.Event())
    async with client.generate("x") as answer:
        for wanted in pieces:
            assert await anext(answer.text()) == wanted
        assert await happens(service.arrived)
        assert not service.cancelled.is_set()
    assert await happens(service.cancelled)


async def test_a_break_out_of_the_loop_cancels_with_the_block(client: AsyncClient, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    async with client.generate("x") as answer:
        async for _ in answer.text():
            break
    assert await happens(service.cancelled)


async def test_an_exception_in_the_block_cancels_the_call(client: AsyncClient, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    with pytest.raises(ZeroDivisionError):
        async with client.generate("x") as answer:
            _ = [1 / 0 async for _ in answer.text()]
    assert await happens(service.cancelled)


async def test_a_timeout_of_asyncio_cancels_the_call(client: AsyncClient, service: FakeService) -> None:
    service.will_answer("first", threading.Event())
    with pytest.raises(TimeoutError):
        async with client.generate("x") as answer, asyncio.timeout(0.2):
            _ = [piece async for piece in answer.text()]
    assert await happens(service.cancelled)


async def test_a_task_that_is_cancelled_at_any_moment_is_cancelled_and_leaves_no_call(
    client: AsyncClient, service: FakeService
) -> None:
    async def read() -> None:
        async with client.generate("x") as answer:
            _ = [piece async for piece in answer.text()]

    await client.models()  # connected
    for _ in range(80):  # a call that is cancelled before its handler begins takes its script late, or never
        service.will_answer("first", threading.Event())
    for moment in range(40):
        task = asyncio.create_task(read())
        for _ in range(moment):
            await asyncio.sleep(0.0005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await idle(service)


async def test_another_task_may_cancel_while_the_reader_waits(client: AsyncClient, service: FakeService) -> None:
    """The reader's own task has not been cancelled, so it must not look as if it had."""
    service.will_answer("first", threading.Event())
    async with client.generate("x") as answer:
        text = answer.text()
        assert await anext(text) == "first"
        reading = asyncio.ensure_future(anext(text))
        await asyncio.sleep(0)
        answer.cancel()
        with pytest.raises(CallCancelledError, match="cut after 1 piece") as caught:
            await reading
    assert caught.value.text == "first"
    assert await happens(service.cancelled)


async def test_cancelling_after_the_end_changes_nothing(client: AsyncClient) -> None:
    async with client.generate("x") as answer:
        _ = [message async for message in answer]
        answer.cancel()
    assert answer.completed.finish_reason == pb.FINISH_REASON_STOP


async def test_closing_the_client_ends_its_calls(service: FakeService) -> None:
    service.will_answer(threading.Event())
    async with AsyncClient(service.address) as client:
        answer = client.generate("x")
        reading = asyncio.ensure_future(anext(answer.text()))
        assert await happens(service.arrived)
    with pytest.raises(CallCancelledError):
        await reading
    assert await happens(service.cancelled)
    for call in (client.models, client.count_tokens):
        with pytest.raises(RuntimeError, match="closed"):
            await call()
    with pytest.raises(RuntimeError, match="closed"):
        client.generate("x")


async def test_a_borrowed_channel_is_left_open_until_its_owner_closes_it(service: FakeService) -> None:
    async with grpc.aio.insecure_channel(service.address) as channel:
        for _ in range(2):
            async with AsyncClient(channel=channel) as client:
                assert await client.models()
        service.will_answer("first", threading.Event())
        text = AsyncClient(channel=channel).generate("x").text()
        assert await anext(text) == "first"
    with pytest.raises(CallCancelledError):
        await anext(text)


# ---- event loops


def test_a_client_may_be_made_before_there_is_an_event_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AsyncClient("localhost:1").generate("x")


async def test_another_event_loop_is_refused_in_words(client: AsyncClient) -> None:
    await client.models()
    with pytest.raises(RuntimeError, match="another event loop"):
        await asyncio.to_thread(asyncio.run, client.models())


ON_A_LOOP = """
import asyncio, sys
import uvloop
from tokenwire import AsyncClient

client = AsyncClient(sys.argv[1])

async def main():
    async with client:
        async with client.generate("x") as answer:
            async for piece in answer.text():
                print(type(asyncio.get_running_loop()).__module__, piece)
                break
        async with client.generate("x") as answer:
            print("".join([piece async for piece in answer.text()]))

with asyncio.Runner(loop_factory={"uvloop": uvloop.new_event_loop, "asyncio": None}[sys.argv[2]]) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_it_reads_and_cancels_on_both_event_loops(service: FakeService, tmp_path: Path, loop: str) -> None:
    service.will_answer("first", threading.Event())
    (tmp_path / "read.py").write_text(ON_A_LOOP)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", str(tmp_path / "read.py"), service.address, loop),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()
    assert await happens(service.cancelled)
    first, second = told.decode().splitlines()
    assert first.startswith(loop)
    assert first.endswith(" first")
    assert second == "Hello there."
