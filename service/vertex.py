"""Gemini on Vertex AI, through LangChain's ChatVertexAI. The only file that knows either.

Importing it costs seconds of CPU: Google's client builds thousands of classes. So `__main__` imports it late.

With each request ChatVertexAI is given a call of ours (`_Call`), where it would make one of its own and let go of it.
Two things need that. An abandoned grpc.aio call is never cancelled by itself
(https://github.com/grpc/grpc/issues/43462), so it is cancelled by hand in every way a request can end. And ChatVertexAI
drops what an honest ending needs: why a prompt was blocked, whether there was a finish reason at all, the exact token
counts.
"""

import asyncio
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cache, cached_property, partial
from typing import Any, cast

import grpc
import grpc.aio
from google.api_core.gapic_v1.client_info import ClientInfo
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.cloud.aiplatform_v1beta1.services.prediction_service.transports.grpc_asyncio import (
    PredictionServiceGrpcAsyncIOTransport,
)
from google.cloud.aiplatform_v1beta1.types import (
    Candidate,
    Content,
    GenerateContentRequest,
    GenerateContentResponse,
    Part,
)
from google.protobuf import message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    BaseMessageChunk,
    HumanMessage,
    SystemMessage,
)
from langchain_core.messages.ai import UsageMetadata, subtract_usage
from langchain_core.outputs import ChatGenerationChunk
from langchain_google_vertexai import ChatVertexAI
from langsmith.utils import tracing_is_enabled

from service import errors
from service.model import (
    Event,
    Finished,
    FinishReason,
    Prompt,
    Reasoning,
    Role,
    SafetyRating,
    Sampling,
    Started,
    Text,
    Usage,
)

# Small windows bound what a fast upstream can pile up in this process for a slow reader.
_CHANNEL_OPTIONS = [
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A connection whose packets get lost is found out 40 s into a call; until then calls end by their own limits.
    # Google's clients for Bigtable and Pub/Sub ping as often, so its servers don't mind.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Once upstream is back after a long outage it is found within seconds, not two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Each channel is a connection of its own; else all of them would share one.
    ("grpc.use_local_subchannel_pool", 1),
]

_METHOD = "/google.cloud.aiplatform.v1beta1.PredictionService/StreamGenerateContent"

# Google's front ends take 100 streams on one connection.
_CALLS_PER_CONNECTION = 90

_LONGEST_PIECE_CHARACTERS = 512 * 1024

_COUNTS = (
    "prompt_token_count",
    "candidates_token_count",
    "thoughts_token_count",
    "cached_content_token_count",
    "total_token_count",
)

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

_Response = tuple[Any, tuple[str, int] | None]
"""The protobuf message beneath Google's GenerateContentResponse, and what `_plain` says of it."""

_CLIENT_METADATA = ClientInfo(user_agent="tokenwire").to_grpc_metadata()  # type: ignore[no-untyped-call] # google.api_core has none


