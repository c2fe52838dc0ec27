"""Skips a test where this machine can't make the surroundings that it is about."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.forkserver import Refused


@contextmanager
def skipped_where_refused(what: str) -> Iterator[None]:
    """Around what can't be had everywhere: `what`, and who can have it."""
    try:
        yield
    except Refused as refused:
        pytest.skip(f"the fault can't be made without {what}; the kernel said: {refused}")
