"""OpenAI's chat completions protocol, on the HTTP port: as OpenAI serves it, and under Azure's paths.

A script answers in OpenAI's form. Where SmolLM2 answers, the bytes pass to and from llama.cpp's own OpenAI server, but
for what it would leave out in silence. `GET /v1/models` lists what answers, and `GET /v1/models/m` tells of a model.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress

import grpc
import httpx

from ..answerers.base import Mind, VertexError
from ..answerers.smollm2 import SmolLM2
from ..call_records import Call, CallLog
from ..responses import Opened, merge
from . import translated_answers
from . import translation as words
from .server import HTTP_STATUS, Exchange, HttpReply, recorded, status_of

PATH = re.compile(
    r"/(?:openai/)?(?P<version>v1)/chat/completions|/openai/deployments/(?P<deployment>[^/]+)/chat/completions"
)

MODELS = re.compile(r"/(?:openai/)?v1/models")
MODEL = re.compile(r"/(?:openai/)?v1/models/(?P<name>.+)")

JSON = ("content-type", "application/json")
EVENTS = ("content-type", "text/event-stream; charset=utf-8")

CODES = {400: grpc.StatusCode.INVALID_ARGUMENT} | {
    status: code for code, status in HTTP_STATUS.items() if status not in {400, 409, 500}
}


class OpenAI:
    """Answers the calls that come in OpenAI's protocol."""

    def __init__(self, mind: Mind, calls: CallLog) -> None:
        self._mind = mind
        self._calls = calls

    async def __call__(self, exchange: Exchange, found: re.Match[str]) -> None:
        body: words.Json = {}
        request = trouble = None
        passes = isinstance(self._mind, SmolLM2)  # llama.cpp knows more fields than OpenAI, and says what it can't read
        try:
            body = words.read(exchange.body)
            (words.refuse_beyond if passes else words.check_names)(body)
            words.check(body)
            with suppress(VertexError) if passes else nullcontext():
                request = words.asked(body, found["deployment"] or body.get("model", ""))
        except VertexError as error:
            trouble = error
        streams = body.get("stream") is True
        call = self._calls.begin(
            "StreamGenerateContent" if streams else "GenerateContent",
            found["version"] or exchange.query.get("api-version", ""),
            request,
            exchange.headers,
            None,
            transport="openai",
            body=exchange.body,
        )
        if isinstance(self._mind, SmolLM2) and trouble is None:
            await _Passing(self._mind, self._calls, call, exchange).run()
            return
        options = body.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage") is True
        azure, count = found["deployment"] is not None, _count(body)
        answer = translated_answers.Answer(call.model, usage=usage, azure=azure, count=count)
        reply = (_Chunks if streams else _Whole)(self._calls, call, exchange, answer)

        async def say() -> None:
            if trouble is not None:
                raise trouble
            await self._mind.generate(call, reply)
            await reply.complete()

        await recorded(self._calls, call, say, reply.refuse)
        await reply.finish()


class Models:
    """Lists the models that answer, by these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._list = json.dumps({"object": "list", "data": list(map(_model, names))}).encode()

    async def __call__(self, exchange: Exchange, found: re.Match[str]) -> None:
        del found
        await exchange.tell(200, [JSON], self._list)


async def tell_model(exchange: Exchange, found: re.Match[str]) -> None:
    """Tell of one model; every name is answered."""
    await exchange.tell(200, [JSON], json.dumps(_model(found["name"])).encode())


def _model(name: str) -> words.Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "vertex_emulator"}


class _Reply(HttpReply):
    content_type = EVENTS

    def __init__(self, log: CallLog, call: Call, exchange: Exchange, answer: translated_answers.Answer) -> None:
        super().__init__(log, call, exchange)
        self._answer = answer
        self._rest = b""
        # what the caller gets with the end of the answer

    async def headers(self, metadata: Mapping[str, str]) -> None:
        await self._exchange.begin(200, [self.content_type, *metadata.items()])

    async def write(self, message: bytes) -> None:
        raise NotImplementedError

    async def complete(self) -> None:
        """Say what comes after the mind's last word."""

    async def refuse(self, error: VertexError) -> None:
        self._rest = json.dumps(words.told(error)).encode()
        if not self._exchange.begun:
            headers = [JSON, *words.retry_headers(error), *error.trailing_metadata.items()]
            await self._exchange.begin(status_of(error), headers)
        else:
            self._rest = self.in_the_middle(self._rest)

    def in_the_middle(self, data: bytes) -> bytes:
        return data

    async def finish(self) -> None:
        await self._exchange.end(self._rest)


