"""Whose trace a call belongs to, as W3C writes it: https://www.w3.org/TR/trace-context/."""

import re
from collections.abc import Iterable
from contextvars import ContextVar

HEADER = "traceparent"

_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", re.ASCII)

CARRIED: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("carried", default=())
"""What the attempt that is being made sends upstream, so that its trace goes on there: headers, in small letters."""


def trace_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Of the trace that the caller names in a call's metadata; empty: none that can be read."""
    for name, value in metadata:
        if name == HEADER and (found := _FORM.fullmatch(str(value))):
            return found[1]
    return ""
