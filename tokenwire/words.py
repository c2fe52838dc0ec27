"""What a caller is told of each status of gRPC: the class of its error, and a sentence for a person."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from tokenwire.errors import (
    CALL_DROPPED,
    CERTIFICATE_EXPIRED,
    CERTIFICATE_NOT_YET_VALID,
    CERTIFICATE_REFUSED,
    CONNECTION_LOST,
    NO_ANSWER,
    NO_COMPLETED,
    NO_TLS,
    NOT_CONNECTED,
    NOT_GRPC,
    NOT_TRUSTED,
    OTHER_NAME,
    REQUEST_TOO_LARGE,
    SEQUENCE_GAP,
    TURNED_AWAY,
    UNKNOWN_HOST,
    WANTS_CERTIFICATE,
    WANTS_TLS,
    BusyError,
    CallCancelledError,
    DeadlineError,
    IncompleteError,
    InvalidRequestError,
    NotAllowedError,
    RefusedError,
    ServiceError,
    TokenwireError,
    UnavailableError,
    UnknownModelError,
)


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
            UnavailableError, "The call was refused: what you have used cannot be found out right now. {again}"
        ),
        (_Code.UNAVAILABLE, "DRAINING"): Words(UnavailableError, "The service is shutting down. {again}"),
        (_Code.DATA_LOSS, ""): Words(IncompleteError, "A part of the answer was lost. {said}"),
    }
)
