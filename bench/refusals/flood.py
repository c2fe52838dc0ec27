"""`python -m bench.refusals.flood`: what a call without a good token costs, and whom a flood holds up. Five minutes.

Fifty streams of a caller with a key, 20 chunks a second each, alone and beside a flood of 2,000 calls a second that are
all refused, in turn. The cost of a refused call is what the server's processes take more than in the rounds before and
after, where the streams are alone. Writes nothing.
"""

import argparse
import base64
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from joserfc import jwk, jwt

from bench.__main__ import SERVICE, at, warm
from bench.figures import Spread
from bench.processes import BenchError, started
from bench.scenarios import INTERVAL, Bench, Peer, finished, load, loading
from bench.scenarios import QUICK as SIZE
from bench.script import Script
from bench.targets import Tokenwire, few, now
from service.admission import api_keys
from tokenwire.v1 import generation_service_pb2 as pb

METHOD = Tokenwire.method
STREAMS, CONNECTIONS = 50, 16
RATE = 2000
SECONDS = 6.0
LEAD_SECONDS = 2.0
LIMIT = 1.2
"""Times the gap without a flood."""

CALLERS = """
[issuers.ours]
issuer = "https://issuer.example"
audience = "tokenwire"
keys = "{jwks}"
algorithms = ["RS256"]
[callers.app]
api_keys = ["app"]
"""


def tokens(folder: Path) -> Mapping[str, list[str]]:
    """What the flood shows, by what is wrong with it; and the issuer's keys, into a file."""
    ours, other = (jwk.RSAKey.generate_key(2048, parameters={"kid": "a", "use": "sig"}) for _ in range(2))
    (folder / "jwks.json").write_text(json.dumps({"keys": [ours.as_dict(private=False)]}))
    now_seconds = int(time.time())
    claims = {"iss": "https://issuer.example", "aud": "tokenwire", "sub": "app", "exp": now_seconds + 36_000}
    forged = jwt.encode({"alg": "RS256", "kid": "a"}, claims, other, algorithms=["RS256"])
    none = ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (b'{"alg":"none"}', b"{}", b""))
    return {
        "no token": [],
        "two tokens": ["Bearer a", "Bearer b"],
        "an unknown key": ["Bearer tw_" + "A" * 43],
        "a malformed token": ["Bearer a.b.c"],
        "a token with alg none": [f"Bearer {none}"],
        "a forged token": [f"Bearer {forged}"],
    }


def refused(address: str, authorization: Sequence[str]) -> None:
    """Raise BenchError unless a call with it is refused as it should be: the flood doesn't read why."""
    metadata = [("authorization", value) for value in authorization]
    with grpc.insecure_channel(address) as channel:
        stub: Any = channel.unary_stream(METHOD)
        call = stub(pb.GenerateRequest(prompt="hi").SerializeToString(), metadata=metadata)
        if call.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise BenchError(f"a call of the flood ended with {call.code()}: {call.details()}")


def round_(bench: Bench, secret: str, authorization: Sequence[str] | None) -> dict[str, Any]:
    """The streams, and the flood beside them unless it is None."""
    peer, process = bench.peers["tokenwire"]
    begin = now() + LEAD_SECONDS
    streams = {
        "what": "streams",
        "streams": STREAMS,
        "chunks": int((SECONDS + 2) / INTERVAL),
        "interval": INTERVAL,
        "spread": 1.0,
        "connections": CONNECTIONS,
        "begin": begin,
        "look_at": (begin + 1.5, begin + 1.5 + SECONDS - 0.5),
        "target": {"kind": peer.kind, "address": process.address, "token": secret},
        "server": process.tree,
        "upstream": bench.upstream.tree,
    }
    if authorization is None:
        return load(streams)
    flood = {
        "what": "flood",
        "address": process.address,
        "method": METHOD,
        "authorization": list(authorization),
        "message": pb.GenerateRequest(prompt=f"hi {Script(chunks=1)}").SerializeToString().hex(),
        "rate": RATE,
        "seconds": SECONDS + 2,
        "connections": CONNECTIONS,
        "begin": begin + 0.5,
    }
    with loading(flood) as second:
        result = load(streams)
        text, _ = second.communicate(timeout=60)
    flooded = finished(second.returncode, text)
    result["errors"] |= flooded["errors"]
    return result | {"per_second": flooded["per_second"]}


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one kind of flood."""

    name: str
    alone: Spread
    """Gap p99 in ms of each round without a flood; and with it."""
    beside: Spread
    rate: float
    us: float

    @property
    def holds(self) -> bool:
        """By the best rounds: on a machine that others use too, the rest tells of those."""
        return self.beside.low <= LIMIT * self.alone.low

    def told(self) -> str:
        return (
            f"{self.name:22} {self.rate:5.0f}/s {self.us:4.0f} us a refused call   gap p99 {self.alone.told(1)} -> "
            f"{self.beside.told(1)} ms; best to best {self.beside.low / self.alone.low:.2f} x, at most {LIMIT} x"
        )


def measured(bench: Bench, secret: str, kinds: Mapping[str, list[str]], rounds: int) -> list[Row]:
    """Each kind of flood in turn."""
    rows = []
    for name, authorization in kinds.items():
        refused(bench.peers["tokenwire"][1].address, authorization)
        alone: list[dict[str, Any]] = []
        beside: list[dict[str, Any]] = []
        for number in range(2 * rounds + 1):
            flooded = bool(number % 2)
            result = round_(bench, secret, authorization if flooded else None)
            if result["errors"]:
                raise BenchError(f"{name}: {few(result['errors'])}")
            (beside if flooded else alone).append(result)
        rows.append(Row(name, _gaps(alone), _gaps(beside), *_cost(alone, beside)))
        print(rows[-1].told(), flush=True)
    return rows


def _gaps(found: Sequence[dict[str, Any]]) -> Spread:
    return Spread.of([INTERVAL * 1e3 + one["look_at_gap_over_ms"]["p99"] for one in found])


def _cost(alone: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Refused calls a second, and the CPU of one in microseconds."""
    cores = [statistics.median(one["cores"]["server"] for one in found) for found in (alone, beside)]
    rate = statistics.median(one["per_second"] for one in beside)
    return rate, (cores[1] - cores[0]) / rate * 1e6


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; gives 1 where the limit isn't held."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.refusals.flood", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--workers", default="1", help="of the server (default: 1)")
    parser.add_argument("--rounds", type=int, default=5, help="with each kind of flood (default: 5)")
    parser.add_argument("--kinds", nargs="+", default=[], help="which floods, by a part of their names")
    told = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as name:
        folder = Path(name)
        kinds = tokens(folder)
        (folder / "callers.toml").write_text(CALLERS.format(jwks=folder / "jwks.json"))
        _, secret = api_keys.new(str(folder / "keys"), "app")
        flags = (
            "--workers",
            told.workers,
            "--api-keys",
            str(folder / "keys"),
            "--callers",
            str(folder / "callers.toml"),
        )
        with (
            started("upstream", "-m", "bench.upstream") as upstream,
            started("tokenwire", *at((*SERVICE, *flags), upstream.address)) as process,
        ):
            peer = Peer("tokenwire", "tokenwire", "tokenwire", SERVICE, token=secret)
            bench = Bench(SIZE, upstream, {"tokenwire": (peer, process)})
            warm(bench, "tokenwire")
            wanted = {one: kinds[one] for one in kinds if not told.kinds or any(part in one for part in told.kinds)}
            rows = measured(bench, secret, wanted, told.rounds)
    return int(not all(row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
