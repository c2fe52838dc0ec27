"""What was asked and answered on the page; pure state, drawn and driven elsewhere."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenwire.v1.content_pb2 import Message

from gateway_ui.client import model, user
from gateway_ui.endings import ending
from gateway_ui.meter import Meter
from gateway_ui.pump import Arrival

STOPPED = "Stopped: this answer is incomplete."


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of the answer's text."""

    text: str
    after: float
    # Seconds since the question.


@dataclass(slots=True)
class Exchange:
    """A question and its answer, while it comes and afterwards."""

    question: str
    meter: Meter
    follows_up: bool = False
    # Whether it brought earlier turns along.
    pieces: list[Piece] = field(default_factory=list)
    problem: str = ""
    # Why there is no complete answer, in words for a person.
    ended: bool = False

    @property
    def text(self) -> str:
        """All that has come."""
        return "".join(piece.text for piece in self.pieces)

    def saw(self, arrival: Arrival) -> None:
        """Add what came."""
        self.meter.saw(arrival.message, arrival.at)
        if arrival.message.WhichOneof("event") == "text":
            self.pieces.append(Piece(arrival.message.text, arrival.at - self.meter.asked_at))

    def finish(self) -> None:
        """It has come to its end; it may still have been cut or blocked."""
        self.ended = True
        if self.meter.completed is not None:
            self.problem = ending(self.meter.completed)
        if not self.problem and not self.pieces:
            self.problem = "The answer is empty."

    def fail(self, problem: str) -> None:
        """It ended before its time."""
        self.ended = True
        self.problem = problem

    def stop(self) -> None:
        """Nobody waits for the rest. Whatever ended before stays as it was."""
        if not self.ended:
            self.fail(STOPPED)


@dataclass(slots=True)
class Conversation:
    """The exchanges, oldest first."""

    exchanges: list[Exchange] = field(default_factory=list)

    def history(self) -> Iterator[Message]:
        """Give the turns that the next question follows.

        Questions without an answer are left out: users and models take turns, and nobody can follow up on nothing.
        """
        for exchange in self.exchanges:
            if exchange.text.strip():
                yield user(exchange.question)
                yield model(exchange.text)
