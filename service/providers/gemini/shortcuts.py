"""ChatVertexAI, with shortcuts for what most requests and chunks are.

The library turns each request and each chunk into dicts and back several times. The shortcuts give the same results for
a tenth of the time; property tests hold them equal. Everything else goes the library's own way.

They rebuild the library's private parts, and pydantic's. So `fit` compares both ways once, when the server starts, and
where an installed library differs from what was written here, `Slow` takes the library's own way for everything.
"""

import asyncio
import warnings
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cache, cached_property
from typing import Any, Protocol, TypeVar, cast

from google.cloud.aiplatform_v1beta1.types import (
    Candidate,
    Content,
    GenerateContentRequest,
    GenerateContentResponse,
    Part,
)
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    BaseMessageChunk,
    HumanMessage,
    SystemMessage,
)
from langchain_core.messages.ai import UsageMetadata, subtract_usage
from langchain_core.outputs import ChatGenerationChunk
from langchain_google_vertexai import ChatVertexAI
from langsmith import tracing_context
from langsmith.utils import tracing_is_enabled

from ...generation.events import Event
from ...telemetry import call_log
from ..spec import DEFAULT_MODEL

_TOTALS = ("input_tokens", "output_tokens", "total_tokens")

# What the shortcut of a request knows: who speaks, and the options that are numbers.
_ROLES: dict[type[BaseMessage], str] = {SystemMessage: "system", HumanMessage: "user", AIMessage: "model"}
_NUMBERS = frozenset(
    {"temperature", "top_p", "top_k", "max_output_tokens", "seed", "presence_penalty", "frequency_penalty"}
)

_CONTENT = Candidate.pb().DESCRIPTOR.fields_by_name["content"]
_FINISH_REASON = Candidate.pb().DESCRIPTOR.fields_by_name["finish_reason"]
_TEXT = Part.pb().DESCRIPTOR.fields_by_name["text"]

# Past pydantic's own way of setting, which takes longer than all the rest where this is used.
_set = object.__setattr__

Beyond = Sequence[Event] | None
"""What a response says, where that is more than a piece of text; None: it is one, and the message holds it."""

Response = tuple[Any, tuple[str, int] | None, Beyond]
"""The protobuf message beneath Google's GenerateContentResponse, and what `plain` says of it."""

Answer = AsyncGenerator[tuple[Any, Beyond], None]
"""The content of what the library makes of each response, text where it brings nothing else along; and what it does."""


class Call(Protocol):
    """What a request brings along: the call to upstream, which others keep hold of."""

    def begin(self, request: Any, seconds: float) -> None:
        """Ask, with the protobuf message beneath a GenerateContentRequest; upstream has so long."""
        ...

    async def read(self) -> "Response | None":
        """The next response; None behind the last."""
        ...


