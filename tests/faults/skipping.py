"""Skips a test where this machine can't make the surroundings that it is about."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.faults.forkserver import Refused


@contextmanager
def skipped_where_refused(what: str) -> Iterator[None]:
    """`what` this machine has to allow, and a test can't do without: there is nothing of ours left to test then."""
    try:
        yield
    except Refused as refused:
        pytest.skip(f"needs {what}, which this machine does not allow: {refused}")
