import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway_ui.chat.conversation import (
    STOPPED,
    UNTITLED,
    Arrival,
    Conversation,
    Exchange,
    heading,
)
from gateway_ui.chat.words import result_names
from gateway_ui.drawing.typewriter import Typewriter
from tests.tokenwire.fake_service import Said, completed, said, thought, tool_call
from tokenwire import file_uri, inline, model, tool, tool_result, user
from tokenwire.cli.meter import Meter
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import Message


def exchange(
    *steps: Said, end: pb.Completed | None = None, question: Message | None = None, model: str = ""
) -> Exchange:
    """An exchange asked at 10 s, with a piece each second from then on."""
    one = Exchange(question or user("Why?"), pb.GenerateRequest(model=model), Meter(asked_at=10))
    at = 10.0
    for at, message in enumerate(said(*steps)[1:], 11):
        one.saw(Arrival(message, at))
    if end is not None:
        one.saw(Arrival(pb.GenerateResponse(completed=end), at + 1))
        one.finish()
    return one


def conversation(*exchanges: Exchange, title: str = "") -> Conversation:
    """One that has never been retried or edited."""
    talk = Conversation(title=title)
    for one in exchanges:
        talk.add(one, talk.last)
    return talk


def history(*exchanges: Exchange, model: str = "", then: Message | None = None) -> list[Message]:
    return conversation(*exchanges).history(model=model, then=then or user("And?"))


def grown(steps: list[tuple[int, int]]) -> Conversation:
    """A tree: each step adds an exchange somewhere, or shows one that is there."""
    talk = Conversation()
    for kind, place in steps:
        places = [None, *talk.exchanges]
        chosen = places[place % len(places)]
        if kind == 0 and chosen is not None:
            talk.show(chosen)
        else:
            talk.add(exchange(f"{len(talk.exchanges)}", end=completed()), chosen)
    return talk


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=30)


# ---- the conversation


def test_the_history_takes_turns() -> None:
    first, second = exchange("One", " two.", end=completed()), exchange("Three.", end=completed())
    assert history(first, second) == [user("Why?"), model("One two."), user("Why?"), model("Three.")]


def test_a_question_without_an_answer_is_left_out_of_the_history() -> None:
    failed = exchange()
    failed.fail("The service is busy.")
    blank = exchange("\n", end=completed())
    only_thought = exchange(thought("Hm."))
    only_thought.stop()
    assert not history(failed, blank, only_thought)


def test_thoughts_go_back_to_the_model_that_had_them_with_their_signatures() -> None:
    answered = exchange(thought("Hm.", b"s"), "All.", end=completed(), model="a")
    assert history(answered, model="a")[1] == answered.turn.message
    assert history(answered, model="b")[1] == model("All.")


def test_tool_calls_go_back_with_their_results() -> None:
    called = exchange("Let me see.", tool_call("f", {}, b"s", "c-1"), end=completed())
    results = tool(tool_result(called.tool_calls[0], {"x": 1}))
    assert history(called, then=results) == [user("Why?"), called.turn.message]
    concluded = exchange("So it is.", end=completed(), question=results)
    assert history(called, concluded) == [user("Why?"), called.turn.message, results, model("So it is.")]


def test_tool_calls_that_nobody_answered_are_left_out() -> None:
    called = exchange("Let me see.", tool_call("f", {}), end=completed())
    silent = exchange(tool_call("f", {}), end=completed())
    assert history(called, silent) == [user("Why?"), model("Let me see.")]
    # Neither are those whose results led to nothing.
    failed = exchange(question=tool(tool_result(called.tool_calls[0], {})))
    failed.fail("The service is busy.")
    assert history(called, failed) == [user("Why?"), model("Let me see.")]


def test_another_models_tool_calls_lose_their_signatures() -> None:
    called = exchange(tool_call("f", {"a": 1}, b"s"), end=completed(), model="a")
    then = tool(tool_result(called.tool_calls[0], {}))
    (part,) = history(called, model="b", then=then)[1].parts
    assert (part.tool_call, part.reasoning_signature) == (called.tool_calls[0], b"")


