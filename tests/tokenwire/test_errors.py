import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from hypothesis import given
from hypothesis import strategies as st

from service.admission import quotas
from service.errors import UpstreamError, UpstreamFault
from service.providers import failures
from service.providers.chat_completions import failures as chat_failures
from service.providers.gemini import vertex_failures
from tests.tokenwire.fake_service import Refusal, completed
from tokenwire import errors
from tokenwire.endings import ENDINGS, ending
from tokenwire.errors import TokenwireError
from tokenwire.statuses import explain, put
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.words import WORDS, Words

CODES = [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK]


class Failed(grpc.RpcError, grpc.Call):
    """An RpcError as a stub raises it."""

    def __init__(self, refusal: Refusal, trailers: tuple[tuple[str, Any], ...] | None = None) -> None:
        self._refusal = refusal
        self._trailers = refusal.status().trailing_metadata if trailers is None else trailers

    def code(self) -> grpc.StatusCode:
        return self._refusal.code

    def details(self) -> str:
        return self._refusal.message

    def trailing_metadata(self) -> Any:
        return self._trailers

    def initial_metadata(self) -> Any: ...
    def add_callback(self, callback: Any) -> Any: ...
    def cancel(self) -> Any: ...
    def is_active(self) -> Any: ...
    def time_remaining(self) -> Any: ...


def told(
    code: grpc.StatusCode, reason: str = "", *details: Message, domain: str = "tokenwire", **known: Any
) -> TokenwireError:
    return explain(Failed(Refusal(code, reason, details=details, domain=domain)), address="host:1", **known)


