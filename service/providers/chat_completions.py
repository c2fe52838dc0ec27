"""OpenAI's chat models, and those that speak its protocol, through LangChain's ChatOpenAI and AzureChatOpenAI.

The only file that knows either. As in `service.providers.gemini.over_grpc`, LangChain is given a client of ours for
each request (`_Call`), which keeps hold of the HTTP response and sees each chunk before LangChain drops a part of it.
"""

import asyncio
import base64
import json
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self, cast

import grpc
import openai
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI
from openai.types.chat import ChatCompletionChunk

from .. import errors
from ..cleanup import finished
from ..generation import json_values
from ..generation.capabilities import ModelCard
from ..generation.events import Event, Finished, FinishReason, Logprobs, Started, TokenLogprob, Usage
from ..generation.prompt import Blob, File, Prompt, Sampling, ToolCall, ToolMode, Tools
from . import failures, http_failures, langchain_messages
from .chat_completions_specs import AZURE, OPENAI
from .gemini import answers
from .spec import GoogleCloud, Offer

# The SDK warns of a chunk that isn't what the protocol says; what becomes of it is told by its call.
warnings.filterwarnings("ignore", message="Pydantic serializer warnings", category=UserWarning)

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

_FINISH = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "function_call": FinishReason.STOP,
    "length": FinishReason.MAX_TOKENS,
    "content_filter": FinishReason.SAFETY,
}

_CHOICES = {ToolMode.AUTO: "auto", ToolMode.ANY: "required", ToolMode.NONE: "none"}


def open_models(offers: Sequence[Offer], google: GoogleCloud) -> "OpenAIProvider":
    """As `ProviderSpec.module` wants it."""
    del google
    return OpenAIProvider(offers)


class OpenAIProvider:
    """Models of OpenAI, of Azure, or of any server with their protocol; a `service.generation.provider.Provider`."""

    def __init__(self, offers: Sequence[Offer]) -> None:
        self._http = openai.DefaultAsyncHttpxClient(follow_redirects=False)
        self._chats = {offer.name: _chat(offer, self._http) for offer in offers}
        self._who = {offer.name: _SPECS[offer.provider].title for offer in offers}
        self.cards: Sequence[ModelCard] = [_card(offer, self._chats[offer.name]) for offer in offers]

    async def close(self) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        chat = self._chats[prompt.model]
        call = _Call(chat.async_client, self._who[prompt.model])
        events = self._events(chat.model_copy(update={"async_client": call}), call, prompt, deadline)
        async with aclosing(events):  # even where leaving the response fails
            try:
                yield events
            finally:
                await finished(call.cancel())

    async def _events(
        self, chat: BaseChatOpenAI, call: "_Call", prompt: Prompt, deadline: float
    ) -> AsyncGenerator[Event, None]:
        seconds = deadline - asyncio.get_running_loop().time()
        answer = chat.astream(langchain_messages.messages(prompt, _media), timeout=seconds, **_options(prompt))
        chunks = cast("AsyncGenerator[Any, None]", answer)  # LangChain declares less than it returns
        started = False
        try:
            async with aclosing(chunks):
                async for _ in chunks:
                    if not started:
                        started = True
                        yield Started(prompt.model)
                    for event in call.events():
                        yield event
            for event in (*call.events(), *call.tool_calls()):
                yield event
            yield call.finished()
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            if call.makes_sense():
                raise  # a bug
            raise http_failures.unreadable(self._who[prompt.model]) from error

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """Nobody counts: the protocol has no call for it, and an estimate would look like a count."""
        del deadline
        raise errors.NotServed(f"{self._who[prompt.model]} does not count the tokens of a request to {prompt.model}")


