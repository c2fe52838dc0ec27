"""Calls of tools that come in pieces, as servers of Chat Completions tell them. No I/O."""

import base64
import json
import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ... import errors
from ...generation.prompt import ToolCall
from ..foreign_json import Json, fault, index_of, joined, json_object, sound, text_of

_STANDARD = str.maketrans("-_", "+/")
"""From the alphabet for addresses, which Google's JSON may have as well."""


class _Call:
    """A call of a tool, as far as it has come."""

    __slots__ = ("arguments", "id", "index", "name", "object", "signature", "trails")

    def __init__(self, index: int | None, *, trails: bool) -> None:
        self.index = index
        self.trails = trails
        """Whether it began behind another of the same index: perhaps no more than that one's last, empty piece."""
        self.id = ""
        self.name = ""
        self.arguments = ""
        self.signature = b""
        self.object: Json | None = None
        """The arguments, from a server that tells them as JSON and not as its text."""

    @property
    def whole(self) -> bool:
        """Whether its arguments can be no longer."""
        if self.object is not None:
            return True
        # Parsed anew with each piece of some: only where they may have come to their end.
        return self.arguments.rstrip().endswith("}") and isinstance(_parsed(self.arguments), dict)

    def announces(self, other: "_Call") -> bool:
        """Whether it is but the beginning of another, which some say under an index of its own."""
        same = bool(self.id) and (self.id, self.name) == (other.id, other.name)
        return same and not self.has_arguments and other.has_arguments

    @property
    def has_arguments(self) -> bool:
        """Whether any were told, be it that there are none."""
        return self.object is not None or bool(self.arguments)