with warnings.catch_warnings():
    # Deprecated in favour of ChatGoogleGenerativeAI; what this project stands on until that has taken its place.
    warnings.filterwarnings("ignore", message=r".*ChatGoogleGenerativeAI", category=DeprecationWarning)

    class Chat(ChatVertexAI):
        """ChatVertexAI, with a shortcut for what most chunks are: a piece of text and perhaps a finish reason."""

        def answer(self, messages: list[BaseMessage], *, call: Call, **options: Any) -> Answer:
            """What `astream` gives. Where nobody traces, without what it does for tracers only.

            That is to set up callbacks and run ids for each request, to make a message of each piece of text, with what
            it adds to the usage, and to keep every one until the end.
            """
            if not self._traced:
                return self._contents(messages, call=call, **options)
            order = _Order(call)
            return order.paired(self.astream(messages, call=order, **options))

        async def _contents(self, messages: list[BaseMessage], stop: list[str] | None = None, **kwargs: Any) -> Answer:
            call = self._begun(messages, stop, **kwargs)
            while (response := await call.read()) is not None:
                _, found, beyond = response
                yield found[0] if found is not None else self._converted(response, None)[0].content, beyond

        async def _astream(
            self,
            messages: list[BaseMessage],
            stop: list[str] | None = None,
            run_manager: Any = None,  # noqa: ARG002 - `astream` tells it of each chunk itself
            **kwargs: Any,
        ) -> AsyncIterator[ChatGenerationChunk]:
            """As the library has it, but for its retries, which are off and would still be set up for each request."""
            call = self._begun(messages, stop, **kwargs)
            usage = None
            while (response := await call.read()) is not None:
                message, info, usage = self._converted(response, usage)
                yield ChatGenerationChunk(message=message, generation_info=info and dict(info))

        def _begun(self, messages: list[BaseMessage], stop: list[str] | None, *, call: Call, **kwargs: Any) -> Call:
            call.begin(self._request(messages, stop, **kwargs), kwargs["timeout"])
            return call

        def _request(self, messages: list[BaseMessage], stop: list[str] | None, **kwargs: Any) -> Any:
            """What the library's `_prepare_request_gemini` makes, as the protobuf message beneath it.

            The usual request, a conversation in texts, takes a shortcut here too; a property test holds the two equal.
            """
            request = self._empty.__class__()
            request.CopyFrom(self._empty)
            if _fill(request, messages, stop, kwargs):
                return request
            return GenerateContentRequest.pb(self._prepare_request_gemini(messages, stop=stop, **kwargs))

        @cached_property
        def _empty(self) -> Any:
            """What all requests have in common."""
            request = GenerateContentRequest.pb(self._prepare_request_gemini([HumanMessage("x")]))
            request.ClearField("contents")
            return request

        def _get_invocation_params(self, stop: list[str] | None = None, **kwargs: Any) -> dict[str, Any]:
            kwargs.pop("call", None)  # no matter of a tracer's
            return dict(super()._get_invocation_params(stop, **kwargs))

        def _converted(
            self, response: Response, before: UsageMetadata | None
        ) -> tuple[BaseMessageChunk, dict[str, Any] | None, UsageMetadata | None]:
            """What the library's `_gemini_chunk_to_generation_chunk` makes of a response and of the usage `before`.

            That is a message, what else is known of it, and the usage so far.
            """
            raw, found, _ = response
            if found is None:
                whole = GenerateContentResponse.wrap(raw)
                chunk, total = self._gemini_chunk_to_generation_chunk(whole, before)
                return chunk.message, chunk.generation_info, total
            text, finish_reason = found
            like = self._made.get(finish_reason) or self._like(finish_reason)
            total = _usage_metadata(raw.usage_metadata) if raw.HasField("usage_metadata") else None
            message = _copy(
                like.message,
                content=text,
                usage_metadata=_difference(total, before) if before else total,
                response_metadata=like.message.response_metadata.copy(),
            )
            return message, like.generation_info, total

        @cached_property
        def _traced(self) -> bool:
            """Whether somebody traces; that doesn't change while the server runs."""
            return bool(tracing_is_enabled())

        def _like(self, finish_reason: int) -> ChatGenerationChunk:
            """What the library makes of a piece of text with this finish reason, 0 for none, and nothing else."""
            if finish_reason not in self._made:
                candidate = Candidate(
                    content=Content(role="model", parts=[Part(text="x")]), finish_reason=finish_reason
                )
                sample = GenerateContentResponse(candidates=[candidate])
                self._made[finish_reason] = self._gemini_chunk_to_generation_chunk(sample)[0]
            return self._made[finish_reason]

        @cached_property
        def _made(self) -> dict[int, ChatGenerationChunk]:
            """By finish reason."""
            return {}

    class Slow(ChatVertexAI):
        """ChatVertexAI as it is, for where the shortcuts don't fit."""

        def answer(self, messages: list[BaseMessage], *, call: Call, **options: Any) -> Answer:
            """As `Chat` has it."""
            order = _Order(call)
            return order.paired(self.model_copy(update={"async_client": _Client(order)}).astream(messages, **options))


Kind = TypeVar("Kind", bound=ChatVertexAI)


def new(kind: type[Kind], name: str, project: str, location: str) -> Kind:
    """A model of Vertex AI, with all that the library adds of its own switched off."""
    return kind(
        model=name,
        project=project,
        location=location,
        max_retries=0,  # it would retry every status, and sleep for half a minute
        n=1,
        cache=False,
        output_version="v0",  # content as text; else LC_OUTPUT_VERSION could make lists of it
    )