def test_a_question_that_holds_files_goes_back_whole() -> None:
    question = user(inline(b"bytes", "image/png"), "What is this?")
    assert history(exchange("Blue.", end=completed(), question=question))[0] == question


def test_half_an_answer_stays_in_the_history() -> None:
    stopped = exchange("Half")
    stopped.stop()
    assert history(stopped) == [user("Why?"), model("Half")]


def test_a_piece_knows_when_it_came() -> None:
    pieces = exchange(thought("a"), "b", tool_call("f", {"x": 2}), "c").pieces
    assert [(piece.kind, piece.text, piece.after) for piece in pieces] == [
        ("thought", "a", 1),
        ("text", "b", 2),
        ("tool call", '{\n  "x": 2\n}', 3),
        ("text", "c", 4),
    ]


def test_text_and_thoughts_are_told_apart() -> None:
    one = exchange(thought("I "), thought("think."), "All", " of it.")
    assert (one.thoughts, one.text) == ("I think.", "All of it.")


def test_the_model_is_named_by_whom_it_was_asked_of_until_it_says_so_itself() -> None:
    assert exchange(model="a").model == "a"
    assert exchange("x", end=completed()).model == "fake-1"


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
    assert "is empty" in exchange(end=completed(pb.FINISH_REASON_EMPTY)).problem


@pytest.mark.parametrize("reason", [pb.FINISH_REASON_STOP, pb.FINISH_REASON_EMPTY])
def test_an_answer_of_thoughts_alone_says_that_it_is_empty(reason: pb.FinishReason.ValueType) -> None:
    one = exchange(thought("Hm."), end=completed(reason))
    assert (one.complete, one.problem) == (False, "The answer is empty: the model thought and said nothing.")


@pytest.mark.parametrize("reason", [pb.FINISH_REASON_STOP, pb.FINISH_REASON_EMPTY])
def test_an_answer_that_only_calls_a_tool_is_not_empty(reason: pb.FinishReason.ValueType) -> None:
    assert exchange(thought("Hm."), tool_call("f", {}), end=completed(reason)).problem == ""


# ---- its alternatives


def test_a_retry_keeps_the_earlier_answer() -> None:
    first, second, again = exchange("One."), exchange("Two."), exchange("Three.")
    talk = conversation(first, second)
    talk.add(again, second.parent)
    assert talk.path() == [first, again]
    assert talk.alternatives(second) == talk.alternatives(again) == [second, again]
    talk.show(second)
    assert talk.path() == [first, second]


def test_showing_an_exchange_shows_what_was_shown_below_it_the_last_time() -> None:
    first, below, other, edited = (exchange(text) for text in ("1", "2", "3", "4"))
    talk = conversation(first, below)
    talk.add(other, first)
    talk.show(below)
    talk.add(edited, None)
    assert talk.path() == [edited]
    talk.show(first)
    assert talk.path() == [first, below]
    # Also where it is itself in a branch that isn't shown.
    talk.show(edited)
    talk.show(other)
    assert talk.path() == [first, other]


def test_history_leads_to_a_place() -> None:
    first, second = exchange("One.", end=completed()), exchange("Two.", end=completed())
    talk = conversation(first, second)
    assert talk.history(model="", then=user("Anew?"), before=second) == [user("Why?"), model("One.")]
    assert talk.history(model="", then=user("Anew?"), before=first) == []
    # Of another branch than the shown one, too.
    talk.add(exchange("Other.", end=completed()), None)
    assert talk.history(model="", then=user("Anew?"), before=second) == [user("Why?"), model("One.")]
    assert talk.history(model="", then=user("Anew?")) == [user("Why?"), model("Other.")]


