"""Callers without a proof are refused at once: in the same words as ever, and with a bounded number of lines."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from service.admission import api_keys
from service.calls import refusals
from service.calls.refusals import Refusals
from service.testing import FakeProvider
from tests.conftest import Serve, Served
from tests.service.calls.test_servicer import HELLO
from tokenwire.v1 import generation_service_pb2 as pb

SHOWN: dict[str, list[tuple[str, str]]] = {
    "no token": [],
    "unknown key": [("authorization", "Bearer tw_unknown")],
    "several tokens": [("authorization", "Bearer a"), ("authorization", "Bearer b")],
}


@pytest.fixture
def keys(tmp_path: Path) -> str:
    path = str(tmp_path / "keys")
    api_keys.new(path, "app")
    return path


async def refused(served: Served, *metadata: tuple[str, str]) -> Any:
    """All that a caller sees of it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [one async for one in served.stub.Generate(pb.GenerateRequest(prompt="hi"), metadata=metadata)]
    error = caught.value
    return error.code(), error.details(), [tuple(one) for one in error.trailing_metadata() or ()]


async def test_it_looks_to_callers_as_it_does_where_the_server_has_more_to_do(
    serve: Serve, keys: str, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    served = await serve(FakeProvider(HELLO), api_keys=keys)
    at_once = [await refused(served, *metadata) for metadata in SHOWN.values()]
    monkeypatch.setattr(Refusals, "proof", lambda *_: None)
    assert [await refused(served, *metadata) for metadata in SHOWN.values()] == at_once
    assert len({str(one) for one in at_once}) == 1
    assert at_once[0][0] is grpc.StatusCode.UNAUTHENTICATED
    assert sum(" peer=127.0.0.1 " in line for line in lines) == 2 * len(SHOWN)


async def test_the_log_has_a_line_for_so_many_and_then_one_for_all(
    serve: Serve, keys: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MOST_LINES", 5)
    monkeypatch.setattr(refusals, "PERIOD_SECONDS", 3600)
    served = await serve(FakeProvider(HELLO), api_keys=keys)
    calls = [served.stub.ListModels(pb.ListModelsRequest(), metadata=SHOWN["unknown key"]) for _ in range(20)]
    ended = await asyncio.gather(*calls, return_exceptions=True)
    assert {one.code() for one in ended if isinstance(one, grpc.aio.AioRpcError)} == {grpc.StatusCode.UNAUTHENTICATED}
    assert len(ended) == 20
    await refused(served)
    told = [line for line in lines if "UNAUTHENTICATED" in line]
    assert len(told) == 5
    assert (
        "ListModels code=UNAUTHENTICATED seconds=0.000 refused='unknown key' peer=127.0.0.1 reason=UNAUTHENTICATED"
        in told[0]
    )
    assert not [line for line in lines if "more calls were refused" in line]
    # A server that stops tells of those that it hasn't told of.
    await served.server.stop(0)
    assert [line for line in lines if "more calls" in line] == [
        "16 more calls were refused: 15 x unknown key, 1 x no token"
    ]


async def test_a_period_that_ends_is_told_and_another_one_begins(
    serve: Serve, keys: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "MOST_LINES", 1)
    monkeypatch.setattr(refusals, "PERIOD_SECONDS", 0.05)
    served = await serve(FakeProvider(HELLO), api_keys=keys)

    async def until_told(times: int) -> None:
        async with asyncio.timeout(20):
            while sum("more calls were refused: " in line for line in lines) < times:
                await refused(served)

    await until_told(1)
    await until_told(2)
    ones = sum("refused='no token'" in line for line in lines)
    assert ones >= 2  # one in each period


async def test_a_flood_of_them_at_a_stop_is_refused_in_words_to_the_last(serve: Serve, keys: str) -> None:
    served = await serve(FakeProvider(HELLO), api_keys=keys)
    ended: list[tuple[grpc.StatusCode, bool]] = []

    async def caller() -> None:
        while len(ended) < 5_000:
            try:
                await served.stub.ListModels(pb.ListModelsRequest(), timeout=20)
            except grpc.aio.AioRpcError as error:
                ended.append((error.code(), "grpc-status-details-bin" in dict(error.trailing_metadata() or ())))
                if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    return

    callers = [asyncio.ensure_future(caller()) for _ in range(20)]
    while len(ended) < 100:  # noqa: ASYNC110 - they run in this loop
        await asyncio.sleep(0)
    await served.server.stop(1)
    await asyncio.gather(*callers)
    assert len(ended) < 5_000
    assert {code for code, _ in ended} <= {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}
    assert all(words for code, words in ended if code is grpc.StatusCode.UNAUTHENTICATED)
