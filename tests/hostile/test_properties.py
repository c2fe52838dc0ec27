"""Whatever a model says and a caller does, the stream keeps its promises: an honest end, order, nothing silent."""

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract import decode
from service.contract.rules import Limits
from service.errors import InvalidRequest, ModelNotFound
from service.generation.events import Finished, FinishReason, Started, Text
from service.providers.retry import Budget, Policy, Retrying
from service.settings import Settings
from service.testing import FakeProvider
from tests.conftest import Serve, Served, failure
from tests.faults.test_deadlines import mend
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import (
    Answer,
    Step,
    Usage,
    answer,
    blackhole,
    blocked,
    cut,
    delay,
    end,
    headers,
    silence,
    status,
    thought,
    usage,
)

CARDS = FakeProvider([]).cards
OFFERED = [card.name for card in CARDS]

USUAL = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    # The fixtures live longer than one example on purpose: a server is not made anew for each call either.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
LONG = settings(USUAL, max_examples=5000, derandomize=False)

# ---- any script, any reader --------------------------------------------------------------------------------------

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
AGAIN = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED]
FINISHES = [number for number in google.Candidate.FinishReason.values() if number]
BLOCKS = [name for name, number in google.GenerateContentResponse.PromptFeedback.BlockedReason.items() if number]

texts = st.text(max_size=30)  # without surrogates, which are no text to protobuf
pieces = st.lists(
    st.one_of(
        texts,
        texts.map(thought),
        st.sampled_from([0.0, 0.001, 0.005]).map(delay),
    ),
    max_size=8,
)
details = st.lists(
    st.one_of(
        st.builds(ErrorInfo, reason=texts, domain=texts),
        st.builds(
            RetryInfo,
            retry_delay=st.one_of(
                st.sampled_from([1, 10, 20]).map(lambda ms: Duration(nanos=ms * 1_000_000)),
                st.builds(
                    # None that would really be waited for, or be a delay at all.
                    Duration,
                    seconds=st.sampled_from([-(2**63), -1, 0, 60, 2**63 - 1]),
                    nanos=st.sampled_from([-(2**31), 0, 1000]),
                ),
            ),
        ),
    ),
    max_size=2,
)


@dataclass(frozen=True)
class Ending:
    """How a script ends."""

    steps: tuple[Step, ...] = ()
    """Behind the pieces."""
    before: tuple[Step, ...] = ()
    """Before them."""
    finish: int | None = google.Candidate.STOP
    complete: bool = True
    """Whether the answer is whole."""
    alone: bool = False
    """Whether it comes instead of the pieces."""
    mute: bool = False
    """Whether upstream goes silent, so that somebody has to lose patience."""
    away: bool = False
    """Whether it is to be asked again, if nothing came before."""


endings = st.one_of(
    st.sampled_from([*FINISHES, 99, 2**31 - 1]).map(lambda number: Ending(finish=number)),
    st.just(Ending(finish=None, complete=False)),
    st.just(Ending((end(),), complete=False, alone=True)),
    st.sampled_from(BLOCKS).map(lambda name: Ending((blocked(name),), alone=True)),
    st.just(Ending((cut(),), complete=False, away=True)),
    st.builds(
        lambda code, words, more, first, alone: Ending(
            (status(code, words, *more),), before=first, complete=False, alone=alone, away=code in AGAIN
        ),
        st.one_of(st.sampled_from(CODES), st.sampled_from(AGAIN)),
        texts,
        details,
        st.sampled_from([(), (headers(),)]),
        st.booleans(),
    ),
    st.builds(
        lambda step, alone: Ending((step,), complete=False, alone=alone, mute=True),
        st.sampled_from([silence(), blackhole()]),
        st.booleans(),
    ),
)


@dataclass(frozen=True)
class Script:
    """What upstream says to one attempt."""

    pieces: list[str | Step]
    ending: Ending

    @property
    def steps(self) -> list[str | Step]:
        return [] if self.ending.alone else self.pieces

    @property
    def text(self) -> str:
        return "".join(step for step in self.steps if isinstance(step, str))

    @property
    def thoughts(self) -> str:
        return "".join(step.thought for step in self.steps if isinstance(step, Step))

    def answer(self, told: Usage) -> Answer:
        ending = self.ending
        return answer(*ending.before, *self.steps, *ending.steps, finish=ending.finish, usage=told)


