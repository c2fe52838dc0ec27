"""Gemini on Vertex AI, through LangChain's ChatVertexAI: connections, calls, and how they end.

Importing it costs seconds of CPU: Google's client builds thousands of classes. So `app` imports it late.

With each request ChatVertexAI is given a call of ours (`_Call`), where it would make one of its own and let go of it.
Two things need that. An abandoned grpc.aio call is never cancelled by itself
(https://github.com/grpc/grpc/issues/43462), so it is cancelled by hand in every way a request can end. And ChatVertexAI
drops what an honest ending needs: why a prompt was blocked, whether there was a finish reason at all, the exact token
counts.
"""

import asyncio
import json
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import cache
from typing import Any

import grpc
import grpc.aio
from google.api_core.gapic_v1.client_info import ClientInfo
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.cloud.aiplatform_v1beta1.types import (
    Candidate,
    CountTokensRequest,
    CountTokensResponse,
    GenerateContentRequest,
    GenerateContentResponse,
)
from google.protobuf import json_format, message
from google.protobuf.unknown_fields import UnknownFieldSet
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from langchain_google_vertexai import ChatVertexAI

from ... import errors
from ...generation import json_values
from ...generation.capabilities import ModelCard
from ...generation.events import Event, Finished, Started, Text, Usage
from ...generation.prompt import Prompt
from ...telemetry.trace_context import CARRIED
from .. import langchain_messages
from ..spec import GoogleCloud, Offer
from . import answers, prompts, vertex_failures
from .chat_vertex import asked, count_request, new_chat, replace_contents
from .credentials import ApplicationDefault, Headers, application_default
from .shortcuts import Response, plain
from .specs import VERTEX, host

_LARGEST_MESSAGE_BYTES = 64 * 1024 * 1024
_LARGEST_METADATA_BYTES = 1024 * 1024

# Upstream says how many calls it takes on a connection (Google's front ends: 100); beyond that gRPC opens another one,
# where calls would else wait in silence. So many at most; an upstream of one call on each can't have all of them.
# https://github.com/grpc/proposal/blob/master/A105-max_concurrent_streams-connection-scaling.md
_MOST_CONNECTIONS = 100

_CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps({"connectionScaling": {"maxConnectionsPerSubchannel": _MOST_CONNECTIONS}})),
    ("grpc.max_connections_per_subchannel_cap", _MOST_CONNECTIONS),
    # Small windows bound what a fast upstream can pile up in this process for a slow reader.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65536),
    ("grpc.max_receive_message_length", _LARGEST_MESSAGE_BYTES),
    # What upstream says of an error comes in trailers. Above the first limit, and below the second, gRPC draws lots.
    ("grpc.max_metadata_size", _LARGEST_METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", _LARGEST_METADATA_BYTES),
    # A connection whose packets get lost is found out 40 s into a call; until then calls end by their own limits.
    # Google's clients for Bigtable and Pub/Sub ping as often, so its servers don't mind.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Once upstream is back after a long outage it is found within seconds, not two minutes.
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # Channels of one process, such as those of two projects, would else share their connections.
    ("grpc.use_local_subchannel_pool", 1),
]

# A word of tomorrow is relayed by its number; Google's library warns that it doesn't know it.
warnings.filterwarnings("ignore", message="Unrecognized .* enum value", category=UserWarning, module="proto")

_SERVICE = "/google.cloud.aiplatform.v1beta1.PredictionService/"

_COUNTS = (
    "prompt_token_count",
    "candidates_token_count",
    "thoughts_token_count",
    "cached_content_token_count",
    "total_token_count",
)

_ABOUT_ANSWERS = frozenset({"safety_ratings", "citation_metadata", "grounding_metadata", "logprobs_result"})
_KNOWN_REASONS = frozenset(Candidate.FinishReason)

_response: Callable[[bytes], Any] = GenerateContentResponse.pb().FromString

