"""What can go wrong for a caller, in classes for programs and in words for people.

    TokenwireError
    ├── RefusedError             the request has to change
    │   ├── InvalidRequestError  a field is wrong; `.violations` says which and what is wanted
    │   └── UnknownModelError    the service doesn't offer that model
    ├── NotAllowedError          the caller may not do this
    ├── BusyError                too much at once; `.retry_after` says when to try again
    ├── UnavailableError         nobody can answer right now: service or model away, shutting down
    ├── DeadlineError            not done in time
    ├── CallCancelledError       cancelled by this side: the call, or its client was closed
    ├── IncompleteError          the answer broke off, or has a hole
    ├── UnfinishedError          the model ended the answer before it was done; `.completed` says how
    │   ├── TokenLimitError            cut: max_output_tokens, or the model's own limit, was reached
    │   ├── PromptBlockedError         the prompt itself was blocked: there is no answer
    │   ├── SafetyError                stopped by a safety filter
    │   ├── RecitationError            stopped: too close to the training data
    │   ├── BlocklistError             stopped: a forbidden term
    │   ├── ProhibitedContentError     stopped: may be prohibited content
    │   ├── PersonalDataError          stopped: may be personal data (SPII)
    │   ├── ModelArmorError            blocked by Model Armor
    │   ├── EmptyAnswerError           the model was done and has said nothing
    │   ├── MalformedFunctionCallError the model asked for a function in a form that can't be read
    │   └── OtherFinishError           a reason that this version doesn't know, or none was told
    └── ServiceError             the service failed, or isn't set up: for its owner to mend

`str(error)` is for a person; `.code`, `.reason` and the like are for a program, and `.text` is what had come of the
answer. A status becomes one of them in `explain`, by the table `WORDS`; a finish reason in `tokenwire.endings`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc_status import rpc_status

from tokenwire.v1.generation_service_pb2 import Completed

if TYPE_CHECKING:
    from tokenwire.connection import Connection

# The domain of every google.rpc.ErrorInfo that the service sends.
DOMAIN = "tokenwire"

_MINUTE, _HOUR = 60, 3600

# Reasons that this side finds by itself; all others are the service's.
NOT_CONNECTED = "NOT_CONNECTED"
CONNECTION_LOST = "CONNECTION_LOST"
CALL_DROPPED = "CALL_DROPPED"
NO_COMPLETED = "NO_COMPLETED"
SEQUENCE_GAP = "SEQUENCE_GAP"
REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
UNKNOWN_HOST = "UNKNOWN_HOST"
NO_ANSWER = "NO_ANSWER"
NOT_GRPC = "NOT_GRPC"
NO_TLS = "NO_TLS"
CERTIFICATE_EXPIRED = "CERTIFICATE_EXPIRED"
CERTIFICATE_NOT_YET_VALID = "CERTIFICATE_NOT_YET_VALID"
NOT_TRUSTED = "NOT_TRUSTED"
OTHER_NAME = "OTHER_NAME"
TURNED_AWAY = "TURNED_AWAY"
WANTS_TLS = "WANTS_TLS"
WANTS_CERTIFICATE = "WANTS_CERTIFICATE"
CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"

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


@dataclass(frozen=True, slots=True)
class Violation:
    """A field that was refused."""

    field: str
    """As in the request, for example "config.temperature"."""
    description: str
    """What was wrong with it and what is wanted."""

    def __str__(self) -> str:
        if not self.field or self.field in self.description:
            return self.description
        joint = " " if self.description.split(" ")[0] in _VERBS else ": "
        return f"{self.field}{joint}{self.description}"


_VERBS = {"is", "are", "was", "were", "has", "have", "holds", "hold", "lacks", "lack", "names", "declare", "stands"}
"""That the service's descriptions begin with: the field before them makes a sentence of them."""


class TokenwireError(Exception):
    """Any failure of a call."""

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode,
        reason: str = "",
        said: str = "",
        pieces: int = 0,
        text: str = "",
        retry_after: float | None = None,
        violations: tuple[Violation, ...] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """gRPC's code; OK where the stream ended well, but broke its contract or brought an answer that isn't whole."""
        self.reason = reason
        """The stable reason in UPPER_SNAKE_CASE; empty when none was given."""
        self.said = said
        """The status message as it came. For logs: it may be transport jargon."""
        self.pieces = pieces
        """Pieces of text that came before it: not zero means that the answer was cut."""
        self.text = text
        """The same pieces as one text."""
        self.retry_after = retry_after
        """Seconds; None where the service didn't say."""
        self.violations = violations
        self.metadata = dict(metadata or {})
        """What the service added to the reason."""


