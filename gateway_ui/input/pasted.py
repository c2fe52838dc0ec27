"""Pasted JSON: read as it stands there, what of it can't be sent, and how mistakes are told, with their paths."""

import difflib
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

MOST_MISTAKES = 5
"""That are told at once."""

_MOST_NESTED = 100
"""Messages within each other that protobuf reads. In a Struct an object costs three of them, an array two."""
LARGEST_WHOLE = 2**53
"""A Struct has doubles only: beyond this they leave whole numbers out."""

_MOST_DIGITS = 17
"""A double keeps so many digits of a number, and other languages write as many."""

_LONGEST_KEY = 40
_LONGEST_PATH = 200
"""Characters of it that are told."""


class PastedError(ValueError):
    """What was pasted can't be used; each mistake is one of the words."""


def refuse(mistakes: Iterator[str]) -> None:
    """Raise PastedError with the first few mistakes, if there are any."""
    found = [*itertools.islice(mistakes, MOST_MISTAKES)]
    if found:
        raise PastedError(". ".join(found))


class Object(dict[str, Any]):
    """A JSON object."""

    twice: Sequence[str] = ()
    """Keys that it has more than once. Of each, the last value is kept."""


def read(text: str) -> Any:
    """Read JSON, also what Python takes for JSON and a Struct has no place for. Raises PastedError."""
    try:
        return json.loads(
            text, parse_int=_number, parse_float=_decimal, parse_constant=float, object_pairs_hook=_object
        )
    except RecursionError as error:
        raise PastedError("it is nested too deep; must be flatter") from error
    except json.JSONDecodeError as error:
        raise PastedError(f"it is no JSON: {error.msg}, line {error.lineno}, column {error.colno}") from error


def _number(digits: str) -> float:
    # Python reads no whole number of thousands of digits, and a double has room for none of these.
    return int(digits) if len(digits) < 20 else float(digits)


def _decimal(digits: str) -> float:
    kept = digits.lower().partition("e")[0].replace(".", "").lstrip("-0").rstrip("0")
    return float(digits) if len(kept) <= _MOST_DIGITS else Rounded(digits)


class Rounded(float):
    """A number that has more digits than a double keeps."""


def _object(pairs: Sequence[tuple[str, Any]]) -> Object:
    made = Object(pairs)
    if len(made) < len(pairs):
        made.twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    return made


def value_mistakes(value: Any, path: str, nested: int) -> Iterator[str]:
    """What of a value can't be sent, or not as it stands there. `nested`: in so many messages."""
    if nested + isinstance(value, dict | list) > _MOST_NESTED:
        yield f"{path[:60]}… is nested too deep; must be flatter"
    elif isinstance(value, dict):
        for key in getattr(value, "twice", ()):
            yield f"{at(path, key)} is there more than once; must be there once"
        for key, one in value.items():
            if not is_sound(key):
                yield f"{at(path, key)} is a key with half a character; must have its other half, too"
            yield from value_mistakes(one, at(path, key), nested + 3)
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from value_mistakes(one, at_index(path, index), nested + 2)
    else:
        yield from _simple_mistakes(value, path or "it")


def _simple_mistakes(value: Any, path: str) -> Iterator[str]:
    match value:
        case str() if not is_sound(value):
            yield f"{path} is text with half a character; must have its other half, too"
        case float() if math.isnan(value):
            yield f"{path} is NaN; must be a number"
        case Rounded():
            yield f"{path} is a number with too many digits; must have {_MOST_DIGITS} at most, or be text"
        case int() | float() if abs(value) > LARGEST_WHOLE:
            yield f"{path} is a number out of range; must be from -2^53 to 2^53"


def is_sound(text: str) -> bool:
    """Whether it holds no half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:  # a surrogate without its other half
        return False
    return True


def at(path: str, key: str) -> str:
    """The path of what stands under a key of what stands at `path`."""
    key = key if len(key) <= _LONGEST_KEY else f"{key[: _LONGEST_KEY - 1]}…"
    key = key.encode(errors="backslashreplace").decode()  # nobody can be told of half a character
    return cut(f"{path}.{key}" if path else key)


def at_index(path: str, index: int) -> str:
    """The path of one of the values of the array that stands at `path`."""
    return cut(f"{path}[{index}]")


def cut(path: str) -> str:
    """A path as it is told: a long one without its middle."""
    half = _LONGEST_PATH // 2
    return path if len(path) <= _LONGEST_PATH else f"{path[:half]}…{path[-half + 1 :]}"


def meant(key: str, known: Iterable[str]) -> str:
    """Which of the known keys may be meant; empty: none is near."""
    close = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def kind(value: Any) -> str:
    """What kind of JSON a value is, in words."""
    names = {bool: "true or false", str: "text", list: "an array", dict: "an object", type(None): "null"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), "a number")


def shown(value: Any) -> str:
    """A value in words: text and numbers themselves, of others the kind."""
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else f"{value[:39]}…")
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else kind(value)
