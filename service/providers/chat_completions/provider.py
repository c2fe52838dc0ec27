"""OpenAI's chat models, and those that speak its protocol, through LangChain's ChatOpenAI and AzureChatOpenAI.

The only file that knows either. As in `service.providers.gemini.over_grpc`, LangChain is given a client of ours for
each request (`_Call`), which keeps hold of the HTTP response and reads each chunk before LangChain drops a part of it,
or can't bear it. LangChain is handed on only what it understands.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from functools import cache
from typing import Any, Self, cast

import httpx2
import openai
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI

from ... import errors
from ...cleanup import finished
from ...generation.capabilities import ModelCard
from ...generation.events import Event, Started, Text
from ...generation.json_schema import Word
from ...generation.prompt import Prompt
from ...telemetry.trace_context import CARRIED
from .. import http_failures, langchain_messages
from ..spec import GoogleCloud, Offer
from . import failures, requests
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
        "messages.parts.reasoning_signature",
    }
)

_BACK = {
    "reasoning_content": frozenset({"messages.parts.reasoning"}),
    "reasoning": frozenset({"messages.parts.reasoning"}),
    "reasoning_details": frozenset({"messages.parts.reasoning", "messages.parts.reasoning_signature"}),
    "google": frozenset({"messages.parts.reasoning_signature"}),
}
"""Of these, what the option thoughts_back has a word for."""

_SPECS = {spec.name: spec for spec in (OPENAI, AZURE)}


def open_models(offers: Sequence[Offer], google: GoogleCloud) -> "OpenAIProvider":
    """As `ProviderSpec.module` wants it."""
    return OpenAIProvider(offers, google)


class OpenAIProvider:
    """Models of OpenAI, of Azure, or of any server with their protocol; a `service.generation.provider.Provider`."""

    def __init__(self, offers: Sequence[Offer], google: GoogleCloud) -> None:
        hosts = [_SPECS[offer.provider].host(offer, google) for offer in offers]
        self._http = openai.DefaultAsyncHttpxClient(
            follow_redirects=False, mounts=http_failures.directly(hosts), verify=_tls()
        )
        # LangChain would make one of its own for calls that block, which there are none of.
        self._blocking = openai.DefaultHttpxClient(verify=_tls())
        self._chats = {offer.name: _chat(offer, self._http, self._blocking) for offer in offers}
        self._who = {offer.name: _SPECS[offer.provider].title for offer in offers}
        self._ways = {offer.name: offer.options for offer in offers}
        self.cards: Sequence[ModelCard] = [_card(offer, self._chats[offer.name]) for offer in offers]

    async def close(self) -> None:
        await self._http.aclose()
        self._blocking.close()

    def stream(self, prompt: Prompt, *, deadline: float) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        return aclosing(self._events(prompt, deadline))

    async def _events(self, prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        ways = self._ways[prompt.model]
        answer = Answer(
            {function.name for function in prompt.tools.functions},
            thoughts=ways.get("thoughts") != "false",
            back=ways.get("thoughts_back", ""),
            logprobs=bool(prompt.sampling.response_logprobs),
        )
        answer.usage_seen = prompt.usage_seen
        call = _Call(self._chats[prompt.model].async_client, self._who[prompt.model], answer, prompt, ways)
        chat = self._chats[prompt.model].model_copy(update={"async_client": call})
        seconds = deadline - asyncio.get_running_loop().time()
        options = requests.options(prompt, strict=ways.get("strict") != "false")
        stream = chat.astream(langchain_messages.messages(prompt, requests.media), timeout=seconds, **options)
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

    def __init__(self, completions: Any, who: str, answer: Answer, prompt: Prompt, ways: Mapping[str, str]) -> None:
        """`ways` are the options of the model's line."""
        self._completions = completions
        self._prompt = prompt
        self._ways = ways
        self._who = who
        self._stream: Any = None
        """The response; None before it is there, and where there is none since the prompt was blocked."""
        self._chunks: AsyncIterator[Any]
        self._body: _Body
        self._said: list[Event] = []
        self.answer = answer

    async def create(self, **payload: Any) -> Self:
        """As AsyncCompletions has it; the answer is read, and closed, through this object."""
        if limit := self._ways.get("token_limit"):
            for name in {"max_completion_tokens", "max_tokens"} & payload.keys():
                payload[limit] = payload.pop(name)
        if way := self._ways.get("thoughts_back"):
            payload["messages"] = requests.with_thoughts(payload["messages"], self._prompt, way)
        try:
            self._stream = await self._completions.create(**payload, extra_headers=dict(CARRIED.get()))
        except openai.APIError as error:
            self._failed(error)
        except http_failures.ERRORS as error:  # while it reads what upstream says of an error
            raise http_failures.broken(self._who, error) from error
        except (AssertionError, LookupError, UnicodeError) as error:  # the same, in an encoding that is none
            raise http_failures.unreadable(self._who) from error
        else:
            self._body = _Body(self._stream)
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
                raise failures.broken(self._who, error) from error
        except openai.APIError as error:
            if not self.answer.finish:
                self._failed(self._body.whole(error))
        if self.answer.blocked or (self.answer.finish and not self.answer.chunks):
            yield _for_langchain(())
        elif not self.answer.chunks:  # LangChain can't bear it
            self._refuse_a_page()
            raise errors.UpstreamCut("The model ended the call without an answer; ask again")

    async def _next(self) -> Any:
        """The next chunk, as JSON. The SDK doesn't look at what it is given, and what it stumbles on is no chunk."""
        try:
            chunk = await anext(self._chunks, _END)
            if chunk is not _END:
                chunk = self._body.read(chunk)
            elif (whole := self._body.json()) is not None:
                chunk = _answer_or_error(whole)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            if self.answer.finish:  # nothing of the answer can be missing
                return _END
            self._refuse_a_page()
            raise http_failures.unreadable(self._who, error) from error
        if told := failures.error_in(chunk):
            raise openai.APIError(failures.words(told), request=self._stream.response.request, body=told)
        return chunk

    def _refuse_a_page(self) -> None:
        """Raises UpstreamFault where no chunk has come, since it is none that could hold any."""
        if not self.answer.chunks and http_failures.is_page(self._stream.response.headers):
            raise http_failures.page(self._who)

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
        if blocked := failures.blocked(error):
            self.answer.blocked = blocked
        elif str(error.code) == failures.MALFORMED:
            self.answer.finish = failures.MALFORMED
        else:
            raise failures.failure(self._who, error) from error


