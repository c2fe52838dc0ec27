"""What providers over HTTP share: whom they reach directly, how their calls break, and what their statuses mean."""

import email.utils
import json
import ssl
import time
from collections.abc import Iterable, Mapping

import grpc
import httpx
import httpx2
import pydantic_core

from .. import errors
from . import addresses, failures

_THIS_MACHINE = (
    "localhost",
    "localhost.",
    "*.localhost",
    "127.0.0.1",
    "0.0.0.0",  # noqa: S104 - nobody listens there
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
)

DIRECTLY: Mapping[str, None] = {f"all://{host}": None for host in _THIS_MACHINE}
"""As httpx's `mounts`: a proxy of the environment can't reach what listens on this machine."""


def directly(asked: Iterable[str]) -> Mapping[str, None]:
    """`DIRECTLY`, and those of these addresses that are this machine by other names, such as 127.0.0.2."""
    hosts = {addresses.host_in(one) for one in asked}
    return {**DIRECTLY, **{f"all://{host}": None for host in hosts if addresses.is_local(host)}}


ERRORS = (httpx.RequestError, httpx2.RequestError, ssl.SSLError)
"""What providers' libraries raise, or let through, where a connection can't be had, or an answer can't be read."""

_LONGEST_DELAY_SECONDS = 7 * 86_400
"""More can't be meant."""

_TRANSPORT_ERRORS = (httpx.TransportError, httpx2.TransportError, ssl.SSLError)
_TIMEOUTS = (httpx.TimeoutException, httpx2.TimeoutException)

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    402: grpc.StatusCode.FAILED_PRECONDITION,  # somebody has to pay first
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.FAILED_PRECONDITION,  # the address is of something else
    407: grpc.StatusCode.FAILED_PRECONDITION,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    410: grpc.StatusCode.NOT_FOUND,
    420: grpc.StatusCode.RESOURCE_EXHAUSTED,
    421: grpc.StatusCode.FAILED_PRECONDITION,
    423: grpc.StatusCode.UNAVAILABLE,  # locked for now
    424: grpc.StatusCode.UNKNOWN,  # Text Generation Inference's, and Azure ML's: the model failed, not the request
    425: grpc.StatusCode.UNAVAILABLE,
    426: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    440: grpc.StatusCode.UNAUTHENTICATED,  # IIS: a login has run out
    444: grpc.StatusCode.UNAVAILABLE,  # nginx: closed without an answer
    449: grpc.StatusCode.UNAVAILABLE,  # Microsoft's "retry with"
    451: grpc.StatusCode.PERMISSION_DENIED,  # by law
    460: grpc.StatusCode.CANCELLED,  # a load balancer's, as 499
    495: grpc.StatusCode.FAILED_PRECONDITION,  # nginx: of certificates, and plain HTTP where TLS was wanted
    496: grpc.StatusCode.FAILED_PRECONDITION,
    497: grpc.StatusCode.FAILED_PRECONDITION,
    498: grpc.StatusCode.RESOURCE_EXHAUSTED,  # Groq's, for capacity
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.UNKNOWN,
    501: grpc.StatusCode.UNKNOWN,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    505: grpc.StatusCode.UNKNOWN,
    508: grpc.StatusCode.FAILED_PRECONDITION,  # a loop, of the owner's own making
    509: grpc.StatusCode.RESOURCE_EXHAUSTED,
    511: grpc.StatusCode.FAILED_PRECONDITION,  # a network that wants somebody to log in
}

# Of the rest: what was wrong with the request, and servers, and what stands before them, that are away or overloaded.
_CLASSES = {4: grpc.StatusCode.INVALID_ARGUMENT, 5: grpc.StatusCode.UNAVAILABLE}


def code(status: object) -> grpc.StatusCode:
    """The gRPC code of an HTTP status; UNKNOWN for one that says nothing more, or is none."""
    if not isinstance(status, int):
        return grpc.StatusCode.UNKNOWN
    return _CODES.get(status, _CLASSES.get(status // 100, grpc.StatusCode.UNKNOWN))


def is_status(value: object) -> bool:
    """Whether it can be a status of HTTP."""
    return isinstance(value, int) and 100 <= value < 600


def redirects(status: object) -> bool:
    return isinstance(status, int) and 300 <= status < 400


def seconds(value: object) -> float | None:
    """What "1.5s" of Google's JSON holds, or "1.5"; None for nonsense."""
    try:
        found = float(str(value).removesuffix("s"))
    except ValueError:
        return None
    return found if 0 <= found < _LONGEST_DELAY_SECONDS else None


def delay(headers: Mapping[str, str]) -> float | None:
    """After how many seconds to ask again; None where upstream doesn't say, or not so that it makes sense."""
    told = seconds(headers.get("retry-after-ms"))
    if told is not None:
        return told / 1000
    value = headers.get("retry-after")
    if (told := seconds(value)) is not None or value is None:
        return told
    try:
        left = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return max(left, 0.0) if left < _LONGEST_DELAY_SECONDS else None


def broken(who: str, error: Exception) -> errors.UpstreamError:
    """Ours for one of `ERRORS`: nothing that upstream said, so neither a quota nor a refusal."""
    if isinstance(error, _TIMEOUTS):
        return errors.UpstreamDeadline(f"{who} didn't finish in time")
    if isinstance(error, _TRANSPORT_ERRORS):
        return failures.failure(who, grpc.StatusCode.UNAVAILABLE)
    return unreadable(who)


def unreadable(who: str, error: BaseException | None = None) -> errors.UpstreamError:
    """For what can't be read, `error` says why. What only lacks its end was cut on its way."""
    while error is not None:
        if _lacks_its_end(error):
            return errors.UpstreamCut(f"{who} broke off in the middle of a message; what came is incomplete")
        error = error.__cause__ or error.__context__
    return errors.UpstreamFault(f"{who} answered with something that is no valid message")


def _lacks_its_end(error: BaseException) -> bool:
    if isinstance(error, UnicodeDecodeError):
        return error.reason == "unexpected end of data"
    if not isinstance(error, json.JSONDecodeError) or not error.doc.lstrip().startswith("{"):
        return False
    try:
        pydantic_core.from_json(error.doc, allow_partial=True)
    except ValueError:
        return False
    return True


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether what has come is for people to read."""
    return headers.get("content-type", "").strip().lower().startswith("text/html")


def page(who: str) -> errors.UpstreamFault:
    """For a page that stands where the answer should, with a status of 200: of a proxy, or at an address of its own."""
    return errors.UpstreamFault(
        f"{who} answered with a web page; the server's owner has to check the address, and what stands before it"
    )


def redirected(who: str) -> errors.UpstreamPrecondition:
    """For a status of 3xx. No redirect is followed: the prompt and the server's key would go to another host."""
    return errors.UpstreamPrecondition(
        f"The address of {who} redirects elsewhere, which is not followed; the server's owner has to set the address "
        "that answers itself",
        metadata={"upstream_code": "FAILED_PRECONDITION"},
    )
