"""Our own types as messages of tokenwire.v1. No I/O."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from google.protobuf import duration_pb2, struct_pb2
from google.rpc import status_pb2

from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

from ..errors import UpstreamFault
from ..generation import json_values
from ..generation.capabilities import ModelCard
from ..generation.events import Event, Finished, FinishReason, Grounding, Logprobs, Started, Text, TokenLogprob, Usage
from ..generation.prompt import Reasoning, ToolCall


class Answer:
    """One answer on its way out: events become messages with consecutive sequence numbers."""

    def __init__(self, *, generation_id: str, request_id: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock` counts seconds from any moment; the request arrives now."""
        self.generation_id = generation_id
        self.sequence = 0
        """The next message's number, which is how many have been made."""
        self.tokens: int | None = None
        """All that the answer took, once upstream has told."""
        self.usage: Usage | None = None
        """What it took by kind, once upstream has told."""
        self.attempts: int | None = None
        """How often upstream was asked, once the answer is whole."""
        self.characters = 0
        """Of the text that was said."""
        self.finish = ""
        """The finish reason's name, once there is one."""
        self.admission_wait: float | None = None
        """Seconds that the call waited for a slot; None: it has none yet."""
        self._request_id = request_id
        self._said = False
        """Whether it holds more than thoughts."""
        self.model = ""
        """The public name of the model that answers, once it has begun."""
        self._clock = clock
        self._arrival = clock()
        self._first_chunk = self._arrival

    @property
    def first(self) -> float | None:
        """Seconds from the request to the model's first word; None: it has said none."""
        return self._first_chunk - self._arrival if self.model else None

    def encode(self, event: Event) -> pb.GenerateResponse:
        """The next message. Raises UpstreamFault for what the contract has no place for, or would change."""
        sequence = self.sequence
        self.sequence = sequence + 1
        try:
            if isinstance(event, Text):  # as nearly all are
                self._said = True
                self.characters += len(event.text)
                return pb.GenerateResponse(sequence=sequence, text=event.text)
            message = pb.GenerateResponse(sequence=sequence)
            self._fill(message, event)
        except UnicodeEncodeError:  # a surrogate without its other half
            raise UpstreamFault("The model said half of a character, which can't be relayed") from None
        return message

    def _fill(self, message: pb.GenerateResponse, event: Event) -> None:
        match event:
            case Text():
                message.text = event.text
            case Reasoning():
                message.reasoning.text = event.text
                message.reasoning.signature = event.signature
            case ToolCall():
                self._said = True
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
                if event.reason is FinishReason.STOP and message.sequence <= 1:  # behind nothing but `started`
                    event = replace(event, reason=FinishReason.EMPTY)
                if event.usage is not None and not _counts(event.usage, said=self._said):
                    event = replace(event, usage=None)
                self.finish = event.reason.name
                self.usage, self.attempts = event.usage, event.attempts
                self.tokens = None if event.usage is None else event.usage.total_tokens
                message.completed.CopyFrom(_completed(event, self.model, self._timing(event.attempts)))

    def _timing(self, attempts: int) -> pb.Timing:
        return pb.Timing(
            admission_wait=_duration(self.admission_wait or 0.0),
            first_chunk=_duration(self._first_chunk - self._arrival),
            total=_duration(self._clock() - self._arrival),
            upstream_attempts=attempts,
        )


def failed(sequence: int, status: status_pb2.Status) -> pb.GenerateResponse:
    """The last message of a stream that fails."""
    return pb.GenerateResponse(sequence=sequence, failed=status)


class Counted(Protocol):
    """Something that is counted of a caller."""

    @property
    def name(self) -> str: ...
    @property
    def used(self) -> int: ...
    @property
    def limit(self) -> int | None: ...
    @property
    def resets_in(self) -> float | None: ...


def usage(callers: Iterable[tuple[str, Sequence[Counted], int]]) -> pb.GetUsageResponse:
    """What callers have used: each with its name, what is counted, and how many tokens of the day were estimated."""
    return pb.GetUsageResponse(
        callers=[
            pb.CallerUsage(
                caller=name,
                quotas=[
                    pb.CallerUsage.Quota(
                        name=one.name,
                        used=one.used,
                        limit=one.limit,
                        resets_in=None if one.resets_in is None else _duration(one.resets_in),
                    )
                    for one in quotas
                ],
                estimated_tokens_today=estimated,
            )
            for name, quotas, estimated in callers
        ]
    )


def _counts(usage: Usage, *, said: bool) -> bool:
    """Whether figures count anything, and where something was `said`, that."""
    return bool(usage.output_tokens if said else usage.total_tokens or usage.cached_tokens)


def model_list(cards: Sequence[ModelCard]) -> pb.ListModelsResponse:
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
                unsupported_fields=sorted(card.unsupported),
            )
            for place, card in enumerate(cards)
        ]
    )


def _struct(values: Mapping[str, str]) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(values)
    return made


def _tool_call(event: ToolCall) -> pb.ToolCallEvent:
    if unfit := json_values.unfit(event.arguments):
        raise UpstreamFault(f"The model asked for a function with arguments that hold {unfit}")
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
