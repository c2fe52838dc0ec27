"""Gemini on Vertex AI over HTTP, through LangChain's ChatGoogleGenerativeAI, which ChatVertexAI is to give way to.

The only file that knows it, and Google's SDK below it. As in `service.providers.gemini.over_grpc`, LangChain is given a
client of ours for each request (`_Call`), which keeps hold of the HTTP response. It reads each message before the SDK
drops a part of it, or refuses all of it for one odd field, and hands on only what the SDK and LangChain understand.
"""

import asyncio
import http
import json
import ssl
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, cast

import httpx
from google import genai
from google.genai import types
from google.genai.errors import APIError
from google.oauth2.credentials import Credentials
from langchain_google_genai import ChatGoogleGenerativeAI

from ... import errors
from ...cleanup import finished
from ...errors import Violation
from ...generation import json_schema
from ...generation.capabilities import ModelCard
from ...generation.events import Event, Started, Text
from ...generation.prompt import Prompt
from ...telemetry.trace_context import CARRIED
from .. import http_failures, langchain_messages
from ..spec import GoogleCloud, Offer
from . import answers, http_messages, prompts
from .credentials import ApplicationDefault, application_default
from .specs import GENAI, http_host

_WHO = GENAI.title

# A finish reason of tomorrow is relayed by its name; the SDK warns that it doesn't know it.
warnings.filterwarnings("ignore", message=".* is not a valid ", category=UserWarning, module="google.genai")

# The SDK builds its types at their first use, which would block the event loop of the first calls for 50 ms; now it is
# done before a worker is forked.
for _type in vars(types).values():
    if hasattr(_type, "model_rebuild"):
        _type.model_rebuild(raise_errors=False)

_STUMBLES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What the SDK raises of JSON that is none, or of another shape."""

_answering: ContextVar["_Call"] = ContextVar("answering")
"""The call whose HTTP response the client is about to get."""


def open_models(offers: Sequence[Offer], google: GoogleCloud) -> "GenAIProvider":
    """As `ProviderSpec.module` wants it."""
    if google.emulator_rest:
        return GenAIProvider.local(google.emulator_rest, offers, project=google.project, location=google.location)
    return GenAIProvider.google(offers, project=google.project, location=google.location)


class GenAIProvider:
    """Models of Vertex AI, or of a local Vertex; a `service.generation.provider.Provider`."""

    def __init__(
        self,
        offers: Sequence[Offer],
        *,
        project: str,
        location: str,
        base_url: str | None = None,
        credentials: ApplicationDefault | None = None,
    ) -> None:
        """`credentials` go with each call; None: it needs none. `base_url` None: Vertex AI's own address."""
        self._http = httpx.AsyncClient(
            auth=_Identity(credentials) if credentials is not None else None,
            timeout=None,  # noqa: S113 - each request brings its own
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
            event_hooks={"request": [_carry], "response": [_keep]},
            mounts=http_failures.directly(filter(None, (base_url, *(one.options.get("base_url") for one in offers)))),
            verify=_tls(),
        )
        self._clients = {
            offer.name: genai.Client(
                vertexai=True,
                project=project,
                location=location,
                credentials=_nobody(),
                http_options=types.HttpOptions(
                    base_url=offer.options.get("base_url", base_url),
                    httpx_async_client=self._http,
                    client_args=_for_others(),
                    async_client_args=_for_others(),
                ),
            )
            for offer in offers
        }
        self._chats = {offer.name: _chat(offer, self._clients[offer.name]) for offer in offers}
        self.cards: Sequence[ModelCard] = [_card(offer, self._chats[offer.name]) for offer in offers]

    @classmethod
    def local(cls, address: str, offers: Sequence[Offer], *, project: str, location: str) -> "GenAIProvider":
        """A local Vertex at `address` (host:port), without credentials."""
        return cls(
            offers,
            project=project or "local",
            location=location,
            base_url=f"http://{address}",
        )

    @classmethod
    def google(cls, offers: Sequence[Offer], *, project: str, location: str) -> "GenAIProvider":
        """Vertex AI itself, with application default credentials; at its own address, whatever a variable says."""
        return cls(
            offers,
            project=project,
            location=location,
            base_url=f"https://{http_host(location)}/",
            credentials=application_default(),
        )

    async def close(self) -> None:
        await self._http.aclose()
        for client in self._clients.values():
            client.close()

    @asynccontextmanager
    async def stream(self, prompt: Prompt, *, deadline: float) -> AsyncIterator[AsyncIterator[Event]]:
        """See `service.generation.provider.Provider`."""
        call = _Call(self._clients[prompt.model], prompt)
        events = self._events(call, prompt, deadline)
        async with aclosing(events):  # even where leaving the response fails
            try:
                yield events
            finally:
                await finished(call.cancel())

    async def _events(self, call: "_Call", prompt: Prompt, deadline: float) -> AsyncGenerator[Event, None]:
        chat = self._chats[prompt.model].model_copy(update={"client": call})
        messages, options = langchain_messages.messages(prompt, prompts.media), _options(prompt)
        answer = chat.astream(messages, timeout=_seconds(deadline), **options)
        chunks = cast("AsyncGenerator[Any, None]", answer)  # LangChain declares less than it returns
        started = False
        async with aclosing(chunks):
            async for _ in chunks:
                if not started:
                    started = True
                    yield Started(prompt.model)
                for event in call.events():
                    yield event
        for event in call.events():
            yield event
        yield call.answer.finished()

    async def count_tokens(self, prompt: Prompt, *, deadline: float) -> int:
        """As Vertex AI counts it."""
        client = self._clients[prompt.model]
        config = types.CountTokensConfig(
            system_instruction=prompt.system_instruction or None,
            tools=cast("Any", _tools(prompt)) or None,
            http_options=types.HttpOptions(timeout=round(_seconds(deadline) * 1000)),
        )
        try:
            counted = await client.aio.models.count_tokens(
                model=_upstream(self._chats[prompt.model]), contents=cast("Any", _contents(prompt)), config=config
            )
        except APIError as error:
            raise failure(error) from error
        except http_failures.ERRORS as error:
            raise http_failures.broken(_WHO, error) from error
        except _STUMBLES as error:
            raise http_failures.unreadable(_WHO, error) from error
        return answers.total(counted.total_tokens)


