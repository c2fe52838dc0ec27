"""Workers follow the quota of a container, and not only its affinity."""

import os
import sys
from pathlib import Path

import pytest

from service.runtime.cores import cores

ALL = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has control groups")


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def group(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),
        ("10000 100000", 1),
        ("1600000 100000", 8),
        ("0 100000", 8),
        ("", 8),
        ("nonsense", 8),
        ("1 0", 8),
    ],
)
def test_version_2(tmp_path: Path, quota: str, count: int) -> None:
    group(tmp_path / "top", cpu__max=quota)
    (tmp_path / "mine").write_text("0::/\n")
    assert cores(cgroups=tmp_path / "top", mine=tmp_path / "mine") == count


def test_the_tightest_quota_on_the_way_up_counts(tmp_path: Path) -> None:
    group(tmp_path / "top", cpu__max="max 100000")
    group(tmp_path / "top/pods", cpu__max="300000 100000")
    group(tmp_path / "top/pods/ours", cpu__max="600000 100000")
    (tmp_path / "mine").write_text("0::/pods/ours\n")
    assert cores(cgroups=tmp_path / "top", mine=tmp_path / "mine") == 3


def test_a_path_of_the_host_that_is_not_there_is_the_top(tmp_path: Path) -> None:
    group(tmp_path / "top", cpu__max="200000 100000")
    (tmp_path / "mine").write_text("0::/kubepods/pod1/box\n")
    assert cores(cgroups=tmp_path / "top", mine=tmp_path / "mine") == 2


@pytest.mark.parametrize(("quota", "count"), [("400000", 4), ("-1", 8)])
def test_version_1(tmp_path: Path, quota: str, count: int) -> None:
    group(tmp_path / "top/cpu,cpuacct/box", cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us="100000\n")
    (tmp_path / "mine").write_text("5:memory:/box\n4:cpu,cpuacct:/box\n")
    assert cores(cgroups=tmp_path / "top", mine=tmp_path / "mine") == count


def test_where_nothing_is_told_affinity_counts(tmp_path: Path) -> None:
    assert cores(cgroups=tmp_path, mine=tmp_path / "none") == 8


def test_this_machine_has_at_least_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1 <= cores() <= ALL
