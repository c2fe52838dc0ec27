"""Every way a call can fail, each with its gRPC code and a stable reason.

    CallError
    |- InvalidRequest          INVALID_ARGUMENT     INVALID_FIELD, EMPTY_PROMPT, MALFORMED_REQUEST
    |- ModelNotFound           NOT_FOUND            MODEL_NOT_FOUND
    |- Unauthenticated         UNAUTHENTICATED      UNAUTHENTICATED
    |- ModelNotAllowed         PERMISSION_DENIED    MODEL_NOT_ALLOWED
    |- CallNotAllowed          PERMISSION_DENIED    CALL_NOT_ALLOWED
    |- ServiceUnknown          NOT_FOUND            SERVICE_UNKNOWN
    |- NotServed               UNIMPLEMENTED        NOT_SERVED
    |- NotReady                UNAVAILABLE          STARTING
    |- Draining                UNAVAILABLE          DRAINING
    |- QuotasUnavailable       UNAVAILABLE          QUOTAS_UNAVAILABLE
    |- ServerBusy              RESOURCE_EXHAUSTED   SERVER_BUSY
    |- QuotaExceeded           RESOURCE_EXHAUSTED   QUOTA_EXCEEDED
    |- BudgetExhausted         RESOURCE_EXHAUSTED   BUDGET_EXHAUSTED
    |- DeadlineExceeded        DEADLINE_EXCEEDED    CALLER_DEADLINE, SERVER_DEADLINE, FIRST_CHUNK_TIMEOUT,
    |                                               IDLE_TIMEOUT, READER_STALLED, REQUEST_STALLED
    |- InternalError           INTERNAL             INTERNAL
    `- UpstreamError
       |- UpstreamRejected     INVALID_ARGUMENT     UPSTREAM_REJECTED
       |- UpstreamNotFound     NOT_FOUND            UPSTREAM_MODEL_NOT_FOUND
       |- UpstreamCredentials  FAILED_PRECONDITION  UPSTREAM_CREDENTIALS
       |- UpstreamPrecondition FAILED_PRECONDITION  UPSTREAM_PRECONDITION
       |- UpstreamQuota        RESOURCE_EXHAUSTED   UPSTREAM_QUOTA
       |- UpstreamUnavailable  UNAVAILABLE          UPSTREAM_UNAVAILABLE
       |- UpstreamCut          UNAVAILABLE          UPSTREAM_CUT
       |- UpstreamDeadline     DEADLINE_EXCEEDED    UPSTREAM_DEADLINE
       `- UpstreamFault        INTERNAL             UPSTREAM_FAULT

Messages are for the caller's developer and never hold a prompt, an answer, a credential or upstream's own text.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2, message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "tokenwire"

# gRPC's clients begin to refuse statuses beyond 8 KB at random, and a status says each violation three times.
_MOST_TOLD_CHARACTERS = 1700
_AS_IT_IS = "".join(chr(one) for one in range(0x20, 0x7F) if one != ord("%"))
"""What gRPC writes of a text without a change."""
_MOST_SHOWN = 130
"""Characters of what is too long by itself, of whatever script."""

_LONGEST_DELAY_SECONDS = 365 * 86_400.0  # upstream may say anything, and a Duration can't hold all of it


@dataclass(frozen=True, slots=True)
class Violation:
    """One field of a request that can't be taken."""

    field: str
    """Its path as in the proto, such as "messages[2].parts[0].text"."""
    description: str
    """What it holds and what is wanted."""


