"""What is remembered of a token changes what it costs, and never whether it is taken."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from joserfc import jwk, jwt

from service.admission import json_web_tokens
from service.admission.callers import Issuer
from service.admission.json_web_tokens import Refused, Tokens

KEYS: list[Any] = [jwk.ECKey.generate_key("P-256", parameters={"kid": "same", "use": "sig"}) for _ in range(3)]
SKEW = 60
RSA: Any = jwk.RSAKey.generate_key(2048, parameters={"kid": "theirs", "use": "sig"})


class Clock:
    """Both clocks, which go together."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


class World:
    """An issuer whose key is one of `KEYS`, all of one id, and who verifies its tokens."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._path = folder / "jwks.json"
        self._clock = clock
        self._issuer = Issuer(
            name="ours", issuer="https://issuer", audience=("here",), keys=str(self._path), algorithms=("ES256",)
        )
        self.tokens = Tokens((self._issuer,), lambda *_: None)
        self.key = 0
        self.change_key(0)

    def change_key(self, key: int) -> None:
        self.key = key
        self._path.write_text(json.dumps({"keys": [KEYS[key].as_dict(private=False)]}))
        for keys in self.tokens.keys.values():
            keys._look()

    def read_callers_anew(self) -> None:
        self.tokens = Tokens((self._issuer,), lambda *_: None, self.tokens)

    def is_taken(self, token: str) -> bool:
        try:
            self.tokens.verified(token)
        except Refused:
            return False
        return True


def signed(key: int, begins: float, ends: float) -> str:
    claims = {"iss": "https://issuer", "aud": "here", "sub": "a", "nbf": begins, "exp": ends}
    return jwt.encode({"alg": "ES256", "kid": "same"}, claims, KEYS[key], algorithms=["ES256"])


@pytest.fixture
def clock() -> Iterator[Clock]:
    clock = Clock()
    with (
        patch.object(json_web_tokens, "time", clock.time),
        patch.object(json_web_tokens, "monotonic", clock.time),
    ):
        yield clock


@pytest.fixture
def verifications() -> Iterator[list[str]]:
    """Tokens whose signatures were verified."""
    found: list[str] = []
    verify = json_web_tokens._verify

    def counted(token: str, *rest: Any) -> None:
        found.append(token)
        verify(token, *rest)

    with patch.object(json_web_tokens, "_verify", counted):
        yield found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("show"), st.integers(0, 5)),
        st.tuples(st.just("key"), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.sampled_from([0, 1, 29, 61, 200])),
        st.tuples(st.just("read anew"), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_a_token_is_taken_exactly_while_its_signature_and_its_time_are_right(tmp_path: Path, steps: Any) -> None:
    clock = Clock()
    begin = clock.now
    # Six tokens, of each key one that is valid at once, for five minutes, and one that is so after two minutes.
    made = [(key, begin + later, begin + later + 300) for key in range(3) for later in (0, 120 + SKEW)]
    tokens = [signed(*one) for one in made]
    with (
        patch.object(json_web_tokens, "time", clock.time),
        patch.object(json_web_tokens, "monotonic", clock.time),
    ):
        world = World(tmp_path, clock)
        for step, number in steps:
            if step == "show":
                key, begins, ends = made[number]
                in_time = begins - SKEW <= clock.now < ends + SKEW
                assert world.is_taken(tokens[number]) == (key == world.key and in_time)
            elif step == "key":
                world.change_key(number)
            elif step == "wait":
                clock.now += number
            else:
                world.read_callers_anew()


def test_a_wrong_token_is_verified_once_in_a_while(tmp_path: Path, clock: Clock, verifications: list[str]) -> None:
    world = World(tmp_path, clock)
    wrong = signed(1, clock.now, clock.now + 10_000)
    for _ in range(1_000):
        assert not world.is_taken(wrong)
    assert len(verifications) == 1
    clock.now += json_web_tokens._FORGED_SECONDS
    assert not world.is_taken(wrong)
    assert len(verifications) == 2
    world.change_key(1)
    assert world.is_taken(wrong)


def test_what_is_remembered_is_bounded_holds_no_token_and_pushes_no_right_one_out(
    tmp_path: Path, clock: Clock, verifications: list[str]
) -> None:
    world = World(tmp_path, clock)
    right = signed(0, clock.now, clock.now + 10_000)
    assert world.is_taken(right)
    head = signed(1, clock.now, clock.now + 10_000).rpartition(".")[0]
    with patch.object(json_web_tokens, "_MOST_KNOWN", 50):
        for number in range(200):
            assert not world.is_taken(f"{head}.{number:086}")
    assert len(world.tokens._forged) == 50
    assert all(len(digest) == 32 for digest in world.tokens._forged)
    verifications.clear()
    assert world.is_taken(right)
    assert verifications == []


def test_a_token_outside_of_its_time_costs_no_verification(
    tmp_path: Path, clock: Clock, verifications: list[str]
) -> None:
    world = World(tmp_path, clock)
    for begins, ends in ((clock.now + 100, clock.now + 200), (clock.now - 200, clock.now - 100)):
        assert not world.is_taken(signed(0, begins, ends))
    assert verifications == []
    clock.now += 100
    assert world.is_taken(signed(0, clock.now, clock.now + 100))


def test_keys_that_change_while_a_token_is_verified_are_asked_the_next_time(tmp_path: Path, clock: Clock) -> None:
    """Whichever way the two cross: a wrong token isn't kept out, and one of a key that is revoked isn't let in."""
    world = World(tmp_path, clock)
    verify = json_web_tokens._verify
    old, new = (signed(key, clock.now, clock.now + 10_000) for key in (0, 1))

    for token, taken in ((new, True), (old, False)):
        world.change_key(0)

        def crossed(token: str, *rest: Any) -> None:
            world.change_key(1)
            verify(token, *rest)

        with patch.object(json_web_tokens, "_verify", crossed):
            world.is_taken(token)
        assert world.is_taken(token) is taken


@pytest.mark.parametrize(
    ("claim", "claims", "why"),
    [
        ("email", {"email": "billing@project.iam.gserviceaccount.com", "email_verified": True}, ""),
        ("email", {"email": "billing@project.iam.gserviceaccount.com", "email_verified": False}, "isn't verified"),
        ("email", {"email": "billing@project.iam.gserviceaccount.com", "email_verified": "true"}, "isn't verified"),
        ("email", {"email": "billing@project.iam.gserviceaccount.com"}, "isn't verified"),
        ("email", {"email_verified": True}, "names nobody"),
        ("sub", {"sub": "system:serviceaccount:search:default", "kubernetes.io": {"namespace": "search"}}, ""),
        ("sub", {"sub": ""}, "names nobody"),
    ],
)
def test_googles_tokens_and_those_of_kubernetes_name_whom_they_are_about(
    tmp_path: Path, claim: str, claims: dict[str, Any], why: str
) -> None:
    """As both make them: Google's with an email that has to be verified, those of Kubernetes for several audiences."""
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [RSA.as_dict(private=False)]}))
    issuer = Issuer(
        name="theirs", issuer="https://theirs", audience=("here",), keys=str(path), algorithms=("RS256",), claim=claim
    )
    tokens = Tokens((issuer,), lambda *_: None)
    for keys in tokens.keys.values():
        keys._look()
    now = int(time.time())
    whole = {"iss": "https://theirs", "aud": ["here", "there"], "iat": now, "exp": now + 3600} | claims
    token = jwt.encode({"alg": "RS256", "kid": "theirs"}, whole, RSA, algorithms=["RS256"])
    if why:
        with pytest.raises(Refused, match=why):
            tokens.verified(token)
    else:
        assert tokens.verified(token).name == claims[claim]
