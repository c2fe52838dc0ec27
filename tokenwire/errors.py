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
answer. A status becomes one of them in `tokenwire.statuses`, by the table in `tokenwire.words`; a finish reason in
`tokenwire.endings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from tokenwire.v1.generation_service_pb2 import Completed

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
