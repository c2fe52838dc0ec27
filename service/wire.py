"""Between the wire and us: protobuf messages in, our own types out, and back. No I/O.

`parse` answers a request that can't be taken with the fields that are wrong: what each holds and what is wanted.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from google.protobuf import duration_pb2
from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

from service import model
from service.coalesce import MAX_BYTES, MAX_DELAY_SECONDS, Coalesce
from service.errors import InvalidRequest, ModelNotFound, Violation

MAX_REQUEST_ID_CHARACTERS = 128
MAX_STOP_SEQUENCES = 5  # Vertex AI's own limit

# LangChain takes 50 us for each message and 20 us for each part, and nobody else is served meanwhile.
MAX_MESSAGES = 1000
MAX_PARTS = 1000  # in all messages together

# Of a request's mistakes so many are told: they travel in trailers, of which callers take 8 KB.
MAX_VIOLATIONS = 10

# Fields that are in the contract but not served yet. A request that uses one is refused: nothing is dropped in silence.
UNSERVED_FIELDS = ("tools", "tool_choice", "safety_settings", "labels")
UNSERVED_CONFIG = (
    "thinking_budget",
    "include_thoughts",
    "response_mime_type",
    "response_schema",
    "response_logprobs",
    "logprobs",
)

# By field: the test that its value has to pass (NaN passes none), and the same in words.
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: 0 <= value <= 2, "0 to 2"),
    "top_p": (lambda value: 0 < value <= 1, "above 0, up to 1"),
    "top_k": (lambda value: 1 <= value <= 1000, "1 to 1000"),
    "max_output_tokens": (lambda value: value >= 1, "1 or more"),
    "presence_penalty": (lambda value: -2 <= value < 2, "-2 or more, but less than 2"),
    "frequency_penalty": (lambda value: -2 <= value < 2, "-2 or more, but less than 2"),
}

_PRINTABLE_ASCII = re.compile(r"[ -~]*")
_NO_SAMPLING = model.Sampling()
_ROLES = {content_pb2.ROLE_USER: model.Role.USER, content_pb2.ROLE_MODEL: model.Role.MODEL}


def parse(request: pb.GenerateRequest, *, offered: Sequence[str], max_prompt_bytes: int) -> model.Prompt:
    """What the caller asks, validated. `offered` are the models on offer, the default first.

    Raises InvalidRequest or ModelNotFound.
    """
    if not request.prompt and not request.messages:
        wanted = "is empty: the text to answer is wanted, here or as the last of `messages`"
        raise InvalidRequest([Violation("prompt", wanted)], reason="EMPTY_PROMPT")
    if violations := list(_too_much(request, max_prompt_bytes)):
        raise InvalidRequest(violations)  # before anything looks at each of its pieces
    found = itertools.chain(
        _unserved(request),
        _wrong_messages(request),
        _wrong_config(request.config),
        _wrong_request_id(request.request_id),
        _wrong_delivery(request),
    )
    if violations := list(itertools.islice(found, MAX_VIOLATIONS)):
        raise InvalidRequest(violations)
    if request.model and request.model not in offered:
        raise ModelNotFound(
            f"model: {_quote(request.model)} is not on offer: one of {', '.join(offered)} is wanted",
            metadata={"model": request.model[:MAX_REQUEST_ID_CHARACTERS], "offered": ",".join(offered)},
        )
    turns = [
        model.Turn(_ROLES[message.role], tuple(part.text for part in message.parts)) for message in request.messages
    ]
    if request.prompt:
        turns.append(model.Turn(model.Role.USER, (request.prompt,)))
    return model.Prompt(
        model=request.model or offered[0],
        turns=tuple(turns),
        system_instruction=request.system_instruction,
        sampling=_sampling(request.config),
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the caller wants the answer delivered. Seconds; None is no limit but the deadline."""

    first_chunk_timeout: float | None
    idle_timeout: float | None
    coalesce: Coalesce | None
    """None: every piece is sent as it comes."""


def delivery(request: pb.GenerateRequest) -> Delivery:
    """The same of a request that `parse` has taken."""
    merge = None
    if request.HasField("coalesce"):
        merge = Coalesce(
            max_delay=_seconds(request.coalesce.max_delay) if request.coalesce.HasField("max_delay") else 0.0,
            max_bytes=request.coalesce.max_bytes if request.coalesce.HasField("max_bytes") else MAX_BYTES,
        )
    return Delivery(
        first_chunk_timeout=_seconds(request.first_chunk_timeout) if request.HasField("first_chunk_timeout") else None,
        idle_timeout=_seconds(request.idle_timeout) if request.HasField("idle_timeout") else None,
        coalesce=merge,
    )


