"""The Control service, through the synchronous client as another process would use it."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc
import grpc.aio
import pytest

from tests.vertex_emulator.conftest import Client
from vertex_emulator import script as s
from vertex_emulator.control.client import ControlClient, request_of
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as pb
from vertex_emulator.script import answer


@pytest.fixture
async def control(emulator: Emulator) -> AsyncIterator[ControlClient]:
    with ControlClient(emulator.address) as client:
        yield client


async def test_it_plays_opens_gates_and_tells_the_calls(client: Client, control: ControlClient) -> None:
    await asyncio.to_thread(control.play, answer("a", s.wait_for("go"), "b"), answer("c"))
    call = client.stream("Who?", timeout=20)
    held = await asyncio.to_thread(control.wait_until, lambda calls: any(one.waiting_for == "go" for one in calls))
    assert (held[0].method, held[0].api_version, held[0].pieces_sent) == ("StreamGenerateContent", "v1", 1)
    assert not held[0].HasField("ending")
    assert 10 < held[0].deadline.ToSeconds() <= 20
    request = request_of(held[0])
    assert isinstance(request, pb.GenerateContentRequest)
    assert request.contents[0].parts[0].text == "Who?"
    assert any(one.key == "user-agent" for one in held[0].metadata)
    assert (await asyncio.to_thread(control.stats)).open_calls == 1
    await asyncio.to_thread(control.open_gate, "go")
    assert [chunk.candidates[0].content.parts[0].text async for chunk in call] == ["a", "b"]
    (ended,) = await asyncio.to_thread(control.calls)
    assert (ended.ending.code, ended.ending.by_caller, ended.pieces_sent) == ("OK", False, 2)
    stats = await asyncio.to_thread(control.stats)
    assert (stats.calls, stats.open_calls, stats.active_generations, stats.generated_tokens) == (1, 0, 0, 0)


async def test_what_it_has_recorded_may_be_large(client: Client, control: ControlClient) -> None:
    for _ in range(3):
        await client.ask("x" * 2_000_000)
    found = await asyncio.to_thread(control.calls)
    assert [len(call.request.value) > 2_000_000 for call in found] == [True] * 3
    assert len(await asyncio.to_thread(control.wait_until, lambda calls: len(calls) == 3)) == 3


async def test_a_cancelled_call_is_told(client: Client, control: ControlClient) -> None:
    await asyncio.to_thread(control.play, answer("a", s.silence()))
    call = client.stream()
    await call.read()
    waiting = asyncio.create_task(
        asyncio.to_thread(control.wait_until, lambda calls: any(one.ending.by_caller for one in calls))
    )
    call.cancel()
    assert (await waiting)[0].ending.code == "CANCELLED"


async def test_a_whole_script_replaces_and_a_reset_forgets(
    emulator: Emulator, client: Client, control: ControlClient
) -> None:
    await asyncio.to_thread(control.play, answer("a"))
    await asyncio.to_thread(control.load, s.Script(answers=[answer("b")]))
    assert (await client.ask()).text == "b"
    await asyncio.to_thread(control.play, answer("c"))
    await asyncio.to_thread(control.reset)
    assert emulator.calls == ()
    assert emulator.script.unplayed == 0


async def test_a_script_that_cannot_be_played_is_refused(control: ControlClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await asyncio.to_thread(control.play, answer(s.delay(-1)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "answers[0].steps[0].delay: -1s is negative"


async def test_waiting_in_vain_ends(control: ControlClient) -> None:
    with pytest.raises(TimeoutError, match=r"not within 0\.2 s"):
        await asyncio.to_thread(partial(control.wait_until, bool, timeout=0.2))
