"""`python -m bench.refusals.key_times`: whether the time of a refusal tells how near a key was. A few seconds.

10,000 tries of each kind in turn, without a network, which would only hide it: keys that are right but for their last
character, keys that were revoked, and keys that never were. Told is how often a try of one kind takes longer than one
of another; 50 % of the time says that nobody can tell them apart. Writes nothing.
"""

import gc
import random
import secrets
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.figures import percentile
from service.admission import api_keys
from service.admission.identity import Identity

TRIES = 10_000
KEYS = 100


class Shown:
    """A call that shows this key or token."""

    def __init__(self, token: str) -> None:
        self._metadata = (("user-agent", "bench"), ("authorization", f"Bearer {token}"))

    def invocation_metadata(self) -> Any:
        return self._metadata

    def auth_context(self) -> Any:
        return {}


def kinds(folder: Path) -> tuple[Identity, Mapping[str, Callable[[], str]]]:
    """A server's identity, and by kind how a key of it is made."""
    path = str(folder / "keys")
    made = [api_keys.new(path, f"caller-{number}") for number in range(KEYS)]
    for key, _ in made[KEYS // 2 :]:
        api_keys.revoke(path, key.id)
    known, revoked = ([secret for _, secret in half] for half in (made[: KEYS // 2], made[KEYS // 2 :]))

    def near() -> str:
        secret = random.choice(known)
        return secret[:-1] + ("A" if secret[-1] != "A" else "B")

    return Identity(keys=path), {
        "right but for its end": near,
        "revoked": lambda: random.choice(revoked),
        "never made": lambda: api_keys.PREFIX + secrets.token_urlsafe(32),
    }


def measured(identity: Identity, makers: Mapping[str, Callable[[], str]], tries: int) -> Mapping[str, list[int]]:
    """Nanoseconds of each try, by kind."""
    found: dict[str, list[int]] = {kind: [] for kind in makers}
    order = [kind for kind in makers for _ in range(tries)]
    random.shuffle(order)
    # Made beforehand, and alike: what has just been made is nearer to the processor.
    calls = [(kind, Shown(makers[kind]())) for kind in order]
    for kind, context in calls:
        begin = time.perf_counter_ns()
        _, why = identity.proof(context)
        found[kind].append(time.perf_counter_ns() - begin)
        if why != "unknown key":
            raise ValueError(f"a key that is {kind} was not refused: {why!r}")
    return found


def longer(one: list[int], other: list[int]) -> float:
    """How often one of the first takes longer than one of the second, of all pairs; the same is half."""
    ranks = sorted((value, index < len(one)) for index, value in enumerate([*one, *other]))
    total, at = 0.0, 0
    while at < len(ranks):
        end = at
        while end < len(ranks) and ranks[end][0] == ranks[at][0]:
            end += 1
        total += sum(first for _, first in ranks[at:end]) * (at + 1 + end) / 2
        at = end
    return (total - len(one) * (len(one) + 1) / 2) / (len(one) * len(other))


def told(found: Mapping[str, list[int]]) -> Iterator[str]:
    for kind, values in found.items():
        yield f"{kind:22} p50 {percentile(values, 50) / 1e3:5.2f} us   p99 {percentile(values, 99) / 1e3:5.2f} us"
    names = list(found)
    for index, one in enumerate(names):
        for other in names[index + 1 :]:
            yield f"{one} takes longer than {other}: {longer(found[one], found[other]):.1%}"


def main() -> int:
    """Run it and print."""
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as folder:
        identity, makers = kinds(Path(folder))
        measured(identity, makers, 500)  # the first are slower
        gc.disable()
        for line in told(measured(identity, makers, TRIES)):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