def _wrong_delivery(request: pb.GenerateRequest) -> Iterable[Violation]:
    for name in ("first_chunk_timeout", "idle_timeout"):
        if request.HasField(name) and not _seconds(getattr(request, name)) > 0:
            yield Violation(name, f"is {_seconds(getattr(request, name)):g} s: more than 0 is wanted")
    merge = request.coalesce
    if merge.HasField("max_delay") and not 0 <= _seconds(merge.max_delay) <= MAX_DELAY_SECONDS:
        held = f"is {_seconds(merge.max_delay):g} s: 0 to {MAX_DELAY_SECONDS:g} s is wanted"
        yield Violation("coalesce.max_delay", held)
    if merge.HasField("max_bytes") and not 1 <= merge.max_bytes <= MAX_BYTES:
        yield Violation("coalesce.max_bytes", f"is {merge.max_bytes}: 1 to {MAX_BYTES} is wanted")


def _seconds(duration: duration_pb2.Duration) -> float:
    # Not ToTimedelta: that raises for what a caller may send.
    return duration.seconds + duration.nanos / 1e9


def _sampling(config: config_pb2.GenerationConfig) -> model.Sampling:
    if not config.ByteSize():  # as in most requests
        return _NO_SAMPLING
    return model.Sampling(
        temperature=config.temperature if config.HasField("temperature") else None,
        top_p=config.top_p if config.HasField("top_p") else None,
        top_k=config.top_k if config.HasField("top_k") else None,
        max_output_tokens=config.max_output_tokens if config.HasField("max_output_tokens") else None,
        stop_sequences=tuple(config.stop_sequences),
        seed=config.seed if config.HasField("seed") else None,
        presence_penalty=config.presence_penalty if config.HasField("presence_penalty") else None,
        frequency_penalty=config.frequency_penalty if config.HasField("frequency_penalty") else None,
    )


def _unserved(request: pb.GenerateRequest) -> Iterable[Violation]:
    used = {field.name for field, _ in request.ListFields()}
    used_config = {field.name for field, _ in request.config.ListFields()}
    wanted = "is not served yet: leave it unset"
    yield from (Violation(name, wanted) for name in UNSERVED_FIELDS if name in used)
    yield from (Violation(f"config.{name}", wanted) for name in UNSERVED_CONFIG if name in used_config)


def _wrong_messages(request: pb.GenerateRequest) -> Iterable[Violation]:
    expected = content_pb2.ROLE_USER
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        if message.role == content_pb2.ROLE_TOOL:
            yield Violation(f"{path}.role", "ROLE_TOOL is not served yet: ROLE_USER or ROLE_MODEL is wanted")
        elif message.role != expected:
            yield Violation(
                f"{path}.role",
                f"is {_role(message.role)}: {_role(expected)} is wanted, users and models take turns",
            )
        expected = content_pb2.ROLE_USER if message.role == content_pb2.ROLE_MODEL else content_pb2.ROLE_MODEL
        if not message.parts:
            yield Violation(f"{path}.parts", "is empty: at least one part is wanted")
        for place, part in enumerate(message.parts):
            yield from _wrong_part(part, f"{path}.parts[{place}]")
    if not request.messages:
        return
    last = len(request.messages) - 1
    ends_with_user = request.messages[last].role == content_pb2.ROLE_USER
    if request.prompt and ends_with_user:
        yield Violation(
            f"messages[{last}].role",
            "is ROLE_USER: ROLE_MODEL is wanted, since `prompt` is the user's next message",
        )
    elif not request.prompt and not ends_with_user:
        yield Violation("prompt", "is empty: it is wanted, since `messages` does not end with a user's message")


def _wrong_part(part: content_pb2.Part, path: str) -> Iterable[Violation]:
    kind = part.WhichOneof("data")
    if kind is None:
        yield Violation(path, "is empty: text is wanted")
    elif kind == "text":
        if not part.text:
            yield Violation(f"{path}.text", "is empty: text is wanted")
    elif kind in ("inline_data", "file_data") and not getattr(part, kind).mime_type:
        yield Violation(f"{path}.{kind}.mime_type", 'is empty: a media type such as "image/png" is wanted')
    else:
        yield Violation(f"{path}.{kind}", "is not served yet: text is wanted")
    if part.reasoning_signature:
        yield Violation(f"{path}.reasoning_signature", "is not served yet: leave it unset")


def _wrong_config(config: config_pb2.GenerationConfig) -> Iterable[Violation]:
    given = {field.name: value for field, value in config.ListFields()}
    for name, (inside, wanted) in _RANGES.items():
        if name in given and not inside(given[name]):
            yield Violation(f"config.{name}", f"is {given[name]:g}: {wanted} is wanted")
    if len(config.stop_sequences) > MAX_STOP_SEQUENCES:
        yield Violation(
            "config.stop_sequences",
            f"holds {len(config.stop_sequences)}: at most {MAX_STOP_SEQUENCES} are wanted",
        )
    for index, sequence in enumerate(config.stop_sequences):
        if not sequence:
            yield Violation(f"config.stop_sequences[{index}]", "is empty: text is wanted")


