"""Bytes that no decent caller sends, against the real server process.

Whatever comes, it ends in a clean status or a closed connection; calls beside it are answered, the process lives, its
memory comes back, and its log says nothing of what was sent. With TOKENWIRE_STRICT=1 the bounds are asserted too; the
figures are in build/hostile.json.
"""

import asyncio
import random
import signal
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.conftest import ServerProcess, failure, server_process
from tests.faults.recorder import record
from tests.hostile import http2
from tests.hostile.conftest import CANARY, MB, Attack, asked
from tests.hostile.http2 import Connection, call_headers, frame, grpc_message
from tokenwire.v1 import config_pb2
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.generation_service_pb2_grpc import GenerationServiceStub
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, message_bytes, repeat, text_bytes

FRAME_BYTES = 16384


@pytest.fixture(scope="module")
async def server(vertex: Emulator) -> AsyncIterator[ServerProcess]:
    # One worker: the calls beside an attack shall meet the process that is attacked, whose memory is looked at.
    async with server_process(vertex, "--workers", "1", module="tests.faults.launcher") as running:
        await running.said("ready after")
        yield running
        running.signal(signal.SIGUSR2)
        await running.said("blocked=")
    told = dict(line.split()[0].split("=") for line in running.log if line.startswith(("loop=", "blocked=")))
    assert told["loop"] == "uvloop"
    record("event loop blocked: bad bytes", float(told["blocked"]))


@pytest.fixture(scope="module")
async def channel(server: ServerProcess) -> AsyncIterator[grpc.aio.Channel]:
    """For attacks that a well-behaved client can carry out."""
    async with grpc.aio.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)]) as opened:
        yield opened


def _open_files(server: ServerProcess) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


# ---- messages, by way of a real client ---------------------------------------------------------------------------


async def _status(channel: grpc.aio.Channel, message: bytes, **options: Any) -> grpc.aio.AioRpcError:
    call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(http2.GENERATE)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call(message, timeout=30, **options):
            pass
    return caught.value