@given(STEPS)
def test_a_path_is_a_way_down_the_tree_and_nothing_is_lost(steps: list[tuple[int, int]]) -> None:
    talk = grown(steps)
    path = talk.path()
    assert [one.parent for one in path] == [None, *path][: len(path)]
    assert not path or not any(one.parent is path[-1] for one in talk.exchanges)
    assert bool(path) == bool(talk.exchanges)
    for one in talk.exchanges:
        assert talk.alternatives(one) == [other for other in talk.exchanges if other.parent is one.parent]


@given(STEPS, st.data())
def test_what_is_shown_stays_shown_below_wherever_one_looks_meanwhile(
    steps: list[tuple[int, int]], data: st.DataObject
) -> None:
    talk = grown([(1, 0), *steps])
    top = talk.path()[0]
    before = talk.path()
    for _ in range(3):
        others = [one for one in talk.exchanges if one.parent is None and one is not top]
        if others:
            talk.show(data.draw(st.sampled_from(others)))
            assert talk.path()[0] is not top
    talk.show(top)
    assert talk.path() == before


def test_ids_are_stable_and_differ() -> None:
    one, other = exchange(), exchange()
    assert one.id != other.id
    assert Conversation().id != Conversation().id
    assert Conversation("c").id == "c"


def test_an_answer_is_complete_only_at_its_proper_end() -> None:
    stopped = exchange("Half")
    assert not stopped.complete
    stopped.stop()
    assert not stopped.complete
    assert not exchange("Half", end=completed(pb.FINISH_REASON_MAX_TOKENS)).complete
    assert exchange("All.", end=completed()).complete


def test_an_answer_reads_the_same_while_it_runs_and_afterwards() -> None:
    one = exchange(thought("Hm."), "All", tool_call("f", {}), " of", " it.")
    running = one.answer
    one.stop()
    assert running == one.answer == one.turn.message


# ---- its name


def test_a_title_is_shown_as_it_is_on_one_line() -> None:
    assert conversation(exchange(), title=" My\ntitle ").name == "My title"


@pytest.mark.parametrize(
    ("question", "name"),
    [
        (user(" What is\n baseball? "), "What is baseball?"),
        (user("word " * 20), " ".join(["word"] * 12) + "…"),
        (user("野" * 70), "野" * 59 + "…"),
        (user("x" * 60), "x" * 60),
        (user(inline(b"x", "image/png"), "What is this?"), "What is this?"),
        (user(inline(b"x", "image/png"), " "), "image/png"),
        (user(file_uri("gs://b/some/report.pdf", "application/pdf")), "report.pdf"),
        (tool(tool_result(tool_call("look", {}).tool_call, {})), "Result of look"),
        (user(" "), UNTITLED),
    ],
)
def test_without_a_title_it_is_named_by_its_first_question(question: Message, name: str) -> None:
    assert conversation(exchange(question=question), exchange(), title=" ").name == name


def test_an_empty_conversation_has_a_name() -> None:
    assert Conversation().name == UNTITLED


@given(st.text(max_size=200))
@settings(max_examples=200)
def test_a_name_is_one_short_line(text: str) -> None:
    name = heading(user(text))
    assert 0 < len(name) <= 60
    assert len(name.splitlines()) == 1
    assert name.removesuffix("…") in " ".join(text.split()) + UNTITLED


# ---- its figures


def test_while_nothing_has_come_the_wait_is_told() -> None:
    assert list(exchange().meter.figures(12.5)) == ["waiting 2.5 s"]


def test_while_only_thoughts_have_come_that_is_told() -> None:
    assert list(exchange(thought("Hm.")).meter.figures(12.5)) == ["thinking 2.5 s"]


def test_cached_tokens_are_told() -> None:
    end = completed()
    end.usage.cached_tokens = 3
    assert list(exchange("a", end=end).meter.figures())[-1] == "5 tokens in (3 cached), 7 out"


def test_while_it_runs_characters_are_counted() -> None:
    assert list(exchange("abcd", "efgh").meter.figures(14)) == ["first chunk 1.00 s", "2 chunks", "2 characters/s"]


