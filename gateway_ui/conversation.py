"""What was asked and answered on the page; pure state, drawn and driven elsewhere."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from tokenwire import Turn
from tokenwire.cli.meter import Meter
from tokenwire.endings import ending
from tokenwire.v1.content_pb2 import ROLE_MODEL, ROLE_TOOL, Message, Part, ToolCall
from tokenwire.v1.generation_service_pb2 import GenerateRequest, GenerateResponse, Grounding

from .pump import Arrival

STOPPED = "Stopped: this answer is incomplete."

Kind = Literal["text", "thought", "tool call"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of the answer."""

    kind: Kind
    text: str
    # Of a tool call: its arguments as JSON.
    after: float
    # Seconds since the question.


@dataclass(slots=True)
class Exchange:
    """A question and its answer, while it comes and afterwards."""

    question: Message
    # A user's turn, or the results of tool calls.
    asked: GenerateRequest
    # What else the request said: model, system instruction, settings. No messages.
    meter: Meter
    follows_up: bool = False
    # Whether it brought earlier turns along.
    pieces: list[Piece] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    groundings: list[Grounding] = field(default_factory=list)
    problem: str = ""
    # Why there is no complete answer, in words for a person.
    ended: bool = False
    turn: Turn = field(default_factory=Turn)

    @property
    def model(self) -> str:
        """The model that answers, by its public name; empty where it was left to the service and isn't known yet."""
        completed = self.meter.completed
        return (completed.model if completed is not None else "") or self.asked.model

    @property
    def text(self) -> str:
        """All of the answer's text that has come."""
        return "".join(piece.text for piece in self.pieces if piece.kind == "text")

    @property
    def thoughts(self) -> str:
        """All of the model's thoughts that have come."""
        return "".join(piece.text for piece in self.pieces if piece.kind == "thought")

    def saw(self, arrival: Arrival) -> None:
        """Add what came."""
        message = arrival.message
        self.meter.saw(message, arrival.at)
        self.turn.saw(message)
        kind, text = _piece(message)
        if kind is not None and (text or kind != "thought"):
            self.pieces.append(Piece(kind, text, arrival.at - self.meter.asked_at))
        if message.HasField("tool_call"):
            self.tool_calls.append(message.tool_call.tool_call)
        if message.HasField("grounding"):
            self.groundings.append(message.grounding)

    def finish(self) -> None:
        """It has come to its end; it may still have been cut or blocked."""
        self.ended = True
        if self.meter.completed is not None:
            self.problem = ending(self.meter.completed)

    def fail(self, problem: str) -> None:
        """It ended before its time."""
        self.ended = True
        self.problem = problem

    def stop(self) -> None:
        """Nobody waits for the rest. Whatever ended before stays as it was."""
        if not self.ended:
            self.fail(STOPPED)


def pretty(value: Struct) -> str:
    """Give a JSON object as people read it."""
    return json.dumps(_whole(MessageToDict(value)), ensure_ascii=False, indent=2, sort_keys=True)


def response(text: str) -> dict[str, object]:
    """Give what a person wrote as a tool's response: a JSON object, or whatever it is under "result"."""
    try:
        value = json.loads(text, parse_constant=lambda _: text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"result": value}


def _whole(value: Any) -> Any:
    """Write 2 for 2.0: protobuf knows no whole numbers, but people do."""
    match value:
        case dict():
            return {key: _whole(one) for key, one in value.items()}
        case list():
            return [_whole(one) for one in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value


def _piece(message: GenerateResponse) -> tuple[Kind | None, str]:
    match message.WhichOneof("event"):
        case "text":
            return "text", message.text
        case "reasoning":
            return "thought", message.reasoning.text
        case "tool_call":
            return "tool call", pretty(message.tool_call.tool_call.arguments)
        case _:
            return None, ""


@dataclass(slots=True)
class Conversation:
    """The exchanges, oldest first."""

    exchanges: list[Exchange] = field(default_factory=list)

    def history(self, *, model: str, then: Message) -> list[Message]:
        """Give the turns that come before the message `then`, for a model to go on from.

        Questions without an answer are left out: users and models take turns, and nobody can follow up on nothing.
        So are tool calls that nobody answered, and the thoughts of another model, which mean nothing to this one.
        """
        turns: list[Message] = []
        for exchange in reversed(self.exchanges):
            answered = {part.tool_result.tool_call_id for part in then.parts if then.role == ROLE_TOOL}
            own = exchange.asked.model == model
            answer = Message(role=ROLE_MODEL, parts=_parts(exchange.turn.message, answered, own=own))
            if any(part.text.strip() or part.HasField("tool_call") for part in answer.parts):
                then = exchange.question
                turns[:0] = [then, answer]
        return turns


def _parts(answer: Message, answered: Collection[str], *, own: bool) -> Iterator[Part]:
    for part in answer.parts:
        kind = part.WhichOneof("data")
        if (kind == "reasoning" and not own) or (kind == "tool_call" and part.tool_call.id not in answered):
            continue
        if own:
            yield part
        else:
            unsigned = Part()
            unsigned.CopyFrom(part)
            unsigned.ClearField("reasoning_signature")
            yield unsigned
