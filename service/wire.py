"""Between the wire and us: protobuf messages in, our own types out, and back. No I/O.

`parse` answers a request that can't be taken with the fields that are wrong: what each holds and what is wanted.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from google.protobuf import duration_pb2, struct_pb2

from service import mistakes
from service.coalesce import MAX_BYTES, Coalesce
from service.contract.values import plain
from service.errors import InvalidRequest, ModelNotFound, Violation
from service.generation import json_schema
from service.generation.capabilities import Card
from service.generation.events import Event, Finished, Grounding, Logprobs, Started, Text, TokenLogprob
from service.generation.prompt import (
    Blob,
    File,
    Function,
    Part,
    Prompt,
    Reasoning,
    Role,
    Sampling,
    ToolCall,
    ToolChoice,
    ToolMode,
    ToolResult,
    Tools,
    Turn,
)
from service.mistakes import seconds
from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

# Of a request's mistakes so many are told: they travel in trailers, of which callers take 8 KB.
MAX_VIOLATIONS = 10

_ROLES = {
    content_pb2.ROLE_USER: Role.USER,
    content_pb2.ROLE_MODEL: Role.MODEL,
    content_pb2.ROLE_TOOL: Role.TOOL,
}
_MODES = {
    config_pb2.ToolChoice.MODE_UNSPECIFIED: ToolMode.AUTO,
    config_pb2.ToolChoice.MODE_AUTO: ToolMode.AUTO,
    config_pb2.ToolChoice.MODE_ANY: ToolMode.ANY,
    config_pb2.ToolChoice.MODE_NONE: ToolMode.NONE,
}
_THRESHOLDS = "HARM_BLOCK_THRESHOLD_"
_NO_SAMPLING = Sampling()
_NO_TOOLS = Tools()


def parse(request: pb.GenerateRequest, *, cards: Sequence[Card], limits: mistakes.Limits) -> Prompt:
    """What the caller asks, validated. `cards` are those of the models on offer, the default first.

    Raises InvalidRequest or ModelNotFound.
    """
    if not request.prompt and not request.messages:
        wanted = "is empty: the text to answer is wanted, here or as the last of `messages`"
        raise InvalidRequest([Violation("prompt", wanted)], reason="EMPTY_PROMPT")
    if violations := list(mistakes.too_much(request, limits)):
        raise InvalidRequest(violations)  # before anything looks at each of its pieces
    card = _card(request.model, cards)
    if violations := list(itertools.islice(mistakes.of(request, card), MAX_VIOLATIONS)):
        raise InvalidRequest(violations)
    return Prompt(
        model=card.name,
        turns=tuple(_turns(request)),
        system_instruction=request.system_instruction,
        sampling=_sampling(request.config) if request.HasField("config") else _NO_SAMPLING,
        tools=_tools(request) if request.tools else _NO_TOOLS,
        safety={
            config_pb2.HarmCategory.Name(one.category): _threshold(one.threshold) for one in request.safety_settings
        },
        labels=dict(request.labels),
    )


def parse_count(request: pb.CountTokensRequest, *, cards: Sequence[Card], limits: mistakes.Limits) -> Prompt:
    """What the caller wants counted; as `parse`, which would take the same fields."""
    same = pb.GenerateRequest(
        prompt=request.prompt,
        messages=request.messages,
        system_instruction=request.system_instruction,
        model=request.model,
        tools=request.tools,
    )
    return parse(same, cards=cards, limits=limits)


def _card(name: str, cards: Sequence[Card]) -> Card:
    if not name:
        return cards[0]
    for card in cards:
        if card.name == name:
            return card
    offered = [card.name for card in cards]
    short = name[: mistakes.MAX_REQUEST_ID_CHARACTERS]
    raise ModelNotFound(
        f"model: {mistakes.quote(name)} is not on offer: one of {', '.join(offered)} is wanted",
        metadata={"model": short, "offered": ",".join(offered)},
    )


@dataclass(frozen=True, slots=True)
class Delivery:
    """How the caller wants the answer delivered. Seconds; None is no limit but the deadline."""

    first_chunk_timeout: float | None = None
    idle_timeout: float | None = None
    coalesce: Coalesce | None = None
    """None: every piece is sent as it comes."""


def delivery(request: pb.GenerateRequest) -> Delivery:
    """The same of a request that `parse` has taken."""
    merge = None
    if request.HasField("coalesce"):
        merge = Coalesce(
            max_delay=seconds(request.coalesce.max_delay) if request.coalesce.HasField("max_delay") else 0.0,
            max_bytes=request.coalesce.max_bytes if request.coalesce.HasField("max_bytes") else MAX_BYTES,
        )
    return Delivery(
        first_chunk_timeout=seconds(request.first_chunk_timeout) if request.HasField("first_chunk_timeout") else None,
        idle_timeout=seconds(request.idle_timeout) if request.HasField("idle_timeout") else None,
        coalesce=merge,
    )


def _sampling(config: config_pb2.GenerationConfig) -> Sampling:
    return Sampling(
        temperature=config.temperature if config.HasField("temperature") else None,
        top_p=config.top_p if config.HasField("top_p") else None,
        top_k=config.top_k if config.HasField("top_k") else None,
        max_output_tokens=config.max_output_tokens if config.HasField("max_output_tokens") else None,
        stop_sequences=tuple(config.stop_sequences),
        seed=config.seed if config.HasField("seed") else None,
        presence_penalty=config.presence_penalty if config.HasField("presence_penalty") else None,
        frequency_penalty=config.frequency_penalty if config.HasField("frequency_penalty") else None,
        thinking_budget=config.thinking_budget if config.HasField("thinking_budget") else None,
        include_thoughts=config.include_thoughts if config.HasField("include_thoughts") else None,
        response_mime_type=config.response_mime_type if config.HasField("response_mime_type") else None,
        response_schema=json_schema.typed(plain(config.response_schema), str.lower)
        if config.HasField("response_schema")
        else None,
        response_logprobs=config.response_logprobs if config.HasField("response_logprobs") else None,
        logprobs=config.logprobs if config.HasField("logprobs") else None,
    )


def _turns(request: pb.GenerateRequest) -> Iterable[Turn]:
    names: dict[str, str] = {}
    for message in request.messages:
        for part in message.parts:
            if part.HasField("tool_call"):
                names[part.tool_call.id] = part.tool_call.name
        yield Turn(_ROLES[message.role], tuple(_parts(message.parts, names)))
    if request.prompt:
        yield Turn(Role.USER, (request.prompt,))


def _parts(parts: Iterable[content_pb2.Part], names: Mapping[str, str]) -> Iterable[Part]:
    """`names` are those of the functions called so far, by the calls' ids."""
    for part in parts:
        match part.WhichOneof("data"):
            case "text":
                yield part.text
                if part.reasoning_signature:
                    yield Reasoning("", part.reasoning_signature)
            case "inline_data":
                yield Blob(part.inline_data.mime_type, part.inline_data.data)
            case "file_data":
                yield File(part.file_data.mime_type, part.file_data.file_uri)
            case "reasoning":
                yield Reasoning(part.reasoning, part.reasoning_signature)
            case "tool_call":
                call = part.tool_call
                yield ToolCall(
                    id=call.id,
                    name=call.name,
                    arguments=plain(call.arguments),
                    signature=part.reasoning_signature,
                )
            case "tool_result":
                result = part.tool_result
                yield ToolResult(
                    id=result.tool_call_id,
                    name=result.name or names[result.tool_call_id],
                    response=plain(result.response),
                )


