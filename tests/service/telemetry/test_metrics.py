"""What a call and its attempts leave in the metrics."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import reasons
from service.telemetry.call_record import CallRecord
from service.telemetry.metrics import Metrics
from service.telemetry.numbers import OTHER

ABOUT = ("chat", "gcp.vertex_ai", "flash", "flash")


def metrics_of(**more: Any) -> Metrics:
    return Metrics({"flash": "gcp.vertex_ai", "gpt": "openai"}, reasons=reasons(), **more)


def counts(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """By metric and labels: the value, of a histogram how often it was observed; without what is 0."""
    told = {}
    for number in metrics.all:
        values = {one.labels: one.buckets[-1][1] if one.buckets else one.value for one in number.samples()}
        if values := {labels: value for labels, value in values.items() if value}:
            told[number.name] = values
    return told


def generated(**facts: Any) -> CallRecord:
    return CallRecord("Generate", **{"model": "flash", **facts})


def test_a_whole_answer() -> None:
    metrics = metrics_of()
    facts = {"messages": 4, "first": 0.2, "tokens_in": 5, "tokens_out": 7, "tokens_reasoning": 3}
    metrics.ended(generated(**facts), "OK")
    assert counts(metrics) == {
        "rpc_server_call_duration_seconds": {("tokenwire.v1.GenerationService/Generate", "OK"): 1},
        "gen_ai_server_request_duration_seconds": {(*ABOUT, ""): 1},
        "gen_ai_server_time_to_first_token_seconds": {ABOUT: 1},
        "gen_ai_server_time_per_output_token_seconds": {ABOUT: 1},
        "gen_ai_client_token_usage": {(*ABOUT, "input"): 1, (*ABOUT, "output"): 1},
        "tokenwire_special_tokens_total": {("flash", "reasoning"): 3},
        "tokenwire_messages_total": {("flash",): 4},
    }


@pytest.mark.parametrize(
    ("record", "code", "told"),
    [
        (
            generated(reason="UPSTREAM_CUT", messages=2),
            "UNAVAILABLE",
            {
                "gen_ai_server_request_duration_seconds": {(*ABOUT, "UPSTREAM_CUT"): 1},
                "tokenwire_errors_total": {("UPSTREAM_CUT",): 1},
                "tokenwire_messages_total": {("flash",): 2},
            },
        ),
        (
            generated(cause="deadline"),
            "CANCELLED",
            {
                "gen_ai_server_request_duration_seconds": {(*ABOUT, "CANCELLED"): 1},
                "tokenwire_cancellations_total": {("deadline",): 1},
            },
        ),
        (
            CallRecord("Generate", reason="MODEL_NOT_FOUND"),
            "NOT_FOUND",
            {"tokenwire_errors_total": {("MODEL_NOT_FOUND",): 1}},
        ),
        (
            CallRecord("Generate", reason="UNAUTHENTICATED", refused="no token"),
            "UNAUTHENTICATED",
            {"tokenwire_errors_total": {("UNAUTHENTICATED",): 1}, "tokenwire_unauthenticated_total": {(): 1}},
        ),
    ],
    ids=["cut", "cancelled", "refused", "unproven"],
)
def test_every_other_ending(record: CallRecord, code: str, told: dict[str, Any]) -> None:
    metrics = metrics_of()
    metrics.ended(record, code)
    rpc = {"rpc_server_call_duration_seconds": {("tokenwire.v1.GenerationService/Generate", code): 1}}
    assert counts(metrics) == rpc | told


def test_another_model_that_answered_is_told_beside_the_one_that_was_asked() -> None:
    metrics = metrics_of(fallback="gpt")
    metrics.ended(generated(model="gpt", asked="flash"), "OK")
    assert counts(metrics)["gen_ai_server_request_duration_seconds"] == {("chat", "openai", "flash", "gpt", ""): 1}


WORDS = st.text(max_size=5) | st.sampled_from(["flash", "Generate", "OK", "UPSTREAM_CUT", "caller"])
RECORDS = st.builds(
    CallRecord,
    method=WORDS,
    **dict.fromkeys(("model", "asked", "reason", "refused", "cause", "caller", "request_id", "host"), WORDS),
    **{
        name: st.none() | st.integers(0, 10**6)
        for name in ("messages", "tokens_in", "tokens_out", "tokens_cached", "tokens_reasoning")
    },
    first=st.none() | st.floats(0, 100),
)


@given(st.lists(st.tuples(RECORDS, WORDS), max_size=5))
def test_no_call_whatever_it_says_makes_a_label_that_was_not_known_before(
    calls: list[tuple[CallRecord, str]],
) -> None:
    metrics = metrics_of()
    known = {number.name: set(number._places) for number in metrics.all}
    for record, code in calls:
        metrics.ended(record, code)
    for number in metrics.all:
        assert {sample.labels for sample in number.samples()} <= known[number.name]
    (rpc,) = (number for number in metrics.all if number.name == "rpc_server_call_duration_seconds")
    assert sum(sample.buckets[-1][1] for sample in rpc.samples()) == len(calls)


def test_a_model_of_nobody_is_another_one() -> None:
    metrics = metrics_of()
    metrics.ended(generated(model="secret"), "OK")
    assert counts(metrics)["gen_ai_server_request_duration_seconds"] == {(OTHER,) * 5: 1}


def test_what_was_seen_of_redis_is_counted_once() -> None:
    metrics = metrics_of(redis=True)
    for losses, undecided in ((0, 0), (1, 4), (1, 4), (2, 9)):
        metrics.redis(up=True, losses=losses, undecided=undecided)
    assert counts(metrics) == {
        "tokenwire_redis_up": {("0",): 1},
        "tokenwire_redis_losses_total": {(): 2},
        "tokenwire_redis_undecided_total": {(): 9},
    }