class _Call:
    """One streaming completion: what ChatOpenAI gets for its client while it answers one prompt."""

    def __init__(self, completions: Any, who: str) -> None:
        self._completions = completions
        self._who = who
        self._stream: Any = None
        self._chunks = 0
        self._finish = ""
        self._refused = False
        self._usage: Any = None
        self._model_version = ""
        self._said: list[Any] = []
        """The chunks that nobody has asked about yet."""
        self._latest: Any = None
        self._calls: dict[int, dict[str, str]] = {}
        """Those of tools, by their place: id, name and what has come of their arguments."""

    async def create(self, **payload: Any) -> Self:
        """As AsyncCompletions has it; the answer is read, and closed, through this object."""
        try:
            self._stream = await self._completions.create(**payload)
        except openai.APIError as error:
            raise self._failure(error) from error
        except http_failures.ERRORS as error:  # while it reads what upstream says of an error
            raise http_failures.broken(self._who, error) from error
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._watch()

    async def _watch(self) -> AsyncIterator[Any]:
        try:
            async for chunk in self._stream:
                self._look_at(chunk)
                yield chunk
            if not self._chunks:  # LangChain can't bear it
                raise errors.UpstreamCut("The model ended the call without an answer; ask again")
        except openai.APIError as error:
            raise self._failure(error) from error
        except http_failures.ERRORS as error:
            raise http_failures.broken(self._who, error) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise http_failures.unreadable(self._who) from error

    async def cancel(self) -> None:
        """Close the connection; nothing happens if the answer has ended."""
        if self._stream is not None:
            await self._stream.close()

    def _look_at(self, raw: Any) -> None:
        self._chunks += 1
        self._said.append(raw)
        self._latest = raw
        self._usage = raw.usage or self._usage
        self._model_version = raw.model or self._model_version
        for choice in _answer(raw):
            self._finish = choice.finish_reason or self._finish
            for call in choice.delta.tool_calls or ():
                self._add(call)

    def _add(self, delta: Any) -> None:
        call = self._calls.setdefault(delta.index, {"id": "", "name": "", "arguments": ""})
        call["id"] = delta.id or call["id"]
        if delta.function is not None:
            call["name"] += delta.function.name or ""
            call["arguments"] += delta.function.arguments or ""

    def makes_sense(self) -> bool:
        """Whether the latest chunk is what the protocol says; its library doesn't look, so anything may stand in it."""
        try:
            ChatCompletionChunk.model_validate(self._latest.to_dict(warnings=False))
        except (AttributeError, ValueError):
            return False
        return True

    def events(self) -> Iterator[Event]:
        """What upstream has said since the last time; calls of tools come in pieces, and whole from `tool_calls`."""
        said, self._said = self._said, []
        for choice in (choice for raw in said for choice in _answer(raw)):
            yield from answers.pieces(choice.delta.content or "")
            if refusal := choice.delta.refusal:  # the answer's text where the model won't answer; LangChain drops it
                self._refused = True
                yield from answers.pieces(refusal)
            if choice.logprobs is not None and choice.logprobs.content:
                yield Logprobs(tuple(map(_token, choice.logprobs.content)))

    def tool_calls(self) -> Iterator[ToolCall]:
        """The whole calls. Raises UpstreamFault for one whose arguments are no JSON object."""
        if self._finish not in ("tool_calls", "stop", "function_call"):
            return  # cut in the middle
        for _, call in sorted(self._calls.items()):
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except json.JSONDecodeError as error:
                raise errors.UpstreamFault("The model asked for a function with arguments that are no JSON") from error
            if not isinstance(arguments, dict):
                raise errors.UpstreamFault("The model asked for a function with arguments that are no JSON object")
            yield ToolCall(id=call["id"], name=call["name"], arguments=arguments)

    def finished(self) -> Finished:
        """How the answer ended. Raises UpstreamCut if upstream didn't say."""
        if not self._finish:
            raise errors.UpstreamCut("The model's answer broke off without a finish reason; what came is incomplete")
        return Finished(
            reason=FinishReason.SAFETY if self._refused else _FINISH.get(self._finish, FinishReason.OTHER),
            upstream_reason="refusal" if self._refused else self._finish,
            usage=_usage(self._usage) if self._usage is not None else None,
            model_version=self._model_version,
        )

    def _failure(self, error: openai.APIError) -> errors.UpstreamError:
        """Ours for theirs: status, code and delay are relayed, their text is not."""
        if isinstance(error, openai.APITimeoutError):
            return errors.UpstreamDeadline(f"{self._who} didn't finish in time")
        if isinstance(error.__cause__, http_failures.ERRORS):
            return http_failures.broken(self._who, error.__cause__)
        if isinstance(error, openai.APIConnectionError):
            return failures.failure(self._who, grpc.StatusCode.UNAVAILABLE)
        status = error.status_code if isinstance(error, openai.APIStatusError) else _number(error.code)
        if http_failures.redirects(status):
            return http_failures.redirected(self._who)
        code = http_failures.code(status)
        retry_after = None
        if isinstance(error, openai.APIStatusError):
            retry_after = http_failures.seconds(error.response.headers.get("retry-after"))
        return failures.failure(
            self._who,
            code,
            words=_WORDS,
            reason=str(error.code or "").upper(),
            retry_after=retry_after,
            metadata={"upstream_status": str(status)},
        )


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
        "stream_usage": True,
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
    return ChatOpenAI(base_url=options.get("base_url"), organization=options.get("organization"), **common)


