"""Google's REST form of the PredictionService: protobuf's JSON over HTTP, streamed as server-sent events.

`POST /v1/projects/p/locations/l/publishers/google/models/m:streamGenerateContent?alt=sse`, and likewise
`:generateContent` and `:countTokens`; also under v1beta1, without the project, as an API key calls it, and under
v1beta, as google-genai calls the Gemini API. `GET /v1beta/models` lists what answers, `GET` of a model tells of it.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import grpc
from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from ..answerers.base import Mind, VertexError
from ..call_records import MAX_REQUEST_BYTES, Call, CallLog, Request
from ..protos import prediction_pb2 as pb
from ..responses import Opened, merge
from .server import Exchange, HttpReply, recorded, status_of

PATH = re.compile(
    r"/(?P<version>v1|v1beta1|v1beta)/"
    r"(?P<model>(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/)?models/[^/:]+)"
    r":(?P<verb>streamGenerateContent|generateContent|countTokens)"
)

MODELS = re.compile(r"/v1beta/models")

# Google's own; /v1/models/m is OpenAI's.
MODEL = re.compile(
    r"/(?P<version>v1|v1beta1|v1beta)/"
    r"(?P<model>(?:projects/[^/]+/locations/[^/]+/)?publishers/[^/]+/models/[^/:]+|(?<=beta/)models/[^/:]+)"
)

# Vertex AI's: https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference
RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "candidate_count": (1, 8),
    "max_output_tokens": (1, 2**31 - 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "logprobs": (0, 20),
}
MAX_STOP_SEQUENCES = 5

JSON = ("content-type", "application/json; charset=UTF-8")
EVENTS = ("content-type", "text/event-stream")

# Valid in JSON as they are, but Python's str.splitlines, and with it httpx, takes each for the end of a line. Google
# writes them as escapes.
LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x7F, 0x85, 0x2028, 0x2029)}

METHODS = ["generateContent", "countTokens"]

R = TypeVar("R", pb.GenerateContentRequest, pb.CountTokensRequest)


class Rest:
    """Answers the calls that come in Google's REST form."""

    def __init__(self, mind: Mind, calls: CallLog) -> None:
        self._mind = mind
        self._calls = calls

    async def __call__(self, exchange: Exchange, found: re.Match[str]) -> None:
        match found["verb"]:
            case "streamGenerateContent":
                await self._stream(exchange, found)
            case "generateContent":
                await self._generate(exchange, found)
            case _:
                await self._count_tokens(exchange, found)

    async def _stream(self, exchange: Exchange, found: re.Match[str]) -> None:
        call, trouble = self._begin("StreamGenerateContent", pb.GenerateContentRequest, exchange, found)
        kind = _Events if exchange.query.get("alt") == "sse" else _Array
        reply = kind(self._calls, call, exchange)

        async def answer() -> None:
            if trouble is not None:
                raise trouble
            await self._mind.generate(call, reply)

        await recorded(self._calls, call, answer, reply.refuse)
        await reply.finish()

    async def _generate(self, exchange: Exchange, found: re.Match[str]) -> None:
        call, trouble = self._begin("GenerateContent", pb.GenerateContentRequest, exchange, found)
        reply = _Whole(self._calls, call, exchange)

        async def answer() -> None:
            if trouble is not None:
                raise trouble
            await self._mind.generate(call, reply)
            await reply.tell(merge(reply.pieces))

        await recorded(self._calls, call, answer, reply.refuse)

    async def _count_tokens(self, exchange: Exchange, found: re.Match[str]) -> None:
        call, trouble = self._begin("CountTokens", pb.CountTokensRequest, exchange, found)
        reply = _Whole(self._calls, call, exchange)

        async def answer() -> None:
            if trouble is not None:
                raise trouble
            counted = await self._mind.count_tokens(call, reply)
            await reply.tell_json(printed(counted))

        await recorded(self._calls, call, answer, reply.refuse)

    def _begin(
        self, method: str, kind: type[R], exchange: Exchange, found: re.Match[str]
    ) -> tuple[Call, VertexError | None]:
        request: Request | None = None
        trouble = None
        try:
            request = parsed(exchange.body, kind, found["model"])
            check(request)
        except VertexError as error:
            trouble = error
        call = self._calls.begin(
            method,
            found["version"],
            request,
            exchange.headers,
            _timeout(exchange),
            transport="rest",
            body=exchange.body,
        )
        return call, trouble


