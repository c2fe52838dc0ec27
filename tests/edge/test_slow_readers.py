"""A caller that doesn't read holds a bounded part of an answer, and holds up no other caller."""

import socket
from contextlib import ExitStack

from tests.edge.conftest import Edge, read, running_edge, running_service
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer, repeat

READERS = 8
PIECE = 20_000
PIECES = 1500  # 30 MB for each


def ask_without_reading(edge: Edge) -> socket.socket:
    reader = socket.create_connection(("localhost", edge.port))
    reader.sendall(b"GET /v1/generate?prompt=long HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")
    return reader


async def test_callers_who_do_not_read_are_given_up_and_hold_up_nobody(vertex: Emulator) -> None:
    vertex.script.play(
        answer(repeat(PIECES, "x" * PIECE), uses=0, user_text="long"),
        default=answer("Baseball ", "is a game."),
    )
    with ExitStack() as readers:
        async with (
            running_service(vertex, write_timeout=4) as service,
            running_edge("--replica", service.address, "--threads", "1") as edge,
            edge.client() as client,
        ):
            for _ in range(READERS):
                readers.enter_context(ask_without_reading(edge))
            await vertex.wait_until(lambda e: len(e.open_calls) == READERS)
            # On the same connection to the replica. Were it full, one call would wait until they are given up.
            served = 0
            while vertex.open_calls:
                response = await client.post("/v1/generate", json={"prompt": "What is baseball?"})
                assert "completed" in read(response.text.splitlines()[-1])
                served += 1
            assert served > 2
    long = [call for call in vertex.calls if call.by_caller]
    assert len(long) == READERS
    assert max(call.pieces_sent for call in long) < PIECES * 2 / 3
