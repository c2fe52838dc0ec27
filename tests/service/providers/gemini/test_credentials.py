"""Real google.auth credentials, from a file or a metadata server, with token servers and a `gcloud` that are slow."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio
import pytest
from google.auth.compute_engine import _metadata

from service import errors
from service.generation.prompt import Prompt, Role, Turn
from service.generation.provider import Provider
from service.providers.gemini.credentials import ApplicationDefault
from service.providers.gemini.over_grpc import VertexProvider
from service.providers.gemini.over_http import GenAIProvider
from service.providers.spec import Offer
from tests.faults.recorder import STRICT, hold
from tests.faults.rows import ROWS
from tests.google_identity import OK, TokenServer, gcloud, identity, token_server
from tests.loop_watch import LoopWatch
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, silence

NAME = "gemini-2.5-flash"
PROMPT = Prompt(model=NAME, turns=(Turn(Role.USER, ("hi",)),))

Open = Callable[[ApplicationDefault], Provider]


@pytest.fixture
async def tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TokenServer]:
    """A token server, and application default credentials that use it."""
    async with token_server() as tokens:
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
        for name, value in identity(tmp_path, tokens).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GCE_METADATA_IP", tokens.address)
        monkeypatch.setattr(_metadata, "_GCE_METADATA_HOST", tokens.address)
        gcloud(tmp_path, "echo project")
        yield tokens


@pytest.fixture
async def emulator() -> AsyncIterator[Emulator]:
    """A local Vertex that takes ten calls on a connection, and speaks HTTP too."""
    async with Emulator(rest_port=0, max_concurrent_streams=10) as running:
        yield running


@pytest.fixture(params=["vertex", "genai"])
async def connect(request: pytest.FixtureRequest, emulator: Emulator) -> AsyncIterator[Open]:
    """`connect(credentials)` gives a model on the local Vertex that tells it who asks, as Google is told."""
    opened: list[VertexProvider | GenAIProvider] = []
    offers, place = [Offer(NAME)], {"project": "project", "location": "us-central1"}

    def over_grpc(credentials: ApplicationDefault) -> VertexProvider:
        from service.providers.gemini.over_grpc import _CHANNEL_OPTIONS  # noqa: PLC0415 - those of the real one

        channel = grpc.aio.insecure_channel(emulator.address, options=_CHANNEL_OPTIONS)
        return VertexProvider(channel, offers, **place, credentials=credentials)

    def connect(credentials: ApplicationDefault) -> Provider:
        url = f"http://{emulator.rest_address}"
        over_http = request.param == "genai"
        model = (
            GenAIProvider(offers, **place, base_url=url, credentials=credentials)
            if over_http
            else over_grpc(credentials)
        )
        opened.append(model)
        return model

    yield connect
    for model in opened:
        await model.close()


async def ask(model: Provider, *, seconds: float = 20) -> None:
    async with model.stream(PROMPT, deadline=asyncio.get_running_loop().time() + seconds) as events:
        async for _ in events:
            pass


async def eventually(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110 - a file, or a thread, tells nobody when it is there
            await asyncio.sleep(0.005)


def bearers(emulator: Emulator) -> list[str | bytes | None]:
    return [call.header("authorization") for call in emulator.calls]


def renewing() -> int:
    return sum(thread.name == "credentials" for thread in threading.enumerate())


async def test_all_connections_share_credentials_that_were_found_and_renewed_once(
    connect: Open, emulator: Emulator, tokens: TokenServer, tmp_path: Path
) -> None:
    emulator.script.play(default=answer("a", silence()))
    model = connect(ApplicationDefault())
    calls = [asyncio.ensure_future(ask(model)) for _ in range(40)]
    await emulator.wait_until(lambda emulator: len(emulator.open_calls) == 40)
    for call in calls:
        call.cancel()
    assert set(bearers(emulator)) == {"Bearer t1"}
    assert tokens.asked == 1
    assert (tmp_path / "runs").read_text() == "run\n"


async def test_counting_tokens_says_who_asks(connect: Open, emulator: Emulator, tokens: TokenServer) -> None:
    del tokens
    model = connect(ApplicationDefault())
    await model.count_tokens(PROMPT, deadline=asyncio.get_running_loop().time() + 20)
    assert bearers(emulator) == ["Bearer t1"]


async def test_the_loop_goes_on_while_gcloud_takes_its_time(connect: Open, tokens: TokenServer, tmp_path: Path) -> None:
    del tokens
    os.mkfifo(tmp_path / "gate")
    gcloud(tmp_path, f"read _ < {tmp_path}/gate; echo project")
    calls = [asyncio.ensure_future(ask(connect(ApplicationDefault())))]
    await eventually((tmp_path / "runs").exists)
    # That we are here, and can let gcloud go on, is the proof: a loop that waits for it would wait for ever.
    assert not calls[0].done()
    (tmp_path / "gate").write_text("\n")
    await asyncio.gather(*calls)


@pytest.mark.thorough
async def test_slow_credentials_do_not_block_the_loop(connect: Open, tokens: TokenServer, tmp_path: Path) -> None:
    gcloud(tmp_path, "sleep 1; echo project")
    tokens.open.clear()
    model = connect(ApplicationDefault())
    watch = LoopWatch()
    watch.start()
    calls = [asyncio.ensure_future(ask(model)) for _ in range(12)]
    await eventually(lambda: tokens.asked == 1)
    asyncio.get_running_loop().call_later(1, tokens.open.set)
    await asyncio.gather(*calls)
    hold(ROWS["event loop blocked: credentials"], [1000 * watch.longest], strict=STRICT)


async def test_a_renewal_that_hangs_is_one_thread_and_ends_each_call_in_its_time(
    connect: Open, tokens: TokenServer, emulator: Emulator
) -> None:
    tokens.open.clear()
    model = connect(ApplicationDefault())
    await asyncio.to_thread(int)  # the loop's own thread, which what an earlier test has left may want meanwhile
    before = threading.active_count()
    calls = [asyncio.ensure_future(ask(model, seconds=0.3)) for _ in range(30)]
    calls.append(patient := asyncio.ensure_future(ask(model)))
    ended = await asyncio.gather(*calls[:30], return_exceptions=True)
    assert {type(error) for error in ended} == {errors.UpstreamDeadline}
    assert (renewing(), threading.active_count() - before, tokens.asked) == (1, 1, 1)
    tokens.open.set()
    await patient
    assert bearers(emulator) == ["Bearer t1"]


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (("400 Bad Request", b'{"error": "invalid_grant", "error_description": "SECRET"}'), errors.UpstreamCredentials),
        (("403 Forbidden", b"SECRET"), errors.UpstreamCredentials),
        (("503 Service Unavailable", b"<html>SECRET"), errors.UpstreamUnavailable),
        (("429 Too Many Requests", b"{}"), errors.UpstreamUnavailable),
        ((OK, b"<html>SECRET"), errors.UpstreamUnavailable),
        (("", b""), errors.UpstreamUnavailable),
    ],
)
async def test_refused_credentials_are_told_apart_from_a_token_server_that_is_away(
    connect: Open, tokens: TokenServer, emulator: Emulator, said: tuple[str, bytes], kind: type[errors.UpstreamError]
) -> None:
    model = connect(ApplicationDefault())
    tokens.status, tokens.body = said
    for error in await asyncio.gather(ask(model), ask(model), return_exceptions=True):
        assert type(error) is kind
        assert "SECRET" not in str(error.status())
    assert not emulator.calls
    tokens.status, tokens.body = OK, None
    await ask(model)  # nothing of the failure is kept


async def test_no_credentials_at_all_are_a_matter_of_the_owner(
    connect: Open, tokens: TokenServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    del tokens
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(errors.UpstreamCredentials):
        await ask(connect(ApplicationDefault()))


async def test_a_metadata_server_gives_the_token(
    connect: Open, tokens: TokenServer, emulator: Emulator, tmp_path: Path
) -> None:
    (tmp_path / "application_default_credentials.json").unlink()
    await ask(connect(ApplicationDefault()))
    assert bearers(emulator) == [f"Bearer t{tokens.asked}"]


async def test_a_token_is_renewed_ahead_of_its_end_while_calls_go_on(
    connect: Open, tokens: TokenServer, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens.lifetime = 60  # google.auth renews what has less than 225 s left
    monkeypatch.setattr("service.providers.gemini.credentials._PAUSE_SECONDS", 0)
    model = connect(ApplicationDefault())
    await ask(model)
    tokens.open.clear()
    for _ in range(3):
        await ask(model)
    assert bearers(emulator) == ["Bearer t1"] * 4
    await eventually(lambda: tokens.asked == 2)
    assert renewing() == 1
    tokens.open.set()
    await eventually(lambda: not renewing())
    await ask(model)
    assert bearers(emulator)[-1] == "Bearer t2"


async def test_a_renewal_that_was_left_by_all_still_serves_the_next(connect: Open, tokens: TokenServer) -> None:
    tokens.open.clear()
    model = connect(ApplicationDefault())
    call = asyncio.ensure_future(ask(model))
    await eventually(lambda: tokens.asked == 1)
    call.cancel()
    await asyncio.wait([call])
    tokens.open.set()
    await ask(model)
    assert tokens.asked == 1


def test_looking_at_a_token_that_serves_costs_next_to_nothing(tokens: TokenServer) -> None:
    """A call must not pay for what is renewed once an hour."""
    del tokens
    credentials = ApplicationDefault()
    credentials.load()
    credentials._credentials.token = "t"

    async def look() -> float:
        begin = time.process_time()
        for _ in range(1000):
            await credentials.headers(0)
        return (time.process_time() - begin) / 1000

    assert min(asyncio.run(look()) for _ in range(5)) < 50e-6
