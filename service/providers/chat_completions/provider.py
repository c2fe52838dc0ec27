"""OpenAI's chat models, and those that speak its protocol, through LangChain's ChatOpenAI and AzureChatOpenAI.

The only file that knows either. As in `service.providers.gemini.over_grpc`, LangChain is given a client of ours for
each request (`_Call`), which keeps hold of the HTTP response and reads each chunk before LangChain drops a part of it,
or can't bear it. LangChain is handed on only what it understands.
"""

import asyncio
import base64
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from typing import Any, Self, cast

import grpc
import openai
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI

from ... import errors
from ...cleanup import finished
from ...errors import Violation
from ...generation.capabilities import ModelCard
from ...generation.events import Event, Started, Text
from ...generation.json_schema import Word
from ...generation.prompt import Blob, File, Function, Prompt, Sampling, ToolMode, Tools
from .. import failures, http_failures, langchain_messages
from ..spec import GoogleCloud, Offer
from . import schemas
from .chunks import Answer
from .specs import AZURE, OPENAI, OPENAI_ADDRESS

_MAX_STOP_SEQUENCES = 4

# What Chat Completions has no word for.
_UNSUPPORTED = frozenset(
    {
        "config.top_k",
        "config.thinking_budget",
        "config.include_thoughts",
        "safety_settings",
        "labels",
        "tools.google_search",
        "messages.parts.reasoning",
    }
)

_SPECS = {spec.name: spec for spec in (OPENAI, AZURE)}

_IMAGES = frozenset({"image/gif", "image/jpeg", "image/png", "image/webp"})

_AUDIO = {
    "audio/mp3": "mp3",
    "audio/mpeg": "mp3",
    "audio/vnd.wave": "wav",
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
}
"""By media type, OpenAI's own names of the two that it takes."""

_INLINE = _IMAGES | _AUDIO.keys() | {"application/pdf", "text/*"}

_CHOICES = {ToolMode.AUTO: "auto", ToolMode.ANY: "required", ToolMode.NONE: "none"}


def open_models(offers: Sequence[Offer], google: GoogleCloud) -> "OpenAIProvider":
    """As `ProviderSpec.module` wants it."""
    del google
    return OpenAIProvider(offers)