class _Chunks(_Reply):
    async def write(self, message: bytes) -> None:
        opened = Opened.of(message)
        if opened is None:
            data = event(message)
        else:
            data = b"".join(
                event(opened.put_back(json.dumps(chunk).encode())) for chunk in self._answer.chunks(opened.response)
            )
        await self._begin()
        await self._exchange.write(data)
        self._log.sent(self._call)

    async def complete(self) -> None:
        await self._begin()
        chunks = b"".join(event(json.dumps(chunk).encode()) for chunk in self._answer.last())
        self._rest = chunks + event(b"[DONE]")

    def in_the_middle(self, data: bytes) -> bytes:
        return event(data)

    async def _begin(self) -> None:
        if not self._exchange.begun:
            await self.headers({})


class _Whole(_Reply):
    content_type = JSON

    def __init__(self, log: CallLog, call: Call, exchange: Exchange, answer: translated_answers.Answer) -> None:
        super().__init__(log, call, exchange, answer)
        self._pieces: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self._pieces.append(message)

    async def complete(self) -> None:
        message = merge(self._pieces)
        opened = Opened.of(message)
        whole = self._answer.whole(opened.response) if opened is not None else None
        if not self._exchange.begun:
            await self.headers({})
        self._rest = message if opened is None else opened.put_back(json.dumps(whole).encode())
        self._log.sent(self._call)


def _count(body: words.Json) -> int:
    """How many answers are wanted."""
    wanted = body.get("n", 1)
    return wanted if isinstance(wanted, int) else 1


def event(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


class _Passing:
    """One call that passes through to llama.cpp's server, byte for byte."""

    def __init__(self, mind: SmolLM2, calls: CallLog, call: Call, exchange: Exchange) -> None:
        self._mind = mind
        self._calls = calls
        self._call = call
        self._exchange = exchange

    async def run(self) -> None:
        await recorded(self._calls, self._call, self._pass, self._refuse)

    async def _pass(self) -> None:
        headers = {"authorization": f"Bearer {self._mind.openai_api_key}", "content-type": "application/json"}
        url = f"{self._mind.openai_base_url}/chat/completions"
        # When the caller leaves, this task is cancelled, and with it the connection closed: generation stops.
        async with (
            httpx.AsyncClient(timeout=None, verify=False, trust_env=False) as client,  # noqa: S501, S113  # http on this host; a prompt may take its time
            client.stream("POST", url, content=self._exchange.body, headers=headers) as response,
        ):
            await self._exchange.begin(response.status_code, _passed(response.headers))
            async for data in response.aiter_raw():
                await self._exchange.write(data)
                self._calls.sent(self._call)
        if response.status_code != httpx.codes.OK:
            self._calls.end(self._call, CODES.get(response.status_code, grpc.StatusCode.INTERNAL))
        await self._exchange.end()

    async def _refuse(self, error: VertexError) -> None:
        if self._exchange.begun:
            await self._exchange.end()
        else:
            await self._exchange.tell(status_of(error), [JSON], json.dumps(words.told(error)).encode())


def _passed(headers: httpx.Headers) -> list[tuple[str, str]]:
    return [("content-type", headers["content-type"])] if "content-type" in headers else []
