"""A bug in any layer ends one call as INTERNAL with an id, and shows nothing else to anybody."""

import asyncio
import io
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import ErrorInfo

from service.admission import slot_queue, slots
from service.calls import call, coalesce, servicer, time_limits
from service.contract import decode, encode
from service.generation.events import Started, Text
from service.providers import retry
from service.telemetry import call_log
from service.testing import FakeProvider
from tests.conftest import Serve, detail, failure
from tests.faults.processes import Caller, fate
from tests.faults.recorder import record
from tests.service.calls.test_servicer import HELLO
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

SECRET = "the-prompt-quoted-in-a-bug"

# Where a bug may be: what is replaced, by its owner and name. Of coroutines and generators the first step raises.
SEAMS: dict[str, tuple[Any, str]] = {
    "parsing": (decode, "parse"),
    "delivery wishes": (decode, "delivery"),
    "deadline": (time_limits.Deadline, "of"),
    "waiting for upstream": (time_limits.TimeLimits, "upstream"),
    "waiting for the reader": (time_limits.TimeLimits, "writing"),
    "no longer waiting for the reader": (time_limits.TimeLimits, "written"),
    "entering a slot": (slot_queue.Admission, "_take"),
    "refusing": (slot_queue.Admission, "slot"),
    "merging": (coalesce._Buffer, "_put"),
    "merging, on the way out": (coalesce._Buffer, "_take"),
    "merging, around it": (servicer, "coalesced"),
    "retrying": (retry.Budget, "success"),
    "encoding": (encode.Answer, "encode"),
    "writing": (call.Call, "write"),
}

# The same on the way out of a call whose caller has its whole answer.
BEHIND: dict[str, tuple[Any, str]] = {
    "leaving the wait": (time_limits.TimeLimits, "__aexit__"),
    "leaving the queue": (slot_queue.Admission, "_give"),
    "leaving the slot": (slots.Slots, "give"),
}

# The same in the module that knows ChatVertexAI, by name: importing it takes seconds.
VERTEX_SEAMS = {
    "the prompt's conversion": "chat.langchain_messages.messages",
    "the options' conversion": "chat.request_options",
    "a chunk's conversion": "vertex.plain",
    "the upstream call": "vertex._Call.begin",
    "the upstream answer": "vertex._Call.read",
    "the ending": "vertex._Call.finished",
    "the usage": "vertex._usage",
}

BUGS: dict[str, Callable[[], BaseException]] = {
    "bug": lambda: KeyError(SECRET),
    "stray cancellation": lambda: asyncio.CancelledError(SECRET),
}


@pytest.fixture(params=[*SEAMS, *VERTEX_SEAMS])
def seam(request: pytest.FixtureRequest) -> tuple[Any, str]:
    if request.param in SEAMS:
        return SEAMS[request.param]
    from service.providers.gemini import chat_vertex, over_grpc  # noqa: PLC0415 - see above

    owner: Any = SimpleNamespace(chat=chat_vertex, vertex=over_grpc)
    *outer, name = VERTEX_SEAMS[request.param].split(".")
    for one in outer:
        owner = getattr(owner, one)
    return owner, name


@pytest.fixture
def told() -> Iterator[io.StringIO]:
    """What the server writes to its log, at debug level."""
    logger = call_log._logger
    level = logger.level
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(call_log._Formatter())
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    yield stream
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize("kind", BUGS)
async def test_a_bug_in_any_layer_is_told_by_its_id_alone(  # noqa: PLR0917 - fixtures
    serve_vertex: Serve,
    emulator: Emulator,
    seam: tuple[Any, str],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    told: io.StringIO,
    capfd: pytest.CaptureFixture[str],
) -> None:
    emulator.script.play(answer(repeat(5, "word "), uses=0))
    served = await serve_vertex()
    caller = Caller(served.channel)
    assert (await caller.ask())[-1].HasField("completed")
    told.truncate(0)

    def broken(*_: Any, **__: Any) -> NoReturn:
        error = BUGS[kind]()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*seam, broken)
        begin = time.monotonic()
        _, error = await fate(caller.start(coalesce={}, timeout=20))
        record("bug in any layer", 1000 * (time.monotonic() - begin))
    assert failure(error) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    info = detail(error, ErrorInfo)
    assert set(info.metadata) - {"last_sequence"} == {"error_id"}
    assert info.metadata["error_id"] in str(error.details())
    assert SECRET not in str(error)
    written = told.getvalue()
    assert re.search(rf"ERROR tokenwire bug id={info.metadata['error_id']} ", written)
    assert SECRET not in written + capfd.readouterr().err
    assert (await caller.ask())[-1].HasField("completed"), "the next call suffers"
    await emulator.wait_until(lambda emulator: not emulator.open_calls)


@pytest.mark.parametrize("kind", BUGS)
@pytest.mark.parametrize("seam", BEHIND.values(), ids=BEHIND)
async def test_a_bug_behind_the_last_message_is_told_to_the_log_alone(
    serve: Serve, seam: tuple[Any, str], kind: str, monkeypatch: pytest.MonkeyPatch, told: io.StringIO
) -> None:
    served = await serve(FakeProvider(HELLO))
    caller = Caller(served.channel)

    def broken(*_: Any, **__: Any) -> NoReturn:
        error = BUGS[kind]()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(*seam, broken)
        assert (await caller.ask())[-1].HasField("completed")
        assert (await caller.ask(coalesce=pb.Coalesce()))[-1].HasField("completed")
    written = told.getvalue()
    assert written.count("ERROR tokenwire bug id=") == 2
    assert written.count("code=OK") == written.count("unread=INTERNAL") == 2
    assert SECRET not in written


class Failing(FakeProvider):
    """Fails as a write does that meets a cancellation, once `now` is set."""

    def __init__(self) -> None:
        super().__init__([])
        self.now = asyncio.Event()

    async def _play(self) -> AsyncIterator[Any]:
        yield Started("gemini-2.5-flash")
        yield Text("word")
        await self.now.wait()
        raise grpc.aio.InternalError(SECRET)


async def test_a_write_that_fails_ahead_of_its_cancellation_is_that_cancellation(
    serve: Serve, told: io.StringIO
) -> None:
    model = Failing()
    served = await serve(model)
    call = Caller(served.channel).start()
    await call.read()
    await call.read()
    model.now.set()
    call.cancel()
    async with asyncio.timeout(5):
        while "code=" not in told.getvalue():  # noqa: ASYNC110 - nobody tells when it changes
            await asyncio.sleep(0.01)
    assert "code=CANCELLED" in told.getvalue()
    assert "bug" not in told.getvalue()


async def test_the_same_without_a_cancellation_is_a_bug(serve: Serve) -> None:
    model = Failing()
    served = await serve(model)
    model.now.set()
    _, error = await fate(Caller(served.channel).start(timeout=20))
    assert failure(error) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert SECRET not in str(error)
