"""What providers over HTTP share: how their calls break, and what their statuses mean."""

import grpc
import httpx
import httpx2

from service import errors

TRANSPORT_ERRORS = (httpx.TransportError, httpx2.TransportError)
"""What providers' libraries raise, or let through, where a connection can't be had or breaks off."""

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


def code(status: int) -> grpc.StatusCode:
    """The gRPC code of an HTTP status; UNKNOWN for one that says nothing more."""
    return _CODES.get(status, grpc.StatusCode.UNKNOWN)


def seconds(value: object) -> float | None:
    """What a Retry-After header, or "1.5s" of Google's JSON, holds; None for dates and nonsense."""
    try:
        found = float(str(value).removesuffix("s"))
    except ValueError:
        return None
    return found if 0 <= found < 86_400 else None


def unavailable(who: str) -> errors.UpstreamUnavailable:
    return errors.UpstreamUnavailable(
        f"{who} is away or broke the connection", metadata={"upstream_code": "UNAVAILABLE"}
    )
