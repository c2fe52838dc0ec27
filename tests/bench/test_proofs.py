"""What a proof costs is measured of proofs that are taken."""

from pathlib import Path

import pytest

from bench.refusals import proofs
from bench.refusals.key_times import Shown


def test_each_kind_of_proof_is_taken_and_measured(tmp_path: Path) -> None:
    identity, calls = proofs.kinds(tmp_path, 3)
    found = proofs.measured(identity, calls)
    assert len(found) == 3
    assert all(len(values) == 3 and min(values) > 0 for values in found.values())
    with pytest.raises(ValueError, match="was not taken"):
        proofs.measured(identity, {"a wrong key": [Shown("tw_wrong")]})
