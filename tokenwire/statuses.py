"""Statuses of gRPC as errors of ours: by the code, the reason where the service gave one, and how it was reached."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from tokenwire.errors import (
    CALL_DROPPED,
    CERTIFICATE_EXPIRED,
    CERTIFICATE_NOT_YET_VALID,
    CERTIFICATE_REFUSED,
    CONNECTION_LOST,
    NO_ANSWER,
    NO_TLS,
    NOT_CONNECTED,
    NOT_GRPC,
    NOT_TRUSTED,
    OTHER_NAME,
    REQUEST_TOO_LARGE,
    TURNED_AWAY,
    UNKNOWN_HOST,
    WANTS_CERTIFICATE,
    WANTS_TLS,
    TokenwireError,
    Violation,
)
from tokenwire.words import WORDS

if TYPE_CHECKING:
    from tokenwire.connection import Connection

# The domain of every google.rpc.ErrorInfo that the service sends.
DOMAIN = "tokenwire"

_MINUTE, _HOUR = 60, 3600

# The end of a sentence of the service's that tells when to come again, for callers that read no details.
_AGAIN = re.compile(r"; (?:ask )?again in [^;.]+(?=\.?$)")

_NO_CONNECTION = (
    ("errors resolving ", UNKNOWN_HOST),
    ("certificate has expired", CERTIFICATE_EXPIRED),
    ("certificate is not yet valid", CERTIFICATE_NOT_YET_VALID),
    ("CERTIFICATE_VERIFY_FAILED", NOT_TRUSTED),
    ("Hostname Verification Check failed", OTHER_NAME),
    ("WRONG_VERSION_NUMBER", NO_TLS),
    ("Expected SETTINGS frame", NOT_GRPC),
    ("missing selected ALPN property", NOT_GRPC),
    ("timed out", NO_ANSWER),
    ("Timeout", NO_ANSWER),
    ("timeout", NO_ANSWER),
    ("unreachable", NO_ANSWER),
    ("No route to host", NO_ANSWER),
    ("(Endpoint closing)", NO_ANSWER),
    # What the other side's TLS says, or where that comes behind the handshake, only does.
    ("_ALERT_", TURNED_AWAY),
    ("TSI_DATA_CORRUPTED", TURNED_AWAY),
    ("Connection reset by peer", TURNED_AWAY),
    (": Socket closed", TURNED_AWAY),
)
"""In gRPC's texts for a connection that didn't come to be, why it didn't; the first that is found counts."""

# gRPC's own text for a request that is larger than the service's limit. The service never sees such a request, so it
# can't say anything about it. For an answer that is larger than the client's limit the text begins with "CLIENT:".
_TOO_LARGE = re.compile(r"(?<!CLIENT: R)eceived message larger than max \(([0-9]+) vs\. ([0-9]+)\)")


def explain(
    error: grpc.RpcError,
    *,
    address: str,
    connection: "Connection | None" = None,
    timeout: float | None = None,
    started: bool = False,
    cancelled: bool = False,
    pieces: int = 0,
    text: str = "",
) -> TokenwireError:
    """Turn gRPC's error into ours: by its code, and by what google.rpc details its trailers carry.

    `connection`: how the address was reached; `timeout` is the call's deadline in seconds; `started`: any message had
    come; `cancelled`: this side has cancelled it; `pieces`: so many of its messages were text, `text` in all.
    """
    # Every RpcError that a call raises is its own Call; grpc's types don't say so.
    call = cast("grpc.Call", error)
    code = call.code()
    said = call.details() or ""
    details = _details(call)
    info = ErrorInfo()
    known = _unpack(details, info) and info.domain == DOMAIN
    reason = info.reason if known else ""
    if not known and code is grpc.StatusCode.UNAVAILABLE:
        reason = CONNECTION_LOST if started else _not_connected(said, connection)
    if not known and not cancelled and code is grpc.StatusCode.CANCELLED:
        # A call that reaches a server after it has told the connection to close ends like this, as if somebody here had
        # cancelled it (https://github.com/grpc/grpc/issues/41785).
        reason = CALL_DROPPED
    too_large = None
    if not known and not started and code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        too_large = _TOO_LARGE.search(said)
    retry, refused = RetryInfo(), BadRequest()
    violations: tuple[Violation, ...] = ()
    if too_large is not None:
        reason = REQUEST_TOO_LARGE
        size, most = (int(number) / 100_000 for number in too_large.groups())
        # Rounded apart: what is too large mustn't read as if it just fitted.
        told = f"it has {math.ceil(size) / 10} MB, history included, and the service takes {math.floor(most) / 10} MB"
        violations = (Violation("", told),)
    elif _unpack(details, refused):
        violations = tuple(Violation(one.field, one.description) for one in refused.field_violations)
    return put(
        code,
        reason,
        address=address,
        connection=connection,
        said=said,
        # Without our own domain the sentence is a proxy's or the transport's: not for people.
        quotable=known,
        timeout=timeout,
        pieces=pieces,
        text=text,
        retry_after=retry.retry_delay.ToTimedelta().total_seconds() if _unpack(details, retry) else None,
        violations=violations,
        metadata=info.metadata if known else None,
    )