def tree(kind: type[TokenwireError], depth: int = 0) -> Iterator[tuple[int, str]]:
    yield depth, kind.__name__
    for child in kind.__subclasses__():
        yield from tree(child, depth + 1)


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    lines = re.findall(r"^    ([│├└─ ]*)(\w+Error)\b", errors.__doc__ or "", re.MULTILINE)
    drawn = {(len(branches) // 4, name) for branches, name in lines}
    assert drawn == set(tree(TokenwireError))


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
@pytest.mark.parametrize("reason", ["", "A_REASON_OF_TOMORROW"])
def test_every_status_code_has_words_and_a_class(code: grpc.StatusCode, reason: str) -> None:
    error = told(code, reason)
    assert type(error) is not TokenwireError
    assert (error.code, error.said) == (code, "words of the service")
    assert str(error).endswith(".")
    assert not set(str(error)) & set("{}_")
    assert "  " not in str(error)


def test_every_reason_of_the_page_has_words_of_its_own() -> None:
    # What these say, the words of their code say as well.
    plain = {"INVALID_FIELD", "MALFORMED_REQUEST", "CALLER_DEADLINE"}
    page = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    told = re.findall(r"^\| ([A-Z_]+) \| `([A-Z_]+)` \|", page, re.MULTILINE)
    assert {reason for code, reason in told if (getattr(grpc.StatusCode, code), reason) not in WORDS} == plain


@pytest.mark.parametrize(("key", "words"), WORDS.items(), ids=lambda one: str(one)[:40])
def test_every_row_of_the_table_is_a_plain_sentence(key: tuple[grpc.StatusCode, str], words: Words) -> None:
    error = put(*key, address="host:1", said="words of the service")
    assert type(error) is words.error
    assert str(error)[0].isupper()
    assert not set(str(error)) & set("{}_")
    assert len(str(error)) < 160


@pytest.mark.parametrize(
    ("code", "reason", "wanted"),
    [
        ("INVALID_ARGUMENT", "EMPTY_PROMPT", errors.InvalidRequestError),
        ("INVALID_ARGUMENT", "INVALID_FIELD", errors.InvalidRequestError),
        ("NOT_FOUND", "MODEL_NOT_FOUND", errors.UnknownModelError),
        ("UNAUTHENTICATED", "", errors.NotAllowedError),
        ("PERMISSION_DENIED", "", errors.NotAllowedError),
        ("RESOURCE_EXHAUSTED", "SERVER_BUSY", errors.BusyError),
        ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", errors.BusyError),
        ("RESOURCE_EXHAUSTED", "UPSTREAM_QUOTA", errors.BusyError),
        ("FAILED_PRECONDITION", "UPSTREAM_CREDENTIALS", errors.ServiceError),
        ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE", errors.UnavailableError),
        ("UNAVAILABLE", "UPSTREAM_CUT", errors.IncompleteError),
        ("UNAVAILABLE", "DRAINING", errors.UnavailableError),
        ("UNAVAILABLE", "QUOTAS_UNAVAILABLE", errors.UnavailableError),
        ("DEADLINE_EXCEEDED", "CALLER_DEADLINE", errors.DeadlineError),
        ("DEADLINE_EXCEEDED", "FIRST_CHUNK_TIMEOUT", errors.DeadlineError),
        ("DEADLINE_EXCEEDED", "IDLE_TIMEOUT", errors.DeadlineError),
        ("INTERNAL", "INTERNAL", errors.ServiceError),
    ],
)
def test_each_error_of_the_contract_has_its_class(code: str, reason: str, wanted: type[TokenwireError]) -> None:
    assert type(told(grpc.StatusCode[code], reason)) is wanted


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (2.0, "2 s"), (2.4, "3 s")])
def test_busy_says_when_to_try_again(seconds: float, said: str) -> None:
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    error = told(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", RetryInfo(retry_delay=delay))
    assert str(error) == f"The service is busy. Try again in {said}."
    assert error.retry_after == pytest.approx(seconds)


def test_busy_without_a_delay_names_none() -> None:
    assert str(told(grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY")).endswith("Try again in a moment.")


def test_every_refused_field_is_named() -> None:
    refused = BadRequest(
        field_violations=[
            BadRequest.FieldViolation(field="config.top_p", description="is 2; wanted above 0.0, up to 1.0"),
            BadRequest.FieldViolation(field="messages[1].role", description="messages[1].role is a user's again"),
        ]
    )
    assert str(told(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", refused)) == (
        "The service refused the request. "
        "config.top_p is 2; wanted above 0.0, up to 1.0; messages[1].role is a user's again."
    )


@pytest.mark.parametrize(
    ("field", "description", "words"),
    [
        ("messages[0].parts[0].text", "is empty: text is wanted", "messages[0].parts[0].text is empty: text is wanted"),
        ("messages", "hold 3 parts in all", "messages hold 3 parts in all"),
        ("prompt", "the request has 9 bytes", "prompt: the request has 9 bytes"),
        ("", "is wrong", "is wrong"),
    ],
)
def test_a_violation_is_a_sentence(field: str, description: str, words: str) -> None:
    assert str(errors.Violation(field, description)) == words


def test_all_verbs_of_the_services_rules_are_known() -> None:
    files = [*(Path(__file__).parents[2] / "service" / "contract").glob("*.py")]
    texts = re.findall(r"Violation\([^,()]+(?:\([^)]*\))?,\s*f?[\"'](\w+)", "\n".join(one.read_text() for one in files))
    assert len(texts) > 40
    assert {text for text in texts if text not in errors._VERBS} <= {"the"}


FAULT: tuple[grpc.StatusCode, tuple[type[UpstreamError], str]] = (
    grpc.StatusCode.INTERNAL,
    (UpstreamFault, "{who} failed"),
)

UPSTREAM = [
    (kind.code, kind.reason, (words or {}).get(code, text).format(who=who))
    for who, words in (("Vertex AI", vertex_failures._WORDS), ("OpenAI", chat_failures._WORDS), ("Other", None))
    for code, (kind, text) in [*failures._TABLE.items(), FAULT]
]
"""All that the service says of its providers' failures, but for a few odd ones."""

OTHERS = [
    (grpc.StatusCode.INTERNAL, "INTERNAL", "The server failed; its log knows more under id 0a1b"),
    (grpc.StatusCode.INTERNAL, "UPSTREAM_FAULT", "The model answered with bytes that are no valid message"),
    (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "Model 'gpt' is not on offer: one of a, b is wanted"),
    (grpc.StatusCode.NOT_FOUND, "SERVICE_UNKNOWN", "This server has no such service; leave the name empty"),
    (grpc.StatusCode.UNIMPLEMENTED, "NOT_SERVED", "OpenAI does not count the tokens of a request to gpt"),
    (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "QUOTA_EXCEEDED",
        "This caller has 4 streams open, all that one caller may have; let one end first",
    ),
    (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "SERVER_BUSY",
        "All 9 streams of this server are taken; ask again in a moment",
    ),
    (grpc.StatusCode.UNAVAILABLE, "DRAINING", "The server is going away; ask another one, or again in a moment"),
    (
        grpc.StatusCode.UNAVAILABLE,
        "QUOTAS_UNAVAILABLE",
        "What this caller has used can't be found out; ask again in a moment",
    ),
    (grpc.StatusCode.UNAVAILABLE, "STARTING", "The server is starting; ask again in a moment"),
]


@pytest.mark.parametrize(("code", "reason", "said"), [*UPSTREAM, *OTHERS], ids=lambda one: str(one)[:60])
def test_nothing_is_said_twice(code: grpc.StatusCode, reason: str, said: str) -> None:
    sentences = re.split(r"(?<=[.]) (?=[A-Z])", str(explain(Failed(Refusal(code, reason, said)), address="host:1")))
    of_the_matter = [one for one in sentences if not one.startswith("Try again")]
    assert len(of_the_matter) == 1
    if WORDS[code, reason].unsaid:
        assert of_the_matter == [f"{said}."]
        unsaid = explain(Failed(Refusal(code, reason, "")), address="host:1")
        assert str(unsaid).startswith(WORDS[code, reason].text.removesuffix(" {again}"))


def test_jargon_of_the_transport_is_kept_from_people() -> None:
    jargon = Refusal(grpc.StatusCode.UNAVAILABLE, message="failed to connect to all addresses; last error: ipv4")
    error = explain(Failed(jargon), address="localhost:50051")
    assert str(error) == "The service is not running at localhost:50051. Start it with `tokenwire serve`."
    assert error.said == jargon.message


def test_a_reason_of_another_domain_is_not_ours() -> None:
    error = told(grpc.StatusCode.UNAVAILABLE, "DRAINING", domain="proxy.example")
    assert error.reason == errors.NOT_CONNECTED


@pytest.mark.parametrize("trailer", [b"\xff\xff", b""], ids=["no protobuf", "another status"])
def test_unreadable_details_leave_the_code(trailer: bytes) -> None:
    failed = Failed(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED), trailers=(("grpc-status-details-bin", trailer),))
    assert type(explain(failed, address="host:1")) is errors.BusyError


def test_a_cut_answer_says_how_much_had_come() -> None:
    one = told(grpc.StatusCode.INTERNAL, "INTERNAL", started=True, pieces=1)
    assert str(one).endswith("The answer was cut after 1 piece; what you see is incomplete.")
    assert one.pieces == 1
    assert "cut" not in str(told(grpc.StatusCode.INTERNAL, "INTERNAL", started=True))


@pytest.mark.parametrize("reason", pb.FinishReason.values(), ids=pb.FinishReason.Name)
def test_every_finish_reason_but_stop_has_words(reason: pb.FinishReason.ValueType) -> None:
    assert (reason in ENDINGS) == (reason != pb.FINISH_REASON_STOP)
    assert bool(ending(completed(reason))) == (reason != pb.FINISH_REASON_STOP)


def test_a_finish_reason_of_tomorrow_keeps_the_providers_word() -> None:
    reason = pb.FinishReason.ValueType(99)
    assert ending(pb.Completed(finish_reason=reason, upstream_finish_reason="BORED")).endswith("(BORED)")


def test_a_request_beyond_grpcs_limit_is_too_large_and_not_to_be_tried_again() -> None:
    words = "SERVER: Received message larger than max (7340070 vs. 6291456)"
    error = explain(Failed(Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, message=words)), address="localhost:50051")
    assert type(error) is errors.InvalidRequestError
    assert str(error) == ("The request is too large: it has 7.4 MB, history included, and the service takes 6.2 MB.")
    assert (error.reason, error.said) == (errors.REQUEST_TOO_LARGE, words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [("CLIENT: Received message larger than max (7 vs. 6)", ""), ("Received message larger than max (7 vs. 6)", "X")],
)
def test_an_answer_beyond_it_or_words_of_the_service_are_not_taken_for_that(words: str, reason: str) -> None:
    refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, reason, message=words)
    assert type(explain(Failed(refusal), address="localhost:50051")) is errors.BusyError


@given(
    quota=st.sampled_from(["requests_per_minute", "tokens_per_minute", "tokens_per_day"]),
    limit=st.integers(0, 10**9),
    seconds=st.floats(0.001, 86_400),
)
def test_when_to_come_again_is_said_once(quota: str, limit: int, seconds: float) -> None:
    """In the service's words for callers that read no details, and here as the delay."""
    refused = f"This caller {quotas._REFUSALS[quota].format(limit)}"
    said = f"{refused}{quotas._again(quota, seconds)}"
    assert "; again in " in said
    delay = Duration()
    delay.FromNanoseconds(int(seconds * 1e9))
    refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED", said, (RetryInfo(retry_delay=delay),))
    explained = str(explain(Failed(refusal), address="host:1"))
    assert re.fullmatch(rf"{re.escape(refused)}\. Try again in [0-9]+ (s|minutes|hours)\.", explained)