class Calls:
    """Calls of tools, put together from pieces."""

    def __init__(self, functions: Collection[str], *, signed: bool = False) -> None:
        """`functions` are the names of those that were declared; `signed`: Google's signatures are told."""
        self._functions = functions
        self._signed = signed
        self._calls: list[_Call] = []

    def add(self, piece: Json) -> None:
        """Raises UpstreamFault for what is no call of a function."""
        if piece.get("custom"):
            raise fault("choices.delta.tool_calls.custom")
        place = "choices.delta.tool_calls.function"
        function = json_object(piece.get("function") or {}, place)
        name = text_of(function.get("name"), f"{place}.name")
        identity = text_of(piece.get("id"), "choices.delta.tool_calls.id")
        arguments = function.get("arguments")
        if not isinstance(arguments, str | Mapping):
            if arguments:
                raise fault(f"{place}.arguments")
            arguments = None  # such as PHP's way to write an empty object: []
        index = index_of(piece.get("index"))
        call = self._of(index, identity, name, begins=arguments not in (None, ""))
        call.id = call.id or identity
        if name != call.name:
            call.name += name
        if self._signed:
            call.signature = call.signature or _signature(piece)
        if arguments in (None, "") or (arguments == {} and call.has_arguments):
            return
        if call.object == {}:
            call.object = None  # as much as "{}", which some say first
        if (call.arguments.strip() and not isinstance(arguments, str)) or call.object not in (None, arguments):
            raise fault(f"{place}.arguments")
        if isinstance(arguments, str):
            call.arguments += arguments
        else:
            call.object = arguments

    def whole(self) -> Iterator[ToolCall]:
        """Raises UpstreamFault for a call without a name, or whose arguments are no JSON object."""
        known: set[str] = set()
        for call in self._calls:
            if not (call.name or call.has_arguments) and (not call.id or call.trails):
                continue  # a server's way to say that there is none, or no more
            if any(map(call.announces, self._calls)):
                continue
            if not call.name:
                raise errors.UpstreamFault("The model asked for a function without saying which")
            arguments = call.object if call.object is not None else _arguments(joined(call.arguments).strip())
            if not isinstance(arguments, Mapping):
                raise errors.UpstreamFault("The model asked for a function with arguments that are no JSON object")
            # A call without an id of its own gets one made here: its result is sent back under an id.
            identity = sound(call.id, "choices.delta.tool_calls.id")
            if not identity or identity in known:
                identity = f"call_{uuid.uuid4().hex}"
            known.add(identity)
            name = sound(self._declared(call.name), "choices.delta.tool_calls.function.name")
            yield ToolCall(id=identity, name=name, arguments=dict(arguments), signature=call.signature)

    def _declared(self, name: str) -> str:
        """The function's name, without the model's control tokens where its server lets them through.

        https://github.com/vllm-project/vllm/issues/32587
        """
        plain = name.partition("<|")[0]
        return plain if plain in self._functions else name

    def _of(self, index: int | None, identity: str, name: str, *, begins: bool) -> _Call:
        """The call that a piece belongs to; `begins`: it brings arguments."""
        call = self._known(identity, name, index) if identity else self._open(index, name, begins=begins)
        if call is None:
            call = _Call(index, trails=not name and self._last(index) is not None)
            self._calls.append(call)
        return call

    def _known(self, identity: str, name: str, index: int | None) -> _Call | None:
        """A new id is a new call, whatever its index, unless it comes late to one that has none."""
        for call in reversed(self._calls):
            if call.id == identity and not self._another(call, name, index):
                other = name and call.name and not self._continues(call, name)
                return None if other else call
        last = self._last(index)
        if last is None or (last.id and (name or index is None)):
            return None
        # Its id comes late, or each piece has one of its own; behind a whole call there is nothing that it could go on.
        if last.whole and last.id:
            return None
        return last if not name or (name == last.name and not last.whole) else None

    def _another(self, call: _Call, name: str, index: int | None) -> bool:
        """Whether a piece under the same id begins another call: it has a name, and an index of its own."""
        if not name or None in (index, call.index) or index == call.index:
            return False
        return call.whole or not call.arguments.strip()

    def _open(self, index: int | None, name: str, *, begins: bool) -> _Call | None:
        """Without an id: the last call of this index, unless what comes is a call of its own.

        Without a name as well it is no beginning: some count the beginning of a call otherwise than the rest of it.
        """
        last = self._last(index)
        if last is None and not name and (begun := self._last(None)) is not None and not begun.whole:
            return begun
        if last is None or not name or not last.name:
            return last
        if name == last.name:  # some say it with each piece
            return None if last.whole and begins else last
        return last if self._continues(last, name) else None

    def _continues(self, call: _Call, name: str) -> bool:
        """Whether a name is said again, or goes on: only where both pieces together have been declared."""
        whole = call.name + name
        return name == call.name or (whole in self._functions and call.name not in self._functions)

    def _last(self, index: int | None) -> _Call | None:
        known = [call for call in self._calls if index is None or call.index in (index, None)]
        return known[-1] if known else None


def _signature(piece: Json) -> bytes:
    """Raises UpstreamFault for one that can't be read: without it, the call can't be sent back."""
    place = "choices.delta.tool_calls.extra_content"
    extra = json_object(piece.get("extra_content") or {}, place)
    told = text_of(json_object(extra.get("google") or {}, place).get("thought_signature"), place)
    padded = told.translate(_STANDARD) + "=" * (-len(told) % 4)
    try:
        return base64.b64decode(padded, validate=True)
    except ValueError:
        raise fault(place) from None


def _arguments(text: str) -> Any:
    """Some say {} before they say what it is, or nothing or null where there are none."""
    if text in ("", "null"):
        return {}
    whole = _parsed(text)
    if whole is None:
        whole = _parsed(text.removeprefix("{}"))
    return _said_again(text) if whole is None else whole


def _said_again(text: str) -> Any:
    """Some say the whole once more behind its pieces, or several times; None for anything else."""
    try:
        whole, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    times = len(text) // end
    return whole if text == text[:end] * times else None


def _parsed(text: str) -> Any:
    """The JSON; None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
