"""HTTP upstreams that redirect, break off, or say what is no HTTP: bytes by hand, the real libraries above."""

import gzip
import itertools
import json
import socket
import threading
from collections.abc import Callable
from typing import Any

import grpc
import hypothesis
import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import failure
from tests.faults import processes
from tests.providers.conftest import OK, ByHand, Open, Upstream, open_on
from tokenwire.v1 import generation_service_pb2 as pb

Code = grpc.StatusCode

CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@pytest.fixture(params=["genai", "openai", "azure"])
async def broken(request: pytest.FixtureRequest, open_provider: Open, by_hand: tuple[ByHand, str]) -> Upstream:
    """A server whose upstream sends what `by_hand` is told to."""
    return await open_on(open_provider, request.param, by_hand[1])


async def fate(upstream: Upstream, **fields: Any) -> tuple[grpc.StatusCode, str, str]:
    """Code, reason and text of a call that fails."""
    request = pb.GenerateRequest(prompt="hi", **fields)
    _, error = await processes.fate(upstream.served.stub.Generate(request, timeout=20))
    return (*failure(error), str(error.details()))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed_and_told_to_the_owner(
    broken: Upstream, by_hand: tuple[ByHand, str], status: int
) -> None:
    elsewhere = ByHand()
    async with elsewhere.serving() as address:
        by_hand[
            0
        ].says = f"HTTP/1.1 {status} Moved\r\nlocation: http://{address}/SECRET\r\ncontent-length: 0\r\n\r\n".encode()
        code, reason, text = await fate(broken)
        assert (code, reason) == (Code.FAILED_PRECONDITION, "UPSTREAM_PRECONDITION")
        assert "redirects" in text
        assert "SECRET" not in text
        assert not elsewhere.heads
        assert len(by_hand[0].heads) == 1


LONG = b"data: " + b"x" * 2**20 + b"\n\n"

BROKEN: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "headers too large": (OK + b"x: " + b"y" * 200_000 + b"\r\n\r\n", ("UPSTREAM_UNAVAILABLE",)),
    "no length of a chunk": (CHUNKED + b"zz\r\n", ("UPSTREAM_UNAVAILABLE",)),
    "half a chunk": (CHUNKED + b"ff\r\nx", ("UPSTREAM_UNAVAILABLE",)),
    "no gzip": (OK + b"content-encoding: gzip\r\ncontent-length: 4\r\n\r\nxxxx", ("UPSTREAM_FAULT",)),
    "no gzip of an error": (
        b"HTTP/1.1 500 No\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nxxxx",
        ("UPSTREAM_FAULT",),
    ),
    "half a gzip": (
        OK + b"content-encoding: gzip\r\nconnection: close\r\n\r\n" + gzip.compress(b"data: {}\n\n" * 99)[:30],
        ("UPSTREAM_FAULT", "UPSTREAM_CUT", "UPSTREAM_UNAVAILABLE"),
    ),
    "no HTTP": (b"\0\1\2" * 100, ("UPSTREAM_UNAVAILABLE",)),
    "nothing": (b"", ("UPSTREAM_UNAVAILABLE",)),
    "a long line": (
        OK + f"content-length: {len(LONG)}\r\n\r\n".encode() + LONG,
        ("UPSTREAM_FAULT", "UPSTREAM_CUT"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_no_http_is_neither_a_quota_nor_a_refusal(
    broken: Upstream, by_hand: tuple[ByHand, str], name: str
) -> None:
    by_hand[0].says, reasons = BROKEN[name]
    _, reason, _ = await fate(broken)
    assert reason in reasons


@pytest.mark.parametrize("kind", [b"text/html", b"Text/HTML; charset=utf-8"])
async def test_a_page_is_no_answer_whatever_its_status(
    broken: Upstream, by_hand: tuple[ByHand, str], kind: bytes
) -> None:
    """Of a proxy, or at an address that is another's."""
    for body in (b"<!doctype html>\n<p>SECRET</p>\n", b'<html>\n<script>\n{"a": 1}\n</script>', b""):
        by_hand[0].says = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n\r\n%s" % (kind, body)
        code, reason, text = await fate(broken)
        assert (code, reason) == (Code.INTERNAL, "UPSTREAM_FAULT"), (body, text)
        assert "web page" in text
        assert "SECRET" not in text


WHOLE: dict[str, list[Any]] = {
    "genai": [
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "o\xf1e "}]}}]},
        {"candidates": [{"content": {"parts": [{"text": "two"}]}, "finishReason": "STOP"}]},
    ],
    "openai": [
        {"choices": [{"index": 0, "delta": {"content": "o\xf1e "}}]},
        {"choices": [{"index": 0, "delta": {"content": "two"}, "finish_reason": "stop"}]},
    ],
}