class OpenAIProvider:
    """Models of OpenAI, of Azure, or of any server with their protocol; a `service.generation.provider.Provider`."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._http = openai.DefaultAsyncHttpxClient(follow_redirects=False, mounts=http_failures.DIRECTLY)
        self._chats = {offer.name: _chat(offer, self._http) for offer in offers}
        self._who = {offer.name: _SPECS[offer.provider].title for offer in offers}
        self._ways = {offer.name: offer.options for offer in offers}
        self.cards: Sequence[ModelCard] = [_card(offer, self._chats[offer.name]) for offer in offers]

    async def close(self) -> None:
        await self._http.aclose()

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        return aclosing(self._events(prompt, deadline))

    async def _events(self, prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        ways = self._ways[prompt.model]
        answer = Answer(
            {function.name for function in prompt.tools.functions}, thoughts=ways.get("thoughts") != "false"
        )
        call = _Call(
            self._chats[prompt.model].async_client, self._who[prompt.model], answer, ways.get("token_limit", "")
        )
        chat = self._chats[prompt.model].model_copy(update={"async_client": call})
        seconds = deadline - asyncio.get_running_loop().time()
        options = _options(prompt, strict=ways.get("strict") != "false")
        stream = chat.astream(langchain_messages.messages(prompt, _media), timeout=seconds, **options)
        chunks = cast("AsyncGenerator[Any, None]", stream)  # LangChain declares less than it returns
        started = False
        async with aclosing(chunks):
            try:
                async for _ in chunks:
                    if not started:
                        started = True
                        yield Started(prompt.model)
                    for event in call.events():
                        yield event
            finally:
                await finished(call.cancel())
        for event in call.events():  # with chunks that LangChain kept for itself
            yield event
        for event in answer.end():
            yield event

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """Nobody counts: the protocol has no call for it, and an estimate would look like a count."""
        del deadline
        raise errors.NotServed(f"{self._who[prompt.model]} does not count the tokens of a request to {prompt.model}")


class _Call:
    """One streaming completion: what ChatOpenAI gets for its client while it answers one prompt."""

    def __init__(self, completions: Any, who: str, answer: Answer, token_limit: str = "") -> None:
        """`token_limit` is upstream's name of max_output_tokens; empty: OpenAI's own."""
        self._completions = completions
        self._token_limit = token_limit
        self._who = who
        self._stream: Any = None
        """The response; None before it is there, and where there is none since the prompt was blocked."""
        self._chunks: AsyncIterator[Any]
        self._said: list[Event] = []
        self.answer = answer

    async def create(self, **payload: Any) -> Self:
        """As AsyncCompletions has it; the answer is read, and closed, through this object."""
        for name in ("max_completion_tokens", "max_tokens"):
            if self._token_limit and name in payload:
                payload[self._token_limit] = payload.pop(name)
        try:
            self._stream = await self._completions.create(**payload)
        except openai.APIError as error:
            self._failed(error)
        except http_failures.ERRORS as error:  # while it reads what upstream says of an error
            raise http_failures.broken(self._who, error) from error
        except (AssertionError, LookupError, UnicodeError) as error:  # the same, in an encoding that is none
            raise http_failures.unreadable(self._who) from error
        else:
            _skip_hollow_events(self._stream)
            self._chunks = aiter(self._stream)
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._watch()

    async def _watch(self) -> AsyncIterator[Any]:
        try:
            while self._stream is not None and (chunk := await self._next()) is not _END:
                self.answer.look_at(chunk)
                said = self.answer.events()
                self._said += said
                yield _for_langchain(said)
        except (openai.APIConnectionError, *http_failures.ERRORS) as error:
            # Behind the finish reason all that may be missing is the count.
            if not self.answer.finish:
                raise self._broken(error) from error
        except openai.APIError as error:
            if not self.answer.finish:
                self._failed(error)
        if self.answer.blocked or (self.answer.finish and not self.answer.chunks):
            yield _for_langchain(())
        elif not self.answer.chunks:  # LangChain can't bear it
            raise errors.UpstreamCut("The model ended the call without an answer; ask again")

    async def _next(self) -> Any:
        """The next chunk, as JSON. The SDK doesn't look at what it is given, and what it stumbles on is no chunk."""
        try:
            chunk = _json(await anext(self._chunks, _END))
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if self.answer.finish:  # nothing of the answer can be missing
                return _END
            raise http_failures.unreadable(self._who, error) from error
        if isinstance(chunk, list) and len(chunk) == 1 and isinstance(chunk[0], Mapping) and "error" in chunk[0]:
            # As Google has it.
            raise openai.APIError("", request=self._stream.response.request, body=chunk[0]["error"])
        return chunk

    def events(self) -> list[Event]:
        """What upstream has said since the last time."""
        said, self._said = self._said, []
        return said

    async def cancel(self) -> None:
        """Close the connection; nothing happens if the answer has ended."""
        if self._stream is not None:
            await self._stream.close()

    def _failed(self, error: openai.APIError) -> None:
        """Raise ours for theirs, unless it is an answer: a prompt that was blocked, a call of a tool that failed."""
        if blocked := _blocked(error):
            self.answer.blocked = blocked
        elif str(error.code) == _MALFORMED:
            self.answer.finish = _MALFORMED
        else:
            raise self._failure(error) from error

    def _broken(self, error: Exception) -> errors.UpstreamError:
        """For a connection that can't be had, or breaks."""
        if isinstance(error, openai.APITimeoutError):
            return errors.UpstreamDeadline(f"{self._who} didn't finish in time")
        cause = error if isinstance(error, http_failures.ERRORS) else error.__cause__
        if isinstance(cause, http_failures.ERRORS):
            return http_failures.broken(self._who, cause)
        return failures.failure(self._who, grpc.StatusCode.UNAVAILABLE)

    def _failure(self, error: openai.APIError) -> errors.UpstreamError:
        """Status, code and delay are relayed, the text is not."""
        if isinstance(error, openai.APIConnectionError):
            return self._broken(error)
        status = _status(error)
        if http_failures.redirects(status):
            return http_failures.redirected(self._who)
        headers = error.response.headers if isinstance(error, openai.APIStatusError) else {}
        told = isinstance(error, openai.APIStatusError) or str(error.code) == str(status)
        return failures.failure(
            self._who,
            http_failures.code(status),
            words=_WORDS,
            reason=str(error.code or "").upper(),
            retry_after=http_failures.delay(headers),
            metadata={"upstream_status": str(status)} if told else {},
            said=error.message,
        )


_END = object()

_BLOCKED = frozenset({"content_filter", "content_policy_violation", "data_inspection_failed", "invalid_prompt"})
"""The error's code or type where the prompt itself was refused (Azure, OpenAI, Moonshot, DashScope)."""