_END = object()


@cache
def _tls() -> ssl.SSLContext:
    """Whom all connections trust: to read the certificates of all authorities takes 25 ms and megabytes."""
    return httpx2.create_ssl_context()


def _chat(offer: Offer, client: Any, blocking: Any) -> BaseChatOpenAI:
    options = offer.options
    common: dict[str, Any] = {
        "model": offer.upstream_name,
        "api_key": offer.api_key,
        "http_async_client": client,
        "http_client": blocking,
        "max_retries": 0,  # ours are one place for all providers
        "stream_usage": options.get("stream_options") != "false",
        "reasoning_effort": options.get("reasoning_effort"),
        "use_responses_api": False,
        "cache": False,
        # How long the model may be silent is the caller's to say. And LangChain would wait by asyncio.wait_for, which
        # in Python 3.11 loses a cancellation that comes together with a chunk.
        "stream_chunk_timeout": None,
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
        unsupported=_UNSUPPORTED - _BACK.get(offer.options.get("thoughts_back", ""), frozenset()),
        file_schemes=frozenset({"https", "http"}),
        inline_types=requests.INLINE,
        linked_types=requests.IMAGES,
        answer_types=("text/plain", "application/json"),
        max_stop_sequences=_MAX_STOP_SEQUENCES,
        schema_words=frozenset(Word),
    )


_FIELDS = ("data:", "event:", "id:", "retry:", ":")
"""How lines of events begin, and comments."""


class _Body:
    """What upstream sends, event by event; or the one JSON that some send in their place, however they were asked."""

    def __init__(self, stream: Any) -> None:
        """From here on, the SDK's `stream` reads past events that hold nothing, and past such JSON.

        Some send such events to keep the connection, by the rules of server-sent events; the SDK can't bear them.
        https://github.com/openai/openai-python/issues/2722
        """
        self._lines: list[str] = []
        """Of the one JSON."""
        self._in_json = False
        self._event = ""
        """What the latest event holds."""
        self._chunk: Any = _END
        """The same, read."""
        decoder = getattr(stream, "_decoder", None)
        decode = getattr(decoder, "decode", None)
        if decoder is None or decode is None:
            return

        def decoded(line: str) -> Any:
            line = line.removeprefix("\ufeff")  # before the first line
            if (error := line.removeprefix("error:")) != line:  # llama.cpp's own field
                line = f'{{"error":{error}}}'
            if self._is_json(line):
                self._lines.append(line)
                return None
            event = decode(line)
            if event is None or not event.data.strip():
                return None
            self._event = event.data
            event.json = self._read
            return event

        decoder.decode = decoded

    def _read(self) -> Any:
        """The JSON of the latest event, for the SDK."""
        self._chunk = json.loads(self._event)
        return self._chunk

    def read(self, chunk: Any) -> Any:
        """The JSON of which the SDK has made this chunk, as it came: to its types, true is 1, and so is "1"."""
        return _json(chunk) if self._chunk is _END else self._chunk

    def _is_json(self, line: str) -> bool:
        """No field of an event begins as JSON does, and no line of JSON as a field."""
        if line.startswith(_FIELDS):
            self._in_json = False
        elif line.lstrip().startswith(("{", "[")):
            self._in_json = True
        return self._in_json

    def whole(self, error: openai.APIError) -> openai.APIError:
        """With what stands beside the error's text, which the SDK lets go of."""
        told = None
        if isinstance(error.body, str):
            with suppress(ValueError, RecursionError):
                told = failures.error_in(json.loads(self._event))
        if not isinstance(told, Mapping):
            return error
        return openai.APIError(failures.words(told), request=error.request, body=told)

    def json(self) -> Any:
        """The one JSON, once; None if there is none. Raises ValueError, RecursionError."""
        text, self._lines = "\n".join(self._lines), []
        return json.loads(text) if text else None


def _answer_or_error(whole: Any) -> Any:
    """As a chunk, which it is unless it is an error of whatever form."""
    answers = isinstance(whole, Mapping) and whole.get("choices")
    return whole if answers or failures.error_in(whole) else {"error": whole or "nothing"}


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