class _Call:
    """One streamed answer: what ChatGoogleGenerativeAI gets for its client while it answers one prompt."""

    def __init__(self, client: genai.Client, prompt: Prompt) -> None:
        self.answer = answers.Answer(prompt.usage_seen)
        self.response: httpx.Response | None = None
        self._client = client
        self._prompt = prompt
        self._said: list[Event] = []
        """What the model said and nobody has asked for yet."""

    @property
    def aio(self) -> "_Call":
        """As genai.Client has it."""
        return self

    @property
    def models(self) -> "_Call":
        """As its `aio` has it."""
        return self

    async def generate_content_stream(self, *, model: str, contents: Any, config: Any) -> AsyncIterator[Any]:
        """As the SDK's models have it."""
        if prompts.needs_exactness(self._prompt):
            contents = _contents(self._prompt)
        self._refuse_what_is_dropped(config)
        _answering.set(self)
        return self._watch(
            await self._client.aio.models.generate_content_stream(model=model, contents=contents, config=config)
        )

    def _refuse_what_is_dropped(self, config: Any) -> None:
        """ChatGoogleGenerativeAI leaves out what it knows that a model ignores, with a warning for us, no caller."""
        dropped = [
            Violation(f"config.{name}", f"is nothing that {self._prompt.model!r} takes: leave it unset")
            for name in ("temperature", "top_p", "top_k")
            if getattr(self._prompt.sampling, name) is not None and getattr(config, name) is None
        ]
        if dropped:
            raise errors.InvalidRequest(dropped)

    async def _watch(self, responses: AsyncIterator[types.GenerateContentResponse]) -> AsyncIterator[Any]:
        try:
            async for response in responses:
                yield response
            self._refuse_a_page()
            self.answer.ended()
        except APIError as error:
            raise failure(error) from error
        except http_failures.ERRORS as error:
            raise http_failures.broken(_WHO, error) from error
        except _STUMBLES as error:
            self._refuse_a_page()
            raise http_failures.unreadable(_WHO, error) from error

    def _refuse_a_page(self) -> None:
        """Raises UpstreamFault where no message has come, since it is none that could hold any."""
        if not self.answer.messages and self.response is not None and http_failures.is_page(self.response.headers):
            raise http_failures.page(_WHO)

    def events(self) -> list[Event]:
        """What the model has said since the last time."""
        said, self._said = self._said, []
        return said

    async def lines(self, response: httpx.Response) -> AsyncIterator[str]:
        """The lines that the SDK reads: a message with the text of each that comes."""
        async for message in self._messages(response):
            yield http_messages.DATA + json.dumps(self._taken(message))
            yield ""

    async def _messages(self, response: httpx.Response) -> AsyncIterator[Mapping[str, Any]]:
        """Those of an answer. Whatever comes behind its finish reason and is none ends it; nothing of it is missing."""
        try:
            async for event in http_messages.events(response):
                yield http_messages.message(event)
        except (errors.UpstreamError, *http_failures.ERRORS, *_STUMBLES):
            if not self.answer.reason:
                raise

    def _taken(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Read it; what is left of it for LangChain."""
        self.answer.messages += 1
        message, going_on = _split(message)
        said = self.answer.read(message)
        self._said += said
        text = "".join(event.text for event in said if isinstance(event, Text))
        return {"candidates": [{"content": {"role": "model", "parts": [{"text": text}]}, **going_on}]}

    async def cancel(self) -> None:
        """Close the connection; nothing happens if the answer has ended."""
        if self.response is not None:
            await self.response.aclose()


async def _carry(request: httpx.Request) -> None:
    """Send along whose trace it belongs to."""
    request.headers.update(CARRIED.get())


async def _keep(response: httpx.Response) -> None:
    """Raises what an error's status and body say, here: the SDK stumbles on bodies that it doesn't expect."""
    if response.status_code != http.HTTPStatus.OK:
        await response.aread()
        try:
            body = response.json()
        except (ValueError, RecursionError):
            body = {"message": response.text}
        raise http_messages.failure(response.status_code, body, response.headers)
    if call := _answering.get(None):
        call.response = response
        response.aiter_lines = lambda: call.lines(response)  # type: ignore[method-assign] # whatever it is, the SDK reads by this


class _Identity(httpx.Auth):
    """Tells Google who asks. The SDK's own way may hold a thread for each call while a renewal hangs."""

    def __init__(self, credentials: ApplicationDefault) -> None:
        self._credentials = credentials

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        """As httpx has it."""
        seconds = request.extensions["timeout"]["read"]
        for name, value in await self._credentials.headers(asyncio.get_running_loop().time() + seconds):
            request.headers[name] = value
        yield request


@cache
def _tls() -> ssl.SSLContext:
    """Whom all connections trust: to read the certificates of all authorities takes 25 ms and megabytes."""
    return httpx.create_ssl_context()


def _for_others() -> dict[str, ssl.SSLContext]:
    """The same for connections that the SDK could make besides, and doesn't: for calls that block, and websockets."""
    return {"verify": _tls(), "ssl": _tls()}


def _nobody() -> Credentials:
    # Anonymous ones would be asked to renew themselves, which they refuse.
    return Credentials(token="none")  # type: ignore[no-untyped-call] # noqa: S106 - google.auth has no types; no secret


def _chat(offer: Offer, client: genai.Client) -> ChatGoogleGenerativeAI:
    chat = ChatGoogleGenerativeAI(
        model=offer.upstream_name,
        vertexai=True,
        project="unused",
        credentials=_nobody(),  # of the client that it makes, and never uses
        client_args=_for_others(),
        temperature=None,  # else it sends one of its own
        max_retries=1,  # attempts; ours are one place for all providers
        n=1,
        cache=False,
    )
    chat.client = client
    return chat


def _card(offer: Offer, chat: ChatGoogleGenerativeAI) -> ModelCard:
    return langchain_messages.card(
        offer,
        GENAI,
        profile=chat.profile,
        unsupported=frozenset(),
        file_schemes=prompts.FILE_SCHEMES,
        answer_types=("text/plain", "application/json"),
        json_with_tools=prompts.json_with_tools(offer.upstream_name),
    )


def _upstream(chat: ChatGoogleGenerativeAI) -> str:
    return str(chat.model)


def _seconds(deadline: float) -> float:
    """What is left; at least one of the milliseconds that the SDK counts in, of which none would be no limit."""
    return max(0.001, deadline - asyncio.get_running_loop().time())


def _contents(prompt: Prompt) -> list[types.Content]:
    return [types.Content.model_validate(one) for one in prompts.contents(prompt)]


def _options(prompt: Prompt) -> dict[str, Any]:
    options = prompts.options(prompt)
    if (schema := prompt.sampling.response_schema) is not None:  # goes as JSON Schema, and not as Google's own
        options["response_schema"] = json_schema.changed(schema, json_schema.with_null)
    if prompt.tools:
        options["tools"] = _tools(prompt)
    if (choice := prompt.tools.choice) is not None:
        options["tool_config"] = types.ToolConfig(
            function_calling_config=types.FunctionCallingConfig(
                mode=types.FunctionCallingConfigMode[choice.mode.name],
                allowed_function_names=list(choice.names) or None,
            )
        )
    return options


def _tools(prompt: Prompt) -> list[types.Tool]:
    return [types.Tool.model_validate(one) for one in prompts.tools(prompt.tools)]


_GOES_ON = ("finishReason", "continuationToken")


def _split(message: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The message, and apart from it what makes the SDK ask for the rest of the answer: that is no end of it."""
    match message:
        case {"candidates": [{"finishReason": "CONTINUATION", "continuationToken": str()} as candidate, *_]}:
            rest = {name: value for name, value in candidate.items() if name not in _GOES_ON}
            return {**message, "candidates": [rest]}, {name: candidate[name] for name in _GOES_ON}
        case _:
            return message, {}


def failure(error: APIError) -> errors.UpstreamError:
    """Ours for Google's; see `http_messages.failure`."""
    return http_messages.failure(error.code, error.details)