# An attempt that comes to nothing, and is worth another one.
aways = st.builds(
    lambda code, more, first: Script([], Ending((status(code, "away", *more),), first, complete=False, away=True)),
    st.sampled_from(AGAIN),
    details,
    st.sampled_from([(), (headers(),)]),
)
any_scripts = st.builds(Script, pieces, endings)
# One for each attempt; the last one is for all that may follow.
attempts = st.one_of(
    st.lists(any_scripts, min_size=1, max_size=3),
    st.builds(lambda before, last: [*before, last], st.lists(aways, min_size=1, max_size=2), any_scripts),
)


@dataclass(frozen=True)
class Reader:
    """What the caller does."""

    cancels_after: int | None
    """Messages; None: it reads all."""
    pause: float
    """Seconds before each message."""
    coalesce: pb.Coalesce | None


readers = st.builds(
    Reader,
    cancels_after=st.one_of(st.none(), st.none(), st.integers(0, 6)),
    pause=st.sampled_from([0.0, 0.0, 0.002]),
    coalesce=st.one_of(
        st.none(),
        st.builds(
            pb.Coalesce,
            max_delay=st.sampled_from([0, 1, 20]).map(lambda ms: Duration(nanos=ms * 1_000_000)),
            max_bytes=st.integers(1, 100),
        ),
    ),
)


@dataclass(frozen=True)
class Heard:
    """What came of a call."""

    messages: list[pb.GenerateResponse]
    error: grpc.aio.AioRpcError | None
    cancelled: bool

    @property
    def kinds(self) -> list[str | None]:
        return [message.WhichOneof("event") for message in self.messages]

    def text(self) -> str:
        return "".join(message.text for message in self.messages)

    def thoughts(self) -> str:
        return "".join(message.reasoning.text for message in self.messages)


async def listen(served: Served, reader: Reader, *, limits: dict[str, Any]) -> Heard:
    call: Any = served.stub.Generate(pb.GenerateRequest(prompt="hi", coalesce=reader.coalesce, **limits), timeout=20)
    messages: list[pb.GenerateResponse] = []
    try:
        while len(messages) != reader.cancels_after:
            await asyncio.sleep(reader.pause)
            message = await call.read()
            if message is grpc.aio.EOF:
                return Heard(messages, None, cancelled=False)
            messages.append(message)
    except grpc.aio.AioRpcError as error:
        return Heard(messages, error, cancelled=False)
    call.cancel()
    return Heard(messages, None, cancelled=True)


@dataclass(frozen=True)
class Retried:
    """A server that retries without long pauses, and how often that led to something."""

    served: Served
    retrying: Retrying
    after_retries: Counter[str | None]
    """How calls of several attempts ended."""


@pytest.fixture
async def vertex_server(serve: Serve, emulator: Emulator) -> AsyncIterator[Retried]:
    from service.providers.gemini.over_grpc import VertexProvider  # noqa: PLC0415 - seconds that other tests needn't pay

    vertex = VertexProvider.local(emulator.address, Settings().offers, project="project", location="us-central1")
    retrying = Retrying(vertex, Policy(base_seconds=0.005))
    server = Retried(await serve(retrying, emulator=emulator.address), retrying, Counter())
    yield server
    await vertex.close()
    assert server.after_retries["completed"] > 20, "too few retries that succeed to say anything about them"