_BLOCKED_WORDS = re.compile(r"violates usage guidelines|content exists risk", re.IGNORECASE)
"""Of the error's text, where its code means other things as well (xAI, DeepSeek)."""

_MALFORMED = "tool_use_failed"
"""The error's code where the model has asked for a function in a form that can't be read (Groq)."""

_STATUSES = {
    "authentication_error": 401,
    "invalid_api_key": 401,
    "insufficient_quota": 429,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "permission_error": 403,
    "permission_denied": 403,
    "model_not_found": 404,
    "not_found_error": 404,
    "not_found": 404,
    "invalid_request_error": 400,
    "bad_request": 400,
    "badrequesterror": 400,
    "context_length_exceeded": 400,
    "service_unavailable": 503,
    "overloaded_error": 503,
    "engine_overloaded": 503,
    "overloaded": 503,
    "timeout": 504,
    "timeout_error": 504,
}
"""The HTTP status of an error that came in mid-stream, where there is none, by its code or type."""


def _body(error: openai.APIError) -> Mapping[Any, Any]:
    """What upstream says of the error; some wrap it once more, and to some it is but a text beside a code."""
    body = error.body
    if isinstance(body, str) and isinstance(error, openai.APIStatusError):
        with suppress(ValueError):
            body = error.response.json()
    if not isinstance(body, Mapping):
        return {}
    inner = body.get("error")
    return inner if isinstance(inner, Mapping) else body


def _blocked(error: openai.APIError) -> str:
    """Upstream's word for it, where the error is that the prompt was blocked."""
    body = _body(error)
    told = [str(one) for one in (error.code, body.get("code"), error.type, body.get("type")) if one]
    for word in told:
        if word in _BLOCKED:
            return word
    metadata = body.get("metadata")
    moderated = isinstance(metadata, Mapping) and metadata.get("reasons") and "flagged_input" in metadata  # OpenRouter
    words = f"{error.message} {body.get('message')} {body.get('error')}"
    return [*told, "blocked"][0] if moderated or _BLOCKED_WORDS.search(words) else ""


def _status(error: openai.APIError) -> int:
    """The HTTP status, or the one that its words stand for; 0: they stand for none."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code
    body = _body(error)
    for told in (
        body.get("status_code"),
        body.get("status"),
        error.code,
        body.get("code"),
        error.type,
        body.get("type"),
    ):
        word = str(told).lower()
        if word.isdecimal() and len(word) == len("429"):
            return int(word)
        if word in _STATUSES:
            return _STATUSES[word]
    return 0


_WORDS: failures.Words = {
    grpc.StatusCode.UNAUTHENTICATED: "{who} refused the server's key; its owner has to set another one",
    grpc.StatusCode.PERMISSION_DENIED: (
        "The server's key may not use this model of {who}; its owner has to look at what the key is for"
    ),
    grpc.StatusCode.NOT_FOUND: "{who} doesn't know this model; the server's owner has to check TOKENWIRE_MODELS",
}
"""Where the server's owner has to act."""


def _chat(offer: Offer, client: Any) -> BaseChatOpenAI:
    options = offer.options
    common: dict[str, Any] = {
        "model": offer.upstream_name,
        "api_key": offer.api_key,
        "http_async_client": client,
        "max_retries": 0,  # ours are one place for all providers
        "stream_usage": options.get("stream_options") != "false",
        "reasoning_effort": options.get("reasoning_effort"),
        "use_responses_api": False,
        "cache": False,
        "stream_chunk_timeout": None,  # how long the model may be silent is the caller's to say
    }
    if offer.provider == AZURE.name:
        return AzureChatOpenAI(
            azure_endpoint=options["endpoint"],
            api_version=options["api_version"],
            azure_deployment=offer.upstream_name,
            **common,
        )
    return ChatOpenAI(
        base_url=options.get("base_url", OPENAI_ADDRESS), organization=options.get("organization"), **common
    )


def _card(offer: Offer, chat: BaseChatOpenAI) -> ModelCard:
    return langchain_messages.card(
        offer,
        _SPECS[offer.provider],
        profile=chat.profile,
        unsupported=_UNSUPPORTED,
        file_schemes=frozenset({"https", "http"}),
        inline_types=_INLINE,
        linked_types=_IMAGES,
        answer_types=("text/plain", "application/json"),
        max_stop_sequences=_MAX_STOP_SEQUENCES,
        schema_words=frozenset(Word),
    )


