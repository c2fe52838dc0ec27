"""`reasoning_details`: what OpenRouter tells of thoughts, some of it encrypted, and wants back. No I/O.

A caller gets them as the signature of a thought: bytes that mean nothing to anybody but who made them.
Source: https://openrouter.ai/docs/guides/best-practices/reasoning-tokens#preserving-reasoning
"""

import json
from collections.abc import Mapping
from typing import Any

from ... import errors
from ...errors import Violation
from ..foreign_json import Json, fault, joined, json_list, json_object

FIELD = "reasoning_details"

_PLACE = f"choices.delta.{FIELD}"

_GROWS = {"reasoning.text": "text", "reasoning.summary": "summary"}
"""By type, the field that comes in pieces; an encrypted one comes whole."""


class Details:
    """The details of one answer, put together from pieces."""

    def __init__(self) -> None:
        self._pieces: list[list[Json]] = []
        """Of each detail."""

    def add(self, told: Any) -> None:
        """Take those of a delta. Raises UpstreamFault for what are none."""
        for one in json_list(told, _PLACE):
            if one is None:
                continue
            piece = json_object(one, _PLACE)
            if self._pieces and _continues(self._pieces[-1], piece):
                self._pieces[-1].append(piece)
            else:
                self._pieces.append([piece])

    def signature(self) -> bytes:
        """All of them; empty if there are none. Raises UpstreamFault for what couldn't be sent back."""
        if not self._pieces:
            return b""
        try:
            return _written(list(map(_whole, self._pieces)))
        except (ValueError, RecursionError):
            raise fault(_PLACE) from None


def back(signature: bytes) -> list[Any]:
    """The details, to be sent back. Raises InvalidRequest for what is no signature that was made here."""
    try:
        details = json.loads(signature)
        if isinstance(details, list) and all(isinstance(one, dict) for one in details):
            _written(details)
            return details
    except (ValueError, RecursionError):
        pass
    wrong = Violation("messages.parts.reasoning_signature", "is none that this model gave: send it back as it came")
    raise errors.InvalidRequest([wrong])


def words(told: Any) -> str:
    """Of the details in a delta: what can be read of them."""
    found = [one.get("text") or one.get("summary") for one in json_list(told, _PLACE) if isinstance(one, Mapping)]
    return "".join(one for one in found if isinstance(one, str))


def _continues(pieces: list[Json], piece: Json) -> bool:
    """Whether it goes on with the detail of these pieces, which its signature ends."""
    first, kind = pieces[0], piece.get("type")
    if (
        not isinstance(kind, str)
        or kind not in _GROWS
        or any(first.get(name) != piece.get(name) for name in ("type", "index"))
    ):
        return False
    return not (piece.get(_GROWS[kind]) and any(one.get("signature") for one in pieces))


def _whole(pieces: list[Json]) -> Json:
    if len(pieces) == 1:
        return pieces[0]
    whole = {name: value for one in pieces for name, value in one.items() if value is not None}
    grows = _GROWS[whole["type"]]
    told = [value for one in pieces if isinstance(value := one.get(grows), str)]
    return {**whole, grows: joined("".join(told))}


def _written(details: list[Any]) -> bytes:
    """As it leaves for upstream. Raises ValueError or RecursionError for what can't."""
    return json.dumps(details, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
