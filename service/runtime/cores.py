"""How many cores this process may use: by its affinity, and by the quota of the container that it runs in."""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MINE = Path("/proc/self/cgroup")


def cores(*, cgroups: Path = _CGROUPS, mine: Path = _MINE) -> int:
    """At least 1. A part of a core counts as one. `cgroups` and `mine` are where Linux tells of quotas."""
    if sys.platform != "linux":
        return os.cpu_count() or 1
    allowed = [float(len(os.sched_getaffinity(0))), *_quotas(cgroups, mine)]
    return max(1, math.ceil(min(allowed)))


def _quotas(cgroups: Path, mine: Path) -> Iterator[float]:
    """In cores: those of this process's control group and of all above it, in either version of control groups."""
    for line in _read(mine).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version_2 = (number, controllers) == ("0", "")
        if not version_2 and "cpu" not in controllers.split(","):
            continue
        top = cgroups if version_2 else cgroups / controllers
        group = top / path.strip("/")
        # In a container the path may be one of the host's, which isn't there.
        for folder in (group, *group.parents) if group.is_dir() else (top,):
            if version_2:
                yield from _part(_read(folder / "cpu.max"))
            else:
                yield from _part(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}")
            if folder == top:
                break


def _part(told: str) -> Iterator[float]:
    """Of "QUOTA PERIOD" in microseconds; nothing where there is no quota ("max", or -1)."""
    words = told.split()
    if len(words) == 2 and all(word.isdecimal() and int(word) for word in words):
        yield int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