@hypothesis.settings(max_examples=100, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(data=st.data(), end=st.sampled_from([b"", b"\n", b"\n\n"]))
async def test_a_stream_that_ends_anywhere_before_its_last_word_was_cut(
    broken: Upstream, by_hand: tuple[ByHand, str], data: st.DataObject, end: bytes
) -> None:
    chunks = WHOLE["genai" if broken.provider == "genai" else "openai"]
    lines = [b"data: %s\n\n" % json.dumps(one, ensure_ascii=False).encode() for one in chunks]
    body = b"".join(lines)[: -len(b"}\n\n")]
    places = [place for place in range(len(body)) if not (end and 0x80 <= body[place] < 0xC0)]  # no half of a character
    rest = body[: data.draw(st.sampled_from(places))]
    by_hand[0].says = OK + b"connection: close\r\n\r\n" + rest + end
    assert (await fate(broken))[:2] == (Code.UNAVAILABLE, "UPSTREAM_CUT"), rest


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["choices", "candidates", "delta", "content", "parts", "error", "usage", "index", "code"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@hypothesis.settings(max_examples=60, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
@given(
    says=st.one_of(
        st.binary(max_size=60),
        st.binary(max_size=60).map(lambda data: CHUNKED + data),
        st.binary(max_size=60).map(lambda data: OK + b"connection: close\r\n\r\n" + data),
        st.sampled_from(["gzip", "deflate", "br", "zstd", "x"]).map(
            lambda name: OK + f"content-encoding: {name}\r\nconnection: close\r\n\r\n".encode() + b"data: {}\n\n"
        ),
        st.lists(JSON, max_size=2).map(
            lambda said: (
                OK + b"connection: close\r\n\r\n" + b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in said)
            )
        ),
    )
)
async def test_no_answer_that_is_none_is_taken_for_a_quota_a_refusal_or_bad_credentials(
    broken: Upstream, by_hand: tuple[ByHand, str], says: bytes
) -> None:
    by_hand[0].says = says
    _, reason, text = await fate(broken)
    assert reason in {"UPSTREAM_UNAVAILABLE", "UPSTREAM_CUT", "UPSTREAM_FAULT"}, text


@pytest.mark.parametrize(
    ("provider", "host"),
    [
        *itertools.product(["genai", "openai", "azure"], ["127.0.0.1", "localhost", "localhost.", "0.0.0.0"]),
        *itertools.product(["genai", "openai", "azure"], ["foo.localhost", "[::ffff:127.0.0.1]"]),
        *itertools.product(["openai", "azure", "genai"], ["LOCALHOST", "127.1", "[::ffff:7f00:1]", "2130706433"]),
    ],
)
async def test_what_listens_on_this_machine_is_not_asked_by_way_of_a_proxy(
    open_provider: Open, by_hand: tuple[ByHand, str], monkeypatch: pytest.MonkeyPatch, provider: str, host: str
) -> None:
    real: Callable[..., Any] = socket.getaddrinfo

    def look(name: Any, *more: Any, **options: Any) -> Any:
        """Not every system's resolver knows these."""
        local = name in (b"localhost.", "localhost.", b"foo.localhost", "foo.localhost")
        return real("127.0.0.1" if local else name, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look)
    proxy = ByHand()
    async with proxy.serving() as address:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://{address}")
        monkeypatch.setenv("no_grpc_proxy", "127.0.0.1")  # the test's own call
        upstream = await open_on(open_provider, provider, by_hand[1].replace("127.0.0.1", host))
        by_hand[0].says = b"HTTP/1.1 418 No\r\ncontent-length: 0\r\n\r\n"
        assert (await fate(upstream))[1] == "UPSTREAM_REJECTED"
        assert not proxy.heads
        assert by_hand[0].heads


# ---- names -----------------------------------------------------------------------------------------------------------


async def test_a_name_that_is_slow_to_find_ends_the_call_in_its_time_and_holds_nobody_else_up(
    open_provider: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, looked = threading.Event(), threading.Event()
    real: Callable[..., Any] = socket.getaddrinfo

    def look(host: Any, *more: Any, **options: Any) -> Any:
        if host not in ("upstream.test", b"upstream.test"):
            return real(host, *more, **options)
        looked.set()
        found.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "SECRET")

    monkeypatch.setattr(socket, "getaddrinfo", look)
    upstream = await open_on(open_provider, "openai", "upstream.test:1")
    try:
        # That it is told at all is the proof that nothing waits for the name but this call.
        soon = duration_pb2.Duration(nanos=300_000_000)
        told = await fate(upstream, first_chunk_timeout=soon)
        assert told[:2] == (Code.DEADLINE_EXCEEDED, "FIRST_CHUNK_TIMEOUT")
        assert not found.is_set()
        assert looked.is_set()
    finally:
        found.set()
    code, reason, text = await fate(upstream)
    assert (code, reason) == (Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE")
    assert "SECRET" not in text