def _media(part: Blob | File) -> dict[str, Any]:
    if isinstance(part, File):  # passed on: OpenAI fetches it
        return {"type": "image_url", "image_url": {"url": part.uri}}
    if part.mime_type.startswith("text/"):
        return {"type": "text", "text": _decoded(part)}
    data = base64.b64encode(part.data).decode("ascii")
    if part.mime_type in _AUDIO:
        return {"type": "input_audio", "input_audio": {"data": data, "format": _AUDIO[part.mime_type]}}
    address = f"data:{part.mime_type};base64,{data}"
    if part.mime_type in _IMAGES:
        return {"type": "image_url", "image_url": {"url": address}}
    return {"type": "file", "file": {"filename": "file.pdf", "file_data": address}}


def _decoded(part: Blob) -> str:
    """Text as text: the protocol takes no such file. Raises InvalidRequest for what is no UTF-8."""
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        wrong = Violation("messages.parts.inline_data.data", f"is no text in UTF-8, as {part.mime_type} has to be here")
        raise errors.InvalidRequest([wrong]) from None


def _options(prompt: Prompt, *, strict: bool) -> dict[str, Any]:
    """`strict`: whether the model is held to schemas that allow it."""
    sampling = prompt.sampling
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_output_tokens,
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logprobs": sampling.response_logprobs,
        "top_logprobs": sampling.logprobs,
        "stop": list(sampling.stop_sequences) or None,
        # In the body itself: LangChain would take another way for it, with a client that isn't ours.
        "extra_body": _form(sampling, strict),
        **_tools(prompt.tools, strict),
    }
    return {name: value for name, value in options.items() if value is not None}


def _form(sampling: Sampling, strict: bool) -> dict[str, Any] | None:
    if sampling.response_mime_type in (None, "text/plain"):
        return None
    if sampling.response_schema is None:
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": (schema := schemas.written(sampling.response_schema))}
    return {
        "response_format": {
            "type": "json_schema",
            "json_schema": named | _strict(strict and schemas.strict(schema)),
        }
    }


def _strict(held: bool) -> dict[str, bool]:
    return {"strict": True} if held else {}


def _tools(tools: Tools, strict: bool) -> dict[str, Any]:
    if not tools.functions:
        return {}
    made = [schemas.written(one.parameters or {"type": "object", "properties": {}}) for one in tools.functions]
    # All or none: some refuse a mixture.
    held = _strict(all(map(schemas.strict, made)) and strict)
    declared = [_function(one, parameters, held) for one, parameters in zip(tools.functions, made, strict=True)]
    if tools.choice is None:
        return {"tools": declared}
    if not tools.choice.names:
        return {"tools": declared, "tool_choice": _CHOICES[tools.choice.mode]}
    named: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in tools.choice.names]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    return {"tools": declared, "tool_choice": named[0] if len(named) == 1 else allowed}


def _function(one: Function, parameters: Mapping[str, Any], held: Mapping[str, bool]) -> dict[str, Any]:
    described = {"name": one.name, "description": one.description, "parameters": parameters}
    return {"type": "function", "function": {**described, **held}}


def _skip_hollow_events(stream: Any) -> None:
    """Have the SDK read past events that hold nothing, as some servers send to keep the connection; it can't bear them.

    As the rules of server-sent events have it. https://github.com/openai/openai-python/issues/2722
    """
    decoder = getattr(stream, "_decoder", None)
    decode = getattr(decoder, "decode", None)
    if decoder is None or decode is None:
        return

    def decoded(line: str) -> Any:
        event = decode(line.removeprefix("\ufeff"))  # before the first line
        return event if event is not None and event.data.strip() else None

    decoder.decode = decoded


def _json(value: Any) -> Any:
    """The JSON of which the SDK has made its types, whatever stood in it."""
    if isinstance(value, openai.BaseModel):
        fields = {**value.__dict__, **(value.__pydantic_extra__ or {})}
        return {name: _json(inner) for name, inner in fields.items()}
    if isinstance(value, Mapping):
        return {name: _json(inner) for name, inner in value.items()}
    return list(map(_json, value)) if isinstance(value, list) else value


def _for_langchain(said: Sequence[Event]) -> Mapping[str, Any]:
    """A chunk with the text of these events."""
    text = "".join(event.text for event in said if isinstance(event, Text))
    return {"choices": [{"index": 0, "delta": {"role": "assistant", "content": text}}]}
