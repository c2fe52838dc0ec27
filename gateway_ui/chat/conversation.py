"""What was asked and answered on the page: a tree of exchanges, of which one path is shown. Drawn elsewhere."""

import uuid
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from tokenwire import Turn
from tokenwire.cli.meter import Meter
from tokenwire.endings import shortfall
from tokenwire.v1.content_pb2 import ROLE_MODEL, ROLE_TOOL, Message, Part, ToolCall
from tokenwire.v1.generation_service_pb2 import GenerateRequest, GenerateResponse, Grounding

from .words import one_line, pretty

STOPPED = "Stopped: this answer is incomplete."
NOT_BEGUN = "Stopped before it began."
UNSEEN = "Stopped, since no tab showed it any more: this answer is incomplete."
UNSEEN_NOT_BEGUN = "Stopped before it began, since no tab showed it any more."
INTERRUPTED = "Interrupted: this answer is incomplete."
"""The problem of an answer that was kept while it ran and whose end never came: the page's process died before."""

UNTITLED = "New conversation"

_HEADING_LENGTH = 60
"""Characters of a question that stand for a title."""

Kind = Literal["text", "thought", "tool call"]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message and when it came, in seconds of time.monotonic()."""

    message: GenerateResponse
    at: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of the answer."""

    kind: Kind
    text: str
    # Of a tool call: its arguments as JSON.
    after: float
    # Seconds since the question.


def new_id() -> str:
    """Make an id that no other conversation or exchange has: 32 hexadecimal digits."""
    return uuid.uuid4().hex


# Compared by identity: two exchanges may say the same.
@dataclass(slots=True, eq=False)
class Exchange:
    """A question and its answer, while it comes and afterwards. One thread adds to it; others may read meanwhile."""

    question: Message
    # A user's turn, or the results of tool calls.
    asked: GenerateRequest
    # What else the request said: model, system instruction, settings. No messages.
    meter: Meter
    follows_up: bool = False
    # Whether it brought earlier turns along.
    names: list[str] = field(default_factory=list)
    # Of the question's files, in their order; a request holds none.
    pieces: list[Piece] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    groundings: list[Grounding] = field(default_factory=list)
    problem: str = ""
    # Why there is no complete answer, in words for a person.
    ended: bool = False
    # Set last. Once it is true, nothing else of the exchange changes.
    turn: Turn = field(default_factory=Turn)
    id: str = field(default_factory=new_id)
    parent: "Exchange | None" = field(default=None, repr=False)
    # The exchange before; exchanges with the same parent are alternatives. Set by Conversation.add.
    arrivals: list[Arrival] = field(default_factory=list, repr=False)
    # Everything that came, as it came: all of the answer follows from it, so this is what is stored.

    @property
    def complete(self) -> bool:
        """Whether the answer came to its proper end: it neither runs nor was cut, stopped or blocked."""
        return self.ended and not self.problem

    @property
    def answer(self) -> Message:
        """The answer so far, as a turn of the model's. May be read while another thread adds to it."""
        if self.ended:
            return self.turn.message
        # `turn` may be between two states.
        turn = Turn()
        for arrival in self.arrivals[:]:
            turn.saw(arrival.message)
        return turn.message

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
        self.arrivals.append(arrival)
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
        if self.meter.completed is not None:
            said, called = bool(self.text.strip()), bool(self.tool_calls)
            self.problem = shortfall(self.meter.completed, said=said, called=called, thought=self.meter.thinking)
        self.ended = True

    def fail(self, problem: str) -> None:
        """It ended before its time."""
        self.problem = problem
        self.ended = True

    def catch_up(self, other: "Exchange") -> None:
        """Add what the same exchange has elsewhere; both were loaded."""
        for arrival in other.arrivals[len(self.arrivals) :]:
            self.saw(arrival)
        self.problem = other.problem

    def stop(self, *, unseen: bool = False) -> None:
        """Nobody waits for the rest; `unseen`: as nobody looks. Whatever ended before stays as it was."""
        begun = bool(self.pieces or self.tool_calls)
        if not self.ended and unseen:
            self.fail(UNSEEN if begun else UNSEEN_NOT_BEGUN)
        elif not self.ended:
            self.fail(STOPPED if begun else NOT_BEGUN)


