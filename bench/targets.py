"""The servers that the load client asks, each in its own tongue, and the answers as they come in."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from bench.script import METHOD, Script, question
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.protos import prediction_pb2 as vertex

_ERROR_CHARACTERS = 300

now = time.monotonic


@dataclass(slots=True)
class Answer:
    """One answer as it came in."""

    begin: float = 0.0
    """When it was asked for; `time.monotonic` is the same clock in every process."""
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)
    """Each message and its moment."""
    texts: list[tuple[float, str]] = field(default_factory=list)
    """After `Target.read`: those messages that carry text."""
    error: str = ""


class Target(ABC):
    """A server to be asked."""

    @abstractmethod
    async def ask(self, script: Script, answer: Answer, connection: int) -> None:
        """Put each message into the answer as it comes."""

    @abstractmethod
    def text(self, message: bytes) -> str:
        """The text in a message; empty if it is of another kind."""

    @abstractmethod
    async def close(self) -> None:
        """End every connection."""

    @abstractmethod
    async def connect(self) -> None:
        """Connect beforehand, where connections are shared by many calls."""

    async def run(self, script: Script, connection: int, answer: Answer | None = None) -> Answer:
        """Ask; an error becomes part of the answer, which may be given to be watched meanwhile."""
        answer = answer or Answer()
        answer.begin = now()
        try:
            await self.ask(script, answer, connection)
        except grpc.aio.AioRpcError as error:
            answer.error = f"{error.code().name}: {error.details()}"[:_ERROR_CHARACTERS]
        except (OSError, EOFError, ValueError) as error:
            answer.error = f"{type(error).__name__}: {error}"[:_ERROR_CHARACTERS]
        return answer

    def read(self, answer: Answer, script: Script) -> None:
        """Find the texts, and compare them with what was to come."""
        found = [(moment, self.text(message)) for moment, message in answer.arrivals]
        answer.texts = [(moment, text) for moment, text in found if text]
        answer.arrivals.clear()
        if not answer.error and "".join(text for _, text in answer.texts) != script.text:
            answer.error = (
                f"the answer is not the one that upstream gave: {len(answer.texts)} of {script.chunks} chunks"
            )


class Grpc(Target):
    """A server that speaks gRPC; a subclass says which method."""

    method: str

    def __init__(self, address: str, connections: int, token: str = "") -> None:
        # Without a pool of its own each channel would share one connection, and so one worker of the server.
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(connections)]
        self._calls: list[Any] = [channel.unary_stream(self.method) for channel in self._channels]
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()

    @abstractmethod
    def request(self, script: Script) -> bytes:
        """The message to send."""

    async def connect(self) -> None:
        await asyncio.gather(*(channel.channel_ready() for channel in self._channels))

    async def ask(self, script: Script, answer: Answer, connection: int) -> None:
        call = self._calls[connection % len(self._calls)](self.request(script), metadata=self._metadata)
        while (message := await call.read()) is not grpc.aio.EOF:
            answer.arrivals.append((now(), message))
        if await call.code() is not grpc.StatusCode.OK:
            raise ValueError(f"ended with {await call.code()}: {await call.details()}")

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))


class Vertex(Grpc):
    """The upstream itself, or who passes its bytes through."""

    method = METHOD

    def request(self, script: Script) -> bytes:
        return question(script)

    def text(self, message: bytes) -> str:
        return vertex.GenerateContentResponse.FromString(message).candidates[0].content.parts[0].text


class Tokenwire(Grpc):
    """Who speaks tokenwire.v1."""

    method = "/tokenwire.v1.GenerationService/Generate"

    def request(self, script: Script) -> bytes:
        return pb.GenerateRequest(prompt=f"Tell me about baseball. {script}").SerializeToString()

    def text(self, message: bytes) -> str:
        return pb.GenerateResponse.FromString(message).text


class Http(Target):
    """POST /run_stream?message=..., answered in chunks (RFC 9112, 7.1); one request at a time on a connection."""

    def __init__(self, address: str, connections: int) -> None:
        del connections  # as many as there are requests at once
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def connect(self) -> None:
        """Nothing: a connection is made when a request needs it."""

    async def ask(self, script: Script, answer: Answer, connection: int) -> None:
        del connection
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
        message = f"Tell me about baseball. {script}".replace(" ", "%20")
        head = f"POST /run_stream?message={message} HTTP/1.1\r\nHost: {self._host}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        status = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode()
        if status != "HTTP/1.1 200 OK":
            writer.close()
            raise ValueError(status)
        while size := int(await reader.readuntil(b"\r\n"), 16):
            answer.arrivals.append((now(), (await reader.readexactly(size + 2))[:-2]))
        await reader.readexactly(2)
        self._idle.append((reader, writer))

    def text(self, message: bytes) -> str:
        return message.decode()

    async def close(self) -> None:
        for _, writer in self._idle:
            writer.close()


_KINDS: dict[str, type[Target]] = {"vertex": Vertex, "tokenwire": Tokenwire, "http": Http}


def target(told: dict[str, Any], connections: int) -> Target:
    kind: Any = _KINDS[told["kind"]]
    more = {"token": told["token"]} if told.get("token") else {}
    made: Target = kind(told["address"], connections, **more)
    return made


def read(asked: Target, answers: Sequence[Answer], script: Script) -> dict[str, int]:
    """Read every answer; how often which error came."""
    errors: dict[str, int] = {}
    for answer in answers:
        asked.read(answer, script)
        if answer.error:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    return errors


def few(errors: Mapping[str, int]) -> str:
    """The first few of them, for people."""
    shown = "; ".join(f"{count} x {text}" for text, count in list(errors.items())[:3])
    return shown if len(errors) <= 3 else f"{shown}; and {len(errors) - 3} others"