class _Order:
    """A `Call` that the library reads by itself: keeps what responses bring along until their messages come."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._kept: deque[Beyond] = deque()
        self.begin = call.begin

    async def read(self) -> Response | None:
        """As `Call` has it."""
        response = await self._call.read()
        if response is not None:
            self._kept.append(response[2])
        return response

    async def paired(self, chunks: AsyncIterator[BaseMessageChunk]) -> Answer:
        """The library makes one chunk of each response, in their order, and ends by an empty one of its own."""
        made = cast("AsyncGenerator[BaseMessageChunk, None]", chunks)  # LangChain declares less than it returns
        async with aclosing(made):
            async for chunk in made:
                yield chunk.content, self._kept.popleft() if self._kept else ()


class _Client:
    """What `Slow` gets for Google's client while it answers one prompt."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def stream_generate_content(
        self,
        *,
        request: GenerateContentRequest,
        timeout: float,  # noqa: ASYNC109 - Google's name for it
        **_: Any,
    ) -> AsyncIterator[GenerateContentResponse]:
        """As PredictionServiceAsyncClient has it."""
        self._call.begin(GenerateContentRequest.pb(request), timeout)
        return self._responses()

    async def _responses(self) -> AsyncIterator[GenerateContentResponse]:
        while (response := await self._call.read()) is not None:
            yield GenerateContentResponse.wrap(response[0])


# ---- whether they fit ------------------------------------------------------------------------------------------------


@cache
def fit() -> bool:
    """Whether the shortcuts give what the installed libraries give; a few milliseconds, once."""
    try:
        difference = next(_differences(), None)
    except Exception as error:  # noqa: BLE001 - whatever a changed library does to code that rebuilds its private parts
        difference = f"{type(error).__name__} in the comparison"
    if difference is not None:
        call_log.say(
            "the installed LangChain is not what the shortcuts past it were written for (%s): each chunk and request "
            "takes its own way, which costs several times as much",
            difference,
        )
    return difference is None


_TURNS: list[BaseMessage] = [SystemMessage("s"), HumanMessage("a\n"), AIMessage(" b"), HumanMessage("c")]
_OPTIONS = {
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 3,
    "max_output_tokens": 7,
    "seed": 0,
    "presence_penalty": -1.0,
    "frequency_penalty": 1.0,
    "timeout": 1.5,
}
_USAGES: list[dict[str, int]] = [
    {},
    {"prompt_token_count": 3, "total_token_count": 3},
    {"prompt_token_count": 3, "candidates_token_count": 4, "cached_content_token_count": 1, "total_token_count": 7},
    {"prompt_token_count": 2, "candidates_token_count": 9, "thoughts_token_count": 5, "total_token_count": 16},
    {"prompt_token_count": 5, "candidates_token_count": 9, "thoughts_token_count": 2, "total_token_count": 16},
]


def _differences() -> Iterator[str]:
    """Where a shortcut gives something else than the library does, for an example of each kind that it is for."""
    fast: Any = new(Chat, DEFAULT_MODEL, "project", "us-central1")
    slow: Any = new(Slow, DEFAULT_MODEL, "project", "us-central1")
    for turns, stop, options in ((_TURNS[1:2], None, {}), (_TURNS, ["end", "stop"], _OPTIONS)):
        request = slow._prepare_request_gemini(list(turns), stop=stop, **options)
        if fast._request(turns, stop, **options) != GenerateContentRequest.pb(request):
            yield "a request"
    raws = [_sample(text, usage) for text, usage in zip(("a", "", " b\n", "c", "d"), _USAGES, strict=True)]
    raws.append(_sample("e", None, finish_reason="STOP"))
    before = None
    for raw in raws:
        chunk, total = slow._gemini_chunk_to_generation_chunk(GenerateContentResponse.wrap(raw), before)
        message, info, ours = fast._converted((raw, plain(raw), None), before)
        if (message, info, ours) != (chunk.message, chunk.generation_info, total) or not _alike(message, chunk.message):
            yield "a chunk"
        before = total
    with ThreadPoolExecutor(1) as pool:  # where no event loop runs
        short, whole = (pool.submit(asyncio.run, _read(way, raws)).result() for way in (fast._contents, slow.answer))
    if short != whole[: len(raws)] or any(whole[len(raws) :]):
        yield "an answer"


def _sample(text: str, usage: dict[str, int] | None, **more: Any) -> Any:
    """The protobuf message of a chunk that holds this."""
    candidate = Candidate(content=Content(role="model", parts=[Part(text=text)]), **more)
    known = {} if usage is None else {"usage_metadata": usage}
    return GenerateContentResponse.pb(GenerateContentResponse(candidates=[candidate], **known))


def _alike(one: BaseMessageChunk, other: BaseMessageChunk) -> bool:
    """Whether two messages that are equal have the same insides too, which pydantic doesn't compare."""
    insides = ("__dict__", "__pydantic_extra__", "__pydantic_private__")
    return type(one) is type(other) and all(getattr(one, name) == getattr(other, name) for name in insides)