@dataclass(slots=True, eq=False)
class Waiting:
    """A question that isn't asked yet: its turn hasn't come, or it can't be asked as it is."""

    message: Message
    trouble: str = ""
    """Why it can't be asked, in words for a person; empty: it can."""
    names: list[str] = field(default_factory=list)
    """Of the message's files."""
    files: list[tuple[str, bytes]] = field(default_factory=list)
    """Names and bytes of files that don't go along: refused, or not looked at yet."""
    unchecked: bool = False
    """Whether its files wait for a model to be known, which says what it takes."""
    refused: tuple[list[str], str] | None = field(default=None, kw_only=True)
    """The kinds of files that the model took for which these were refused, and why they were; None: it isn't known."""
    preparing: bool = field(default=False, kw_only=True)
    """Whether a thread looks at its files just now."""
    dropped: bool = field(default=False, kw_only=True)
    """Whether its owner has said not to ask it, which can be undone."""
    instead: Exchange | None = None
    """Asked before, as it is or in other words: it takes this one's place, which stays as an alternative."""
    id: str = field(default_factory=new_id)
    kept: bool = False
    """Whether the store has it: then only one process asks it."""

    @property
    def all_names(self) -> list[str]:
        """The names of all its files."""
        return [*self.names, *(name for name, _ in self.files)]


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


