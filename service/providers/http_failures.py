"""What providers over HTTP share: how their calls break, and what their statuses mean."""

import grpc
import httpx
import httpx2

from .. import errors
from . import failures

ERRORS = (httpx.RequestError, httpx2.RequestError)
"""What providers' libraries raise, or let through, where a connection can't be had, or an answer can't be read."""

_TRANSPORT_ERRORS = (httpx.TransportError, httpx2.TransportError)
_TIMEOUTS = (httpx.TimeoutException, httpx2.TimeoutException)

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.ABORTED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    529: grpc.StatusCode.UNAVAILABLE,
}


def code(status: object) -> grpc.StatusCode:
    """The gRPC code of an HTTP status; UNKNOWN for one that says nothing more, or is none."""
    return _CODES.get(status, grpc.StatusCode.UNKNOWN) if isinstance(status, int) else grpc.StatusCode.UNKNOWN


def redirects(status: object) -> bool:
    return isinstance(status, int) and 300 <= status < 400


def seconds(value: object) -> float | None:
    """What a Retry-After header, or "1.5s" of Google's JSON, holds; None for dates and nonsense."""
    try:
        found = float(str(value).removesuffix("s"))
    except ValueError:
        return None
    return found if 0 <= found < 86_400 else None


def broken(who: str, error: Exception) -> errors.UpstreamError:
    """Ours for one of `ERRORS`: nothing that upstream said, so neither a quota nor a refusal."""
    if isinstance(error, _TIMEOUTS):
        return errors.UpstreamDeadline(f"{who} didn't finish in time")
    if isinstance(error, _TRANSPORT_ERRORS):
        return failures.failure(who, grpc.StatusCode.UNAVAILABLE)
    return unreadable(who)


def unreadable(who: str) -> errors.UpstreamFault:
    return errors.UpstreamFault(f"{who} answered with something that is no valid message")


def redirected(who: str) -> errors.UpstreamPrecondition:
    """For a status of 3xx. No redirect is followed: the prompt and the server's key would go to another host."""
    return errors.UpstreamPrecondition(
        f"The address of {who} redirects elsewhere, which is not followed; the server's owner has to set the address "
        "that answers itself",
        metadata={"upstream_code": "FAILED_PRECONDITION"},
    )
