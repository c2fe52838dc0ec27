"""What becomes of calls where it isn't the model that says no: its connections, its frames, its name."""

import asyncio
import ctypes
import gc
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import errors
from service.generation.events import Event, Finished, Started
from service.generation.prompt import Prompt, Role, Turn
from service.generation.provider import Provider
from service.providers.gemini.over_grpc import VertexProvider
from service.providers.retry import Policy, Retrying
from service.providers.spec import Offer
from tests.hostile.http2 import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    frame,
    grpc_message,
    header_block,
    settings,
)
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, silence

NAME = "gemini-2.5-flash"
PROMPT = Prompt(model=NAME, turns=(Turn(Role.USER, ("hi",)),))
HEAD = ((":status", "200"), ("content-type", "application/grpc"))

WHOLE = google.GenerateContentResponse()
WHOLE.candidates.add(finish_reason=google.Candidate.STOP).content.parts.add(text="a")

MAX_CONCURRENT_STREAMS = 0x3
REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM = 7, 8, 11

Frames = Callable[[int], bytes]
"""What upstream sends on a stream of this number."""


# ---- an upstream of frames -------------------------------------------------------------------------------------------


def headers(stream: int, *fields: tuple[str, str], end: bool = False) -> bytes:
    """A header block in as many frames as it needs."""
    block = header_block(*fields)
    pieces = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
    flags = [END_STREAM * end, *[0] * (len(pieces) - 1)]
    flags[-1] |= END_HEADERS
    kinds = [HEADERS, *[CONTINUATION] * (len(pieces) - 1)]
    return b"".join(frame(kind, flag, stream, piece) for kind, flag, piece in zip(kinds, flags, pieces, strict=True))


def message(stream: int, data: bytes, declared: int | None = None) -> bytes:
    return frame(DATA, 0, stream, grpc_message(data, declared=declared))


def trailers(stream: int, code: int, text: str = "") -> bytes:
    return headers(stream, ("grpc-status", str(code)), ("grpc-message", text), end=True)


def status(code: int, text: str) -> Frames:
    """Upstream's own."""
    return lambda stream: headers(stream, *HEAD) + trailers(stream, code, text)


def reset(code: int, *, begun: bool = False) -> Frames:
    return lambda stream: (
        (headers(stream, *HEAD) if begun else b"") + frame(RST_STREAM, 0, stream, struct.pack(">I", code))
    )


def goaway(code: int, text: bytes = b"") -> Frames:
    """Of a connection that has processed nothing."""
    return lambda _: frame(GOAWAY, 0, 0, struct.pack(">II", 0, code) + text)


def whole(stream: int, *more: tuple[str, str]) -> bytes:
    """An answer."""
    return headers(stream, *HEAD, *more) + message(stream, WHOLE.SerializeToString()) + trailers(stream, 0)


class ByHand:
    """An HTTP/2 server that sends each call what it is told to; the last of these for all further calls."""

    def __init__(self) -> None:
        self.says: list[Frames] = [whole]
        self.hello = settings()
        self.calls = 0
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield "127.0.0.1:{1}".format(*server.sockets[0].getsockname())
        server.close()
        for writer in self._writers:
            writer.close()

    def tell(self, frames: bytes) -> None:
        """Say this on each connection."""
        for writer in self._writers:
            writer.write(frames)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            await reader.readexactly(len(PREFACE))
            writer.write(self.hello)
            while True:
                head = await reader.readexactly(9)
                payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
                if kind in (SETTINGS, PING) and not flags & ACK:
                    writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
                if kind == HEADERS:
                    self.calls += 1
                    writer.write(self.says[min(self.calls, len(self.says)) - 1](stream))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@pytest.fixture
async def by_hand() -> ByHand:
    return ByHand()


@pytest.fixture
async def model(by_hand: ByHand) -> AsyncIterator[Provider]:
    """The model on that upstream, asked up to three times."""
    async with by_hand.serving() as address, opened(address) as made:
        yield Retrying(made, Policy(base_seconds=0.001))


@asynccontextmanager
async def opened(address: str) -> AsyncIterator[VertexProvider]:
    made = VertexProvider.local(address, [Offer(NAME)], project="project", location="us-central1")
    try:
        yield made
    finally:
        await made.close()


async def ask(model: Provider, *, seconds: float = 20) -> list[Event]:
    async with model.stream(PROMPT, deadline=asyncio.get_running_loop().time() + seconds) as events:
        return [event async for event in events]


async def failing(model: Provider, *, seconds: float = 20) -> errors.UpstreamError:
    with pytest.raises(errors.UpstreamError) as caught:
        await ask(model, seconds=seconds)
    return caught.value


# ---- who made a status -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 9_000, 100_000, 900_000])
async def test_an_upstreams_status_is_read_whatever_its_text_weighs(
    by_hand: ByHand, model: Provider, size: int
) -> None:
    by_hand.says = [status(3, "x" * size)]
    assert type(await failing(model)) is errors.UpstreamRejected
    assert by_hand.calls == 1