def _tools(request: pb.GenerateRequest) -> Tools:
    functions = [function for tool in request.tools for function in tool.function_declarations]
    choice = request.tool_choice
    return Tools(
        functions=tuple(
            Function(
                name=function.name,
                description=function.description,
                parameters=json_schema.typed(plain(function.parameters), str.lower)
                if function.HasField("parameters")
                else None,
            )
            for function in functions
        ),
        google_search=any(tool.HasField("google_search") for tool in request.tools),
        choice=ToolChoice(_MODES[choice.mode], tuple(choice.allowed_function_names))
        if request.HasField("tool_choice")
        else None,
    )


def _threshold(number: "config_pb2.HarmBlockThreshold.ValueType") -> str:
    """Google's name for it: BLOCK_NONE of HARM_BLOCK_THRESHOLD_NONE, but OFF of HARM_BLOCK_THRESHOLD_OFF."""
    name = config_pb2.HarmBlockThreshold.Name(number).removeprefix(_THRESHOLDS)
    return name if name == "OFF" else f"BLOCK_{name}"


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

    def encode(self, event: Event) -> pb.GenerateResponse:
        """The next message."""
        sequence = self.sequence
        self.sequence += 1
        if isinstance(event, Text):  # as nearly all are
            return pb.GenerateResponse(sequence=sequence, text=event.text)
        message = pb.GenerateResponse(sequence=sequence)
        match event:
            case Reasoning():
                message.reasoning.text = event.text
                message.reasoning.signature = event.signature
            case ToolCall():
                message.tool_call.CopyFrom(_tool_call(event))
            case Grounding():
                message.grounding.CopyFrom(_grounding(event))
            case Logprobs():
                message.logprobs.tokens.extend(map(_token, event.tokens))
            case Started():
                self.model = event.model
                self._first_chunk = self._clock()
                message.started.generation_id = self.generation_id
                message.started.model = event.model
                message.started.request_id = self._request_id
            case Finished():
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


def model_list(cards: Sequence[Card]) -> pb.ListModelsResponse:
    """The models on offer, the default first."""
    return pb.ListModelsResponse(
        models=[
            pb.Model(
                name=card.name,
                default=place == 0,
                provider=card.provider,
                max_input_tokens=card.max_input_tokens,
                max_output_tokens=card.max_output_tokens,
                input_kinds=sorted(card.input_kinds or ()),
                thinking=card.thinking,
                tools=card.tools,
                metadata=_struct(card.metadata) if card.metadata else None,
                unsupported_fields=sorted(card.lacks),
            )
            for place, card in enumerate(cards)
        ]
    )


def _struct(values: Mapping[str, str]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def _tool_call(event: ToolCall) -> pb.ToolCallEvent:
    made = pb.ToolCallEvent(
        tool_call=content_pb2.ToolCall(id=event.id, name=event.name), reasoning_signature=event.signature
    )
    made.tool_call.arguments.update(event.arguments)
    return made


def _grounding(event: Grounding) -> pb.Grounding:
    return pb.Grounding(
        sources=[
            pb.Grounding.Source(uri=source.uri, title=source.title, license=source.license) for source in event.sources
        ],
        supports=[
            pb.Grounding.Support(
                text=support.text,
                source_indices=support.sources,
                start_index=support.start,
                end_index=support.end,
            )
            for support in event.supports
        ],
        search_queries=event.queries,
    )


def _token(token: TokenLogprob) -> pb.Logprobs.TokenLogprob:
    return pb.Logprobs.TokenLogprob(
        token=token.token,
        log_probability=token.log_probability,
        alternatives=map(_token, token.alternatives),
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration


def _completed(event: Finished, name: str, timing: pb.Timing) -> pb.Completed:
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
