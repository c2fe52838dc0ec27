"""`python -m bench.refusals.proofs`: what it costs a request that its caller has to prove who it is. A few seconds.

CPU of `Identity.proof`, by kind of proof, in one process without a network: an API key, a signed token that was seen
before, and one that is seen for the first time, whose signature has to be verified. Writes nothing.
"""

import gc
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from joserfc import jwk, jwt

from bench.figures import percentile
from bench.refusals.flood import CALLERS
from bench.refusals.key_times import Shown
from service.admission import api_keys
from service.admission.identity import Identity

TRIES = 2_000


def kinds(folder: Path, tries: int) -> tuple[Identity, Mapping[str, Sequence[Shown]]]:
    """A server's identity, and by kind what so many calls show."""
    key = jwk.RSAKey.generate_key(2048, parameters={"kid": "a", "use": "sig"})
    (folder / "jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    (folder / "callers.toml").write_text(
        CALLERS.format(jwks=folder / "jwks.json").replace("[callers.app]", '[callers.app]\ntokens.ours = ["app"]')
    )
    _, secret = api_keys.new(str(folder / "keys"), "app")
    claims = {"iss": "https://issuer.example", "aud": "tokenwire", "sub": "app", "exp": int(time.time()) + 36_000}
    tokens = [
        jwt.encode({"alg": "RS256", "kid": "a"}, claims | {"jti": str(number)}, key, algorithms=["RS256"])
        for number in range(tries + 1)
    ]
    identity = Identity(keys=str(folder / "keys"), callers=str(folder / "callers.toml"))
    for keys in identity._known.tokens.keys.values():  # noqa: SLF001 - a server does so beside its calls
        keys._look()  # noqa: SLF001 - likewise
    identity.proof(Shown(tokens[-1]))
    return identity, {
        "an API key": [Shown(secret)] * tries,
        "a token, RS256, seen before": [Shown(tokens[-1])] * tries,
        "a token, RS256, first seen": [Shown(token) for token in tokens[:-1]],
    }


def measured(identity: Identity, calls: Mapping[str, Sequence[Shown]]) -> Mapping[str, list[float]]:
    """Microseconds of CPU of each proof, by kind. Raises ValueError for one that isn't taken."""
    found: dict[str, list[float]] = {}
    for kind, several in calls.items():
        found[kind] = []
        for call in several:
            begin = time.thread_time_ns()
            proof = identity.proof(call)
            found[kind].append((time.thread_time_ns() - begin) / 1e3)
            if proof.caller.name != "app":
                raise ValueError(f"{kind} was not taken: {proof.refused}")
    return found


def main() -> int:
    """Run it and print."""
    with tempfile.TemporaryDirectory(prefix="tokenwire-bench-") as folder:
        identity, calls = kinds(Path(folder), TRIES)
        gc.disable()
        for kind, values in measured(identity, calls).items():
            print(f"{kind:30} p50 {percentile(values, 50):6.1f} us   p99 {percentile(values, 99):6.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
