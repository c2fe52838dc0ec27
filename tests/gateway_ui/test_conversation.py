import pytest
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import ROLE_MODEL, ROLE_USER

from gateway_ui.conversation import STOPPED, Conversation, Exchange
from gateway_ui.meter import Meter
from gateway_ui.pump import Arrival
from gateway_ui.typewriter import Typewriter
from tests.gateway_ui.fake_service import completed


def exchange(*texts: str, end: pb.Completed | None = None) -> Exchange:
    """An exchange asked at 10 s, with a piece each second from then on."""
    one = Exchange("Why?", Meter(asked_at=10))
    at = 10.0
    for at, text in enumerate(texts, 11):
        one.saw(Arrival(pb.GenerateResponse(text=text), at))
    if end is not None:
        one.saw(Arrival(pb.GenerateResponse(completed=end), at + 1))
        one.finish()
    return one


# ---- the conversation


def test_the_history_takes_turns() -> None:
    talk = Conversation([exchange("One", " two.", end=completed()), exchange("Three.", end=completed())])
    assert [(turn.role, turn.parts[0].text) for turn in talk.history()] == [
        (ROLE_USER, "Why?"),
        (ROLE_MODEL, "One two."),
        (ROLE_USER, "Why?"),
        (ROLE_MODEL, "Three."),
    ]


def test_a_question_without_an_answer_is_left_out_of_the_history() -> None:
    failed = exchange()
    failed.fail("The service is busy.")
    blank = exchange("\n", end=completed())
    assert not list(Conversation([failed, blank]).history())


def test_half_an_answer_stays_in_the_history() -> None:
    stopped = exchange("Half")
    stopped.stop()
    assert [turn.parts[0].text for turn in Conversation([stopped]).history()] == ["Why?", "Half"]


def test_a_piece_knows_when_it_came() -> None:
    assert [(piece.text, piece.after) for piece in exchange("a", "b").pieces] == [("a", 1), ("b", 2)]


def test_a_complete_answer_has_no_problem() -> None:
    one = exchange("All.", end=completed())
    assert (one.ended, one.problem) == (True, "")


def test_stopping_marks_the_answer_incomplete() -> None:
    one = exchange("Half")
    one.stop()
    assert (one.ended, one.problem) == (True, STOPPED)


def test_stopping_after_the_end_changes_nothing() -> None:
    one = exchange("All.", end=completed())
    one.stop()
    assert one.problem == ""


def test_an_answer_that_was_cut_by_its_limit_says_so() -> None:
    assert "token limit" in exchange("Half", end=completed(pb.FINISH_REASON_MAX_TOKENS)).problem


def test_an_empty_answer_says_so() -> None:
    assert exchange(end=completed()).problem == "The answer is empty."


# ---- its figures


def test_while_nothing_has_come_the_wait_is_told() -> None:
    assert list(exchange().meter.figures(12.5)) == ["waiting 2.5 s"]


def test_while_it_runs_characters_are_counted() -> None:
    assert list(exchange("abcd", "efgh").meter.figures(14)) == ["first chunk 1.00 s", "2 chunks", "2 characters/s"]


def test_at_the_end_tokens_are_counted() -> None:
    assert list(exchange("a", end=completed(output_tokens=20)).meter.figures()) == [
        "first chunk 1.00 s",
        "1 chunk",
        "10 tokens/s",
        "5 tokens in, 20 out",
    ]


def test_unknown_tokens_are_not_invented() -> None:
    end = pb.Completed(finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(exact=False))
    assert list(exchange("abcd", end=end).meter.figures()) == ["first chunk 1.00 s", "1 chunk", "2 characters/s"]


def test_thoughts_are_counted_apart() -> None:
    end = completed()
    end.usage.reasoning_tokens = 9
    assert list(exchange("a", end=end).meter.figures())[-1] == "5 tokens in, 7 out, 9 thought"


# ---- the typewriter


def test_without_smoothing_everything_is_shown_at_once() -> None:
    assert Typewriter(0).advance(1000, 0, seconds_per_letter=0) == 1000


def test_a_short_text_is_shown_at_the_pace_that_was_asked_for() -> None:
    writer = Typewriter(0)
    shown = [writer.advance(10, frame * 0.1, seconds_per_letter=0.05) for frame in range(6)]
    assert shown == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("letters_per_second", [10, 600, 20_000])
def test_it_is_never_far_behind(letters_per_second: int) -> None:
    writer, shown, available = Typewriter(0), 0, 0
    for frame in range(1, 300):
        available = int(frame * 0.03 * letters_per_second)
        before, shown = shown, writer.advance(available, frame * 0.03, seconds_per_letter=0.02)
        assert before <= shown <= available
    assert available - shown <= letters_per_second * 1.1
    frames = 0
    while shown < available:
        frames += 1
        shown = writer.advance(available, 9 + frames * 0.03, seconds_per_letter=0.02)
    assert frames * 0.03 < 10


def test_a_pause_is_not_made_up_for_in_one_go() -> None:
    writer = Typewriter(0)
    assert writer.advance(0, 0, seconds_per_letter=0.02) == 0
    assert writer.advance(40, 60, seconds_per_letter=0.02) == 5