def _wrong_request_id(request_id: str) -> Iterable[Violation]:
    if len(request_id) > MAX_REQUEST_ID_CHARACTERS:
        yield Violation(
            "request_id", f"has {len(request_id)} characters: at most {MAX_REQUEST_ID_CHARACTERS} are wanted"
        )
    elif not _PRINTABLE_ASCII.fullmatch(request_id):
        yield Violation("request_id", f"is {_quote(request_id)}: printable ASCII is wanted")


def _too_much(request: pb.GenerateRequest, max_prompt_bytes: int) -> Iterable[Violation]:
    size = request.ByteSize()
    if size > max_prompt_bytes:
        yield Violation(
            "prompt",
            f"the request has {size} bytes, history included: at most {max_prompt_bytes} are wanted",
        )
    if len(request.messages) > MAX_MESSAGES:
        yield Violation("messages", f"holds {len(request.messages)}: at most {MAX_MESSAGES} are wanted")
    elif (parts := sum(len(message.parts) for message in request.messages)) > MAX_PARTS:
        yield Violation("messages", f"hold {parts} parts in all: at most {MAX_PARTS} are wanted")


def _role(number: int) -> str:
    known = content_pb2.Role.values()
    return content_pb2.Role.Name(content_pb2.Role.ValueType(number)) if number in known else str(number)


def _quote(text: str, most: int = 80) -> str:
    """A caller's own short value, safe to print."""
    return ascii(text if len(text) <= most else text[:most] + "...")


class Answer:
    """One answer on its way out: events become messages with consecutive sequence numbers."""

    def __init__(self, *, generation_id: str, request_id: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` counts seconds from any moment; the request arrives now."""
        self.generation_id = generation_id
        self.sequence = 0
        """The next message's number, which is how many have been made."""
        self.finish = ""
        """The finish reason's name, once there is one."""
        self.admission_wait = 0.0
        """Seconds that the call waited for a slot."""
        self._request_id = request_id
        self.model = ""
        """The public name of the model that answers, once it has begun."""
        self._clock = clock
        self._arrival = clock()
        self._first_chunk = self._arrival

    def encode(self, event: model.Event) -> pb.GenerateResponse:
        """The next message."""
        message = pb.GenerateResponse(sequence=self.sequence)
        self.sequence += 1
        match event:
            case model.Text():
                message.text = event.text
            case model.Reasoning():
                message.reasoning.text = event.text
                message.reasoning.signature = event.signature
            case model.Started():
                self.model = event.model
                self._first_chunk = self._clock()
                message.started.generation_id = self.generation_id
                message.started.model = event.model
                message.started.request_id = self._request_id
            case model.Finished():
                self.finish = event.reason.name
                message.completed.CopyFrom(_completed(event, self.model, self._timing(event.attempts)))
        return message

    def _timing(self, attempts: int) -> pb.Timing:
        return pb.Timing(
            admission_wait=_duration(self.admission_wait),
            first_chunk=_duration(self._first_chunk - self._arrival),
            total=_duration(self._clock() - self._arrival),
            upstream_attempts=attempts,
        )


def model_list(offered: Sequence[str], provider: str) -> pb.ListModelsResponse:
    """The names on offer, the default first."""
    return pb.ListModelsResponse(
        models=[
            pb.Model(name=name, default=place == 0, provider=provider, input_kinds=["text"])
            for place, name in enumerate(offered)
        ]
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _completed(event: model.Finished, name: str, timing: pb.Timing) -> pb.Completed:
    usage = pb.Usage(exact=False)
    if event.usage is not None:
        usage = pb.Usage(
            exact=True,
            input_tokens=event.usage.input_tokens,
            output_tokens=event.usage.output_tokens,
            reasoning_tokens=event.usage.reasoning_tokens,
            cached_tokens=event.usage.cached_tokens,
            total_tokens=event.usage.total_tokens,
        )
    return pb.Completed(
        finish_reason=pb.FinishReason.Value(f"FINISH_REASON_{event.reason.name}"),
        upstream_finish_reason=event.upstream_reason,
        usage=usage,
        timing=timing,
        model_version=event.model_version,
        safety_ratings=[
            pb.SafetyRating(category=_category(rating.category), probability=rating.probability, blocked=rating.blocked)
            for rating in event.safety_ratings
        ],
        model=name,
    )


def _category(name: str) -> "config_pb2.HarmCategory.ValueType":
    try:
        return config_pb2.HarmCategory.Value(name)
    except ValueError:  # a kind of harm that this version of the contract doesn't know
        return config_pb2.HARM_CATEGORY_UNSPECIFIED