def _card(offer: Offer, chat: BaseChatOpenAI) -> ModelCard:
    return langchain_messages.card(
        offer,
        _SPECS[offer.provider],
        profile=chat.profile,
        unsupported=_UNSUPPORTED,
        file_schemes=frozenset({"https", "http"}),
        answer_types=("text/plain", "application/json"),
        max_stop_sequences=_MAX_STOP_SEQUENCES,
    )


def _media(part: Blob | File) -> dict[str, Any]:
    if isinstance(part, File):  # passed on: OpenAI fetches it
        return {"type": "image_url", "image_url": {"url": part.uri}}
    data = base64.b64encode(part.data).decode("ascii")
    kind, _, form = part.mime_type.partition("/")
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": f"data:{part.mime_type};base64,{data}"}}
    if kind == "audio":
        return {"type": "input_audio", "input_audio": {"data": data, "format": form.removeprefix("x-")}}
    return {"type": "file", "file": {"filename": "file", "file_data": f"data:{part.mime_type};base64,{data}"}}


def _options(prompt: Prompt) -> dict[str, Any]:
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
        "extra_body": _form(sampling),
        **_tools(prompt.tools),
    }
    return {name: value for name, value in options.items() if value is not None}


def _form(sampling: Sampling) -> dict[str, Any] | None:
    if sampling.response_mime_type in (None, "text/plain"):
        return None
    if sampling.response_schema is None:
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "schema": sampling.response_schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _tools(tools: Tools) -> dict[str, Any]:
    if not tools.functions:
        return {}
    declared = [
        {
            "type": "function",
            "function": {
                "name": one.name,
                "description": one.description,
                "parameters": one.parameters or {"type": "object", "properties": {}},
            },
        }
        for one in tools.functions
    ]
    if tools.choice is None:
        return {"tools": declared}
    if not tools.choice.names:
        return {"tools": declared, "tool_choice": _CHOICES[tools.choice.mode]}
    named: list[dict[str, Any]] = [{"type": "function", "function": {"name": name}} for name in tools.choice.names]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": named}}
    return {"tools": declared, "tool_choice": named[0] if len(named) == 1 else allowed}


def _answer(raw: Any) -> Sequence[Any]:
    """The choice of a chunk that is the answer, if there is one: the first, as for LangChain. Only one was asked for.

    Raises TypeError where its words are no text: the SDK relays whatever stands in the JSON.
    """
    first: Sequence[Any] = (raw.choices or ())[:1]
    for choice in first:
        if not isinstance(choice.delta.content or "", str) or not isinstance(choice.delta.refusal or "", str):
            raise TypeError("a chunk with words that are no text")
    return first


def _token(told: Any) -> TokenLogprob:
    alternatives = tuple(TokenLogprob(other.token, other.logprob) for other in told.top_logprobs or ())
    return TokenLogprob(told.token, told.logprob, alternatives)


def _usage(told: Any) -> Usage | None:
    """Theirs counts the thoughts as output; ours doesn't. None where a figure can't be."""
    output, prompt = told.completion_tokens_details, told.prompt_tokens_details
    reasoning = (output.reasoning_tokens if output is not None else 0) or 0
    cached = (prompt.cached_tokens if prompt is not None else 0) or 0
    figures = (told.prompt_tokens, told.completion_tokens, reasoning, cached, told.total_tokens)
    if None in map(json_values.count, figures) or reasoning > told.completion_tokens:
        return None
    return Usage(
        input_tokens=told.prompt_tokens,
        output_tokens=told.completion_tokens - reasoning,
        reasoning_tokens=reasoning,
        cached_tokens=cached,
        total_tokens=told.total_tokens,
    )


def _number(code: object) -> int:
    """An error in mid-stream has no HTTP status but that its code may be one."""
    return int(str(code)) if str(code).isdigit() else 0