async def test_a_message_of_5_mb_is_refused(attack: Attack, channel: grpc.aio.Channel) -> None:
    message = pb.GenerateRequest(prompt=CANARY * (5 * MB // len(CANARY))).SerializeToString()
    async with attack("5 MB message"):
        for _ in range(5):
            # Within what may come with images, so it is read, and refused with words.
            error = await _status(channel, message)
            assert failure(error) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")


async def test_a_message_of_8_mb_is_not_even_read(attack: Attack, channel: grpc.aio.Channel) -> None:
    message = pb.GenerateRequest(prompt=CANARY * (8 * MB // len(CANARY))).SerializeToString()
    async with attack("8 MB message"):
        for _ in range(5):
            assert (await _status(channel, message)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_metadata_of_20_kb_is_refused(attack: Attack, channel: grpc.aio.Channel) -> None:
    async with attack("20 KB of metadata"):
        for _ in range(10):
            error = await _status(channel, b"", metadata=(("x-large", "x" * 20 * 1024),))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _field(number: int, wire_type: int, data: bytes) -> bytes:
    return bytes([number << 3 | wire_type]) + data


def _varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def _sized(number: int, data: bytes) -> bytes:
    return _field(number, 2, _varint(len(data)) + data)


def _nested_struct(levels: int) -> bytes:
    """A request whose `tools[0].function_declarations[0].parameters` is an object in an object in an object..."""
    value = b""
    for _ in range(levels):
        value = _sized(1, _sized(1, b"a") + _sized(2, _sized(5, value)))  # Struct.fields["a"].struct_value
    return _sized(1, CANARY.encode()) + _sized(6, _sized(1, _sized(1, b"f") + _sized(3, value)))


PROMPT = _sized(1, CANARY.encode())
TRUNCATED = asked(config=config_pb2.GenerationConfig(stop_sequences=["a" * 100])).SerializeToString()

MALFORMED = {
    "invalid UTF-8": _sized(1, b"canary \xff\xfe"),
    "a lone surrogate": _sized(1, b"canary \xed\xa0\x80"),
    "overlong UTF-8": _sized(1, b"canary \xc0\xaf"),
    "a truncated message": TRUNCATED[:-50],
    "a truncated tag": PROMPT + b"\x82",
    "a struct nested 10,000 deep": _nested_struct(1000),
    "a field of 2 GB": PROMPT + _field(2, 2, _varint(2**31 - 1)),
    "a field of 2**63 bytes": PROMPT + _field(2, 2, _varint(2**63)),
    "a varint of 11 bytes": _field(5, 0, b"\xff" * 10 + b"\x01"),
    "a wrong wire type, never ended": PROMPT + _field(3, 3, b""),
    "field number 0": PROMPT + b"\x02\x00",
    "noise": random.Random(0).randbytes(1000),
}


async def test_a_message_that_is_no_request_is_malformed(attack: Attack, channel: grpc.aio.Channel) -> None:
    async with attack("messages that are no valid protobuf"):
        for name, message in MALFORMED.items():
            for _ in range(20):
                error = await _status(channel, message)
                assert failure(error) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), name
                assert CANARY not in str(error.details())


# Each is valid protobuf of less than the 1 MB that a request may have.
LABORIOUS = {
    "half a million empty messages": PROMPT + _sized(2, b"") * 500_000,
    "100,000 turns": b"".join(
        _sized(2, _field(1, 0, bytes([1 + turn % 2])) + _sized(2, _sized(1, b"a"))) for turn in range(100_001)
    ),
    "200,000 parts": _sized(2, _field(1, 0, b"\x01") + _sized(2, _sized(1, b"a")) * 200_000),
    "300,000 stop sequences": PROMPT + _sized(5, _sized(5, b"") * 300_000),
    "100,000 labels": PROMPT + b"".join(_sized(9, _sized(1, b"%d" % n)) for n in range(90_000)),
    "a model's name of 1 MB": PROMPT + _sized(4, b"a" * 1_000_000),
    "a request id of 1 MB": PROMPT + _sized(10, b"a" * 1_000_000),
    "a struct nested 90 deep": _nested_struct(30),
}


async def test_a_message_that_makes_work_does_not_hold_up_other_callers(
    attack: Attack, channel: grpc.aio.Channel
) -> None:
    for name, message in LABORIOUS.items():
        async with attack(f"laborious: {name}"):
            for _ in range(5):
                code, reason = failure(await _status(channel, message))
                assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), name
                assert reason in ("INVALID_FIELD", "MODEL_NOT_FOUND"), name


BROKEN_ANSWERS = {
    "invalid UTF-8": text_bytes(b"canary \xff"),
    "a lone surrogate": text_bytes(b"canary \xed\xa0\x80"),
    "half a character": text_bytes("canary \N{SNOWMAN}".encode()[:-1]),
    "no protobuf": message_bytes(b"\xff\xff\xff"),
    "a truncated message": message_bytes(b"\x0a\x7fcanary"),
}


async def test_a_broken_answer_is_upstreams_fault_and_told_as_such(
    attack: Attack, channel: grpc.aio.Channel, vertex: Emulator
) -> None:
    async with attack("answers that are no valid protobuf or text"):
        for name, step in BROKEN_ANSWERS.items():
            for before in ((), ("canary", "canary")):
                vertex.script.play(answer(*before, step, user_text="broken"))
                texts: list[str] = []
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await _read(channel, "broken", texts)
                assert failure(caught.value) == (grpc.StatusCode.INTERNAL, "UPSTREAM_FAULT"), name
                assert texts == [*before], name


async def _read(channel: grpc.aio.Channel, prompt: str, texts: list[str]) -> None:
    async for message in GenerationServiceStub(channel).Generate(pb.GenerateRequest(prompt=prompt), timeout=30):
        texts += [message.text] if message.HasField("text") else []


# ---- frames, by hand ---------------------------------------------------------------------------------------------


REQUEST = grpc_message(asked().SerializeToString())


def _call(stream: int, *more: tuple[str, str], body: bytes = REQUEST, **options: Any) -> bytes:
    """The frames of a whole call."""
    pieces = [body[start : start + FRAME_BYTES] for start in range(0, len(body), FRAME_BYTES)] or [b""]
    return (
        frame(http2.HEADERS, http2.END_HEADERS, stream, call_headers(*more, **options))
        + b"".join(frame(http2.DATA, 0, stream, piece) for piece in pieces[:-1])
        + frame(http2.DATA, http2.END_STREAM, stream, pieces[-1])
    )


def _bomb() -> bytes:
    """500 MB of zeros, compressed to half a megabyte."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(MB)
    return b"".join(squeeze.compress(zeros) for _ in range(500)) + squeeze.flush()


def _status_of(address: str, call: bytes) -> int | None:
    """The gRPC status that this call on stream 1 gets."""
    with Connection(address) as connection:
        connection.hello()
        return http2.status_in(connection.call(call))


GZIP = ("grpc-encoding", "gzip")

# The frames of a call, and the gRPC status that it gets. gRPC's core answers most of them before we see them.
WRONG_CALLS = {
    "a gzip bomb that inflates to 500 MB": (_call(1, GZIP, body=grpc_message(_bomb(), compressed=True)), 8),
    "a message said to have 4 GB": (_call(1, body=grpc_message(b"x", declared=2**32 - 1)), 8),
    "a message shorter than it says": (_call(1, body=grpc_message(b"x", declared=100)), 3),
    "no message": (_call(1, body=b""), 3),
    "compressed without a word of how": (_call(1, body=grpc_message(b"xxxxx", compressed=True)), 13),
    "gzip that is none": (_call(1, GZIP, body=grpc_message(b"xxxxx", compressed=True)), 13),
    "an unknown compression": (_call(1, ("grpc-encoding", "zip"), body=grpc_message(b"x", compressed=True)), 13),
    "a thousand metadata keys": (_call(1, *((f"x-key-{number}", "v") for number in range(1000))), 8),
    "20 KB of metadata, by hand": (_call(1, ("x-large", "x" * 20 * 1024)), 8),
    "a wrong content type": (_call(1, content_type="text/html"), 0),  # gRPC doesn't look at it
    "an endless deadline": (_call(1, ("grpc-timeout", "99999999H")), 0),
    "a deadline that is none": (_call(1, ("grpc-timeout", "soon")), 13),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
async def test_a_wrong_call_gets_a_clean_status(attack: Attack, server: ServerProcess, name: str) -> None:
    call, status = WRONG_CALLS[name]
    async with attack(name):
        for _ in range(3):
            assert await asyncio.to_thread(_status_of, server.address, call) == status


def _hello_of_tls() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


OTHER_PROTOCOLS = {
    "HTTP/1.1": b"POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6\r\n\r\n" + CANARY.encode(),
    "TLS": _hello_of_tls(),
    "noise": random.Random(1).randbytes(100_000),
}


def _closes(address: str, data: bytes) -> None:
    """Return once the server has closed the connection."""
    with Connection(address) as connection:
        connection.send_until_refused(data)
        connection.until_closed()


@pytest.mark.parametrize("name", OTHER_PROTOCOLS)
async def test_another_protocol_is_closed(attack: Attack, server: ServerProcess, name: str) -> None:
    async with attack(name):
        for _ in range(20):
            await asyncio.to_thread(_closes, server.address, OTHER_PROTOCOLS[name])


SILENCES = {
    "500 silent connections": b"",
    "500 halves of a preface": http2.PREFACE[:12],
    "500 prefaces without settings": http2.PREFACE,
}


@pytest.mark.parametrize("name", SILENCES)
async def test_a_connection_that_says_nothing_is_let_go(attack: Attack, server: ServerProcess, name: str) -> None:
    before = _open_files(server)
    async with attack(name):
        begin = time.perf_counter()
        with ExitStack() as stack:
            connections = [stack.enter_context(Connection(server.address)) for _ in range(500)]
            for connection in connections:
                connection.send(SILENCES[name])
            for connection in connections:
                await asyncio.to_thread(connection.until_closed)
        assert time.perf_counter() - begin < 15
    async with asyncio.timeout(10):
        while _open_files(server) > before + 2:  # noqa: ASYNC110 - another process; no event tells
            await asyncio.sleep(0.05)


def _flood(address: str, *pieces: bytes) -> None:
    """Send it all; it is fine to be thrown out meanwhile."""
    with Connection(address) as connection, ThreadPoolExecutor(1) as reader:
        connection.hello()
        closed = reader.submit(connection.until_closed)
        connection.send_until_refused(*pieces)
        connection.hang_up()
        closed.result()


def _flood_unread(address: str, *pieces: bytes) -> None:
    """The same without ever reading what comes back: the server may stop reading, too."""
    with Connection(address, patience=3) as connection, suppress(TimeoutError):
        connection.hello()
        connection.send_until_refused(*pieces)
        time.sleep(1)


def _resets(first: int, count: int, request: bytes) -> bytes:
    calls = range(first, first + 2 * count, 2)
    return b"".join(
        frame(http2.HEADERS, http2.END_HEADERS, stream, call_headers())
        + (frame(http2.DATA, http2.END_STREAM, stream, request) if request else b"")
        + frame(http2.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))
        for stream in calls
    )


def _half_open(count: int) -> bytes:
    return b"".join(
        frame(http2.HEADERS, http2.END_HEADERS, stream, call_headers()) for stream in range(1, 2 * count, 2)
    )


OPENING = frame(http2.HEADERS, 0, 1, call_headers())

FLOODS = {
    "4,000 rapid resets": [_resets(1 + 200 * turn, 100, REQUEST) for turn in range(40)],
    "4,000 rapid resets before the message": [_resets(1 + 200 * turn, 100, b"") for turn in range(40)],
    "2,000 calls whose message never comes": [_half_open(2000)],
    "100,000 settings": [http2.settings((http2.INITIAL_WINDOW_SIZE, 65535)) * 1000] * 100,
    "100,000 pings": [frame(http2.PING, 0, 0, bytes(8)) * 1000] * 100,
    "100 MB of continuation": [OPENING, *[frame(http2.CONTINUATION, 0, 1, b"\0\x01a\x01b" * 3200)] * 6250],
    "100,000 empty continuations": [OPENING, *[frame(http2.CONTINUATION, 0, 1) * 1000] * 100],
    "100,000 empty data frames": [
        frame(http2.HEADERS, http2.END_HEADERS, 1, call_headers()),
        *[frame(http2.DATA, 0, 1) * 1000] * 100,
    ],
    "100,000 window updates of zero": [frame(http2.WINDOW_UPDATE, 0, 0, bytes(4)) * 1000] * 100,
    "100,000 window updates, overflowing": [frame(http2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff") * 1000] * 100,
    "100,000 priorities": [frame(http2.PRIORITY, 0, 1, bytes([0, 0, 0, 3, 16])) * 1000] * 100,
    "100,000 frames of an unknown kind": [frame(99, 0, 0, b"?" * 100) * 1000] * 100,
    "a frame of 16 MB": [b"\xff\xff\xff\0\0\0\0\0\1", *[bytes(65536)] * 256],
}


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_of_frames_harms_nobody_else(attack: Attack, server: ServerProcess, name: str) -> None:
    async with attack(name):
        await asyncio.to_thread(_flood, server.address, *FLOODS[name])


@pytest.mark.parametrize("name", ["100,000 settings", "100,000 pings", "4,000 rapid resets"])
async def test_a_flood_whose_answers_are_not_read_harms_nobody_else(
    attack: Attack, server: ServerProcess, name: str
) -> None:
    async with attack(f"{name}, answers unread"):
        await asyncio.to_thread(_flood_unread, server.address, *FLOODS[name] * 5)


async def test_200_readers_with_closed_windows_harm_nobody_else(
    attack: Attack, server: ServerProcess, vertex: Emulator
) -> None:
    vertex.script.play(answer(repeat(0, CANARY * 100), user_text="endless", uses=200))
    body = grpc_message(pb.GenerateRequest(prompt="endless").SerializeToString())
    async with attack("200 readers with closed windows"):
        with Connection(server.address) as connection:
            connection.hello((http2.INITIAL_WINDOW_SIZE, 0))
            for number in range(1, 201):  # one by one: it is not a burst that is to be seen
                connection.send(_call(2 * number - 1, body=body))
                await vertex.wait_until(partial(_stalled, number), timeout=30)


def _stalled(number: int, emulator: Emulator) -> bool:
    return sum(call.request is not None and "endless" in str(call.request) for call in emulator.open_calls) >= number


def _random_frames(seed: int) -> Iterator[bytes]:
    """Frames of every kind in any order, most of them on streams that make sense, a few broken on purpose."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 60)):
        kind = chance.choice([*range(10), chance.randrange(256)])
        payload = chance.choice(
            (b"", call_headers(), REQUEST, bytes(chance.choice((4, 5, 6, 8))), chance.randbytes(chance.randrange(300)))
        )
        made = frame(kind, chance.choice((0, 1, 4, 5, chance.randrange(256))), chance.choice((0, 1, 3, 5, 7)), payload)
        if chance.random() < 0.02:
            made = made[: chance.randrange(len(made))]
        yield made


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
async def test_random_frames_harm_nobody_else(attack: Attack, server: ServerProcess, count: int) -> None:
    async with attack(f"random frames on {count:,} connections"):
        for seed in range(count):
            await asyncio.to_thread(_flood, server.address, *_random_frames(seed))
