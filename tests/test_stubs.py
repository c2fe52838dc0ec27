"""The committed stubs are those of the protos."""

from pathlib import Path

from tests import stubs


def test_the_committed_stubs_are_current(tmp_path: Path) -> None:
    fresh = {path.relative_to(tmp_path): path.read_bytes() for path in stubs.generate(tmp_path)}
    committed = {path.relative_to(stubs.ROOT): path.read_bytes() for path in stubs.committed()}
    assert fresh.keys() == committed.keys()
    stale = sorted(str(path) for path in fresh if fresh[path] != committed[path])
    assert not stale, f"stale: run `make protos` and commit {stale}"