async def keeps_its_promises(
    server: Retried,
    emulator: Emulator,
    *,
    scripts: list[Script],
    reader: Reader,
    counts: tuple[int, int, int, int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    emulator.reset()
    server.retrying._budgets = {
        name: Budget() for name in server.retrying._budgets
    }  # what an example spends shall be none of the next one's
    told = usage(*counts[:2], thoughts=counts[2], cached=counts[3])
    *before, last = (script.answer(told) for script in scripts)
    emulator.script.play(*before, default=last)
    mute = any(script.ending.mute for script in scripts)
    heard = await listen(server.served, reader, limits=PATIENCE if mute else {})
    mend(emulator)
    await emulator.wait_until(lambda e: not e.open_calls)

    asked = len(emulator.calls)
    assert asked <= Policy().max_attempts
    tried = [*scripts, *[scripts[-1]] * asked][: max(1, asked)]
    *failed, script = tried
    # Asked again only where nothing came. A reset may overtake the words before it, which gRPC then throws away.
    assert all(one.ending.away for one in failed)
    assert not any(one.text or one.thoughts for one in failed if one.ending.steps != (cut(),))
    ending, text, thoughts = script.ending, script.text, script.thoughts
    if failed and not heard.cancelled:
        server.after_retries[str(heard.kinds[-1]) if heard.error is None else heard.error.code().name] += 1

    assert [message.sequence for message in heard.messages] == list(range(len(heard.messages)))
    assert heard.kinds[:1] in ([], ["started"])
    assert heard.kinds.count("started") <= 1
    assert None not in heard.kinds
    assert text.startswith(heard.text())
    assert thoughts.startswith(heard.thoughts())
    # On a busy machine a limit of 50 ms may strike where upstream isn't silent: an honest end, too.
    late = mute and heard.error is not None and failure(heard.error)[1] in ("FIRST_CHUNK_TIMEOUT", "IDLE_TIMEOUT")
    if not heard.cancelled:
        assert ("completed" in heard.kinds) == (heard.error is None) == (ending.complete and not late)
    if "completed" in heard.kinds:
        assert heard.kinds.index("completed") == len(heard.kinds) - 1
        assert (heard.text(), heard.thoughts()) == (text, thoughts)
        completed = heard.messages[-1].completed
        assert completed.timing.upstream_attempts == asked
        assert completed.finish_reason
        assert completed.upstream_finish_reason
        count = completed.usage
        # What counts nothing is no count, and what counts no token of a text not that of the answer.
        counted = any(counts) and not (text and not counts[1])
        assert count.exact or ending.alone or not counted
        if not ending.alone:  # a blocked prompt has no candidates to count
            figures = (count.input_tokens, count.output_tokens, count.reasoning_tokens, count.cached_tokens)
            assert figures == (counts if counted else (0, 0, 0, 0))
    if heard.error is not None:
        code, reason = failure(heard.error)
        assert (code, reason) != (grpc.StatusCode.INTERNAL, "INTERNAL")
        assert code is not grpc.StatusCode.UNKNOWN
        assert (code is grpc.StatusCode.DEADLINE_EXCEEDED) <= (mute or ending.steps != ())
        if ending.mute and not failed:
            assert reason in ("FIRST_CHUNK_TIMEOUT", "IDLE_TIMEOUT")
    # The line of a call in which upstream was at fault is an error as well; a bug has one of its own.
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert all(record.getMessage().startswith("Generate code=") for record in errors), caplog.text
    caplog.clear()


PATIENCE = dict.fromkeys(("first_chunk_timeout", "idle_timeout"), Duration(nanos=50_000_000))

SCRIPTS = {
    "scripts": attempts,
    "reader": readers,
    "counts": st.tuples(*[st.integers(0, 10**6)] * 4),
}


@pytest.mark.filterwarnings("ignore:Unrecognized FinishReason enum value:UserWarning")  # proto-plus on odd numbers
@given(**SCRIPTS)
@USUAL
async def test_any_script_read_in_any_way_yields_an_honest_stream(
    vertex_server: Retried, emulator: Emulator, caplog: pytest.LogCaptureFixture, **script: Any
) -> None:
    await keeps_its_promises(vertex_server, emulator, caplog=caplog, **script)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("ignore:Unrecognized FinishReason enum value:UserWarning")  # as above
@given(**SCRIPTS)
@LONG
async def test_many_scripts_read_in_any_way_yield_an_honest_stream(
    vertex_server: Retried, emulator: Emulator, caplog: pytest.LogCaptureFixture, **script: Any
) -> None:
    await keeps_its_promises(vertex_server, emulator, caplog=caplog, **script)


# ---- any request -------------------------------------------------------------------------------------------------


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    """Any value of one field, not repeated."""
    if field.message_type is not None:
        return requests_of(field.message_type, depth - 1)
    return {
        FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 3),
        FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3),
        FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
        FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
        FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0]),
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
        FieldDescriptor.CPPTYPE_ENUM: st.integers(0, 4) | st.sampled_from([-1, 99]),
        FieldDescriptor.CPPTYPE_STRING: st.binary(max_size=5)
        if field.type == FieldDescriptor.TYPE_BYTES
        else st.text(max_size=12) | st.sampled_from(["", "hi", *OFFERED]),
    }[field.cpp_type]


