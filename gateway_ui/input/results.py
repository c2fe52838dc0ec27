"""What a person wrote as the result of a tool's call: read as it stands there, or told why it can't be sent so."""

from typing import Any

from . import pasted
from .pasted import PastedError

_AROUND_A_RESPONSE = 3
"""Messages that its Struct stands in, within a request."""


def unfit(text: str) -> str:
    """Say what of a tool's response can't be sent as it stands; empty: all can, or it is plain text.

    Only what begins like an object or an array is meant to be JSON.
    """
    if not text.lstrip().startswith(("{", "[")):
        return ""
    try:
        _read(text)
    except PastedError as error:
        return str(error)
    return ""


def response(text: str) -> dict[str, object]:
    """Give a tool's response as it is sent: a JSON object, or whatever it is under "result".

    What JSON could only be sent as something else, such as a number beyond 2^53, is plain text.
    """
    try:
        value = _read(text)
    except PastedError:
        value = text
    return value if isinstance(value, dict) else {"result": value}


def _read(text: str) -> Any:
    value = pasted.read(text)
    within = 0 if isinstance(value, dict) else 3
    pasted.refuse(pasted.value_mistakes(value, "", _AROUND_A_RESPONSE + within))
    return value