class Conversation:
    """A tree of exchanges. One path through it is shown, from a first question to an exchange with nothing below it."""

    def __init__(self, id: str = "", title: str = "") -> None:  # noqa: A002  # as an exchange calls it
        self.id = id or new_id()
        self.title = title
        """What a person called it; empty: nothing yet, and `name` is made of the first question."""
        self.settings: dict[str, Any] = {}
        """What the drawer says for it, by the names of its fields; as JSON can hold it."""
        self.exchanges: list[Exchange] = []
        """All of them in the order they were added, so each comes after its parent."""
        self._below: dict[Exchange | None, list[Exchange]] = {}
        """By parent: its alternatives, oldest first. None: the first questions."""
        self.shown: dict[Exchange | None, Exchange] = {}
        """By parent: which of its alternatives is shown, or was when the parent was. Changed by `add` and `show`."""

    @property
    def name(self) -> str:
        """The title; without one, the beginning of the first question that is shown. One line, never empty."""
        first = self.shown.get(None)
        return one_line(self.title) or (UNTITLED if first is None else heading(first.question, first.names))

    @property
    def last(self) -> Exchange | None:
        """The exchange at the end of what is shown: a new question goes after it."""
        path = self.path()
        return path[-1] if path else None

    def exchange(self, id: str) -> Exchange | None:  # noqa: A002  # as an exchange calls it
        """Give the exchange of this id; None: it is another conversation's."""
        return next((one for one in self.exchanges if one.id == id), None)

    def following(self, exchange: Exchange) -> Exchange | None:
        """Give the exchange that is shown behind this one; None: it is the last."""
        return self.shown.get(exchange)

    def has_answered(self, exchange: Exchange) -> bool:
        """Whether what is shown behind an answer brings the results of its tool calls."""
        following = self.following(exchange)
        return following is not None and following.question.role == ROLE_TOOL

    def path(self) -> list[Exchange]:
        """Give what is shown, oldest first."""
        path: list[Exchange] = []
        following = self.shown.get(None)
        while following is not None:
            path.append(following)
            following = self.shown.get(following)
        return path

    def add(self, exchange: Exchange, after: Exchange | None) -> None:
        """Put it after another, or at the beginning, and show it. What stood there stays as its alternative."""
        exchange.parent = after
        self.exchanges.append(exchange)
        self._below.setdefault(after, []).append(exchange)
        self.show(exchange)

    def merge(self, other: "Conversation") -> None:
        """Add what the same conversation has elsewhere, and show what is shown there. Nothing is taken away."""
        own = {one.id: one for one in self.exchanges}
        for one in other.exchanges:
            known = own.get(one.id)
            if known is None:
                own[one.id] = one
                self.add(one, None if one.parent is None else own[one.parent.id])
            elif known.problem == INTERRUPTED:
                # It runs on elsewhere, or has come to its end there.
                known.catch_up(one)
        # In one order everywhere. Others may be reading, so nothing is sorted in place.
        places = {one.id: place for place, one in enumerate(other.exchanges)}
        for every in (self.exchanges, *self._below.values()):
            every[:] = sorted(every, key=lambda one: places.get(one.id, len(places)))
        for parent, child in other.shown.items():
            self.shown[None if parent is None else own[parent.id]] = own[child.id]
        self.title, self.settings = other.title, other.settings

    def alternatives(self, exchange: Exchange) -> list[Exchange]:
        """Give the exchanges in the same place, oldest first, itself among them."""
        return list(self._below[exchange.parent])

    def show(self, exchange: Exchange) -> None:
        """Show it: the path that leads to it, and below it what was shown there the last time."""
        for one in (exchange, *_ancestors(exchange)):
            self.shown[one.parent] = one

    def history(self, *, model: str, then: Message, before: Exchange | None = None) -> list[Message]:
        """Give the turns that come before the message `then`, for a model to go on from.

        `then` stands at the end of what is shown, or in the place of the exchange `before`.

        Questions without an answer are left out: users and models take turns, and nobody can follow up on nothing.
        So are tool calls that nobody answered, and the thoughts of another model, which mean nothing to this one.
        """
        turns: list[Message] = []
        for exchange, answer in self._sent(model, then, before):
            turns[:0] = [exchange.question, answer]
        return turns

    def left_out(self) -> set[str]:
        """Give the ids of those shown exchanges that something follows and that `history` leaves out from now on."""
        path = self.path()
        if not path:
            return set()
        *earlier, last = path
        sent = {one.id for one, _ in self._sent(None, last.question, last)}
        return {one.id for one in earlier} - sent

    def _sent(self, model: str | None, then: Message, before: Exchange | None) -> Iterator[tuple[Exchange, Message]]:
        """The exchanges that `history` tells of, the last first, and what it tells of their answers.

        None: whichever model; each may be told its own thoughts then.
        """
        for exchange in reversed(self.path()) if before is None else _ancestors(before):
            answered = {part.tool_result.tool_call_id for part in then.parts if then.role == ROLE_TOOL}
            own = model in (None, exchange.asked.model)
            answer = Message(role=ROLE_MODEL, parts=_parts(exchange.answer, answered, own=own))
            if any(part.text.strip() or part.HasField("tool_call") for part in answer.parts):
                then = exchange.question
                yield exchange, answer


def heading(question: Message, names: Iterable[str] = ()) -> str:
    """Give the beginning of a question in one line, for a title; where it has no text, the name of what it holds.

    `names` are those of its files.
    """
    text = one_line(" ".join(part.text for part in question.parts))
    if len(text) > _HEADING_LENGTH:
        cut = text[: _HEADING_LENGTH - 1]
        # At the end of a word, unless that would leave little: Japanese has no spaces.
        words = cut.rpartition(" ")[0] if text[len(cut)] != " " else cut
        text = (words if len(words) > _HEADING_LENGTH // 2 else cut).rstrip() + "…"
    return text or next(filter(None, (*names, *map(_file, question.parts))), UNTITLED)


def _file(part: Part) -> str:
    match part.WhichOneof("data"):
        case "file_data":
            return one_line(part.file_data.file_uri.rstrip("/").rpartition("/")[2] or part.file_data.mime_type)
        case "inline_data":
            return one_line(part.inline_data.mime_type)  # a request holds no names of files
        case "tool_result":
            return one_line(f"Result of {part.tool_result.name}")
        case _:
            return ""


def _ancestors(exchange: Exchange) -> Iterator[Exchange]:
    """The exchanges that lead to it, nearest first."""
    while exchange.parent is not None:
        exchange = exchange.parent
        yield exchange


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