class RefusedError(TokenwireError): ...


class InvalidRequestError(RefusedError): ...


class UnknownModelError(RefusedError): ...


class NotAllowedError(TokenwireError): ...


class BusyError(TokenwireError): ...


class UnavailableError(TokenwireError): ...


class DeadlineError(TokenwireError): ...


class CallCancelledError(TokenwireError): ...


class IncompleteError(TokenwireError): ...


class ServiceError(TokenwireError): ...


class UnfinishedError(TokenwireError):
    """The stream is whole, and its finish reason is another than STOP.

    `.reason` is the finish reason as in the contract, such as "MAX_TOKENS"; `.said` the provider's own word for it.
    """

    def __init__(self, message: str, *, completed: Completed, reason: str, pieces: int = 0, text: str = "") -> None:
        super().__init__(
            message,
            code=grpc.StatusCode.OK,
            reason=reason,
            said=completed.upstream_finish_reason,
            pieces=pieces,
            text=text,
        )
        self.completed = completed
        """The answer's last message: usage, safety ratings and the like."""


class TokenLimitError(UnfinishedError): ...


class PromptBlockedError(UnfinishedError): ...


class SafetyError(UnfinishedError): ...


class RecitationError(UnfinishedError): ...


class BlocklistError(UnfinishedError): ...


class ProhibitedContentError(UnfinishedError): ...


class PersonalDataError(UnfinishedError): ...


class ModelArmorError(UnfinishedError): ...


class EmptyAnswerError(UnfinishedError): ...


class MalformedFunctionCallError(UnfinishedError): ...


class OtherFinishError(UnfinishedError): ...


@dataclass(frozen=True, slots=True)
class Words:
    """The class of an error and what a person is told."""

    error: type[TokenwireError]
    text: str
    """May name {address}, {again} (when to try again), {fields} (what was refused), {said} (the service's own
    sentence, or nothing), {within} (the time that was allowed); and of the connection {place} (the address, and where
    it was set), {trusted} (the authorities), {shown} (this caller's certificate), {proof} (what is wrong with what
    says who calls).
    """
    unsaid: bool = False
    """It tells the same as the service's own sentence, in fewer words: told only where the service said nothing."""


_Code = grpc.StatusCode