def _not_connected(said: str, connection: "Connection | None") -> str:
    """Why there is no connection, by gRPC's own text."""
    if not said.startswith(("failed to connect to all addresses", "errors resolving ")):
        return NOT_CONNECTED
    reason = next((reason for part, reason in _NO_CONNECTION if part in said), NOT_CONNECTED)
    if reason == TURNED_AWAY and connection is not None:
        # The other side doesn't say why: it is told by what this one did.
        if connection.identity.certificate:
            return CERTIFICATE_REFUSED
        if connection.target.secure:
            return WANTS_CERTIFICATE
        if not connection.target.name.startswith("unix"):
            return WANTS_TLS
    return reason


def put(
    code: grpc.StatusCode,
    reason: str,
    *,
    address: str,
    connection: "Connection | None" = None,
    said: str = "",
    quotable: bool = True,
    timeout: float | None = None,
    pieces: int = 0,
    text: str = "",
    retry_after: float | None = None,
    violations: tuple[Violation, ...] = (),
    metadata: Mapping[str, str] | None = None,
) -> TokenwireError:
    """Make the error for a code and a reason, worded by the table."""
    words = WORDS.get((code, reason)) or WORDS[code, ""]
    template = words.text
    quoted = _sentence(_AGAIN.sub("", said) if "{again}" in template else said) if quotable else ""
    if words.unsaid and quoted:
        template = "{said} {again}" if "{again}" in template else "{said}"
    told = template.format(
        address=address,
        again="Try again in a moment." if retry_after is None else f"Try again in {_waiting(retry_after)}.",
        fields=_sentence("; ".join(map(str, violations))) or quoted or "It did not say why.",
        said=quoted[:1].upper() + quoted[1:],
        within="in time" if timeout is None else f"within {timeout:g} s",
        **_of_connection(address, connection),
    )
    if pieces:
        told += f" The answer was cut after {pieces} piece{'s' * (pieces > 1)}; what you see is incomplete."
    return words.error(
        " ".join(told.split()),
        code=code,
        reason=reason,
        said=said,
        pieces=pieces,
        text=text,
        retry_after=retry_after,
        violations=violations,
        metadata=metadata,
    )


def _of_connection(address: str, connection: "Connection | None") -> dict[str, str]:
    """What words may tell of how the service was reached, and where that was set."""
    told = {
        "place": address,
        "trusted": "this caller's authorities",
        "shown": "this caller's certificate",
        "proof": "your token or certificate is missing, wrong or expired",
    }
    if connection is None:
        return told
    own = connection.identity
    if connection.address_variable:
        told["place"] = f"{address} ({connection.address_variable})"
    told["trusted"] = f"those in {own.named('ca')}" if own.ca else "this system's authorities"
    if own.certificate:
        told["shown"] = f"the certificate in {own.named('certificate')}"
        told["proof"] = f"{told['shown']} is none that it takes"
    elif not (own.token or own.token_file):
        told["proof"] = "you show no token (`token`, --token-file, `TOKENWIRE_TOKEN`) and no certificate"
    if own.token or own.token_file:
        name = own.named("token") if own.token else f"the token in {own.named('token_file')}"
        told["proof"] = f"{name} is wrong, has expired, or was revoked"
    return told


def _waiting(seconds: float) -> str:
    """So long, as people say it."""
    if seconds <= 2 * _MINUTE:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds <= 2 * _HOUR:
        return f"{math.ceil(seconds / _MINUTE)} minutes"
    return f"{math.ceil(seconds / _HOUR)} hours"


def _sentence(text: str) -> str:
    return text if not text or text.endswith((".", "!", "?")) else f"{text}."


def _details(call: grpc.Call) -> tuple[AnyMessage, ...]:
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):
        # A proxy rewrote the status, or the trailer is no google.rpc.Status. The code alone has to do.
        return ()
    return tuple(status.details) if status is not None else ()


def _unpack(details: tuple[AnyMessage, ...], into: ErrorInfo | RetryInfo | BadRequest) -> bool:
    try:
        return any(detail.Unpack(into) for detail in details)
    except DecodeError:
        return False
