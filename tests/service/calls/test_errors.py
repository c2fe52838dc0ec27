"""What every error of a kind tells its caller."""

from collections.abc import Iterator

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo

from service import errors
from service.testing import FakeProvider
from tests.conftest import Serve, detail, failure


def kinds(above: type[errors.CallError] = errors.CallError) -> Iterator[type[errors.CallError]]:
    for kind in above.__subclasses__():
        yield kind
        yield from kinds(kind)


AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)
PASSING = [kind for kind in kinds() if getattr(kind, "code", None) in AGAIN]


def delays(error: errors.CallError) -> list[float]:
    """In seconds, of each RetryInfo."""
    info = RetryInfo()
    return [info.retry_delay.ToNanoseconds() / 1e9 for packed in error.status().details if packed.Unpack(info)]


def test_all_reasons_that_may_pass_are_looked_at() -> None:
    assert {kind.reason for kind in PASSING} == {
        "STARTING",
        "DRAINING",
        "QUOTAS_UNAVAILABLE",
        "SERVER_BUSY",
        "BUDGET_EXHAUSTED",
        "QUOTA_EXCEEDED",
        "UPSTREAM_QUOTA",
        "UPSTREAM_UNAVAILABLE",
        "UPSTREAM_CUT",
    }


@pytest.mark.parametrize("kind", PASSING, ids=lambda kind: kind.reason)
def test_what_may_pass_says_when_to_come_again(kind: type[errors.CallError]) -> None:
    (delay,) = delays(kind("x"))
    assert 1 <= delay <= 5
    assert kind("x").retry_after is None  # our own retry waits for what upstream asks, and for nothing else
    assert delays(kind("x", retry_after=0.25)) == [0.25]


@pytest.mark.parametrize("kind", [kind for kind in PASSING if issubclass(kind, errors.UpstreamError)])
async def test_callers_read_when_to_come_again_also_where_upstream_has_not_said(
    serve: Serve, kind: type[errors.UpstreamError]
) -> None:
    served = await serve(FakeProvider([kind("x")]))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask()
    assert failure(caught.value) == (kind.code, kind.reason)
    assert detail(caught.value, RetryInfo).retry_delay.seconds >= 1