class _Sampled:
    """A `Call` that reads these."""

    def __init__(self, raws: Sequence[Any]) -> None:
        self._raws = iter(raws)

    def begin(self, request: Any, seconds: float) -> None:
        """As `Call` has it."""

    async def read(self) -> Response | None:
        raw = next(self._raws, None)
        return None if raw is None else (raw, plain(raw), None)


async def _read(way: Callable[..., Answer], raws: Sequence[Any]) -> list[Any]:
    """What this way of reading an answer gives."""
    with tracing_context(enabled=False):
        return [content async for content, _ in way([HumanMessage("x")], call=_Sampled(raws), timeout=1.5)]


def _copy(message: BaseMessageChunk, **changed: Any) -> BaseMessageChunk:
    """What pydantic's `model_copy` makes of a message without private and extra fields, for a fifth of the time."""
    copy = object.__new__(type(message))
    _set(copy, "__dict__", message.__dict__ | changed)
    _set(copy, "__pydantic_fields_set__", message.__pydantic_fields_set__ | changed.keys())
    _set(copy, "__pydantic_extra__", {})
    _set(copy, "__pydantic_private__", None)
    return copy


def _usage_metadata(usage: Any) -> UsageMetadata | None:
    """What the library's `_get_usage_metadata_gemini` gives."""
    thoughts = usage.thoughts_token_count
    cached = usage.cached_content_token_count
    metadata: UsageMetadata = {
        "input_tokens": usage.prompt_token_count,
        "output_tokens": usage.candidates_token_count,
        "total_tokens": usage.total_token_count,
        "input_token_details": {"cache_read": cached},
    }
    if thoughts > 0:
        metadata["output_token_details"] = {"reasoning": thoughts}
    elif not (thoughts or cached or any(map(metadata.get, _TOTALS))):
        return None
    return metadata


def _fill(request: Any, messages: list[BaseMessage], stop: list[str] | None, options: dict[str, Any]) -> bool:
    """Put these into a request, if they are texts, of turns that alternate, and numbers for the sampling only.

    False if they aren't, with the request half filled.
    """
    before: type[BaseMessage] | None = None
    for turn in messages:
        kind, text = type(turn), turn.content
        role = _ROLES.get(kind)
        if role is None or kind is before or not isinstance(text, str) or not text:
            return False
        if role == "system":
            if before is not None:
                return False
            content = request.system_instruction
        elif isinstance(turn, AIMessage) and (turn.tool_calls or turn.response_metadata):
            return False
        else:
            content = request.contents.add()
        content.role = role
        content.parts.add().text = text
        before = kind
    config = request.generation_config
    for name, value in options.items():
        if name in _NUMBERS:
            setattr(config, name, value)
        elif name != "timeout":
            return False
    if stop:
        config.stop_sequences.extend(stop)
    return True


def _difference(total: UsageMetadata | None, before: UsageMetadata) -> UsageMetadata | None:
    """What `subtract_usage` gives for the two, in the shapes that Gemini's usage takes, for a tenth of the time."""
    if total is None:
        return None
    if total.keys() != before.keys():  # from thoughts to none, or back
        return subtract_usage(total, before)
    cached = total["input_token_details"]["cache_read"] - before["input_token_details"]["cache_read"]
    difference: UsageMetadata = {
        "input_tokens": max(total["input_tokens"] - before["input_tokens"], 0),
        "output_tokens": max(total["output_tokens"] - before["output_tokens"], 0),
        "total_tokens": max(total["total_tokens"] - before["total_tokens"], 0),
        "input_token_details": {"cache_read": max(cached, 0)},
    }
    if "output_token_details" in total:
        thoughts = total["output_token_details"]["reasoning"] - before["output_token_details"]["reasoning"]
        difference["output_token_details"] = {"reasoning": max(thoughts, 0)}
    return difference


def plain(raw: Any) -> tuple[str, int] | None:
    """The text and the finish reason of a chunk that holds one candidate with these and nothing else; or None."""
    candidates = raw.candidates
    if len(candidates) != 1 or raw.HasField("prompt_feedback"):
        return None
    text, finish_reason = "", 0
    for field, value in candidates[0].ListFields():
        if field is _CONTENT:
            parts = value.parts
            if len(parts) > 1:
                return None
            for part in parts:
                fields = part.ListFields()
                if len(fields) != 1 or fields[0][0] is not _TEXT:
                    return None
                text = fields[0][1]
        elif field is _FINISH_REASON:
            finish_reason = value
        else:
            return None
    return text, finish_reason
