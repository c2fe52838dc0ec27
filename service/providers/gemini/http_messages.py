"""What Vertex AI says over HTTP: server-sent events, what each holds, and failures; no matter which client asks.

Nothing of it is taken for granted: it may come through a proxy, or from a server that has its own ways.
"""

import codecs
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import httpx

from ... import errors
from .. import http_failures
from . import vertex_failures
from .specs import GENAI

_WHO = GENAI.title

_NAMES = grpc.StatusCode.__members__.keys() - {"OK"}
"""Google's of what went wrong."""

DATA = "data: "
"""What the line of an event begins with."""


async def events(response: httpx.Response) -> AsyncIterator[str]:
    """What each server-sent event holds; or each JSON object where they come without being events."""
    data: list[str] = []
    loose, unclosed = "", 0
    async for line in _lines(response):
        if line.startswith(DATA):
            data.append(line.removeprefix(DATA))
        elif not line and data:
            yield "\n".join(data)
            data = []
        elif line:
            loose += line
            unclosed += line.count("{") - line.count("}")
            if not unclosed:
                yield loose
                loose = ""
    for rest in (loose, "\n".join(data)):
        if rest:
            yield rest


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of server-sent events that hold something, in one form.

    httpx ends lines also where Unicode does, at U+2028 in the middle of a JSON text, and replaces what is no UTF-8.
    """
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if (told := _line(line)) is not None:
                yield told
    if (told := _line(rest, whole=False)) is not None:
        yield told


def _line(line: bytes, *, whole: bool = True) -> str | None:
    """None for comments, and fields of events that say nothing of the answer. Raises ValueError for no UTF-8.

    One that isn't `whole` may end anywhere, also within a character.
    """
    text, _ = codecs.utf_8_decode(line.removesuffix(b"\r"), "strict", whole)
    text = text.removeprefix("\ufeff")
    if text.startswith("data:"):
        data = text.removeprefix("data:").lstrip(" ")
        return DATA + data if data else None
    hollow = text and "data:".startswith(text)
    return None if hollow or text.startswith((":", "event:", "id:", "retry:")) else text


def message(event: str) -> Mapping[str, Any]:
    """What an event holds, empty for null. Raises ours for an error that stands there, or for anything else."""
    told = json.loads(event)
    if isinstance(told, list) and len(told) == 1:
        (told,) = told  # as Google has errors
    if told is None:
        return {}
    if not isinstance(told, Mapping):
        raise http_failures.unreadable(_WHO)
    if error := _error_in(told):
        raise failure(_number(error.get("code")), error)
    return told


def _error_in(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error that stands where an answer should; empty if there is none."""
    told = message.get("error")
    if told:
        return told if isinstance(told, Mapping) else {"message": told}
    bare = "candidates" not in message and "code" in message and {"message", "status"} & message.keys()
    return message if bare else {}


def _number(told: Any) -> Any:
    """The status of HTTP that an error's code stands for, however it is written; else as told."""
    if isinstance(told, float) and told.is_integer():
        return int(told)
    return int(told) if isinstance(told, str) and len(told) == len("429") and told.isdecimal() else told


def failure(status: object, body: object, headers: Mapping[str, str] | None = None) -> errors.UpstreamError:
    """Ours for Google's: code, reason and retry delay are relayed, its text is not.

    `status` is that of HTTP; in mid-stream, where there is none, the number in the `body`. Any of it may be odd.
    `headers` are those that came with the status. A delay in Google's own words counts before one in them.
    """
    if http_failures.redirects(status):
        return http_failures.redirected(_WHO)
    if isinstance(body, list) and len(body) == 1:
        (body,) = body
    told = body if isinstance(body, Mapping) else {}
    if isinstance(inner := told.get("error"), Mapping):
        told = inner
    reason = ""
    retry_after = http_failures.delay(headers or {})
    details = told.get("details")
    for detail in details if isinstance(details, list) else ():
        kind = str(detail.get("@type", "")) if isinstance(detail, Mapping) else ""
        if kind.endswith("google.rpc.ErrorInfo"):
            reason = str(detail.get("reason", ""))
        elif kind.endswith("google.rpc.RetryInfo"):
            delay = http_failures.seconds(detail.get("retryDelay"))
            retry_after = retry_after if delay is None else delay
    name, said = told.get("status"), told.get("message")
    return vertex_failures.failure(
        grpc.StatusCode[name] if isinstance(name, str) and name in _NAMES else http_failures.code(status),
        reason=reason,
        retry_after=retry_after,
        metadata={"upstream_status": str(status)} if http_failures.is_status(status) else {},
        said=said if isinstance(said, str) else "",
    )
