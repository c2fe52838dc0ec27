"""The flood does what it says: so many calls, each answered, and refused for what it shows."""

import time
from pathlib import Path

import pytest

from bench.refusals import flood as bench_flood
from bench.refusals.flooding import flood
from service.admission import api_keys
from service.testing import FakeProvider
from tests.conftest import Serve
from tests.service.calls.test_servicer import HELLO
from tokenwire.v1 import generation_service_pb2 as pb

WHY = {
    "no token": "no token",
    "two tokens": "several tokens",
    "an unknown key": "unknown key",
    "a malformed token": "it is no token",
    "a token with alg none": "its issuer is unknown",
    "a forged token": "its signature is wrong",
}


@pytest.mark.parametrize("kind", WHY)
async def test_each_call_of_a_flood_is_answered_and_refused(
    serve: Serve, tmp_path: Path, lines: list[str], kind: str
) -> None:
    keys = str(tmp_path / "keys")
    api_keys.new(keys, "app")
    shown = bench_flood.tokens(tmp_path)
    assert shown.keys() == WHY.keys()
    callers = tmp_path / "callers.toml"
    callers.write_text(bench_flood.CALLERS.format(jwks=tmp_path / "jwks.json"))
    served = await serve(FakeProvider(HELLO), api_keys=keys, callers=str(callers))
    told = {
        "address": served.address,
        "method": bench_flood.METHOD,
        "authorization": shown[kind],
        "message": pb.GenerateRequest(prompt="hi").SerializeToString().hex(),
        "rate": 200,
        "seconds": 0.2,
        "connections": 2,
        "begin": time.monotonic(),
    }
    result = await flood(told)
    assert result["errors"] == {}
    assert result["ended"] == result["sent"] >= 30
    why = [line.partition("refused='")[2].partition("'")[0] for line in lines if "refused=" in line]
    assert len(why) == min(result["sent"], 100)
    assert set(why) == {WHY[kind]}
