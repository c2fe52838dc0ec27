"""Every ending is typed: OK only behind `completed`, and never anything silent."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from service.generation.events import Event, Finished, Started, Text
from service.generation.events import FinishReason as Reason
from service.testing import FakeProvider
from tests.conftest import Serve, detail, failure
from tests.faults.forkserver import ForkServer
from tests.faults.processes import Caller, ServerChild, ending, engine, fate, outcome
from tests.faults.recorder import record
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator import ControlClient
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2
from vertex_emulator.script import answer, blocked, cut, end, repeat, wait_for

FinishReason = prediction_pb2.Candidate.FinishReason
BlockedReason = prediction_pb2.GenerateContentResponse.PromptFeedback.BlockedReason
OK = (grpc.StatusCode.OK, "")
CUT = (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_CUT")


@dataclass(frozen=True)
class Ended:
    """What a caller is told."""

    messages: list[str]
    """The text of each; the kind of those that have none."""
    code: tuple[grpc.StatusCode, str] = OK
    last_sequence: str = ""
    """Of the error."""
    finish: tuple[str, str] = ("", "")
    """Of `completed`: our finish reason and upstream's own word."""
    exact: bool = False
    """Whether usage is."""


async def endings(served: ServerChild, count: int) -> list[Ended]:
    """How so many calls at once end."""
    async with served.caller() as caller:
        return [told(*one) for one in await asyncio.gather(*(outcome(caller.start()) for _ in range(count)))]


def told(messages: list[pb.GenerateResponse], error: grpc.aio.AioRpcError | None) -> Ended:
    said = [message.text or str(message.WhichOneof("event")) for message in messages]
    if error is not None:
        code = ending(error)
        typed = not code[1].startswith("untyped")
        return Ended(said, code, detail(error, ErrorInfo).metadata.get("last_sequence", "") if typed else "")
    completed = messages[-1].completed if messages else pb.Completed()
    finish = pb.FinishReason.Name(completed.finish_reason), completed.upstream_finish_reason
    return Ended(said, finish=finish, exact=completed.usage.exact)


def assert_each(found: list[Ended], wanted: Ended) -> None:
    record("endings", *(float(one != wanted) for one in found))
    assert found == [wanted] * len(found)


@pytest.mark.parametrize("number", [*(number for number in FinishReason.values() if number), 99])
async def test_each_finish_reason_is_told_with_upstreams_own_word(
    upstream: Emulator, served: ServerChild, number: int
) -> None:
    upstream.script.play(answer("word", finish=number, uses=0))
    known = number in FinishReason.values()
    name = FinishReason.Name(FinishReason.ValueType(number)) if known else str(number)
    ours = name if f"FINISH_REASON_{name}" in pb.FinishReason.keys() else "OTHER"  # noqa: SIM118 - no mapping
    wanted = Ended(["started", "word", "completed"], finish=(f"FINISH_REASON_{ours}", name), exact=True)
    assert_each(await endings(served, 5), wanted)


@pytest.mark.parametrize("number", [*(number for number in BlockedReason.values() if number), 99])
async def test_a_blocked_prompt_is_completed_as_that(upstream: Emulator, served: ServerChild, number: int) -> None:
    upstream.script.play(answer(blocked(number, "why"), uses=0))
    name = BlockedReason.Name(BlockedReason.ValueType(number)) if number in BlockedReason.values() else str(number)
    wanted = Ended(["started", "completed"], finish=("FINISH_REASON_PROMPT_BLOCKED", name), exact=True)
    assert_each(await endings(served, 5), wanted)


@pytest.mark.parametrize("steps", [("one ", "two"), ("one ", "two", end())], ids=["no reason", "ended early"])
async def test_an_answer_without_a_finish_reason_is_cut(
    upstream: Emulator, served: ServerChild, steps: tuple[Any, ...]
) -> None:
    upstream.script.play(answer(*steps, finish=None, uses=0))
    assert_each(await endings(served, 20), Ended(["started", "one ", "two"], CUT, last_sequence="2"))


async def test_an_answer_without_a_single_message_is_cut(upstream: Emulator, served: ServerChild) -> None:
    upstream.script.play(answer(end(), uses=0))
    assert_each(await endings(served, 20), Ended([], CUT))


async def test_a_connection_to_upstream_that_is_reset_is_told_at_once(upstream: Emulator, served: ServerChild) -> None:
    async with served.caller() as caller:
        for number in range(10):
            upstream.script.play(answer("one ", "two", wait_for(f"read {number}"), cut()))
            call = caller.start()
            while (await call.read()).text != "two":
                pass
            begin = time.monotonic()
            upstream.open_gate(f"read {number}")
            messages, error = await fate(call)
            record("upstream reset", 1000 * (time.monotonic() - begin))
            assert messages == []
            assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
            assert detail(error, ErrorInfo).metadata["last_sequence"] == "2"
            assert (await caller.ask())[-1].HasField("completed")


@pytest.mark.usefixtures("budget")
async def test_a_connection_that_is_reset_before_the_first_chunk_is_made_anew(
    upstream: Emulator, served: ServerChild
) -> None:
    upstream.script.play(answer(cut()), answer("word"))
    async with served.caller() as caller:
        messages = await caller.ask()
    assert [message.text for message in messages] == ["", "word", ""]
    assert messages[-1].completed.timing.upstream_attempts == 2


async def test_an_upstream_that_is_killed_is_told_at_once_and_found_again_when_it_is_back(
    forkserver: ForkServer,
) -> None:
    endless = answer(repeat(0, "word ", interval=0.02), user_text="endless", uses=0)
    async with engine() as (first, address), forkserver.serving(address) as served, served.caller() as caller:
        await asyncio.to_thread(play, address, endless)
        calls = [caller.start("endless") for _ in range(10)]
        for call in calls:
            while not (await call.read()).text:
                pass
        begin = time.monotonic()
        first.signal(signal.SIGKILL)

        async def end_of(call: Any) -> float:
            _, error = await fate(call)
            assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
            assert int(detail(error, ErrorInfo).metadata["last_sequence"]) > 0
            return time.monotonic() - begin

        record("upstream killed", *[1000 * one for one in await asyncio.gather(*map(end_of, calls))])
        _, error = await fate(caller.start())
        assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
        await first.process.wait()
        async with engine(int(address.rpartition(":")[2])):
            begin = time.monotonic()
            async with asyncio.timeout(30):
                while not await answers(caller):  # noqa: ASYNC110 - only asking tells
                    await asyncio.sleep(0.1)
            record("upstream back", 1000 * (time.monotonic() - begin))


def play(address: str, *answers: Any) -> None:
    with ControlClient(address) as control:
        control.play(*answers)


async def answers(caller: Caller) -> bool:
    try:
        return (await caller.ask())[-1].HasField("completed")
    except grpc.aio.AioRpcError as error:
        assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")  # noqa: PT017 - until it is back
        return False


class Lingering(FakeProvider):
    """Stays on its stream behind the last event, for longer than there is time."""

    async def _play(self) -> AsyncIterator[Event]:
        async for event in super()._play():
            yield event
        await asyncio.sleep(0.6)


@pytest.mark.parametrize("fields", [{}, {"idle_timeout": {"nanos": 100_000_000}}, {"coalesce": {}}])
async def test_no_error_comes_behind_completed(serve: Serve, fields: dict[str, Any]) -> None:
    finished = Finished(reason=Reason.STOP, upstream_reason="STOP", usage=None)
    served = await serve(Lingering([Started("gemini-2.5-flash"), Text("word"), finished]), default_deadline=0.3)
    assert (await served.ask(**fields))[-1].HasField("completed")