class VertexModel:
    """Models of one Google Cloud project and region, or of a local Vertex; a `service.model.Model`."""

    def __init__(
        self, connect: Callable[[], grpc.aio.Channel], *, names: Sequence[str], project: str, location: str
    ) -> None:
        """`names` are the public names on offer, which are Gemini's own; `connect` makes a connection of its own."""
        self._connect = connect
        self._lines = [_Line(connect())]
        self._chats = {name: _chat(name, project, location) for name in names}

    @classmethod
    def local(cls, address: str, *, names: Sequence[str], project: str, location: str) -> "VertexModel":
        """A local Vertex at `address` (host:port), without credentials."""
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
        connect = partial(grpc.aio.insecure_channel, address, options=options)
        return cls(connect, names=names, project=project or "local", location=location)

    @classmethod
    def google(cls, *, names: Sequence[str], project: str, location: str) -> "VertexModel":
        """Vertex AI itself, with application default credentials.

        Raises google.auth.exceptions.DefaultCredentialsError where there are none.
        """
        host = f"{'' if location == 'global' else location + '-'}aiplatform.googleapis.com:443"
        connect = partial(PredictionServiceGrpcAsyncIOTransport.create_channel, host, options=_CHANNEL_OPTIONS)
        return cls(connect, names=names, project=project, location=location)

    async def close(self) -> None:
        for line in self._lines:
            await line.channel.close()

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        """See `service.model.Model`."""
        line = self._free_line()
        line.calls += 1
        call = _Call(line.stub)
        events = self._events(call, prompt, deadline)
        try:
            yield events
        finally:
            line.calls -= 1
            call.cancel()
            await events.aclose()

    def _free_line(self) -> "_Line":
        """A connection with room for one more call; calls beyond what upstream allows would wait in it in silence."""
        for line in self._lines:
            if line.calls < _CALLS_PER_CONNECTION:
                return line
        self._lines.append(_Line(self._connect()))
        return self._lines[-1]

    async def _events(self, call: "_Call", prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        seconds = deadline - asyncio.get_running_loop().time()
        options = _options(prompt.sampling)
        answer = self._chats[prompt.model].astream(_messages(prompt), call=call, timeout=seconds, **options)
        chunks = cast("AsyncGenerator[AIMessageChunk, None]", answer)  # LangChain declares less than it returns
        started = False
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if not started:
                        started = True
                        yield Started(prompt.model)
                    text = chunk.content
                    if isinstance(text, str) and 0 < len(text) <= _LONGEST_PIECE_CHARACTERS:
                        yield Text(text)  # as nearly all do
                        continue
                    for event in _pieces(text):
                        yield event
        except grpc.aio.AioRpcError as error:
            raise upstream_error(error) from error
        except ValueError as error:
            # LangChain's word for an upstream that ended without a single message.
            if call.responses == 0 and call.ended:
                raise errors.UpstreamCut("The model ended the call without an answer; ask again") from error
            raise
        yield call.finished()


class _Line:
    """One connection to upstream, and how many calls it carries."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        # As Google's client makes it, but for its wrapper around each message.
        self.stub: Any = channel.unary_stream(
            _METHOD,
            request_serializer=GenerateContentRequest.pb().SerializeToString,
            response_deserializer=GenerateContentResponse.pb().FromString,
        )
        self.calls = 0


class _Call:
    """One StreamGenerateContent call: what ChatVertexAI asks and reads while it answers one prompt."""

    def __init__(self, stub: Any) -> None:
        self.responses = 0
        """How many messages have come."""
        self.ended = False
        """Whether upstream has ended the call with status OK."""
        self._stub = stub
        self._call: grpc.aio.UnaryStreamCall[Any, Any] | None = None
        self._model_version = ""
        self._finish: Any = None
        """The candidate that has a finish reason, or the feedback that has a block reason."""
        self._usage: Any = None
        """The latest figures, which are those of all so far."""

    def begin(self, request: Any, seconds: float) -> None:
        """Ask, with the protobuf message beneath a GenerateContentRequest; upstream has so long."""
        self._call = self._stub(request, timeout=seconds, metadata=(_routing(request.model), _CLIENT_METADATA))

    async def read(self) -> "_Response | None":
        """The next response; None behind the last."""
        assert self._call is not None
        raw: Any = await self._call.read()
        if raw is grpc.aio.EOF:
            self.ended = True
            return None
        self.responses += 1
        if raw is None:  # what grpc.aio makes of bytes that it can't deserialize
            raise errors.UpstreamFault("The model answered with bytes that are no valid message")
        self._model_version = self._model_version or raw.model_version
        if raw.HasField("usage_metadata"):
            self._usage = raw.usage_metadata
        plain = _plain(raw)
        if plain is None or plain[1]:
            self._look_at(raw)
        return raw, plain

    def cancel(self) -> None:
        """End the call upstream; nothing happens if it has ended."""
        if self._call is not None:
            self._call.cancel()

    def _look_at(self, raw: Any) -> None:
        """Remember what ChatVertexAI drops, and refuse what it would drop in silence."""
        if raw.HasField("prompt_feedback") and raw.prompt_feedback.block_reason:
            self._finish = raw.prompt_feedback
        if not raw.candidates:
            return
        candidate = raw.candidates[0]
        if candidate.finish_reason:
            self._finish = candidate
        for part in candidate.content.parts:
            kind = part.WhichOneof("data")
            if kind not in (None, "text"):
                text = f"The model answered with a part of type {kind}, which is not served yet"
                raise errors.UpstreamFault(text, metadata={"part": kind})

    def finished(self) -> Finished:
        """How the answer ended, from what upstream really said. Raises UpstreamCut if it didn't say."""
        if not self.responses:
            raise errors.UpstreamCut("The model ended the call without an answer; ask again")
        if self._finish is None:
            raise errors.UpstreamCut("The model's answer broke off without a finish reason; what came is incomplete")
        blocked = self._finish.DESCRIPTOR.name == "PromptFeedback"
        upstream = _name(self._finish, "block_reason" if blocked else "finish_reason")
        reason = FinishReason.PROMPT_BLOCKED if blocked else FinishReason.__members__.get(upstream, FinishReason.OTHER)
        return Finished(
            reason=reason,
            upstream_reason=upstream,
            usage=_usage(self._usage) if self._usage is not None else None,
            model_version=self._model_version,
            safety_ratings=tuple(_ratings(self._finish.safety_ratings)),
        )


class _Unkept(ChatGenerationChunk):
    """Holds the latest chunk of a stream for `astream`, which keeps what it gets and merges it all in the end.

    That is for tracers: 2 KB and more of each chunk, and a merge that stops the loop. Where nobody traces it keeps
    this one object, which knows its latest chunk only and has nothing to merge.
    """

    def holding(self, message: BaseMessageChunk, text: str, info: dict[str, Any] | None) -> "_Unkept":
        self.__dict__.update(message=message, text=text, generation_info=info)
        return self

    def __add__(self, other: object) -> "_Unkept":
        return self


with warnings.catch_warnings():
    # Deprecated in favour of ChatGoogleGenerativeAI; what this project stands on until that has taken its place.
    warnings.filterwarnings("ignore", message=r".*ChatGoogleGenerativeAI", category=DeprecationWarning)

    class _Chat(ChatVertexAI):
        """ChatVertexAI, with a shortcut for what most chunks are: a piece of text and perhaps a finish reason.

        The library turns each chunk into dicts and back several times. The shortcut gives the same result (a property
        test holds the two equal) for a tenth of the time; every other chunk goes the library's own way.
        """

        async def _astream(
            self,
            messages: list[BaseMessage],
            stop: list[str] | None = None,
            run_manager: Any = None,  # noqa: ARG002 - `astream` tells it of each chunk itself
            **kwargs: Any,
        ) -> AsyncIterator[ChatGenerationChunk]:
            """As the library has it, but for its retries, which are off and would still be set up for each request."""
            call: _Call = kwargs.pop("call")
            call.begin(self._request(messages, stop, **kwargs), kwargs["timeout"])
            kept = None if self._traced else _Unkept.model_construct()
            usage = None
            while (response := await call.read()) is not None:
                message, text, info, usage = self._converted(response, usage)
                if kept is None:
                    yield ChatGenerationChunk(message=message, generation_info=info)
                else:
                    yield kept.holding(message, text, info)

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

        def _get_invocation_params(
            self,
            stop: list[str] | None = None,
            **kwargs: Any,
        ) -> dict[str, Any]:
            """As the library has it, which describes the model anew, twice for each request."""
            kwargs.pop("call", None)  # no matter of a tracer's
            return {**self._description, "stop": stop, **kwargs}

        @cached_property
        def _description(self) -> dict[str, Any]:
            return dict(super()._get_invocation_params())

        def _converted(
            self, response: _Response, before: UsageMetadata | None
        ) -> tuple[BaseMessageChunk, str, dict[str, Any] | None, UsageMetadata | None]:
            """What the library's `_gemini_chunk_to_generation_chunk` makes of a response and of the usage `before`."""
            raw, plain = response
            if plain is None:
                found = GenerateContentResponse.wrap(raw)
                chunk, total = self._gemini_chunk_to_generation_chunk(found, before)
                return chunk.message, chunk.text, chunk.generation_info, total
            text, finish_reason = plain
            like = self._like(finish_reason)
            total = _usage_metadata(raw.usage_metadata)
            message = _copy(
                like.message,
                content=text,
                usage_metadata=_difference(total, before) if before else total,
                response_metadata=like.message.response_metadata.copy(),
            )
            return message, text, dict(like.generation_info or {}), total

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


def _chat(name: str, project: str, location: str) -> _Chat:
    chat = _Chat(
        model=name,
        project=project,
        location=location,
        max_retries=0,  # it would retry every status, and sleep for half a minute
        n=1,
        cache=False,
    )
    # What is made when it is first asked for and takes a while, of which the first caller shall not be kept waiting.
    _ = chat._serialized, chat._description, chat._empty, chat._made, chat._traced  # noqa: SLF001 - that is how
    return chat


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


@cache
def _routing(model: str) -> tuple[str, str]:
    """The header by which Google's front ends find the model."""
    header: tuple[str, str] = to_grpc_metadata((("model", model),))  # type: ignore[no-untyped-call] # google.api_core has none
    return header


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


def _plain(raw: Any) -> tuple[str, int] | None:
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


def _messages(prompt: Prompt) -> list[BaseMessage]:
    turns: list[BaseMessage] = [SystemMessage(prompt.system_instruction)] if prompt.system_instruction else []
    for turn in prompt.turns:
        kind = HumanMessage if turn.role is Role.USER else AIMessage
        content: Any = (
            turn.parts[0] if len(turn.parts) == 1 else [{"type": "text", "text": part} for part in turn.parts]
        )
        turns.append(kind(content))
    return turns


def _options(sampling: Sampling) -> dict[str, Any]:
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_output_tokens": sampling.max_output_tokens,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.stop_sequences:
        options["stop"] = list(sampling.stop_sequences)
    return {name: value for name, value in options.items() if value is not None}


def _pieces(content: str | list[Any]) -> Iterable[Event]:
    """The events of one chunk's content, in LangChain's two shapes: a string, or a list of strings and typed blocks."""
    for block in [content] if isinstance(content, str) else content:
        if not isinstance(block, str) and block["type"] == "thinking":
            yield Reasoning(block["thinking"])
            continue
        text = block if isinstance(block, str) else block["text"]
        # Nearly always one: callers take messages of up to 4 MB.
        for start in range(0, len(text), _LONGEST_PIECE_CHARACTERS):
            yield Text(text[start : start + _LONGEST_PIECE_CHARACTERS])


def _usage(raw: Any) -> Usage | None:
    """Vertex tells cumulative figures, so the last ones are those of the whole answer."""
    if min(getattr(raw, name) for name in _COUNTS) < 0:
        return None
    return Usage(
        input_tokens=raw.prompt_token_count,
        output_tokens=raw.candidates_token_count,
        reasoning_tokens=raw.thoughts_token_count,
        cached_tokens=raw.cached_content_token_count,
        total_tokens=raw.total_token_count,
    )


def _ratings(raw: Iterable[Any]) -> Iterable[SafetyRating]:
    for rating in raw:
        yield SafetyRating(
            category=_name(rating, "category"),
            probability=_name(rating, "probability"),
            blocked=rating.blocked,
        )


def _name(raw: message.Message, field: str) -> str:
    """The name of an enum field's value; its number where this version of Google's client doesn't know it."""
    number = getattr(raw, field)
    kind = raw.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None
    known = kind.values_by_number
    return known[number].name if number in known else str(number)


# Upstream's code -> the error of ours, and what callers are told. Codes that aren't here are UpstreamFault.
_UPSTREAM: dict[grpc.StatusCode, tuple[type[errors.UpstreamError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.OUT_OF_RANGE: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.NOT_FOUND: (
        errors.UpstreamNotFound,
        (
            "Vertex AI doesn't know this model in the server's project and region; its owner has to check "
            "TOKENWIRE_MODEL and GOOGLE_CLOUD_LOCATION"
        ),
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        errors.UpstreamCredentials,
        "Vertex AI refused the server's credentials; its owner has to renew its application default credentials",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        errors.UpstreamCredentials,
        (
            "The server's credentials may not use Vertex AI in its project; its owner has to grant them "
            "roles/aiplatform.user and check GOOGLE_CLOUD_PROJECT"
        ),
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        errors.UpstreamPrecondition,
        (
            "Vertex AI can't be used like this from the server's project and region; its owner has to look at "
            "GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_LOCATION and the project's billing"
        ),
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.UpstreamQuota, "The server's quota on Vertex AI is used up for now"),
    grpc.StatusCode.UNAVAILABLE: (errors.UpstreamUnavailable, "Vertex AI is away or broke the connection"),
    grpc.StatusCode.ABORTED: (errors.UpstreamCut, "Vertex AI gave the request up; ask again"),
    grpc.StatusCode.CANCELLED: (errors.UpstreamCut, "Vertex AI gave the request up; ask again"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.UpstreamDeadline, "Vertex AI didn't finish in time"),
}

# The most that a google.protobuf.Duration may hold, by its own comments; its bytes can hold more.
_LONGEST_DELAY_SECONDS = 315_576_000_000.0

# What may be relayed of upstream's ErrorInfo: a constant's name, never a sentence.
_PLAIN_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


# What gRPC says, as UNAVAILABLE, where credentials can't be renewed: no matter of Vertex AI's being away.
_PLUGIN_FAILED = "Getting metadata from plugin failed"


def upstream_error(error: grpc.aio.AioRpcError) -> errors.UpstreamError:
    """Ours for Google's: code, reason and retry delay are relayed, its text is not."""
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE and str(error.details()).startswith(_PLUGIN_FAILED):
        code = grpc.StatusCode.UNAUTHENTICATED
    kind, text = _UPSTREAM.get(code, (errors.UpstreamFault, "Vertex AI failed"))
    metadata = {"upstream_code": error.code().name}
    retry_after = None
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo) and _PLAIN_REASON.fullmatch(detail.reason):
            metadata["upstream_reason"] = detail.reason
        elif isinstance(detail, error_details_pb2.RetryInfo):
            delay = detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9
            retry_after = min(max(0.0, delay), _LONGEST_DELAY_SECONDS)
    return kind(text, metadata=metadata, retry_after=retry_after)


def _details(error: grpc.aio.AioRpcError) -> list[message.Message]:
    """Those that we know how to read; none where they contradict the status or are no protobuf."""
    found: list[message.Message] = []
    with suppress(ValueError, message.DecodeError):
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # it takes what has these four methods
        for packed in status.details if status is not None else ():
            for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo):
                detail = kind()
                if packed.Unpack(detail):
                    found.append(detail)
    return found