async def test_large_metadata_before_an_answer_is_read(by_hand: ByHand, model: Provider) -> None:
    by_hand.says = [lambda stream: whole(stream, ("x-large", "y" * 20_000))]
    assert [type(event) for event in await ask(model)][0::2] == [Started, Finished]


BROKEN: dict[str, tuple[Frames, type[errors.UpstreamError], str]] = {
    "message too large": (
        lambda stream: headers(stream, *HEAD) + message(stream, b"", declared=65 * 1024 * 1024),
        errors.UpstreamFault,
        "larger than 67108864 bytes",
    ),
    "trailers too large": (status(8, "x" * 1_100_000), errors.UpstreamFault, "larger than 1048576 bytes"),
    "headers too large": (
        lambda stream: headers(stream, *HEAD, ("x", "y" * 1_100_000)),
        errors.UpstreamFault,
        "larger than 1048576 bytes",
    ),
    "unknown compression": (
        lambda stream: headers(stream, *HEAD, ("grpc-encoding", "zonk")) + frame(DATA, 0, stream, b"\1\0\0\0\1x"),
        errors.UpstreamFault,
        "",
    ),
    "no gzip": (
        lambda stream: headers(stream, *HEAD, ("grpc-encoding", "gzip")) + frame(DATA, 0, stream, b"\1\0\0\0\1x"),
        errors.UpstreamFault,
        "",
    ),
    "no trailers": (
        lambda stream: headers(stream, *HEAD) + frame(DATA, END_STREAM, stream, grpc_message(b"")),
        errors.UpstreamFault,
        "",
    ),
    "no HTTP/2": (lambda _: b"HTTP/1.1 200 OK\r\n\r\n" * 10, errors.UpstreamFault, ""),
    "calm": (reset(ENHANCE_YOUR_CALM, begun=True), errors.UpstreamFault, ""),
    "insecure": (reset(12, begun=True), errors.UpstreamFault, ""),
    "cancelled": (reset(CANCEL, begun=True), errors.UpstreamCut, ""),
    "redirect": (lambda stream: headers(stream, (":status", "302"), end=True), errors.UpstreamFault, ""),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_our_own_grpc_will_not_take_is_upstreams_fault_and_asked_once(
    by_hand: ByHand, model: Provider, name: str
) -> None:
    frames, kind, words = BROKEN[name]
    by_hand.says = [frames]
    error = await failing(model)
    assert type(error) is kind
    assert words in error.text
    assert by_hand.calls == 1


@pytest.mark.thorough
@given(data=st.data())
@hypothesis.settings(
    max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture], derandomize=True
)
async def test_no_broken_stream_is_taken_for_a_quota_a_refusal_or_bad_credentials(data: st.DataObject) -> None:
    codes = st.integers(0, 20) | st.integers(0, 2**32 - 1)
    # grpcio 1.85.1 aborts a client's process on a GOAWAY with most other codes: "http2_status.h:264] UNREACHABLE CODE".
    survived = st.integers(0, 12)
    begin = data.draw(st.sampled_from([b"", headers(1, *HEAD), headers(1, *HEAD) + message(1, b"")]))
    end = data.draw(
        st.one_of(
            codes.map(lambda code: reset(code)(1)),
            survived.map(lambda code: goaway(code, b"too_many_pings")(1)),
            st.binary(min_size=40, max_size=200).filter(lambda data: data[3] != GOAWAY),
            st.integers(2**20, 2**21).map(lambda size: headers(1, *HEAD, ("x", "y" * size), end=True)),
            st.integers(2**26 + 1, 2**32 - 1).map(lambda size: message(1, b"x", declared=size)),
            st.tuples(
                st.sampled_from([DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION]),
                st.integers(0, 255),
                st.binary(max_size=40),
            ).map(lambda one: frame(one[0], one[1], 1, one[2])),
        )
    )
    upstream = ByHand()
    upstream.says = [lambda _: begin + end]
    async with upstream.serving() as address, opened(address) as model:
        try:
            await ask(model, seconds=0.3)
        except errors.UpstreamError as error:
            kinds = errors.UpstreamQuota | errors.UpstreamRejected | errors.UpstreamCredentials
            assert not isinstance(error, kinds), error.text  # noqa: PT017 - most end otherwise


# ---- how many calls a connection takes -------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [1, 10])
async def test_calls_beyond_what_a_connection_takes_get_another_one(allowed: int) -> None:
    async with Emulator(max_concurrent_streams=allowed) as emulator, AsyncExitStack() as stack:
        emulator.script.play(default=answer("one", silence()))
        model = await stack.enter_async_context(opened(emulator.address))
        deadline = asyncio.get_running_loop().time() + 20
        streams = [await stack.enter_async_context(model.stream(PROMPT, deadline=deadline)) for _ in range(40)]
        assert set(await asyncio.gather(*(anext(events) for events in streams))) == {Started(NAME)}
        assert len(emulator.open_calls) == 40


