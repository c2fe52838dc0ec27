"""Gemini on Vertex AI, through LangChain's ChatVertexAI. The only file that knows either.

Importing it costs seconds of CPU: Google's client builds thousands of classes. So `__main__` imports it late.

For each request ChatVertexAI is given an upstream client of ours (`_Call`) that keeps hold of the gRPC call. Two things
need that. An abandoned grpc.aio call is never cancelled by itself (https://github.com/grpc/grpc/issues/43462), so it is
cancelled by hand in every way a request can end. And ChatVertexAI drops what an honest ending needs: why a prompt was
blocked, whether there was a finish reason at all, the exact token counts.
"""

import asyncio
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
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
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata, subtract_usage
from langchain_core.outputs import ChatGenerationChunk
from langchain_google_vertexai import ChatVertexAI
from langchain_google_vertexai.chat_models import _get_usage_metadata_gemini
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
]

_COUNTS = (
    "prompt_token_count",
    "candidates_token_count",
    "thoughts_token_count",
    "cached_content_token_count",
    "total_token_count",
)

_CLIENT_METADATA = ClientInfo(user_agent="tokenwire").to_grpc_metadata()  # type: ignore[no-untyped-call] # google.api_core has none


class VertexModel:
    """Models of one Google Cloud project and region, or of a local Vertex; a `service.model.Model`."""

    def __init__(self, channel: grpc.aio.Channel, *, names: Sequence[str], project: str, location: str) -> None:
        """`names` are the public names on offer, which are Gemini's own."""
        self._channel = channel
        self._stub = PredictionServiceGrpcAsyncIOTransport(channel=channel).stream_generate_content
        self._chats = {name: _chat(name, project, location) for name in names}

    @classmethod
    def local(cls, address: str, *, names: Sequence[str], project: str, location: str) -> "VertexModel":
        """A local Vertex at `address` (host:port), without credentials."""
        channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        return cls(channel, names=names, project=project or "local", location=location)

    @classmethod
    def google(cls, *, names: Sequence[str], project: str, location: str) -> "VertexModel":
        """Vertex AI itself, with application default credentials.

        Raises google.auth.exceptions.DefaultCredentialsError where there are none.
        """
        region = "" if location == "global" else f"{location}-"
        channel = PredictionServiceGrpcAsyncIOTransport.create_channel(
            f"{region}aiplatform.googleapis.com:443", options=_CHANNEL_OPTIONS
        )
        return cls(channel, names=names, project=project, location=location)

    async def close(self) -> None:
        await self._channel.close()

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        """See `service.model.Model`."""
        call = _Call(self._stub)
        events = self._events(call, prompt, deadline)
        try:
            yield events
        finally:
            call.cancel()
            await events.aclose()

    async def _events(self, call: "_Call", prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        chat = self._chats[prompt.model].model_copy(update={"async_client": call})
        seconds = deadline - asyncio.get_running_loop().time()
        chunks = chat.pieces(_messages(prompt), timeout=seconds, **_options(prompt.sampling))
        started = False
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if not started:
                        started = True
                        yield Started(prompt.model)
                    for event in _pieces(chunk.content):
                        yield event
        except grpc.aio.AioRpcError as error:
            raise upstream_error(error) from error
        except ValueError as error:
            # LangChain's word for an upstream that ended without a single message.
            if call.responses == 0 and call.ended:
                raise errors.UpstreamCut("The model ended the call without an answer; ask again") from error
            raise
        yield call.finished()


class _Call:
    """One StreamGenerateContent call: what ChatVertexAI gets for its client while it answers one prompt."""

    def __init__(self, stub: Any) -> None:
        self.responses = 0
        """How many messages have come."""
        self.ended = False
        """Whether upstream has ended the call with status OK."""
        self._stub = stub
        self._call: grpc.aio.UnaryStreamCall[Any, Any] | None = None
        self._last: Any = None
        self._candidate: Any = None
        self._usage: Any = None

    async def stream_generate_content(
        self,
        request: GenerateContentRequest,
        *,
        timeout: float,  # noqa: ASYNC109 - the name is Google's
        metadata: Sequence[tuple[str, str]],
        retry: None,  # noqa: ARG002 - ChatVertexAI says so when its own retries are off
    ) -> AsyncIterator[GenerateContentResponse]:
        """As PredictionServiceAsyncClient has it."""
        routing = to_grpc_metadata((("model", request.model),))  # type: ignore[no-untyped-call] # google.api_core has none
        self._call = self._stub(request, timeout=timeout, metadata=(*metadata, routing, _CLIENT_METADATA))
        return self._watch(self._call)

    async def _watch(
        self, call: grpc.aio.UnaryStreamCall[Any, GenerateContentResponse]
    ) -> AsyncIterator[GenerateContentResponse]:
        async for response in call:
            self.responses += 1
            if response is None:  # what grpc.aio makes of bytes that it can't deserialize
                raise errors.UpstreamFault("The model answered with bytes that are no valid message")
            raw = GenerateContentResponse.pb(response)
            self._last = raw
            if raw.candidates:
                self._candidate = raw.candidates[0]
            if raw.HasField("usage_metadata"):
                self._usage = raw.usage_metadata
            yield response
        self.ended = True

    def cancel(self) -> None:
        """End the call upstream; nothing happens if it has ended."""
        if self._call is not None:
            self._call.cancel()

    def finished(self) -> Finished:
        """How the answer ended, from what upstream really said. Raises UpstreamCut if it didn't say."""
        if self._last is None:
            raise errors.UpstreamCut("The model ended the call without an answer; ask again")
        candidate = self._candidate
        if candidate is not None and candidate.finish_reason:
            upstream = _name(candidate, "finish_reason")
            reason = FinishReason.__members__.get(upstream, FinishReason.OTHER)
        elif self._last.prompt_feedback.block_reason:
            upstream = _name(self._last.prompt_feedback, "block_reason")
            reason = FinishReason.PROMPT_BLOCKED
        else:
            raise errors.UpstreamCut("The model's answer broke off without a finish reason; what came is incomplete")
        ratings = candidate.safety_ratings if candidate is not None else self._last.prompt_feedback.safety_ratings
        return Finished(
            reason=reason,
            upstream_reason=upstream,
            usage=_usage(self._usage),
            model_version=self._last.model_version,
            safety_ratings=tuple(_ratings(ratings)),
        )


with warnings.catch_warnings():
    # Deprecated in favour of ChatGoogleGenerativeAI; what this project stands on until that has taken its place.
    warnings.filterwarnings("ignore", message=r".*ChatGoogleGenerativeAI", category=DeprecationWarning)

    class _Chat(ChatVertexAI):
        """ChatVertexAI, with a shortcut for what most chunks are: a piece of text and nothing else.

        The library turns each chunk into dicts and back several times. The shortcut gives the same result (a property
        test holds the two equal) for a fifth of the time; every other chunk goes the library's own way.
        """

        def _gemini_chunk_to_generation_chunk(
            self, response_chunk: Any, prev_total_usage: UsageMetadata | None = None
        ) -> tuple[ChatGenerationChunk, UsageMetadata | None]:
            raw = GenerateContentResponse.pb(response_chunk)
            text = _plain_text(raw)
            if text is None:
                return super()._gemini_chunk_to_generation_chunk(response_chunk, prev_total_usage)
            total = _get_usage_metadata_gemini({name: getattr(raw.usage_metadata, name) for name in _COUNTS})
            usage = subtract_usage(total, prev_total_usage) if total and prev_total_usage else total
            metadata = dict(self._plain.message.response_metadata)
            message = self._plain.message.model_copy(
                update={"content": text, "usage_metadata": usage, "response_metadata": metadata}
            )
            info = dict(self._plain.generation_info or {})
            return self._plain.model_copy(update={"message": message, "text": text, "generation_info": info}), total

        async def pieces(self, messages: list[BaseMessage], **options: Any) -> AsyncGenerator[AIMessageChunk, None]:
            """What `astream` gives, in bounded memory.

            `astream` keeps 2 KB and more of every chunk and merges them all in the end, for whoever traces; a long
            answer to a slow reader would grow in this process. So it is taken only where somebody does trace.
            """
            if tracing_is_enabled():
                kept = cast("AsyncGenerator[AIMessageChunk, None]", self.astream(messages, **options))
                async with aclosing(kept):
                    async for chunk in kept:
                        yield chunk
                return
            made = cast("AsyncGenerator[ChatGenerationChunk, None]", self._astream(messages, **options))
            async with aclosing(made):
                async for generation in made:
                    yield cast("AIMessageChunk", generation.message)

        @cached_property
        def _plain(self) -> ChatGenerationChunk:
            """What the library makes of a piece of text and nothing else."""
            candidate = Candidate(content=Content(role="model", parts=[Part(text="x")]))
            return super()._gemini_chunk_to_generation_chunk(GenerateContentResponse(candidates=[candidate]))[0]


def _chat(name: str, project: str, location: str) -> _Chat:
    chat = _Chat(
        model=name,
        project=project,
        location=location,
        max_retries=0,  # it would retry every status, and sleep for half a minute
        n=1,
        cache=False,
    )
    # LangChain describes the model to its tracers, for half a millisecond, once for each object; every request takes a
    # copy. Asked for here, both are in all copies.
    assert None not in (chat._serialized, chat._plain)  # noqa: SLF001 - that is how it is asked for
    return chat


def _plain_text(raw: Any) -> str | None:
    """The text of a chunk whose one candidate is one piece of text, and nothing else; None for any other."""
    if len(raw.candidates) != 1 or raw.HasField("prompt_feedback"):
        return None
    fields = raw.candidates[0].ListFields()
    if len(fields) != 1 or fields[0][0].name != "content":
        return None
    parts = fields[0][1].parts
    if len(parts) != 1:
        return None
    fields = parts[0].ListFields()
    if len(fields) != 1 or fields[0][0].name != "text":
        return None
    text: str = fields[0][1]
    return text or None


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
        if isinstance(block, str):
            if block:
                yield Text(block)
        elif block["type"] == "text":
            if block["text"]:
                yield Text(block["text"])
        elif block["type"] == "thinking":
            yield Reasoning(block["thinking"])
        else:
            raise errors.UpstreamFault(
                f"The model answered with a part of type {block['type']}, which is not served yet",
                metadata={"part": str(block["type"])},
            )


def _usage(raw: Any) -> Usage | None:
    """Vertex tells cumulative figures, so the last ones are those of the whole answer."""
    if raw is None:
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
    grpc.StatusCode.ABORTED: (errors.UpstreamUnavailable, "Vertex AI gave the request up"),
    grpc.StatusCode.CANCELLED: (errors.UpstreamUnavailable, "Vertex AI gave the request up"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.UpstreamDeadline, "Vertex AI didn't finish in time"),
}

# What may be relayed of upstream's ErrorInfo: a constant's name, never a sentence.
_PLAIN_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")


def upstream_error(error: grpc.aio.AioRpcError) -> errors.UpstreamError:
    """Ours for Google's: code, reason, retry delay and quota are relayed, its text is not."""
    kind, text = _UPSTREAM.get(error.code(), (errors.UpstreamFault, "Vertex AI failed"))
    metadata = {"upstream_code": error.code().name}
    retry_after = None
    for packed in _details(error):
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if packed.Unpack(info) and _PLAIN_REASON.fullmatch(info.reason):
            metadata["upstream_reason"] = info.reason
        elif packed.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return kind(text, metadata=metadata, retry_after=retry_after)


def _details(error: grpc.aio.AioRpcError) -> Iterable[Any]:
    try:
        status = rpc_status.from_call(error)  # type: ignore[arg-type] # it takes what has these four methods
    except (ValueError, message.DecodeError):  # details that contradict the status, or that are no protobuf
        return ()
    return status.details if status is not None else ()
