"""Gemini on Vertex AI, through LangChain's ChatVertexAI: connections, calls, and how they end.

Importing it costs seconds of CPU: Google's client builds thousands of classes. So `__main__` imports it late.

With each request ChatVertexAI is given a call of ours (`_Call`), where it would make one of its own and let go of it.
Two things need that. An abandoned grpc.aio call is never cancelled by itself
(https://github.com/grpc/grpc/issues/43462), so it is cancelled by hand in every way a request can end. And ChatVertexAI
drops what an honest ending needs: why a prompt was blocked, whether there was a finish reason at all, the exact token
counts.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import cache, partial
from typing import Any, cast

import grpc
import grpc.aio
from google.api_core.gapic_v1.client_info import ClientInfo
from google.api_core.gapic_v1.routing_header import to_grpc_metadata
from google.cloud.aiplatform_v1beta1.services.prediction_service.transports.grpc_asyncio import (
    PredictionServiceGrpcAsyncIOTransport,
)
from google.cloud.aiplatform_v1beta1.types import (
    GenerateContentRequest,
    GenerateContentResponse,
)
from google.protobuf import json_format, message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from langchain_core.messages import BaseMessageChunk
from langchain_google_vertexai import ChatVertexAI

from service import errors, gemini, langchain
from service.chat import (
    Response,
    count_request,
    exact_contents,
    new_chat,
    plain,
    replace_contents,
    request_options,
)
from service.model import Card, Event, Finished, Prompt, Started, Text, Usage
from service.offers import Offer

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

_COUNTS = (
    "prompt_token_count",
    "candidates_token_count",
    "thoughts_token_count",
    "cached_content_token_count",
    "total_token_count",
)

_response: Callable[[bytes], Any] = GenerateContentResponse.pb().FromString

_CLIENT_METADATA = ClientInfo(user_agent="tokenwire").to_grpc_metadata()  # type: ignore[no-untyped-call] # google.api_core has none


class VertexModel:
    """Models of one Google Cloud project and region, or of a local Vertex; a `service.model.Model`."""

    def __init__(
        self, connect: Callable[[], grpc.aio.Channel], offers: Sequence[Offer], *, project: str, location: str
    ) -> None:
        """`connect` makes a connection of its own."""
        self._connect = connect
        self._lines = [_Line(connect())]
        self._chats = {offer.name: new_chat(offer.upstream_name, project, location) for offer in offers}
        self.cards: Sequence[Card] = [_card(offer, self._chats[offer.name]) for offer in offers]

    @classmethod
    def local(cls, address: str, offers: Sequence[Offer], *, project: str, location: str) -> "VertexModel":
        """A local Vertex at `address` (host:port), without credentials."""
        options = [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
        connect = partial(grpc.aio.insecure_channel, address, options=options)
        return cls(connect, offers, project=project or "local", location=location)

    @classmethod
    def google(cls, offers: Sequence[Offer], *, project: str, location: str) -> "VertexModel":
        """Vertex AI itself, with application default credentials.

        Raises google.auth.exceptions.DefaultCredentialsError where there are none.
        """
        host = f"{'' if location == 'global' else location + '-'}aiplatform.googleapis.com:443"
        connect = partial(PredictionServiceGrpcAsyncIOTransport.create_channel, host, options=_CHANNEL_OPTIONS)
        return cls(connect, offers, project=project, location=location)

    async def close(self) -> None:
        for line in self._lines:
            await line.channel.close()

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        """See `service.model.Model`."""
        line = self._free_line()
        line.calls += 1
        call = _Call(line.stub, exact_contents(prompt))
        events = self._events(call, prompt, deadline)
        try:
            yield events
        finally:
            line.calls -= 1
            call.cancel()
            await events.aclose()

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """As Vertex AI counts it. ChatVertexAI has a count of its own, which blocks and leaves the tools out."""
        asked = count_request(self._chats[prompt.model], prompt)
        routing = to_grpc_metadata((("endpoint", asked.endpoint),))  # type: ignore[no-untyped-call] # google.api_core has none
        seconds = deadline - asyncio.get_running_loop().time()
        line = self._free_line()
        line.calls += 1
        try:
            counted = await line.count(asked, timeout=seconds, metadata=(routing, _CLIENT_METADATA))
        except grpc.aio.AioRpcError as error:
            raise upstream_error(error) from error
        finally:
            line.calls -= 1
        return int(counted.total_tokens)

    def _free_line(self) -> "_Line":
        """A connection with room for one more call; calls beyond what upstream allows would wait in it in silence."""
        for line in self._lines:
            if line.calls < _CALLS_PER_CONNECTION:
                return line
        self._lines.append(_Line(self._connect()))
        return self._lines[-1]

    async def _events(self, call: "_Call", prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        seconds = deadline - asyncio.get_running_loop().time()
        messages, options = langchain.messages(prompt, gemini.media), request_options(prompt)
        answer = self._chats[prompt.model].answer(messages, call=call, timeout=seconds, **options)
        chunks = cast("AsyncGenerator[BaseMessageChunk, None]", answer)  # LangChain declares less than it returns
        started = False
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    if not started:
                        started = True
                        yield Started(prompt.model)
                    if call.beyond is not None:
                        for event in call.beyond:
                            yield event
                        continue
                    text: Any = chunk.content
                    if 0 < len(text) <= gemini.LONGEST_PIECE_CHARACTERS:
                        yield Text(text)  # as nearly all do
                        continue
                    for event in gemini.pieces(text):
                        yield event
        except grpc.aio.AioRpcError as error:
            raise upstream_error(error) from error
        yield call.finished()


class _Line:
    """One connection to upstream, and how many calls it carries."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        transport = PredictionServiceGrpcAsyncIOTransport(channel=channel)
        self.count: Any = transport.count_tokens
        # As Google's client makes it, but for its wrapper around each message.
        self.stub: Any = channel.unary_stream(
            _METHOD,
            request_serializer=GenerateContentRequest.pb().SerializeToString,
        )
        self.calls = 0