_CLIENT_METADATA = ClientInfo(user_agent="tokenwire").to_grpc_metadata()  # type: ignore[no-untyped-call] # google.api_core has none


def open_models(offers: Sequence[Offer], google: GoogleCloud) -> "VertexProvider":
    """As `ProviderSpec.module` wants it."""
    if google.emulator:
        return VertexProvider.local(google.emulator, offers, project=google.project, location=google.location)
    return VertexProvider.google(offers, project=google.project, location=google.location)


class VertexProvider:
    """Models of one Google Cloud project and region, or of a local Vertex; a `service.generation.provider.Provider`."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        offers: Sequence[Offer],
        *,
        project: str,
        location: str,
        credentials: ApplicationDefault | None = None,
    ) -> None:
        """`credentials` go with each call; None: it needs none."""
        self._channel = channel
        self._credentials = credentials
        # As Google's client makes them, but for its wrapper around each message.
        self._generate: Any = channel.unary_stream(
            _SERVICE + "StreamGenerateContent", request_serializer=GenerateContentRequest.pb().SerializeToString
        )
        self._count: Any = channel.unary_unary(
            _SERVICE + "CountTokens", request_serializer=CountTokensRequest.serialize
        )
        self._chats = {offer.name: new_chat(offer.upstream_name, project, location) for offer in offers}
        self.cards: Sequence[ModelCard] = [_card(offer, self._chats[offer.name]) for offer in offers]

    @classmethod
    def local(cls, address: str, offers: Sequence[Offer], *, project: str, location: str) -> "VertexProvider":
        """A local Vertex at `address` (host:port), without credentials."""
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
        channel = grpc.aio.insecure_channel(address, options=options)
        return cls(channel, offers, project=project or "local", location=location)

    @classmethod
    def google(cls, offers: Sequence[Offer], *, project: str, location: str) -> "VertexProvider":
        """Vertex AI itself, with application default credentials."""
        address = f"{host(location)}:443"
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(), options=_CHANNEL_OPTIONS)
        return cls(channel, offers, project=project, location=location, credentials=application_default())

    async def close(self) -> None:
        await self._channel.close()

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        return aclosing(self._events(prompt, deadline))

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """As Vertex AI counts it. ChatVertexAI has a count of its own, which blocks and leaves the tools out."""
        request = count_request(self._chats[prompt.model], prompt)
        routing = to_grpc_metadata((("endpoint", request.endpoint),))  # type: ignore[no-untyped-call] # google.api_core has none
        metadata = (routing, _CLIENT_METADATA, *await self._identity(deadline))
        seconds = deadline - asyncio.get_running_loop().time()
        try:
            counted = CountTokensResponse.pb().FromString(
                await self._count(request, timeout=seconds, metadata=metadata)
            )
        except grpc.aio.AioRpcError as error:
            raise upstream_error(error) from error
        except message.DecodeError:
            raise errors.UpstreamFault("The model answered with bytes that are no valid message") from None
        return answers.total(counted.total_tokens)

    def _need_connection(self) -> None:
        """Raise UpstreamUnavailable while there is none to be had, as the call would, but without a call.

        Each call that fails before it is sent leaks about 900 bytes in grpc.aio, for as long as upstream is away:
        https://github.com/grpc/grpc/issues/43360
        """
        if self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            raise vertex_failures.failure(grpc.StatusCode.UNAVAILABLE)

    async def _identity(self, deadline: float) -> Headers:
        """What tells Google who asks."""
        return () if self._credentials is None else await self._credentials.headers(deadline)

    async def _events(self, prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        identity = await self._identity(deadline)
        self._need_connection()
        messages, options, contents = asked(prompt)
        call = _Call(self._generate, identity, contents, prompt.usage_seen)
        seconds = deadline - asyncio.get_running_loop().time()
        answer = self._chats[prompt.model].answer(messages, call=call, timeout=seconds, **options)
        started = False
        async with aclosing(answer):
            try:
                async for text, beyond in answer:
                    if not started:
                        started = True
                        yield Started(prompt.model)
                    if beyond is not None:
                        for event in beyond:
                            yield event
                        continue
                    if 0 < len(text) <= answers.LONGEST_PIECE_CHARACTERS:
                        yield Text(text)  # as nearly all do
                        continue
                    for event in answers.pieces(text):
                        yield event
            except grpc.aio.AioRpcError as error:
                raise upstream_error(error) from error
            finally:
                call.cancel()
        yield call.finished()


class _Call:
    """One StreamGenerateContent call: what ChatVertexAI asks and reads while it answers one prompt."""

    def __init__(
        self,
        stub: Any,
        identity: Headers,
        contents: Sequence[Any] | None,
        usage_seen: Callable[[int], object] | None,
    ) -> None:
        """`contents` take the place of those that ChatVertexAI makes, where those would lose something.

        `usage_seen` as in Prompt.
        """
        self._stub = stub
        self._identity = identity
        self._contents = contents
        self._call: grpc.aio.UnaryStreamCall[Any, Any] | None = None
        self._answer = answers.Answer(usage_seen)
        self._usage: Any = None
        """The latest figures, where they may be taken as those of all so far; None: `_answer` has them."""

    def begin(self, request: Any, seconds: float) -> None:
        """Ask, with the protobuf message beneath a GenerateContentRequest; upstream has so long."""
        if self._contents is not None:
            replace_contents(request, self._contents)
        metadata = (_routing(request.model), _CLIENT_METADATA, *CARRIED.get(), *self._identity)
        self._call = self._stub(request, timeout=seconds, metadata=metadata)

    async def read(self) -> Response | None:
        """The next response with what it says, where that is more than a piece of text; None behind the last."""
        assert self._call is not None
        try:
            data: Any = await self._call.read()
            raw = None if data is grpc.aio.EOF else _response(data)
        except (grpc.aio.AioRpcError, message.DecodeError) as error:
            if self._answer.reason:  # behind it, nothing of the answer can be missing
                return None
            if isinstance(error, grpc.aio.AioRpcError):
                raise
            raise errors.UpstreamFault("The model answered with bytes that are no valid message") from None
        if raw is None:
            self._answer.ended()
            return None
        answer = self._answer
        answer.messages += 1
        if not answer.model_version:
            answer.model_version = raw.model_version
        if raw.HasField("usage_metadata"):
            self._saw(raw.usage_metadata)
        found = plain(raw)
        if found is None:
            return raw, found, self._beyond(raw)
        answer.said(found[0])
        if found[1]:
            answer.ended_by(_name(raw.candidates[0], "finish_reason"))
            answer.model_version = raw.model_version or answer.model_version
        if answer.usage_seen is not None:
            answer.used(raw.usage_metadata.total_token_count)
        return raw, found, None

    def cancel(self) -> None:
        """End the call upstream; nothing happens if it has ended."""
        if self._call is not None:
            self._call.cancel()

    def _beyond(self, raw: Any) -> Sequence[Event]:
        """All that a message says, with what ChatVertexAI drops of it; the ending is remembered."""
        for candidate in raw.candidates[:1]:
            for part in candidate.content.parts:
                if part.HasField("function_call"):
                    part.function_call.args.SetInParent()  # ChatVertexAI looks for them also where there are none
                elif part.WhichOneof("data") is None and (unknown := UnknownFieldSet(part)):
                    raise answers.unknown_part(str(unknown[0].field_number))
        try:
            told = json_format.MessageToDict(raw)
        except json_format.SerializeToJsonError as error:  # numbers that JSON has no word for
            raise errors.UpstreamFault("The model answered with a value that can't be relayed") from error
        _clear_what_is_read(raw)
        return self._answer.read(told)

    def finished(self) -> Finished:
        """How the answer ended, from what upstream really said. Raises UpstreamCut if it didn't say."""
        self._answer.usage = self._counted()
        return self._answer.finished()

    def _saw(self, usage: Any) -> None:
        """Take the figures of a message."""
        if usage.candidates_token_count > 0 and usage.prompt_token_count > 0:
            self._usage = usage  # to be read at the end
        else:
            self._count(usage)

    def _count(self, usage: Any) -> None:
        """Take figures that may lack some of what earlier ones told."""
        if any(getattr(usage, name) for name in _COUNTS):  # else it counts nothing
            self._answer.usage = answers.latest(_usage(usage), self._counted())
            self._usage = None

    def _counted(self) -> Usage | None:
        return self._answer.usage if self._usage is None else answers.latest(_usage(self._usage), self._answer.usage)


