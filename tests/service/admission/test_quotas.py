"""Quotas: asked before a call is let in, settled by what upstream told, over all workers."""

import asyncio
import json
import os
import random
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo, QuotaFailure, RetryInfo

from service.admission import api_keys, quotas
from service.admission.callers import Caller
from service.admission.counts import DAY_SECONDS, MINUTE_SECONDS, Counts, Used
from service.admission.quotas import Quotas
from service.errors import BudgetExhausted, QuotaExceeded, UpstreamUnavailable
from service.generation.events import Event, Finished, FinishReason, Started, Text, Usage
from service.testing import FakeProvider
from tests.conftest import Serve, Served, detail, failure
from tests.service.calls.test_servicer import Silent
from tokenwire import AsyncClient, NotAllowedError, ServiceError
from tokenwire.cli import usage
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.config_pb2 import GenerationConfig

NOON = 1_700_000_000 // DAY_SECONDS * DAY_SECONDS + 43_200.0


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(quotas, "time", found)
    return found


def time_of_quotas() -> float:
    """By their clock, which a test may have set."""
    clock: Callable[[], float] = vars(quotas)["time"]
    return clock()


def used_by(asked: Quotas, caller: Caller) -> Used:
    return asked._counts.used(caller.name, time_of_quotas())


async def take(asked: Quotas, caller: Caller, tokens: int = 0) -> Any:
    return await asked.charge(caller, input_tokens=tokens, output_tokens=0)


async def refusal(asked: Quotas, caller: Caller, tokens: int = 0) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as caught:
        await take(asked, caller, tokens)
    return caught.value


async def test_streams_at_once(clock: Clock) -> None:
    asked, caller = Quotas(Counts()), Caller(name="a", streams=2)
    first, _ = await take(asked, caller), await take(asked, caller)
    error = await refusal(asked, caller)
    assert error.metadata == {"quota": "streams", "limit": "2"}
    assert error.delay == 1
    await take(asked, Caller(name="b", streams=1))
    first.nothing()
    await take(asked, caller)
    assert used_by(asked, caller).streams == 2
    assert clock.now == NOON


async def test_requests_of_a_minute_and_when_the_next_begins(clock: Clock) -> None:
    asked, caller = Quotas(Counts()), Caller(name="a", requests_per_minute=2)
    clock.now = NOON + 15
    for _ in range(2):
        (await take(asked, caller)).nothing()
    assert (await refusal(asked, caller)).delay == 45
    assert used_by(asked, caller).requests_in_minute == 2
    clock.now = NOON + MINUTE_SECONDS
    (await take(asked, caller)).nothing()
    assert used_by(asked, caller)[1:] == (1, 0, 3, 0, 0)


async def test_tokens_are_set_aside_and_settled(clock: Clock) -> None:
    asked, caller = Quotas(Counts()), Caller(name="a", tokens_per_minute=100, tokens_per_day=150)
    charge = await take(asked, caller, 100)
    assert (await refusal(asked, caller)).metadata["quota"] == "tokens_per_minute"
    charge.settle(30, characters=0)
    (await take(asked, caller, 10)).settle(60, characters=0)
    (await take(asked, caller, 1)).settle(15, characters=0)
    assert used_by(asked, caller).tokens_in_minute == 105
    assert (await refusal(asked, caller)).delay == MINUTE_SECONDS
    clock.now += MINUTE_SECONDS
    (await take(asked, caller, 1)).settle(45, characters=0)
    error = await refusal(asked, caller)
    assert error.metadata == {"quota": "tokens_per_day", "limit": "150"}
    assert error.delay == DAY_SECONDS / 2 - MINUTE_SECONDS
    clock.now += DAY_SECONDS
    (await take(asked, caller)).nothing()
    assert used_by(asked, caller) == Used(0, 1, 0, 1, 0, 0)


async def test_what_was_set_aside_in_a_minute_that_is_over_is_not_given_back(clock: Clock) -> None:
    asked, caller = Quotas(Counts()), Caller(name="a")
    charge = await take(asked, caller, 100)
    clock.now += MINUTE_SECONDS
    (await take(asked, caller, 0)).settle(50, characters=0)
    charge.settle(10, characters=0)
    assert used_by(asked, caller).tokens_in_minute == 50
    assert used_by(asked, caller).tokens_today == 60


