"""What the emulator records of its callers, and how a test waits for it."""

import asyncio
import gc
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.vertex_emulator.conftest import Client
from vertex_emulator import script as s
from vertex_emulator.call_records import CallLog
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.script import answer


async def test_a_call_is_recorded_from_its_arrival_to_its_end(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", s.wait_for("go"), "b"))
    call = client.stream("Hello", timeout=9)
    await emulator.wait_until(lambda emulator: any(one.waiting_for == "go" for one in emulator.open_calls))
    (record,) = emulator.open_calls
    assert (record.number, record.method, record.api_version) == (1, "StreamGenerateContent", "v1")
    assert isinstance(record.request, pb.GenerateContentRequest)
    assert record.request.contents[0].parts[0].text == "Hello"
    assert record.deadline is not None
    assert 5 < record.deadline <= 9.1
    assert "grpc-python" in str(record.header("user-agent"))
    assert record.header("x-none") is None
    assert (record.open, record.ended, record.code, record.pieces_sent) == (True, None, None, 1)
    emulator.open_gate("go")
    assert len([chunk async for chunk in call]) == 2
    assert emulator.open_calls == ()
    assert (record.code, record.by_caller, record.pieces_sent) == (grpc.StatusCode.OK, False, 2)
    assert record.ended is not None
    assert record.ended > record.started


async def test_a_call_without_a_deadline_has_none(emulator: Emulator, client: Client) -> None:
    await client.ask(timeout=None)
    assert emulator.calls[0].deadline is None


async def test_request_metadata_is_kept_binary_values_too(emulator: Emulator, client: Client) -> None:
    method: Any = client.channel.unary_unary("/google.cloud.aiplatform.v1beta1.PredictionService/CountTokens")
    await method(b"", timeout=30, metadata=(("x-one", "1"), ("x-two-bin", b"\x00\xff")))
    assert emulator.calls[0].header("x-one") == "1"
    assert emulator.calls[0].header("x-two-bin") == b"\x00\xff"
    assert emulator.calls[0].api_version == "v1beta1"


@pytest.mark.parametrize(
    "steps",
    [
        (s.silence(),),
        ("a", s.silence()),
        (s.headers(), s.silence()),
        (s.wait_for("never"),),
        (s.delay(60),),
        (s.repeat(0, "a", interval=0.002),),
        (s.repeat(0, "a" * 10_000),),
    ],
    ids=["before headers", "after a piece", "after headers", "at a gate", "in a delay", "while streaming", "blocked"],
)
async def test_a_cancelled_call_is_recorded_as_ended_by_its_caller(
    emulator: Emulator, client: Client, steps: tuple[s.Step | str, ...]
) -> None:
    emulator.script.play(answer(*steps))
    call = client.stream()
    await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
    if "a" in steps or steps[0].repeat.steps:  # type: ignore[union-attr]  # a string is "a"
        await call.read()
    call.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert (emulator.calls[0].code, emulator.calls[0].by_caller) == (grpc.StatusCode.CANCELLED, True)


async def test_a_cancel_that_meets_a_write_is_a_cancel_too(emulator: Emulator, client: Client) -> None:
    # A few in a hundred of such writes fail with an error of gRPC's own instead of the cancellation.
    emulator.script.play(answer(s.repeat(0, "a" * 10_000), uses=100))
    for _ in range(100):
        call = client.stream()
        await call.read()
        await asyncio.sleep(0.005)
        call.cancel()
        await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert {(call.code, call.by_caller) for call in emulator.calls} == {(grpc.StatusCode.CANCELLED, True)}


async def test_a_caller_that_disconnects_ends_its_calls(emulator: Emulator) -> None:
    emulator.script.play(answer("a", s.silence()))
    channel = grpc.aio.insecure_channel(emulator.address)
    call = Client(channel).stream()
    await call.read()
    await channel.close()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert emulator.calls[0].by_caller


async def test_an_abandoned_call_stays_open(emulator: Emulator, client: Client) -> None:
    # The trap that the records are there to show: https://github.com/grpc/grpc/issues/43462
    emulator.script.play(answer("a", s.wait_for("go"), "b"))

    async def abandon() -> None:
        async for _ in client.stream():
            return

    await abandon()
    gc.collect()
    await emulator.wait_until(lambda emulator: emulator.calls[0].waiting_for == "go")
    assert len(emulator.open_calls) == 1
    emulator.open_gate("go")
    await emulator.wait_until(lambda emulator: not emulator.open_calls)
    assert emulator.calls[0].code is grpc.StatusCode.OK


async def test_many_calls_at_once_are_all_served(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a", s.wait_for("go"), "b", uses=0))
    asks = [asyncio.create_task(client.ask()) for _ in range(300)]
    await emulator.wait_until(lambda emulator: sum(one.waiting_for == "go" for one in emulator.open_calls) == 300)
    emulator.open_gate("go")
    assert {told.text for told in await asyncio.gather(*asks)} == {"ab"}


@pytest.mark.parametrize(
    ("deadline", "code"),
    [
        (0.0, grpc.StatusCode.DEADLINE_EXCEEDED),
        (60.0, grpc.StatusCode.CANCELLED),
        (None, grpc.StatusCode.CANCELLED),
    ],
)
def test_a_call_that_its_caller_ends_is_late_only_behind_its_deadline(
    deadline: float | None, code: grpc.StatusCode
) -> None:
    log = CallLog(keep=1)
    call = log.begin("GenerateContent", "v1", None, (), deadline)
    log.end_early(call)
    assert (call.code, call.by_caller) == (code, True)


async def test_waiting_in_vain_tells_the_calls(emulator: Emulator, client: Client) -> None:
    await client.ask("Where am I?")
    with pytest.raises(TimeoutError, match=r"(?s)not within 0\.05 s; the calls are .*Where am I"):
        await emulator.wait_until(lambda emulator: len(emulator.calls) == 2, timeout=0.05)


async def test_a_reset_forgets_what_has_ended(emulator: Emulator, client: Client) -> None:
    emulator.script.play(answer("a"), answer(s.silence()), answer("b"))
    await client.ask()
    call = client.stream()
    await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 1)
    emulator.reset()
    assert [one.number for one in emulator.calls] == [2]
    assert emulator.script.unplayed == 0
    call.cancel()
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


async def test_only_so_many_records_are_kept() -> None:
    async with Emulator(keep_calls=3) as emulator, grpc.aio.insecure_channel(emulator.address) as channel:
        for _ in range(5):
            await Client(channel).count_tokens()
        assert [call.number for call in emulator.calls] == [3, 4, 5]


async def test_stopping_ends_open_calls_with_unavailable() -> None:
    async with Emulator() as emulator:
        emulator.script.play(answer("a", s.silence()))
        channel = grpc.aio.insecure_channel(emulator.address)
        call = Client(channel).stream()
        await call.read()
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert (emulator.calls[0].code, emulator.calls[0].by_caller) == (grpc.StatusCode.UNAVAILABLE, False)
    await channel.close()


async def test_a_port_in_use_is_an_error(emulator: Emulator) -> None:
    for relay in (False, True):
        with pytest.raises(OSError, match=f"can't listen on 127.0.0.1:{emulator.port}: Address already in use"):
            await Emulator(port=emulator.port, relay=relay).start()