def _card(offer: Offer, chat: ChatVertexAI) -> ModelCard:
    return langchain_messages.card(
        offer,
        VERTEX,
        profile=chat.profile,
        unsupported=frozenset(),
        file_schemes=prompts.FILE_SCHEMES,
        json_with_tools=prompts.json_with_tools(offer.upstream_name),
    )


def _clear_what_is_read(raw: Any) -> None:
    """Take from a message what ChatVertexAI would only pass on, and stumbles on where it holds a word of tomorrow."""
    for holder in (raw.prompt_feedback, *raw.candidates):
        for name in _ABOUT_ANSWERS & {field.name for field, _ in holder.ListFields()}:
            holder.ClearField(name)
    for candidate in raw.candidates:
        if candidate.finish_reason not in _KNOWN_REASONS:
            candidate.ClearField("finish_reason")


@cache
def _routing(model: str) -> tuple[str, str]:
    """The header by which Google's front ends find the model."""
    header: tuple[str, str] = to_grpc_metadata((("model", model),))  # type: ignore[no-untyped-call] # google.api_core has none
    return header


def _usage(raw: Any) -> Usage | None:
    """Vertex tells cumulative figures, so the last ones are those of the whole answer."""
    total = raw.total_token_count or raw.prompt_token_count + raw.candidates_token_count + raw.thoughts_token_count
    if min(getattr(raw, name) for name in _COUNTS) < 0 or json_values.count(total) is None:
        return None
    return Usage(
        input_tokens=raw.prompt_token_count,
        output_tokens=raw.candidates_token_count,
        reasoning_tokens=raw.thoughts_token_count,
        cached_tokens=raw.cached_content_token_count,
        total_tokens=total,
    )