class _Call:
    """One StreamGenerateContent call: what ChatVertexAI asks and reads while it answers one prompt."""

    def __init__(self, stub: Any, contents: Sequence[Any] | None) -> None:
        """`contents` take the place of those that ChatVertexAI makes, where those would lose something."""
        self._stub = stub
        self._contents = contents
        self._call: grpc.aio.UnaryStreamCall[Any, Any] | None = None
        self._ending = gemini.Ending()
        self.beyond: Sequence[Event] | None = ()
        """What the latest message says, where that is more than a piece of text; None: it is one."""
        self._usage: Any = None
        """The latest figures, which are those of all so far."""

    def begin(self, request: Any, seconds: float) -> None:
        """Ask, with the protobuf message beneath a GenerateContentRequest; upstream has so long."""
        if self._contents is not None:
            replace_contents(request, self._contents)
        self._call = self._stub(request, timeout=seconds, metadata=(_routing(request.model), _CLIENT_METADATA))

    async def read(self) -> "Response | None":
        """The next response; None behind the last."""
        assert self._call is not None
        data: Any = await self._call.read()
        if data is grpc.aio.EOF:
            self._ending.ended()
            self.beyond = ()
            return None
        self._ending.messages += 1
        try:
            raw = _response(data)
        except message.DecodeError:
            raise errors.UpstreamFault("The model answered with bytes that are no valid message") from None
        if raw.HasField("usage_metadata"):
            self._usage = raw.usage_metadata
        found = plain(raw)
        self.beyond = None
        if found is None:
            self._look_at(raw)
        elif found[1]:
            self._ending.reason = _name(raw.candidates[0], "finish_reason")
            self._ending.model_version = raw.model_version
        return raw, found

    def cancel(self) -> None:
        """End the call upstream; nothing happens if it has ended."""
        if self._call is not None:
            self._call.cancel()

    def _look_at(self, raw: Any) -> None:
        """Remember what ChatVertexAI drops of a message that is more than a piece of text."""
        for candidate in raw.candidates:
            for part in candidate.content.parts:
                if part.HasField("function_call"):
                    part.function_call.args.SetInParent()  # ChatVertexAI looks for them also where there are none
        try:
            told = json_format.MessageToDict(raw)
        except json_format.SerializeToJsonError as error:  # numbers that JSON has no word for
            raise errors.UpstreamFault("The model answered with a value that can't be relayed") from error
        self._ending.look_at(told)
        self.beyond = tuple(gemini.events(told))

    def finished(self) -> Finished:
        """How the answer ended, from what upstream really said. Raises UpstreamCut if it didn't say."""
        if self._usage is not None:
            self._ending.usage = _usage(self._usage)
        return self._ending.finished()


def _card(offer: Offer, chat: ChatVertexAI) -> Card:
    return langchain.card(
        offer,
        provider="gcp.vertex_ai",
        profile=chat.profile,
        lacks=frozenset(),
        file_schemes=gemini.FILE_SCHEMES,
        json_with_tools=gemini.json_with_tools(offer.upstream_name),
    )


@cache
def _routing(model: str) -> tuple[str, str]:
    """The header by which Google's front ends find the model."""
    header: tuple[str, str] = to_grpc_metadata((("model", model),))  # type: ignore[no-untyped-call] # google.api_core has none
    return header


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


def _name(raw: message.Message, field: str) -> str:
    """The name of an enum field's value; its number where this version of Google's client doesn't know it."""
    number = getattr(raw, field)
    kind = raw.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None
    known = kind.values_by_number
    return known[number].name if number in known else str(number)


# What gRPC says, as UNAVAILABLE, where credentials can't be renewed: no matter of Vertex AI's being away.
_PLUGIN_FAILED = "Getting metadata from plugin failed"


def upstream_error(error: grpc.aio.AioRpcError) -> errors.UpstreamError:
    """Ours for Google's: code, reason and retry delay are relayed, its text is not."""
    code = error.code()
    if code is grpc.StatusCode.UNAVAILABLE and str(error.details()).startswith(_PLUGIN_FAILED):
        code = grpc.StatusCode.UNAUTHENTICATED
    reason, retry_after = "", None
    for detail in _details(error):
        if isinstance(detail, error_details_pb2.ErrorInfo):
            reason = detail.reason
        elif isinstance(detail, error_details_pb2.RetryInfo):
            retry_after = max(0.0, detail.retry_delay.seconds + detail.retry_delay.nanos / 1e9)
    return gemini.failure(code, told=error.code().name, reason=reason, retry_after=retry_after)


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