class Models:
    """Lists the models that answer, by these names."""

    def __init__(self, names: Sequence[str]) -> None:
        models = [{"name": f"models/{name}", "supportedGenerationMethods": METHODS} for name in names]
        self._list = json.dumps({"models": models}).encode()

    async def __call__(self, exchange: Exchange, found: re.Match[str]) -> None:
        del found
        await exchange.tell(200, [JSON], self._list)


async def tell_model(exchange: Exchange, found: re.Match[str]) -> None:
    """Tell of one model; every name is answered."""
    name = found["model"]
    short = name.rpartition("/")[2]
    told = {"name": name, "displayName": short, "version": "default", "supportedGenerationMethods": METHODS}
    if "publishers/" in name:  # Vertex AI's own form
        told = {"name": name[name.index("publishers/") :], "versionId": "default", "launchStage": "GA"}
    await exchange.tell(200, [JSON], json.dumps(told).encode())


class _Reply(HttpReply):
    """What the three forms of an answer have in common."""

    content_type = JSON

    async def headers(self, metadata: Mapping[str, str]) -> None:
        await self._exchange.begin(200, [self.content_type, *metadata.items()])

    async def refuse(self, error: VertexError) -> None:
        """Tell an error in place of the answer."""
        if self._exchange.begun:
            await self._exchange.end(self.in_the_middle(error))
        else:
            await self._exchange.tell(status_of(error), [JSON, *error.trailing_metadata.items()], self.instead(error))

    def instead(self, error: VertexError) -> bytes:
        return told(error)

    def in_the_middle(self, error: VertexError) -> bytes:
        return told(error)


class _Stream(_Reply):
    def frame(self, data: bytes) -> bytes:
        raise NotImplementedError

    last = b""
    ended = False

    async def write(self, message: bytes) -> None:
        if not self._exchange.begun:
            await self.headers({})
        await self._exchange.write(self.frame(encoded(message)))
        self._log.sent(self._call)

    async def refuse(self, error: VertexError) -> None:
        self.ended = True
        await super().refuse(error)

    async def finish(self) -> None:
        if self.ended:
            return
        if not self._exchange.begun:
            await self.headers({})
        await self._exchange.end(self.last)


class _Events(_Stream):
    """Server-sent events.

    An error after the first one stands in the stream as it is, without "data: " and over several lines: so Google
    breaks a stream off, and for that google-genai collects lines until the braces match
    (BaseApiClient._aiter_response_stream; https://github.com/maximhq/bifrost/pull/5262 has it from Vertex AI).
    """

    content_type = EVENTS

    def frame(self, data: bytes) -> bytes:
        return b"data: " + data + b"\r\n\r\n"


class _Array(_Stream):
    """Without alt=sse: one JSON array, element by element."""

    def __init__(self, log: CallLog, call: Call, exchange: Exchange) -> None:
        super().__init__(log, call, exchange)
        self._before = b"["

    @property
    def last(self) -> bytes:  # type: ignore[override]  # depends on whether anything was said
        return b"]" if self._before != b"[" else b"[]"

    def frame(self, data: bytes) -> bytes:
        before, self._before = self._before, b"\n,\r\n"
        return before + data

    def instead(self, error: VertexError) -> bytes:
        return b"[" + told(error) + b"]"

    def in_the_middle(self, error: VertexError) -> bytes:
        return self.frame(told(error)) + b"]"


