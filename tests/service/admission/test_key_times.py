"""How long a wrong key takes tells nothing of a right one: by construction, since a busy machine proves no times.

All that is ever compared is the SHA-256 of the whole key, which who guesses can't steer; and each wrong key takes the
same steps. What it takes is measured by `python -m bench.refusals.key_times`.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.refusals import key_times
from service.admission import api_keys
from service.admission.identity import Identity


class Context:
    def __init__(self, key: str) -> None:
        self._key = key

    def invocation_metadata(self) -> Any:
        return (("authorization", f"Bearer {self._key}"),)

    def auth_context(self) -> Any:
        return {}


class Asked(Mapping[str, api_keys.Key]):
    """Keys by their hashes; keeps what it was asked for."""

    def __init__(self, known: Mapping[str, api_keys.Key]) -> None:
        self._known = known
        self.by: list[str] = []

    def __getitem__(self, key: str) -> api_keys.Key:
        self.by.append(key)
        return self._known[key]

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("nobody may go through them: that would take as long as it finds something")

    def __len__(self) -> int:
        return len(self._known)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "keys")


def test_only_the_hash_of_the_whole_key_is_ever_looked_up(path: str) -> None:
    secret = api_keys.new(path, "app")[1]
    identity = Identity(keys=path)
    asked = Asked(identity._known.keys)
    identity._known = identity._known._replace(keys=asked)
    wrong = [secret[:-1] + "-", secret[:-1], secret + "a", secret.lower(), "tw_", "x"]
    assert identity.proof(Context(secret))[1] == ""
    for key in wrong:
        assert identity.proof(Context(key))[1] == "unknown key"
    assert asked.by == [api_keys.hashed(key) for key in (secret, *wrong)]
    assert {len(one) for one in asked.by} == {64}


def steps(identity: Identity, key: str) -> list[tuple[str, int]]:
    """The lines of ours that run until this key is refused."""
    found: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if "admission" not in frame.f_code.co_filename or "test" in frame.f_code.co_filename:
            return None
        if event == "line":
            found.append((frame.f_code.co_name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert identity.proof(Context(key))[1] == "unknown key"
    finally:
        sys.settrace(before)
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(same=st.integers(0, 45), junk=st.text(st.sampled_from("ABCabc012_-"), min_size=1, max_size=60))
def test_every_wrong_key_takes_the_same_steps(path: str, same: int, junk: str) -> None:
    """However much of a right one it begins with, and whether it was one once."""
    Path(path).unlink(missing_ok=True)
    secret = api_keys.new(path, "app")[1]
    gone, revoked = api_keys.new(path, "gone")
    api_keys.revoke(path, gone.id)
    identity = Identity(keys=path)
    one = steps(identity, revoked)
    assert len(one) > 5
    assert steps(identity, f"{secret[:same]}{junk}!") == one


def test_the_bench_tells_kinds_apart_where_they_can_be(tmp_path: Path) -> None:
    assert key_times.longer([3, 3, 3], [1, 2]) == 1
    assert key_times.longer([1, 2], [3, 3, 3]) == 0
    assert key_times.longer([1, 2, 3], [1, 2, 3]) == 0.5
    identity, makers = key_times.kinds(tmp_path)
    found = key_times.measured(identity, makers, 20)
    assert {len(values) for values in found.values()} == {20}
    assert len(list(key_times.told(found))) == 6
