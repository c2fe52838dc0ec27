"""What somebody else's server wrote as JSON: each value may be missing, null or of another type than it should be.

A value that must be right to be told is asked for with its place, which the UPSTREAM_FAULT names. What is empty,
null or false says nothing, whatever it should have been, so nothing is lost by reading past it. No I/O.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .. import errors

Json = Mapping[str, Any]

_INDEX = re.compile(r"[0-9]{1,9}", re.ASCII)


def json_object(value: Any, place: str) -> Json:
    """The object. Raises UpstreamFault for anything else."""
    if not isinstance(value, Mapping):
        raise fault(place)
    return value


def json_list(value: Any, place: str) -> Sequence[Any]:
    """The list, empty for what says nothing. Raises UpstreamFault for anything else."""
    if not value:
        return ()
    if not isinstance(value, list | tuple):
        raise fault(place)
    return value


def text_of(value: Any, place: str) -> str:
    """The text, empty for what says nothing. Raises UpstreamFault for anything else."""
    if not value:
        return ""
    if not isinstance(value, str):
        raise fault(place)
    return value


def index_of(value: Any) -> int | None:
    """The place in a list, be it told as 1.0 or "1"; None for anything else."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and _INDEX.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def plain(value: Any) -> str:
    """The text; empty for what is none, where nothing is lost by that."""
    try:
        return value if isinstance(value, str) and value.encode() else ""
    except UnicodeEncodeError:
        return ""


def sound(text: str, place: str) -> str:
    """The text. Raises UpstreamFault for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise fault(place) from None
    return text


def joined(text: str) -> str:
    """With the halves of surrogate pairs that have met made one character."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def fault(place: str) -> errors.UpstreamFault:
    """For what stands at this place."""
    return errors.UpstreamFault(
        f"The model's server answered with a chunk whose {place} is nothing that can be read", metadata={"field": place}
    )


def is_object(value: Any) -> bool:
    """Whether it is one of JSON."""
    return isinstance(value, Mapping)


def object_or_empty(value: Any) -> Mapping[str, Any]:
    """The object; an empty one for what is none, where nothing is lost by that."""
    return value if isinstance(value, Mapping) else {}


def list_or_empty(value: Any) -> Sequence[Any]:
    """The list; an empty one for what is none, where nothing is lost by that."""
    return value if isinstance(value, list) else ()