def test_at_the_end_tokens_are_counted() -> None:
    assert list(exchange("a", "b", end=completed(output_tokens=30)).meter.figures()) == [
        "first chunk 1.00 s",
        "2 chunks",
        "10 tokens/s",
        "5 tokens in, 30 out",
    ]


def test_unknown_tokens_are_not_invented() -> None:
    end = pb.Completed(finish_reason=pb.FINISH_REASON_STOP, usage=pb.Usage(exact=False))
    assert list(exchange("abcd", "ef", end=end).meter.figures()) == ["first chunk 1.00 s", "2 chunks", "2 characters/s"]


def test_large_numbers_are_told_in_thousands_and_one_is_one() -> None:
    end = completed(output_tokens=123_456)
    end.usage.input_tokens, end.usage.cached_tokens, end.usage.reasoning_tokens = 1, 1000, 2000
    figures = list(exchange(*["a"] * 1000, end=end).meter.figures())
    assert figures[1:] == ["1,000 chunks", "123 tokens/s", "1 token in (1,000 cached), 123,456 out, 2,000 thought"]
    end = pb.Completed(finish_reason=pb.FINISH_REASON_STOP)
    assert list(exchange("a" * 4_000, "b" * 4_000, end=end).meter.figures())[-1] == "2,667 characters/s"
    assert list(exchange("a", "b", "c", "d", end=pb.Completed()).meter.figures(14.4))[-1] == "1 character/s"


@pytest.mark.parametrize("end", [completed(output_tokens=300), pb.Completed()], ids=["tokens", "characters"])
@pytest.mark.parametrize("times", [[1.0], [1.0, 1.0], [1.0, 1.05]], ids=str)
def test_what_came_at_once_has_no_rate(times: list[float], end: pb.Completed) -> None:
    meter = Meter(asked_at=0)
    for at in times:
        meter.saw(pb.GenerateResponse(text="a" * 2676), at)
    assert not [figure for figure in meter.figures(times[-1]) if "/s" in figure]
    meter.saw(pb.GenerateResponse(completed=end), times[-1])
    assert not [figure for figure in meter.figures() if "/s" in figure]


def test_thoughts_are_counted_apart() -> None:
    end = completed()
    end.usage.reasoning_tokens = 9
    assert list(exchange("a", end=end).meter.figures())[-1] == "5 tokens in, 7 out, 9 thought"


# ---- results of tools


def test_calls_of_one_tool_are_told_apart_by_number_and_arguments() -> None:
    calls = [
        tool_call("get_weather", {"city": "Oslo", "days": 3}).tool_call,
        tool_call("clock", {"zone": "UTC"}).tool_call,
        tool_call("get_weather", {"city": "Rome", "notes": "x" * 900}).tool_call,
    ]
    names = result_names(calls)
    assert names[:2] == ['Result of get_weather (1 of 2): {"city": "Oslo", "days": 3}', "Result of clock"]
    assert names[2].startswith('Result of get_weather (2 of 2): {"city": "Rome", ')
    assert len(names[2]) < 120


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


def test_what_no_later_question_brings_along_is_known() -> None:
    called, failed, empty = exchange(tool_call("f", {})), exchange(), exchange("  ", end=completed())
    called.finish()
    failed.fail("busy")
    answered = exchange("Yes.", end=completed())
    last = exchange("Last.", end=completed())
    talk = conversation(called, failed, empty, answered, last)
    assert talk.left_out() == {called.id, failed.id, empty.id}
    assert len(history(called, failed, empty, answered, last)) == 4
    # Where nothing follows yet, a result may come, or the answer to another try.
    assert conversation(answered, called).left_out() == set()
    assert Conversation().left_out() == set()
    results = exchange("So.", end=completed(), question=tool(tool_result(called.tool_calls[0], {"a": 1})))
    assert conversation(called, results).left_out() == set()
