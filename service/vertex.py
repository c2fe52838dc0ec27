"""Gemini on Vertex AI, through LangChain's ChatVertexAI. The only file that knows either.

Importing it costs seconds of CPU: Google's client builds thousands of classes. So `__main__` imports it late.

With each request ChatVertexAI is given a call of ours (`_Call`), where it would make one of its own and let go of it.
Two things need that. An abandoned grpc.aio call is never cancelled by itself
(https://github.com/grpc/grpc/issues/43462), so it is cancelled by hand in every way a request can end. And ChatVertexAI
drops what an honest ending needs: why a prompt was blocked, whether there was a finish reason at all, the exact token
counts.
"""

import asyncio
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
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
    CountTokensRequest,
    FunctionCallingConfig,
    GenerateContentRequest,
    GenerateContentResponse,
    Part,
    Schema,
    Tool,
)
from google.protobuf import json_format, message
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

from service import errors, gemini, langchain
from service.model import Blob, Card, Event, File, Finished, Prompt, Started, Text, Tools, Usage
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

_TOTALS = ("input_tokens", "output_tokens", "total_tokens")

# By the key of a JSON schema: the same in Google's library.
_SPELLED = {field.json_name: field.name for field in Schema.pb().DESCRIPTOR.fields}

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
        self, connect: Callable[[], grpc.aio.Channel], offers: Sequence[Offer], *, project: str, location: str
    ) -> None:
        """`connect` makes a connection of its own."""
        self._connect = connect
        self._lines = [_Line(connect())]
        self._chats = {offer.name: _chat(offer.upstream_name, project, location) for offer in offers}
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
        call = _Call(line.stub, _exactly(prompt))
        events = self._events(call, prompt, deadline)
        try:
            yield events
        finally:
            line.calls -= 1
            call.cancel()
            await events.aclose()

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """As Vertex AI counts it. ChatVertexAI has a count of its own, which blocks and leaves the tools out."""
        chat = self._chats[prompt.model]
        request = chat._prepare_request_gemini(langchain.messages(prompt, _media), tools=_tools(prompt.tools) or None)  # noqa: SLF001 - the one place that knows how it asks
        asked = CountTokensRequest(
            endpoint=request.model,
            model=request.model,
            contents=request.contents,
            system_instruction=request.system_instruction,
            tools=request.tools,
        )
        if (exact := _exactly(prompt)) is not None:
            _replace(CountTokensRequest.pb(asked), exact)
        routing = to_grpc_metadata((("endpoint", request.model),))  # type: ignore[no-untyped-call] # google.api_core has none
        seconds = deadline - asyncio.get_running_loop().time()
        try:
            counted = await self._free_line().count(asked, timeout=seconds, metadata=(routing, _CLIENT_METADATA))
        except grpc.aio.AioRpcError as error:
            raise upstream_error(error) from error
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
        messages, options = langchain.messages(prompt, _media), _options(prompt)
        answer = self._chats[prompt.model].astream(messages, call=call, timeout=seconds, **options)
        chunks = cast("AsyncGenerator[AIMessageChunk, None]", answer)  # LangChain declares less than it returns
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
                    text = cast("str", chunk.content)
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
            response_deserializer=GenerateContentResponse.pb().FromString,
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
            _replace(request, self._contents)
        self._call = self._stub(request, timeout=seconds, metadata=(_routing(request.model), _CLIENT_METADATA))

    async def read(self) -> "_Response | None":
        """The next response; None behind the last."""
        assert self._call is not None
        raw: Any = await self._call.read()
        if raw is grpc.aio.EOF:
            self._ending.ended()
            self.beyond = ()
            return None
        self._ending.messages += 1
        if raw is None:  # what grpc.aio makes of bytes that it can't deserialize
            raise errors.UpstreamFault("The model answered with bytes that are no valid message")
        if raw.HasField("usage_metadata"):
            self._usage = raw.usage_metadata
        plain = _plain(raw)
        self.beyond = None
        if plain is None:
            self._look_at(raw)
        elif plain[1]:
            self._ending.reason = _name(raw.candidates[0], "finish_reason")
            self._ending.model_version = raw.model_version
        return raw, plain

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


def _card(offer: Offer, chat: ChatVertexAI) -> Card:
    return langchain.card(
        offer,
        provider="gcp.vertex_ai",
        profile=chat.profile,
        lacks=frozenset(),
        file_schemes=gemini.FILE_SCHEMES,
        json_with_tools=gemini.json_with_tools(offer.upstream_name),
    )


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


def _exactly(prompt: Prompt) -> Sequence[Any] | None:
    """The conversation as protobuf messages, where ChatVertexAI's conversion would lose a part of it."""
    if not gemini.needs_exactness(prompt):
        return None
    raw = GenerateContentRequest.pb(GenerateContentRequest())
    json_format.ParseDict({"contents": gemini.contents(prompt)}, raw)
    contents: Sequence[Any] = raw.contents
    return contents


def _replace(request: Any, contents: Sequence[Any]) -> None:
    del request.contents[:]
    request.contents.extend(contents)


def _media(part: Blob | File) -> dict[str, Any]:
    # Not LangChain's standard blocks: it would fetch what some of them point to.
    if isinstance(part, File):
        return {"type": "media", "mime_type": part.mime_type, "file_uri": part.uri}
    return {"type": "media", "mime_type": part.mime_type, "data": part.data}


def _options(prompt: Prompt) -> dict[str, Any]:
    """As ChatVertexAI takes them."""
    sampling = prompt.sampling
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_output_tokens": sampling.max_output_tokens,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "thinking_budget": sampling.thinking_budget,
        "include_thoughts": sampling.include_thoughts,
        "response_mime_type": sampling.response_mime_type,
        "response_schema": _schema(sampling.response_schema) if sampling.response_schema is not None else None,
        "response_logprobs": sampling.response_logprobs,
        "logprobs": sampling.logprobs,
        "stop": list(sampling.stop_sequences) or None,
        "safety_settings": dict(prompt.safety) or None,
        "labels": dict(prompt.labels) or None,
        "tools": _tools(prompt.tools) or None,
        "tool_choice": _choice(prompt.tools),
    }
    return {name: value for name, value in options.items() if value is not None}


def _schema(schema: Any) -> Any:
    """As Google's library spells a schema; ChatVertexAI does that to a part of it, and leaves alone what is done."""
    if isinstance(schema, list):
        return [_schema(one) for one in schema]
    made = {}
    for key, value in schema.items():
        if key == "properties":
            made[key] = {name: _schema(one) for name, one in value.items()}
        elif key in ("items", "anyOf"):
            made[_SPELLED.get(key, key)] = _schema(value)
        else:
            made[_SPELLED.get(key, key)] = value.upper() if key == "type" else value
    return made


def _tools(tools: Tools) -> list[Tool]:
    made = []
    for one in gemini.tools(tools):
        raw = Tool.pb(Tool())
        json_format.ParseDict(one, raw)
        made.append(Tool.wrap(raw))
    return made


def _choice(tools: Tools) -> dict[str, Any] | None:
    if tools.choice is None:
        return None
    mode: Any = FunctionCallingConfig.Mode.__members__[tools.choice.mode.name]
    return {"mode": mode, "allowed_function_names": list(tools.choice.names)}


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