def _name(raw: message.Message, field: str) -> str:
    """The name of an enum field's value; its number where this version of Google's client doesn't know it."""
    number = getattr(raw, field)
    kind = raw.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None
    known = kind.values_by_number
    return known[number].name if number in known else str(number)


# How the texts begin under which our own gRPC ends a call: because the connection broke, because a message or metadata
# are larger than it takes, because frames aren't what they should be. Upstream's own status comes under its own text.
_OWN = "Stream removed ("

# Codes of its own that mean the same, from upstream or from gRPC here; any other tells that upstream broke a rule.
_SAME = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


def upstream_error(error: grpc.aio.AioRpcError) -> errors.UpstreamError:
    """Ours for Google's: code, reason and retry delay are relayed, its text is not. Or for what our own gRPC says."""
    code, words = error.code(), str(error.details())
    if words.startswith(_OWN) and code not in _SAME:
        return errors.UpstreamFault(_broken(words))
    reason, retry_after = "", None
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason = detail.reason
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = max(0.0, detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9)
    return vertex_failures.failure(code, reason=reason, retry_after=retry_after, said=words)


def _broken(words: str) -> str:
    """What upstream did that our own gRPC won't take."""
    if "message larger than max" in words:
        return f"The model answered with a message larger than {_LARGEST_MESSAGE_BYTES} bytes, which can't be relayed"
    if "metadata size exceeds" in words:
        return f"The model answered with metadata larger than {_LARGEST_METADATA_BYTES} bytes, which can't be read"
    return "The model's answer broke the rules of the protocol"


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