@st.composite
def requests_of(draw: st.DrawFn, kind: Descriptor, depth: int = 4) -> dict[str, Any]:
    """Any message of a type, as the keyword arguments that make it: few fields at a time, so that some are taken."""
    if depth <= 0 or not kind.fields:
        return {}
    made: dict[str, Any] = {}
    for field in draw(st.lists(st.sampled_from([*kind.fields]), max_size=4, unique_by=lambda field: field.name)):
        if field.containing_oneof is not None and any(other.name in made for other in field.containing_oneof.fields):
            continue  # only one of them can be set
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            made[field.name] = draw(
                st.dictionaries(_values(entry["key"], depth), _values(entry["value"], depth - 1), max_size=2)
            )
        elif field.is_repeated:
            made[field.name] = draw(st.lists(_values(field, depth), max_size=3))
        else:
            made[field.name] = draw(_values(field, depth))
    return made


def _fill(message: Message, values: dict[str, Any]) -> Message:
    """Set these fields. By hand: constructors give some types, such as Struct, a meaning of their own."""
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        target = getattr(message, name)
        if isinstance(value, list):
            for one in value:
                if field.message_type is not None:
                    _fill(target.add(), one)
                else:
                    target.append(one)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            for key, one in value.items():
                if isinstance(one, dict):
                    _fill(target[key], one)
                else:
                    target[key] = one
        elif field.message_type is not None:
            target.SetInParent()
            _fill(target, value)
        else:
            setattr(message, name, value)
    return message


likely = st.fixed_dictionaries({"prompt": st.sampled_from(["hi", "", "\0", "é" * 60])})
requests = st.builds(
    lambda any_fields, prompt: _fill(pb.GenerateRequest(), any_fields | prompt),
    requests_of(pb.GenerateRequest.DESCRIPTOR),
    st.one_of(st.just({}), likely),
)


@given(requests)
@settings(USUAL, max_examples=500)
def test_any_request_is_taken_or_refused_with_words(request: pb.GenerateRequest) -> None:
    refused: InvalidRequest | ModelNotFound | None = None
    try:
        prompt = decode.parse(request, cards=CARDS, limits=Limits(prompt=200, inline=100))
    except (InvalidRequest, ModelNotFound) as error:
        refused = error
    else:
        assert prompt.turns
        assert prompt.model in OFFERED
        wish = decode.delivery(request)
        assert wish.idle_timeout is None or wish.idle_timeout > 0
    if refused is not None:
        assert refused.text
        assert len(refused.status().SerializeToString()) < 4096


FINISHED = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)


@given(requests)
@USUAL
async def test_a_request_that_is_refused_never_reaches_a_model(
    served: tuple[Served, FakeProvider], request: Any
) -> None:
    service, model = served
    model.asked.clear()
    try:
        messages = [message async for message in service.stub.Generate(request, timeout=20)]
    except grpc.aio.AioRpcError as error:
        code, _ = failure(error)
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
            assert model.asked == []
        else:  # an idle timeout of a nanosecond, for example
            assert code is grpc.StatusCode.DEADLINE_EXCEEDED
    else:
        assert messages[-1].WhichOneof("event") == "completed"
        assert len(model.asked) == 1


@pytest.fixture
async def served(serve: Serve) -> tuple[Served, FakeProvider]:
    model = FakeProvider([Started(OFFERED[0]), Text("a"), FINISHED])
    return await serve(model), model


def test_the_strategies_reach_every_field_of_a_request() -> None:
    seen: set[str] = set()

    @given(requests)
    @settings(USUAL, max_examples=1000, database=None)
    def collect(request: pb.GenerateRequest) -> None:
        seen.update(field.name for field, _ in itertools.chain(request.ListFields(), request.config.ListFields()))

    collect()
    fields = {*pb.GenerateRequest.DESCRIPTOR.fields_by_name, *pb.GenerateRequest().config.DESCRIPTOR.fields_by_name}
    assert seen == fields