async def test_an_upstream_that_takes_no_calls_ends_each_in_its_time_and_is_found_again(by_hand: ByHand) -> None:
    by_hand.hello = settings((MAX_CONCURRENT_STREAMS, 0))
    async with by_hand.serving() as address, opened(address) as model:
        ended = await asyncio.gather(*(ask(model, seconds=0.5) for _ in range(150)), return_exceptions=True)
        assert {type(error) for error in ended} == {errors.UpstreamDeadline}
        assert 1 <= by_hand.connections <= 100
        assert not by_hand.calls
        by_hand.tell(settings((MAX_CONCURRENT_STREAMS, 100)))
        assert isinstance((await ask(model))[-1], Finished)


@pytest.mark.parametrize(("refusal", "attempts"), [(reset(REFUSED_STREAM), 2), (goaway(0), 1)], ids=["reset", "goaway"])
async def test_a_call_that_upstream_has_not_processed_is_made_again(
    by_hand: ByHand, model: Provider, refusal: Frames, attempts: int
) -> None:
    """Behind a GOAWAY by gRPC itself, on another connection; behind a reset it is an attempt like any other."""
    by_hand.says = [refusal, whole]
    finished = (await ask(model))[-1]
    assert isinstance(finished, Finished)
    assert finished.attempts == attempts
    assert by_hand.calls == 2


@pytest.mark.thorough
async def test_calls_while_upstream_is_away_take_no_memory_for_good_and_it_is_found_again() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    async with opened(f"127.0.0.1:{port}") as model:
        away = await told(model)  # as gRPC itself says
        for _ in range(200):
            await told(model)
        before = allocated()
        for _ in range(1000):
            assert await told(model) == away
        assert allocated() - before < 300 * 1000  # of the 900 bytes that each leaked
        async with Emulator(port=port) as emulator, asyncio.timeout(20):
            emulator.script.play(default=answer("word"))
            while True:
                with suppress(errors.UpstreamUnavailable):
                    assert isinstance((await ask(model))[-1], Finished)
                    break
                await asyncio.sleep(0.05)


async def told(model: Provider) -> tuple[type[errors.UpstreamError], str, dict[str, str]]:
    error = await failing(model)
    return type(error), error.text, dict(error.metadata)


class _Mallinfo(ctypes.Structure):
    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "used", "free", "top")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def allocated() -> int:
    """Bytes that malloc has given out and not got back."""
    gc.collect()
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        pytest.skip("900 bytes a call are measured by mallinfo2, which this C library lacks (glibc has it since 2.33)")
    mallinfo.restype = _Mallinfo
    return int(mallinfo().used)


# ---- its name --------------------------------------------------------------------------------------------------------


class Names(asyncio.DatagramProtocol):
    """A DNS server of one name; while it has no addresses, it answers nobody."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = asyncio.Event()
        self._late: list[tuple[bytes, tuple[str, int]]] = []
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override] # of its kind
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self.asked.set()
        if self.addresses:
            self._answer(data, address)
        else:
            self._late.append((data, address))

    def wake(self, *addresses: str) -> None:
        """Answer, those who have asked first."""
        self.addresses = addresses
        for data, address in self._late:
            self._answer(data, address)

    def _answer(self, data: bytes, address: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        found = self.addresses if data[end - 3] == 1 else ()  # type A
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4"
        body = b"".join(record + socket.inet_aton(one) for one in found)
        assert self._transport is not None
        self._transport.sendto(
            data[:2] + b"\x81\x80" + struct.pack(">HHHH", 1, len(found), 0, 0) + data[12:end] + body, address
        )

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[str]:
        """Gives the target that is looked up here."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        try:
            yield "dns://127.0.0.1:{}/upstream.test:{}".format(transport.get_extra_info("sockname")[1], port)
        finally:
            transport.close()


async def test_a_name_with_a_dead_address_beside_a_live_one_is_reached() -> None:
    dead, live = "127.0.0.9", "127.0.0.1"
    async with Emulator(host=live) as emulator:
        with mute(dead, emulator.port):
            others = attempts(dead, emulator.port)
            async with Names(dead, live).serving(emulator.port) as target, opened(target) as model:
                asking = asyncio.ensure_future(ask(model))
                async with asyncio.timeout(20):
                    while attempts(dead, emulator.port) == others:  # noqa: ASYNC110 - only the kernel knows
                        await asyncio.sleep(0.001)
                assert not asking.done()  # it waits for the dead one
                await asking


async def test_a_name_that_is_slow_to_find_holds_nobody_else_up() -> None:
    async with Emulator() as emulator:
        names = Names()
        async with names.serving(emulator.port) as target, opened(target) as model:
            early = asyncio.ensure_future(failing(model, seconds=0.3))
            late = asyncio.ensure_future(ask(model))
            await names.asked.wait()
            assert type(await early) is errors.UpstreamDeadline
            assert not late.done()
            names.wake("127.0.0.1")
            await late


def attempts(host: str, port: int) -> int:
    """How many connections to this address are being opened."""
    # gRPC's sockets are of IPv6, for addresses of IPv4 as well.
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    remote = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"
    return sum(row[2].endswith(remote) and row[3] == "02" for row in rows)


@contextmanager
def mute(host: str, port: int) -> Iterator[None]:
    """An address whose port swallows every attempt to connect."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(3):  # what the queue takes
            full = stack.enter_context(socket.socket())
            full.setblocking(False)
            full.connect_ex((host, port))
        yield