async def test_what_upstream_did_not_tell_is_estimated_and_marked(clock: Clock) -> None:
    asked, caller = Quotas(Counts()), Caller(name="a")
    (await asked.charge(caller, input_tokens=10, output_tokens=500)).settle(None, characters=101)
    assert used_by(asked, caller)[4:] == (36, 36)
    charge = await asked.charge(caller, input_tokens=10, output_tokens=500)
    charge.saw(90)
    charge.settle(None, characters=4)
    assert used_by(asked, caller)[4:] == (126, 126)
    assert clock.now == NOON


async def test_a_budget_that_runs_out_ends_the_call(clock: Clock) -> None:
    asked, caller = Quotas(Counts()), Caller(name="a", tokens_per_day=100)
    ended: list[Any] = []
    charge = await take(asked, caller, 10)
    charge.end = ended.append
    charge.saw(100)
    assert not ended
    charge.saw(101)
    assert isinstance(ended[0], BudgetExhausted)
    assert ended[0].delay == DAY_SECONDS / 2
    assert clock.now == NOON


@pytest.mark.parametrize("quota", ["requests_per_minute", "tokens_per_minute", "tokens_per_day"])
def test_no_quota_is_exceeded_by_more_than_a_request_and_a_killed_worker_loses_nothing(
    clock: Clock, quota: str
) -> None:
    """Four processes, 10,000 calls at random; some of them are killed in the middle of a call and come back."""
    workers, most = 4, 20
    assert clock.now == NOON  # all of it is in one minute
    counts = Counts(workers)
    limit = 4000 if quota == "requests_per_minute" else 40_000
    limits: dict[str, Any] = {quota: limit}
    caller = Caller(name="a", streams=3, **limits)
    told, tell = os.pipe()

    async def work(number: int, kill: bool) -> None:
        counts.join(number)
        asked, choose = Quotas(counts), random.Random(number)
        settled = let_in = 0
        for turn in range(500):
            tokens = choose.randrange(most)
            try:
                charge = await take(asked, caller, tokens)
            except QuotaExceeded:
                continue
            let_in += 1
            assert used_by(asked, caller).streams <= 3 + workers  # those that are counted, and about to be refused
            if kill and turn == 250:
                os.write(tell, b"%d %d %d\n" % (let_in, settled, tokens))
                os.kill(os.getpid(), signal.SIGKILL)
            charge.settle(tokens, characters=0)
            settled += tokens
        os.write(tell, b"%d %d %d\n" % (let_in, settled, 0))

    def run(number: int, kill: bool) -> int:
        pid = os.fork()
        if pid:
            return pid
        try:
            asyncio.run(work(number, kill))
        finally:
            os._exit(0)

    lines = 0
    for turn in range(5):
        pids = [run(number, kill=(turn + number) % 2 == 0) for number in range(workers)]
        lines += len(pids)
        for pid in pids:
            os.waitpid(pid, 0)
    os.close(tell)
    with os.fdopen(told) as file:
        figures = [tuple(map(int, line.split())) for line in file]
    assert len(figures) == lines
    for number in range(workers):
        counts.join(number)
    used = used_by(Quotas(counts), caller)
    assert used.streams == 0
    assert used.requests_today == sum(let_in for let_in, _, _ in figures) <= 10_000
    assert used.tokens_today == sum(settled + lost for _, settled, lost in figures)
    found = used.requests_in_minute if quota == "requests_per_minute" else used.tokens_today
    # Calls that are about to be refused count for a moment, so that others beside them are, and come again.
    assert limit - most <= found <= limit + (0 if quota == "requests_per_minute" else most)


# ---- through the wire

USAGE = Usage(input_tokens=5, output_tokens=20, total_tokens=25)
ANSWER: list[Event] = [
    Started("gemini-2.5-flash"),
    Text("Hello"),
    Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=USAGE),
]