class CallError(Exception):
    """A call fails in a known way."""

    code: ClassVar[grpc.StatusCode]
    reason: str
    usual_delay: ClassVar[float | None] = None
    """What RetryInfo tells callers where nobody has asked for a delay, in seconds; None: nothing."""
    elsewhere: ClassVar[bool] = False
    """Whether nothing has been done with the call, and another server would take it."""

    def __init__(
        self,
        text: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
        details: Sequence[message.Message] = (),
    ) -> None:
        """`retry_after` in seconds, where somebody asks for it; `metadata` goes into ErrorInfo.

        `details` are further google.rpc messages.
        """
        super().__init__(text)
        self.text = text
        if reason is not None:
            self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_after = retry_after
        self._details = tuple(details)

    def after(self, messages: int) -> Self:
        """This error, saying how far the stream had come when it struck; `messages` were sent before it."""
        if messages:
            self.metadata["last_sequence"] = str(messages - 1)
        return self

    @property
    def delay(self) -> float | None:
        """After how many seconds a caller may ask again; None: that is not said."""
        told = self.usual_delay if self.retry_after is None else self.retry_after
        return None if told is None else min(told, _LONGEST_DELAY_SECONDS)

    def status(self) -> status_pb2.Status:
        """This error as callers get it: code, text, and an ErrorInfo before whatever else is known."""
        details: list[message.Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.delay is not None:
            info = error_details_pb2.RetryInfo()
            info.retry_delay.FromNanoseconds(round(self.delay * 1e9))
            details.append(info)
        status = status_pb2.Status(code=self.code.value[0], message=self.text)
        for detail in (*details, *self._details):
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


class InvalidRequest(CallError):
    """The request can't be taken as it is."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, violations: Sequence[Violation], *, reason: str | None = None) -> None:
        """Callers are told as many of the violations as a status holds, and how many there are beside."""
        told = [one for one, end in zip(violations, _ends(violations), strict=True) if end <= _MOST_TOLD_CHARACTERS]
        told = told or [Violation(one.field[:_MOST_SHOWN], one.description[:_MOST_SHOWN]) for one in violations[:1]]
        bad = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(field=one.field, description=one.description)
                for one in told
            ]
        )
        texts = [f"{one.field}: {one.description}" for one in told]
        if len(told) < len(violations):
            texts.append(f"and {len(violations) - len(told)} more")
        super().__init__("; ".join(texts), reason=reason, details=[bad])
        self.violations = tuple(violations)


def _ends(violations: Sequence[Violation]) -> Iterator[int]:
    """How many characters each and those before it take, as gRPC writes them: "%C3%A9" is one of ours."""
    written = (quote(f"{one.field}: {one.description}", safe=_AS_IT_IS) for one in violations)
    return itertools.accumulate(map(len, written))


class ModelNotFound(CallError):
    """The request names a model that isn't on offer."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class Unauthenticated(CallError):
    """Who calls isn't proven; the same words whatever is missing or wrong."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class ModelNotAllowed(CallError):
    """The request names a model that is on offer, and not for this caller."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "MODEL_NOT_ALLOWED"


class CallNotAllowed(CallError):
    """What is asked for is for other callers."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "CALL_NOT_ALLOWED"


class ServiceUnknown(CallError):
    """Somebody asks for the health of a service that isn't here."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "SERVICE_UNKNOWN"


class NotServed(CallError):
    """The model's provider has no such call."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "NOT_SERVED"


class NotReady(CallError):
    """The server is starting."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "STARTING"
    usual_delay = 1.0
    elsewhere = True


class Draining(CallError):
    """The server is going away."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    usual_delay = 1.0
    elsewhere = True


class QuotasUnavailable(CallError):
    """Where replicas count together can't be reached, and the server's owner wants no call let in without."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "QUOTAS_UNAVAILABLE"
    usual_delay = 1.0


class ServerBusy(CallError):
    """Every slot is taken, and the queue is full or didn't move in time; or too many requests are arriving at once."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "SERVER_BUSY"
    usual_delay = 1.0


class QuotaExceeded(CallError):
    """This caller has all that one caller may have."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUOTA_EXCEEDED"
    usual_delay = 1.0


class BudgetExhausted(CallError):
    """The caller's tokens of the day ran out in the middle of this answer."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "BUDGET_EXHAUSTED"
    usual_delay = 5.0


class DeadlineExceeded(CallError):
    """Something took longer than the caller or the server allows: the call, the model, or the reader."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "CALLER_DEADLINE"


class InternalError(CallError):
    """A bug. The caller gets an id that is in the log, and nothing else."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"


class UpstreamError(CallError):
    """The model's provider failed; `metadata` has its code and, where it is a plain token, its reason."""

    model = ""
    """The public name of the model that failed."""
    said = ""
    """Upstream's own text, as far as it told one: for a log that was asked to have it, and never for a caller."""


class UpstreamRejected(UpstreamError):
    """It can't take the request."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "UPSTREAM_REJECTED"


class UpstreamNotFound(UpstreamError):
    """It doesn't know a model that this server offers."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UPSTREAM_MODEL_NOT_FOUND"


class UpstreamCredentials(UpstreamError):
    """It refuses the server's credentials: the server's owner has to act, not the caller."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPSTREAM_CREDENTIALS"


class UpstreamPrecondition(UpstreamError):
    """The project or region can't be used as it is."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "UPSTREAM_PRECONDITION"


class UpstreamQuota(UpstreamError):
    """A quota there is used up."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "UPSTREAM_QUOTA"
    usual_delay = 5.0


class UpstreamUnavailable(UpstreamError):
    """It is away, or broke off before it answered."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UPSTREAM_UNAVAILABLE"
    usual_delay = 1.0


class UpstreamCut(UpstreamError):
    """It ended the answer without a finish reason: what came may be anything but whole."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "UPSTREAM_CUT"
    usual_delay = 1.0


class UpstreamDeadline(UpstreamError):
    """It gave up before the caller's deadline had passed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "UPSTREAM_DEADLINE"


class UpstreamFault(UpstreamError):
    """An internal error of upstream, or an answer that we can't relay."""

    code = grpc.StatusCode.INTERNAL
    reason = "UPSTREAM_FAULT"


_FURTHER_REASONS = (
    *("EMPTY_PROMPT", "MALFORMED_REQUEST", "SERVER_DEADLINE", "FIRST_CHUNK_TIMEOUT", "IDLE_TIMEOUT"),
    *("READER_STALLED", "REQUEST_STALLED"),
)
"""Those by which errors of one class are told apart."""


def reasons() -> tuple[str, ...]:
    """Every reason that a call can fail for."""

    def below(kind: type[CallError]) -> Iterator[str]:
        for child in kind.__subclasses__():
            yield from [child.reason] if "reason" in vars(child) else []
            yield from below(child)

    return tuple(dict.fromkeys((*below(CallError), *_FURTHER_REASONS)))