# By code and reason; the reason "" stands for every reason that isn't here.
WORDS: Mapping[tuple[grpc.StatusCode, str], Words] = MappingProxyType(
    {
        (_Code.OK, NO_COMPLETED): Words(
            IncompleteError, "The answer broke off: the stream ended without saying that it was complete."
        ),
        (_Code.OK, SEQUENCE_GAP): Words(IncompleteError, "The stream broke its contract. {said}"),
        (_Code.CANCELLED, ""): Words(CallCancelledError, "The call was cancelled."),
        (_Code.CANCELLED, CALL_DROPPED): Words(
            UnavailableError, "The service at {address} dropped the call: it may be shutting down. {again}"
        ),
        (_Code.UNKNOWN, ""): Words(ServiceError, "The service failed in a way it has no word for. Its log knows more."),
        (_Code.INVALID_ARGUMENT, ""): Words(InvalidRequestError, "The service refused the request. {fields}"),
        (_Code.INVALID_ARGUMENT, "EMPTY_PROMPT"): Words(
            InvalidRequestError, "There is no question to answer: the prompt is empty."
        ),
        (_Code.INVALID_ARGUMENT, "UPSTREAM_REJECTED"): Words(
            InvalidRequestError, "The model's provider refused the request.", unsaid=True
        ),
        (_Code.DEADLINE_EXCEEDED, ""): Words(DeadlineError, "The answer was not complete {within}."),
        (_Code.DEADLINE_EXCEEDED, "SERVER_DEADLINE"): Words(
            DeadlineError, "The answer took longer than the service allows."
        ),
        (_Code.DEADLINE_EXCEEDED, "UPSTREAM_DEADLINE"): Words(
            DeadlineError, "The model's provider did not complete the answer in time."
        ),
        (_Code.DEADLINE_EXCEEDED, "FIRST_CHUNK_TIMEOUT"): Words(
            DeadlineError, "The model did not begin to answer in the time that was allowed for it."
        ),
        (_Code.DEADLINE_EXCEEDED, "IDLE_TIMEOUT"): Words(
            DeadlineError, "The model fell silent in the middle of its answer."
        ),
        (_Code.DEADLINE_EXCEEDED, "READER_STALLED"): Words(
            DeadlineError, "The answer was not read for so long that the service gave it up."
        ),
        (_Code.DEADLINE_EXCEEDED, "REQUEST_STALLED"): Words(
            DeadlineError, "The question did not reach the service in time. {again}"
        ),
        (_Code.NOT_FOUND, ""): Words(RefusedError, "What was asked for does not exist. {said}"),
        (_Code.NOT_FOUND, "MODEL_NOT_FOUND"): Words(
            UnknownModelError, "The service does not offer this model.", unsaid=True
        ),
        (_Code.NOT_FOUND, "SERVICE_UNKNOWN"): Words(
            RefusedError,
            "The service has no part of this name.",
            unsaid=True,
        ),
        (_Code.NOT_FOUND, "UPSTREAM_MODEL_NOT_FOUND"): Words(
            UnknownModelError, "The model's provider does not know this model, or not in this region.", unsaid=True
        ),
        (_Code.ALREADY_EXISTS, ""): Words(RefusedError, "This request has been made before. {said}"),
        (_Code.PERMISSION_DENIED, ""): Words(NotAllowedError, "You are not allowed to do this at {address}. {said}"),
        (_Code.PERMISSION_DENIED, "MODEL_NOT_ALLOWED"): Words(
            NotAllowedError, "The service at {address} does not let you use this model. {said}"
        ),
        (_Code.PERMISSION_DENIED, "CALL_NOT_ALLOWED"): Words(
            NotAllowedError, "The service at {address} does not let you do this. {said}"
        ),
        (_Code.UNAUTHENTICATED, "UNAUTHENTICATED"): Words(
            NotAllowedError,
            "The service at {address} does not know you: {proof}.",
        ),
        (_Code.UNAUTHENTICATED, ""): Words(
            NotAllowedError, "The service at {address} does not know you: the key is missing or wrong. {said}"
        ),
        (_Code.RESOURCE_EXHAUSTED, ""): Words(BusyError, "The service has no room for this request. {said} {again}"),
        (_Code.RESOURCE_EXHAUSTED, REQUEST_TOO_LARGE): Words(InvalidRequestError, "The request is too large: {fields}"),
        (_Code.RESOURCE_EXHAUSTED, "SERVER_BUSY"): Words(BusyError, "The service is busy. {again}"),
        (_Code.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED"): Words(
            BusyError, "You have used up what you may. {again}", unsaid=True
        ),
        (_Code.RESOURCE_EXHAUSTED, "BUDGET_EXHAUSTED"): Words(
            BusyError, "Your tokens of this day were used up in the middle of the answer. {again}"
        ),
        (_Code.RESOURCE_EXHAUSTED, "UPSTREAM_QUOTA"): Words(
            BusyError, "The model's provider takes no more requests for now. {again}"
        ),
        (_Code.FAILED_PRECONDITION, ""): Words(ServiceError, "The service is not ready for this. {said}"),
        (_Code.FAILED_PRECONDITION, "UPSTREAM_CREDENTIALS"): Words(
            ServiceError, "The service has no valid credentials for the model's provider.", unsaid=True
        ),
        (_Code.FAILED_PRECONDITION, "UPSTREAM_PRECONDITION"): Words(
            ServiceError, "The model's provider does not let the service use it like this.", unsaid=True
        ),
        (_Code.ABORTED, ""): Words(UnavailableError, "The service gave this request up. {said} {again}"),
        (_Code.OUT_OF_RANGE, ""): Words(InvalidRequestError, "The service refused the request. {fields}"),
        (_Code.UNIMPLEMENTED, ""): Words(
            ServiceError,
            "What runs at {address} cannot do this: another service, or an older version. {said}",
        ),
        (_Code.UNIMPLEMENTED, "NOT_SERVED"): Words(
            ServiceError, "This model's provider has no such call.", unsaid=True
        ),
        (_Code.INTERNAL, ""): Words(ServiceError, "The service failed. {said}"),
        (_Code.INTERNAL, "INTERNAL"): Words(
            ServiceError,
            "The service failed.",
            unsaid=True,
        ),
        (_Code.INTERNAL, "UPSTREAM_FAULT"): Words(
            ServiceError,
            "The model's provider failed.",
            unsaid=True,
        ),
        (_Code.UNAVAILABLE, ""): Words(UnavailableError, "The service cannot answer now. {said} {again}"),
        (_Code.UNAVAILABLE, NOT_CONNECTED): Words(
            UnavailableError,
            "The service is not running at {place}. Start it with `tokenwire serve`.",
        ),
        (_Code.UNAVAILABLE, UNKNOWN_HOST): Words(
            UnavailableError,
            "No machine has the name in {place}: mend the name, or this machine's DNS.",
        ),
        (_Code.UNAVAILABLE, NO_ANSWER): Words(
            UnavailableError,
            "Nothing answers at {place}: the machine may be off, or a firewall between.",
        ),
        (_Code.UNAVAILABLE, NOT_GRPC): Words(
            UnavailableError,
            "What runs at {place} does not speak gRPC: give the service's own address, not that of a web server.",
        ),
        (_Code.UNAVAILABLE, NO_TLS): Words(
            UnavailableError,
            "What runs at {place} does not speak TLS: an address without https:// is for that.",
        ),
        (_Code.UNAVAILABLE, CERTIFICATE_EXPIRED): Words(
            UnavailableError,
            "The certificate of {place} has expired: its owner has to renew it, unless this machine's clock is wrong.",
        ),
        (_Code.UNAVAILABLE, CERTIFICATE_NOT_YET_VALID): Words(
            UnavailableError,
            "The certificate of {place} is not valid yet: this machine's clock is slow, or its owner has to wait.",
        ),
        (_Code.UNAVAILABLE, NOT_TRUSTED): Words(
            UnavailableError,
            "The certificate of {place} is signed by none of {trusted}: give this caller the authority that signed it "
            "(`ca`, --ca).",
        ),
        (_Code.UNAVAILABLE, OTHER_NAME): Words(
            UnavailableError,
            "The certificate of {place} is for another name: use the one it is for.",
        ),
        (_Code.UNAVAILABLE, TURNED_AWAY): Words(
            UnavailableError,
            "What runs at {place} closed the connection before it was made: it may want TLS (https://...), or a "
            "certificate of this caller that it trusts.",
        ),
        (_Code.UNAVAILABLE, WANTS_TLS): Words(
            UnavailableError,
            "What runs at {place} closed the connection before it was made: it may want TLS (https://{address}).",
        ),
        (_Code.UNAVAILABLE, WANTS_CERTIFICATE): Words(
            UnavailableError,
            "What runs at {place} closed the connection before it was made: it may want a certificate of this "
            "caller (--client-certificate and --client-key).",
        ),
        (_Code.UNAVAILABLE, CERTIFICATE_REFUSED): Words(
            UnavailableError,
            "What runs at {place} closed the connection before it was made: it may not trust {shown}, or that "
            "has expired.",
        ),
        (_Code.UNAVAILABLE, CONNECTION_LOST): Words(
            IncompleteError, "The connection to the service at {address} was lost."
        ),
        (_Code.UNAVAILABLE, "UPSTREAM_UNAVAILABLE"): Words(
            UnavailableError, "The model cannot be reached right now. {again}"
        ),
        (_Code.UNAVAILABLE, "UPSTREAM_CUT"): Words(
            IncompleteError, "The model broke off before its answer was complete."
        ),
        (_Code.UNAVAILABLE, "STARTING"): Words(UnavailableError, "The service is still starting. {again}"),
        (_Code.UNAVAILABLE, "QUOTAS_UNAVAILABLE"): Words(
            UnavailableError, "What you have used cannot be found out right now. {again}"
        ),
        (_Code.UNAVAILABLE, "DRAINING"): Words(UnavailableError, "The service is shutting down. {again}"),
        (_Code.DATA_LOSS, ""): Words(IncompleteError, "A part of the answer was lost. {said}"),
    }
)


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
    quoted = _sentence(said) if quotable else ""
    template = words.text
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