class _Whole(_Reply):
    """Collects the pieces for a method that answers with one message."""

    def __init__(self, log: CallLog, call: Call, exchange: Exchange) -> None:
        super().__init__(log, call, exchange)
        self.pieces: list[bytes] = []

    async def write(self, message: bytes) -> None:
        self.pieces.append(message)

    async def tell(self, message: bytes) -> None:
        self._log.sent(self._call)
        await self.tell_json(encoded(message))

    async def tell_json(self, data: bytes) -> None:
        if self._exchange.begun:
            await self._exchange.end(data)
        else:
            await self._exchange.tell(200, [JSON], data)


# ---- JSON; pure --------------------------------------------------------------------------------------------------


def parsed(body: bytes, kind: type[R], model: str) -> R:
    """The request in `body`, as protobuf maps JSON; raises VertexError in Google's words."""
    if len(body) > MAX_REQUEST_BYTES:
        raise VertexError(
            grpc.StatusCode.INVALID_ARGUMENT, f"Request payload size exceeds the limit: {MAX_REQUEST_BYTES} bytes."
        )
    try:
        request = json_format.Parse(body, kind())
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise _not_a_request(str(error)) from error
    request.model = model
    return request


def check(request: Request) -> None:
    """Raises VertexError, in Vertex's words, for a request that asks nothing, and numbers out of range."""
    if not request.contents:
        raise _refused("at least one contents field is required", "Add it")
    if not isinstance(request, pb.GenerateContentRequest):
        return
    config = request.generation_config
    for descriptor, value in config.ListFields():
        if descriptor.name not in RANGES:
            continue
        least, most = RANGES[descriptor.name]
        if not least <= value <= most:
            about = f"it has a {descriptor.name} value of {value:g} but the supported range is from {least} to {most}"
            raise _refused(about, "Update the value")
    if len(config.stop_sequences) > MAX_STOP_SEQUENCES:
        about = f"it has {len(config.stop_sequences)} stop_sequences but at most {MAX_STOP_SEQUENCES} are supported"
        raise _refused(about, "Remove some")


def _refused(about: str, advice: str) -> VertexError:
    message = f"Unable to submit request because {about}. {advice} and try again."
    return VertexError(grpc.StatusCode.INVALID_ARGUMENT, message)


def _not_a_request(words: str) -> VertexError:
    description, field = f"Invalid JSON payload received. {' '.join(words.split())}", ""
    unknown = re.search(r'has no field named "(?P<name>.*?)" at "(?P<path>.*?)"', words)
    if unknown is not None:
        field = _snake(unknown["path"].partition(".")[2])
        place = f" at '{field}'" if field else ""
        description = f'Invalid JSON payload received. Unknown name "{unknown["name"]}"{place}: Cannot find field.'
    violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=description)
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return VertexError(grpc.StatusCode.INVALID_ARGUMENT, description, [packed])


def _snake(path: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", path).lower()


def told(error: VertexError) -> bytes:
    """An error as Google's front ends print it: over several lines."""
    status: dict[str, object] = {
        "code": status_of(error),
        "message": error.message,
        "status": error.code.name,
    }
    if error.details:
        status["details"] = [json_format.MessageToDict(detail) for detail in error.details]
    return (json.dumps({"error": status}, indent=2, ensure_ascii=False).translate(LINE_ENDS) + "\n").encode()


def printed(message: Message) -> bytes:
    """A message in protobuf's JSON, on one line."""
    return json_format.MessageToJson(message, indent=None, ensure_ascii=False).translate(LINE_ENDS).encode()


def encoded(message: bytes) -> bytes:
    """A serialized response in JSON. Text that is no valid UTF-8 stays so, and so does what is no response at all."""
    opened = Opened.of(message)
    return message if opened is None else opened.put_back(printed(opened.response))


def _timeout(exchange: Exchange) -> float | None:
    """What google-genai says of its timeout, in seconds."""
    try:
        seconds = float(exchange.header("x-server-timeout") or "nan")
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) else None


async def lost(exchange: Exchange) -> None:
    """Answer a request that no route knows."""
    error = VertexError(grpc.StatusCode.NOT_FOUND, f"Method not found: {exchange.path}")
    await exchange.tell(404, [JSON], told(error))