@pytest.fixture
def token(tmp_path: Path) -> str:
    return api_keys.new(str(tmp_path / "keys"), "billing")[1]


Limited = Callable[..., Any]


@pytest.fixture
def limited(serve: Serve, tmp_path: Path, token: str) -> Limited:
    """`await limited(model, "streams = 1")`: a server where billing may so much."""
    assert token

    async def start(model: Any, limits: str) -> Served:
        callers = tmp_path / "callers.toml"
        callers.write_text(f'[callers.billing]\napi_keys = ["billing"]\n{limits}\n')
        return await serve(model, api_keys=str(tmp_path / "keys"), callers=str(callers))

    return start


def call(served: Served, token: str, **fields: Any) -> Any:
    request = pb.GenerateRequest(prompt="hi", **fields)
    return served.stub.Generate(request, metadata=[("authorization", f"Bearer {token}")])


async def ask(served: Served, token: str, **fields: Any) -> list[pb.GenerateResponse]:
    return [message async for message in call(served, token, **fields)]


async def refused(served: Served, token: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(served, token)
    return caught.value


@pytest.mark.parametrize(
    ("limits", "quota", "before"),
    [
        ("requests_per_minute = 2", "requests_per_minute", 2),
        ("requests_per_minute = 0", "requests_per_minute", 0),
        ("tokens_per_minute = 50", "tokens_per_minute", 2),
        ("tokens_per_day = 26", "tokens_per_day", 2),
    ],
)
async def test_a_used_up_quota_is_told_and_no_model_asked(
    limited: Limited, token: str, limits: str, quota: str, before: int
) -> None:
    model = FakeProvider(ANSWER)
    served = await limited(model, limits)
    for _ in range(before):
        await ask(served, token)
    error = await refused(served, token)
    assert failure(error) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
    (violation,) = detail(error, QuotaFailure).violations
    assert violation.subject == "caller:billing"
    assert violation.description == limits.replace(" =", ":")
    assert detail(error, ErrorInfo).metadata["quota"] == quota
    wait = detail(error, RetryInfo).retry_delay.ToTimedelta().total_seconds()
    assert 0 < wait <= (MINUTE_SECONDS if "minute" in quota else DAY_SECONDS)
    told = re.search(r"; again in (\d+) (s|min|h)$", str(error.details()))
    assert told is not None
    long = {"s": 1, "min": 60, "h": 3600}[told[2]]
    assert wait <= int(told[1]) * long < wait + long + 1
    assert ("grpc-retry-pushback-ms", str(round(wait * 1000))) in [
        (key, value) for key, value in error.trailing_metadata() if key == "grpc-retry-pushback-ms"
    ]
    assert len(model.asked) == before


async def test_the_log_says_which_quota_refused_a_call(limited: Limited, token: str, lines: list[str]) -> None:
    served = await limited(FakeProvider(ANSWER), "requests_per_minute = 0")
    await refused(served, token)
    assert lines[-1].endswith(" reason=QUOTA_EXCEEDED quota=requests_per_minute")


async def test_streams_at_once_are_given_back_however_a_call_ends(limited: Limited, token: str) -> None:
    model = Silent(ANSWER[:2])
    served = await limited(model, "streams = 1")
    for _ in range(2):
        running = call(served, token)
        await running.read()
        assert detail(await refused(served, token), ErrorInfo).metadata["quota"] == "streams"
        running.cancel()
        await model.left.wait()
        model.left.clear()
        await asyncio.sleep(0)


async def test_a_model_that_took_nothing_costs_no_tokens(limited: Limited, token: str) -> None:
    served = await limited(FakeProvider([UpstreamUnavailable("away")]), "tokens_per_day = 1")
    for _ in range(3):
        error = await refused(served, token)
        assert failure(error) == (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")


class Metered(FakeProvider):
    """Tells its usage as it goes."""

    def __init__(self) -> None:
        super().__init__([])
        self.left = asyncio.Event()

    async def _play(self) -> Any:
        yield Started("gemini-2.5-flash")
        try:
            for piece in range(100):
                yield Text("word ")
                seen = self.asked[-1].usage_seen
                assert seen is not None
                seen(10 * piece)
                await asyncio.sleep(0)
        finally:
            self.left.set()


async def test_a_budget_that_runs_out_in_mid_stream_ends_it_within_a_chunk_of_the_figure(
    limited: Limited, token: str
) -> None:
    model = Metered()
    served = await limited(model, "tokens_per_day = 100")
    running = call(served, token, config=GenerationConfig(max_output_tokens=1))
    texts = 0

    async def read() -> None:
        nonlocal texts
        async for message in running:
            texts += message.HasField("text")

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read()
    assert failure(caught.value) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED")
    assert detail(caught.value, ErrorInfo).metadata["last_sequence"] == str(texts)
    assert 11 < texts <= 13
    await model.left.wait()
    error = await refused(served, token)
    assert failure(error)[1] == "QUOTA_EXCEEDED"


async def test_a_caller_sees_its_own_usage_and_an_administrator_that_of_all(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys, callers = str(tmp_path / "keys"), tmp_path / "callers.toml"
    _, billing = api_keys.new(keys, "billing")
    _, owner = api_keys.new(keys, "owner")
    callers.write_text(
        '[callers.billing]\napi_keys = ["billing"]\ntokens_per_day = 1000\nstreams = 5\n'
        '[callers.owner]\napi_keys = ["owner"]\nadmin = true\n'
    )
    served = await serve(FakeProvider(ANSWER), api_keys=keys, callers=str(callers))
    await ask(served, billing)
    async with AsyncClient(served.address, token=billing) as client:
        (mine,) = await client.usage()
        told = {one.name: (one.used, one.limit if one.HasField("limit") else None) for one in mine.quotas}
        assert mine.caller == "billing"
        assert told == {
            "streams": (0, 5),
            "requests_per_minute": (1, None),
            "tokens_per_minute": (25, None),
            "requests_per_day": (1, None),
            "tokens_per_day": (25, 1000),
        }
        assert {one.name for one in mine.quotas if one.HasField("resets_in")} == told.keys() - {"streams"}
        with pytest.raises(NotAllowedError) as caught:
            await client.usage(all_callers=True)
        assert caught.value.reason == "CALL_NOT_ALLOWED"
    async with AsyncClient(served.address, token=owner) as client:
        assert [one.caller for one in await client.usage(all_callers=True)] == ["billing", "owner"]
        assert [one.caller for one in await client.usage()] == ["owner"]
    (tmp_path / "token").write_text(owner)
    flags = ["--address", served.address, "--token-file", str(tmp_path / "token")]
    assert await asyncio.to_thread(usage.main, [*flags, "--all"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split()[:4] == ["CALLER", "QUOTA", "USED", "LIMIT"]
    assert any(line.split()[:5] == ["billing", "tokens", "per", "day", "25"] and "1,000" in line for line in out)
    assert await asyncio.to_thread(usage.main, [*flags, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["caller"] == "owner"


async def test_an_administrator_sees_the_usage_of_hundreds(serve: Serve, tmp_path: Path) -> None:
    keys, callers = str(tmp_path / "keys"), tmp_path / "callers.toml"
    _, owner = api_keys.new(keys, "owner")
    names = [f"caller-{number:03}" for number in range(250)]
    entries = [f'[callers.{name}]\napi_keys = ["{name}"]\n' for name in names]
    callers.write_text('[callers.owner]\napi_keys = ["owner"]\nadmin = true\n' + "".join(entries))
    served = await serve(FakeProvider(ANSWER), api_keys=keys, callers=str(callers))
    async with AsyncClient(served.address, token=owner) as client:
        assert [one.caller for one in await client.usage(all_callers=True)] == [*names, "owner"]


async def test_where_nobody_is_asked_nobody_is_counted(serve: Serve) -> None:
    served = await serve(FakeProvider(ANSWER))
    async with AsyncClient(served.address) as client:
        with pytest.raises(ServiceError) as caught:
            await client.usage()
    assert caught.value.reason == "NOT_SERVED"
