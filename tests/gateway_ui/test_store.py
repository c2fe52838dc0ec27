import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway_ui.chat import database
from gateway_ui.chat.conversation import INTERRUPTED, STOPPED, Arrival, Conversation, Exchange, Waiting
from gateway_ui.chat.database import default_path
from gateway_ui.chat.store import Store, _digest, new_owner
from tests.gateway_ui.test_conversation import STEPS, conversation, exchange, grown
from tests.marks import needs_file_modes
from tests.tokenwire.fake_service import completed, thought, tool_call
from tokenwire import file_uri, inline, struct, tool, tool_result, user
from tokenwire.cli.meter import Meter
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import Message, ToolCall

ME, YOU = "my secret, 16 or longer", "your secret, 16 or longer"

DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "page.sqlite3"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    with closing(Store(path, clock=clock)) as store:
        assert not store.trouble
        yield store
        assert not store.trouble


def loaded(store: Store, talk: Conversation, owner: str = ME) -> Conversation:
    found = store.load(owner, talk.id)
    assert found is not None
    return found


def state(one: Exchange) -> dict[str, object]:
    """All that can be seen of an exchange; times as what is made of them."""
    meter = one.meter
    return {
        "id": one.id,
        "parent": one.parent and one.parent.id,
        "question": one.question,
        "asked": one.asked,
        "follows up": one.follows_up,
        "pieces": one.pieces,
        "tool calls": one.tool_calls,
        "groundings": one.groundings,
        "problem": one.problem,
        "ended": one.ended,
        "answer": one.answer,
        "completed": meter.completed,
        "model": one.model,
        "figures": list(meter.figures()),
        "first chunk": meter.first_chunk,
        "counts": (meter.chunks, meter.characters, meter.thinking),
        "messages": [arrival.message for arrival in one.arrivals],
        "times": [arrival.at - meter.asked_at for arrival in one.arrivals],
    }


def seen(talk: Conversation) -> dict[str, object]:
    return {
        "id": talk.id,
        "title": talk.title,
        "settings": talk.settings,
        "name": talk.name,
        "exchanges": [state(one) for one in talk.exchanges],
        "shown": {parent and parent.id: child.id for parent, child in talk.shown.items()},
        "path": [one.id for one in talk.path()],
    }


# ---- nothing is lost

TEXT = st.text(max_size=20)  # NUL, emoji and all, but no lone surrogates: protobuf has none
JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
STRUCTS = st.dictionaries(TEXT, JSON, max_size=3).map(struct)
CALLS = st.builds(ToolCall, id=TEXT, name=TEXT, arguments=STRUCTS)
BYTES = st.binary(max_size=50)

QUESTIONS = st.one_of(
    st.lists(st.one_of(TEXT, st.builds(inline, BYTES, TEXT), st.builds(file_uri, TEXT, TEXT)), max_size=3).map(
        lambda said: user(*said)
    ),
    st.lists(st.builds(tool_result, CALLS, st.just({"x": 1})), max_size=2).map(lambda results: tool(*results)),
)

GROUNDINGS = st.builds(
    pb.Grounding,
    sources=st.lists(st.builds(pb.Grounding.Source, uri=TEXT, title=TEXT, license=TEXT), max_size=2),
    supports=st.lists(
        st.builds(pb.Grounding.Support, text=TEXT, start_index=st.none() | st.integers(0, 9)), max_size=2
    ),
    search_queries=st.lists(TEXT, max_size=2),
)
COMPLETED = st.builds(
    pb.Completed,
    finish_reason=st.integers(0, 12),
    model=TEXT,
    usage=st.builds(pb.Usage, exact=st.booleans(), input_tokens=st.integers(0, 99), output_tokens=st.integers(0, 99)),
    safety_ratings=st.lists(st.builds(pb.SafetyRating, probability=TEXT, blocked=st.booleans()), max_size=2),
)
EVENTS = st.one_of(
    st.builds(pb.GenerateResponse, text=TEXT),
    st.builds(pb.GenerateResponse, reasoning=st.builds(pb.Reasoning, text=TEXT, signature=BYTES)),
    st.builds(pb.GenerateResponse, tool_call=st.builds(pb.ToolCallEvent, tool_call=CALLS, reasoning_signature=BYTES)),
    st.builds(pb.GenerateResponse, grounding=GROUNDINGS),
    st.builds(pb.GenerateResponse, started=st.builds(pb.Started, model=TEXT)),
    st.builds(
        pb.GenerateResponse,
        logprobs=st.builds(pb.Logprobs, tokens=st.lists(st.builds(pb.Logprobs.TokenLogprob, token=TEXT), max_size=2)),
    ),
    st.builds(pb.GenerateResponse, sequence=st.integers(0, 9)),
)
ASKED = st.builds(
    pb.GenerateRequest, model=TEXT, system_instruction=TEXT, labels=st.dictionaries(TEXT, TEXT, max_size=2)
)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    asked_at = draw(st.floats(0, 1e7))
    one = Exchange(draw(QUESTIONS), draw(ASKED), Meter(asked_at=asked_at), follows_up=draw(st.booleans()))
    at = asked_at
    for event in draw(st.lists(EVENTS, max_size=6)):
        at += draw(st.floats(0, 100))
        one.saw(Arrival(event, at))
    match draw(st.sampled_from(["finish", "fail", "stop"])):
        case "finish":
            one.saw(Arrival(pb.GenerateResponse(completed=draw(COMPLETED)), at))
            one.finish()
        case "fail":
            one.fail(draw(TEXT))
        case _:
            one.stop()
    return one


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    talk = Conversation(title=draw(st.sampled_from(["", "A title", "題名", "100%_"])))
    talk.settings = draw(st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-9, 9) | TEXT, max_size=2))
    for one in draw(st.lists(exchanges(), max_size=4)):
        talk.add(one, draw(st.sampled_from([None, *talk.exchanges])))
    if talk.exchanges:
        talk.show(draw(st.sampled_from(talk.exchanges)))
    return talk


@given(conversations())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_saved_and_loaded_is_equal(talk: Conversation) -> None:
    with closing(Store(None)) as store:
        assert store.save(ME, talk)
        found = loaded(store, talk)
        assert seen(found) == seen(talk)
        # And so is what was loaded and saved.
        assert store.save(YOU, found)
        assert seen(loaded(store, talk, YOU)) == seen(talk)


@given(STEPS)
@settings(max_examples=50, deadline=None)
def test_what_is_shown_is_kept_step_by_step(steps: list[tuple[int, int]]) -> None:
    with closing(Store(None)) as store:
        talk = grown([])
        for number in range(len(steps)):
            step = grown(steps[: number + 1])
            # The same exchanges under the same ids.
            for one, before in zip(step.exchanges, talk.exchanges, strict=False):
                one.id = before.id
            step.id = talk.id
            talk = step
            assert store.save(ME, talk)
        assert not steps or seen(loaded(store, talk)) == seen(talk)


def test_conversations_survive_a_restart(store: Store, path: Path) -> None:
    talk = conversation(exchange("Hello.", end=completed()), title="A title")
    store.save(ME, talk)
    store.close()
    with closing(Store(path)) as again:
        assert seen(loaded(again, talk)) == seen(talk)


def test_an_answer_is_saved_while_it_runs(store: Store) -> None:
    one = exchange(thought("Hm.", b"s"), "Half")
    talk = conversation(exchange("Before.", end=completed()), one)
    store.save(ME, talk)
    found = loaded(store, talk).exchanges[1]
    assert (found.ended, found.problem, found.text) == (True, INTERRUPTED, "Half")
    assert list(found.meter.figures()) == list(one.meter.figures())
    one.saw(Arrival(pb.GenerateResponse(text=" of it."), 20))
    store.save(ME, talk)
    assert loaded(store, talk).exchanges[1].text == "Half of it."
    one.saw(Arrival(pb.GenerateResponse(completed=completed()), 21))
    one.finish()
    store.save(ME, talk)
    assert seen(loaded(store, talk)) == seen(talk)


def test_a_session_that_loaded_a_running_answer_doesnt_end_it(store: Store) -> None:
    one = exchange("Half")
    talk = conversation(one)
    store.save(ME, talk)
    elsewhere = loaded(store, talk)
    elsewhere.add(exchange("Below.", end=completed()), elsewhere.last)
    store.save(ME, elsewhere)
    one.saw(Arrival(pb.GenerateResponse(text=" of it."), 20))
    one.finish()
    store.save(ME, talk)
    found = loaded(store, talk)
    assert [(one.text, one.problem) for one in found.exchanges] == [("Half of it.", ""), ("Below.", "")]


def test_an_answer_whose_end_came_but_was_not_marked_is_complete(store: Store) -> None:
    one = exchange("All.")
    one.saw(Arrival(pb.GenerateResponse(completed=completed()), 20))
    talk = conversation(one)
    store.save(ME, talk)
    assert loaded(store, talk).exchanges[0].complete


def test_nothing_that_came_in_the_moment_of_saving_is_lost(store: Store) -> None:
    one = exchange()
    talk = conversation(one)

    def run() -> None:
        for number in range(2000):
            one.saw(Arrival(pb.GenerateResponse(text=f"{number} "), 20 + number))
        one.finish()

    with ThreadPoolExecutor() as pool:
        running = pool.submit(run)
        while not running.done():
            assert store.save(ME, talk)
        running.result()
    store.save(ME, talk)
    assert seen(loaded(store, talk)) == seen(talk)


def test_two_sessions_add_to_one_conversation(store: Store) -> None:
    talk = conversation(exchange("One.", end=completed()))
    store.save(ME, talk)
    here, there = loaded(store, talk), loaded(store, talk)
    for side, text in ((here, "Here."), (there, "There.")):
        side.add(exchange(text, end=completed()), side.last)
        store.save(ME, side)
    assert [one.text for one in loaded(store, talk).exchanges] == ["One.", "Here.", "There."]


def test_large_conversations_work_and_what_runs_is_cheap(store: Store) -> None:
    image = bytes(range(256)) * 4096 * 7  # 7 MB
    old = exchange("word " * 20_000, end=completed(), question=user(inline(image, "image/png"), "What?"))
    one = exchange(*["word "] * 5_000, question=user(inline(image, "image/jpeg")))
    talk = conversation(old, one)
    assert store.save(ME, talk)
    began = store._base.total_changes
    started = time.perf_counter()
    for number in range(20):
        one.saw(Arrival(pb.GenerateResponse(text="more "), 6000 + number))
        assert store.save(ME, talk)
    assert (time.perf_counter() - started) / 20 < 0.25
    # One arrival, its exchange, its conversation: neither the images nor what has ended.
    assert store._base.total_changes - began == 20 * 3
    one.stop()
    store.save(ME, talk)
    assert seen(loaded(store, talk)) == seen(talk)


# ---- the list


def test_the_latest_conversation_comes_first(store: Store, clock: Clock) -> None:
    first, second = conversation(exchange("1")), conversation(exchange("2"), title="Second")
    for talk in (first, second):
        clock.now += 1
        store.save(ME, talk)
    assert [one.title for one in store.list(ME)] == ["Second", "Why?"]
    clock.now += 1
    first.add(exchange("3"), first.last)
    store.save(ME, first)
    found = store.list(ME)
    assert [one.id for one in found] == [first.id, second.id]
    assert found[0].updated == datetime.fromtimestamp(clock.now, UTC)
    # Neither looking nor a new name makes it newer.
    clock.now += 1
    store.save(ME, second)
    store.rename(ME, second.id, "Other")
    assert [one.id for one in store.list(ME)] == [first.id, second.id]


def test_a_conversation_is_listed_by_the_question_that_is_shown(store: Store) -> None:
    talk = conversation(exchange("1"))
    store.save(ME, talk)
    talk.add(exchange(question=user("Why not?")), None)
    store.save(ME, talk)
    assert [one.title for one in store.list(ME)] == [talk.name] == ["Why not?"]


def test_settings_are_kept_as_soon_as_there_is_anything_to_keep(store: Store) -> None:
    talk = Conversation()
    talk.settings = {"top_k": 40, "stops": ["END"]}
    assert not store.settle(ME, talk)
    talk.add(exchange("1"), None)
    store.save(ME, talk)
    assert loaded(store, talk).settings == {"top_k": 40, "stops": ["END"]}
    talk.settings = {"temperature": 0.0}
    assert not store.settle(YOU, talk)
    assert store.settle(ME, talk)
    assert loaded(store, talk).settings == {"temperature": 0.0}


def test_a_new_name_stays(store: Store) -> None:
    talk = conversation(exchange("1"))
    store.save(ME, talk)
    assert store.rename(ME, talk.id, " A\n new name ")
    # A session that hasn't heard of it changes nothing.
    talk.add(exchange("2"), talk.last)
    store.save(ME, talk)
    assert loaded(store, talk).title == "A new name" == store.list(ME)[0].title
    assert store.rename(ME, talk.id, "")
    assert store.list(ME)[0].title == "Why?" == loaded(store, talk).name
    assert not store.rename(ME, "nothing", "x")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", True),
        ("  ", True),
        ("BASEBALL", True),
        ("straße", True),
        ("STRASSE", True),
        ("野球", True),
        ("球と", True),
        ("カタカナ", True),
        ("ｶﾀｶﾅ", True),
        ("100%", True),
        ("1%0", False),
        ("a_b", True),
        ("a%b", False),
        ("axb", False),
        ("o'clock", True),
        ("my title", True),
        ("two lines", True),
        ("blue", True),
        ("report.pdf", True),
        ("in thoughts", False),
        ("cricket", False),
        ("title what", False),
        ("\\", False),
        ("\ud800", False),
    ],
)
def test_the_search_looks_at_titles_questions_and_answers(store: Store, search: str, found: bool) -> None:
    question = user("What is Baseball, 野球とは? カタカナ 100% a_b", file_uri("gs://b/report.pdf", "application/pdf"))
    called = exchange(
        thought("in thoughts"), "Straße at five o'clock, two\nlines", tool_call("f", {}), question=question
    )
    results = tool(tool_result(called.tool_calls[0], {"sky": "blue"}))
    talk = conversation(called, exchange("x", question=results), title="My Title")
    store.save(ME, talk)
    store.save(ME, conversation(exchange("Nothing of that."), title="1000 axxb"))
    assert (talk.id in [one.id for one in store.list(ME, search)]) == found


@given(
    st.text("aAbB\N{FULLWIDTH LATIN CAPITAL LETTER A}野球ア%_'\\ ", min_size=1, max_size=8),
    st.integers(0, 8),
    st.integers(1, 8),
)
@settings(max_examples=100, deadline=None)
def test_every_piece_of_a_text_is_found(text: str, start: int, length: int) -> None:
    with closing(Store(None)) as store:
        talk = conversation(exchange(text))
        store.save(ME, talk)
        assert store.list(ME, text[start : start + length].swapcase())


def test_what_an_alternative_says_is_found_too(store: Store) -> None:
    talk = conversation(exchange("Cricket."))
    talk.add(exchange("Baseball."), None)
    store.save(ME, talk)
    assert store.list(ME, "cricket")


# ---- deleting


def test_a_deleted_conversation_is_gone_until_it_is_brought_back(store: Store) -> None:
    talk = conversation(exchange("1", end=completed()))
    store.save(ME, talk)
    assert store.delete(ME, talk.id)
    assert not store.delete(ME, talk.id)
    assert (store.list(ME), store.load(ME, talk.id), store.rename(ME, talk.id, "x")) == ([], None, False)
    # An answer that still ran is kept all the same.
    talk.add(exchange("2", end=completed()), talk.last)
    assert store.save(ME, talk)
    assert store.list(ME) == []
    assert store.undelete(ME, talk.id)
    assert not store.undelete(ME, talk.id)
    assert seen(loaded(store, talk)) == seen(talk)


def test_a_conversation_that_was_set_up_is_kept_and_listed_once_something_is_asked(
    store: Store, path: Path, clock: Clock
) -> None:
    begun = Conversation()
    begun.settings = {"system": "Be brief."}
    assert not store.settle(ME, begun)
    assert store.load(ME, begun.id) is None
    assert store.settle(ME, begun, begin=True)
    found = store.load(ME, begun.id)
    assert found is not None
    assert found.settings == begun.settings
    assert store.list(ME) == []
    asked = Conversation()
    assert store.settle(ME, asked, begin=True)
    assert store.wait(ME, asked, Waiting(user("one")))
    clock.now += 30 * DAY + 1
    with closing(Store(path, clock=clock)) as later:
        assert later.load(ME, begun.id) is None
        assert [one.id for one in later.list(ME)] == [asked.id]


def test_it_is_purged_thirty_days_later(store: Store, path: Path, clock: Clock) -> None:
    kept, gone = conversation(exchange("kept")), grown([(1, 0), (1, 1), (1, 2), (1, 1), (1, 0)])
    gone.add(exchange("a secret word"), gone.last)
    for talk in (kept, gone):
        store.save(ME, talk)
    store.delete(ME, gone.id)
    store.close()
    clock.now += 29.9 * DAY
    with closing(Store(path, clock=clock)) as again:
        assert again.undelete(ME, gone.id)
        again.delete(ME, gone.id)
    clock.now += 30.1 * DAY
    with closing(Store(path, clock=clock)) as again:
        assert not again.undelete(ME, gone.id)
        assert [one.id for one in again.list(ME)] == [kept.id]
        for table in ("exchange", "asked", "arrival", "shown"):
            assert again._base.execute(f"SELECT count(*) FROM {table}").fetchone() == (1,)
    # Also from the bytes of the file.
    assert b"a secret word" not in path.read_bytes()


def test_what_was_deleted_is_listed_for_as_long_as_it_can_be_had_back(store: Store, clock: Clock) -> None:
    first, second = conversation(exchange("1"), title="First"), conversation(exchange("2"), title="Second")
    for talk in (second, first):
        store.save(ME, talk)
    assert not store.deleted(ME)
    for talk in (first, second):
        clock.now += DAY
        store.delete(ME, talk.id)
    assert [one.title for one in store.deleted(ME)] == ["Second", "First"]
    assert not store.deleted(YOU)
    clock.now += 29.5 * DAY
    assert [one.title for one in store.deleted(ME)] == ["Second"]
    store.undelete(ME, second.id)
    assert not store.deleted(ME)


def test_what_is_asked_in_a_deleted_conversation_brings_it_back(store: Store) -> None:
    talk, one = conversation(exchange("1", end=completed())), Waiting(user("And?"))
    store.save(ME, talk)
    store.delete(ME, talk.id)
    asked = exchange(question=one.message)
    asked.parent = talk.last
    assert store.ask(ME, talk, one, asked)
    assert [found.id for found in loaded(store, talk).exchanges] == [talk.exchanges[0].id, asked.id]
    store.delete(ME, talk.id)
    assert store.wait(ME, talk, Waiting(user("And then?"), "Refused."))
    assert store.load(ME, talk.id) is not None


# ---- owners


def test_another_owner_sees_and_changes_nothing(store: Store) -> None:
    talk = conversation(exchange("Mine.", end=completed()), title="Mine")
    store.save(ME, talk)
    assert store.list(YOU) == store.list(YOU, "mine") == []
    assert store.load(YOU, talk.id) is None
    assert not store.rename(YOU, talk.id, "Yours")
    assert not store.delete(YOU, talk.id)
    theirs = Conversation(talk.id, "Yours")
    impostor = exchange("Yours.", end=completed())
    impostor.id = talk.exchanges[0].id
    theirs.add(impostor, None)
    assert store.save(YOU, theirs)
    assert store.delete(YOU, talk.id)
    assert seen(loaded(store, talk)) == seen(talk)
    store.delete(ME, talk.id)
    assert store.undelete(YOU, talk.id)
    assert store.load(ME, talk.id) is None
    assert seen(loaded(store, theirs, YOU)) == seen(theirs)


def test_the_file_does_not_hold_the_secret(store: Store, path: Path) -> None:
    store.save(ME, conversation(exchange("x")))
    store.close()
    assert ME.encode() not in path.read_bytes()


@pytest.mark.parametrize("owner", ["", "short"])
def test_a_secret_that_could_be_guessed_is_refused(store: Store, owner: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: store.list(owner),
        lambda: store.deleted(owner),
        lambda: store.load(owner, "x"),
        lambda: store.save(owner, Conversation()),
        lambda: store.rename(owner, "x", "y"),
        lambda: store.delete(owner, "x"),
        lambda: store.undelete(owner, "x"),
        lambda: store.wait(owner, Conversation(), Waiting(user("x"))),
        lambda: store.waiting(owner, Conversation()),
        lambda: store.unwait(owner, "x", "y"),
        lambda: store.ask(owner, Conversation(), Waiting(user("x")), exchange("x")),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="at least 16"):
            call()


def test_new_owners_differ() -> None:
    assert len({new_owner() for _ in range(100)}) == 100
    assert len(new_owner()) == 43


# ---- at the same time


def test_threads_write_at_once(store: Store) -> None:
    ready = threading.Barrier(4)

    def write(number: int) -> Conversation:
        talk = Conversation(title=str(number))
        ready.wait(10)
        for _ in range(25):
            talk.add(exchange("Hello", " there.", end=completed()), talk.last)
            assert store.save(ME, talk)
            assert store.load(ME, talk.id) is not None
            assert store.list(ME, "hello")
        return talk

    with ThreadPoolExecutor(4) as pool:
        for talk in pool.map(write, range(4)):
            assert seen(loaded(store, talk)) == seen(talk)


WRITER = """
import sys
from pathlib import Path
from gateway_ui.chat.conversation import Conversation
from gateway_ui.chat.store import Store
from tests.gateway_ui.test_conversation import exchange
from tests.tokenwire.fake_service import completed

sys.stdin.readline()
store = Store(Path(sys.argv[1]))
mine, common = Conversation(), Conversation("common")
for number in range(25):
    for talk in (mine, common):
        talk.add(exchange(f"{sys.argv[2]} {number}", end=completed()), talk.last)
        assert store.save("my secret, 16 or longer", talk), store.trouble
assert not store.trouble, store.trouble
"""


@pytest.mark.process
def test_processes_make_the_file_and_write_at_once(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, str(number)], stdin=subprocess.PIPE)
        for number in range(3)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with closing(Store(path)) as store:
        found = [store.load(ME, one.id) for one in store.list(ME)]
        assert sorted(len(talk.exchanges) for talk in found if talk) == [25, 25, 25, 75]
        assert not store.trouble
    assert [one.name for one in path.parent.iterdir()] == [path.name]


KILLED = """
import os, signal, sys
from pathlib import Path
from gateway_ui.chat.conversation import Arrival
from gateway_ui.chat.store import Store
from tests.gateway_ui.test_conversation import conversation, exchange

store = Store(Path(sys.argv[1]))
talk = conversation(exchange("Half"))
talk.id = "c"
assert store.save("my secret, 16 or longer", talk)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.process
def test_what_ran_when_the_process_was_killed_says_that_it_is_incomplete(path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, path], check=False).returncode < 0
    with closing(Store(path)) as store:
        talk = store.load(ME, "c")
        assert talk is not None
        (one,) = talk.path()
        assert (one.text, one.problem, one.complete) == ("Half", INTERRUPTED, False)
        assert not store.trouble


# ---- the file


@needs_file_modes
def test_nobody_else_can_read_the_file(store: Store, path: Path) -> None:
    store.save(ME, conversation(exchange("x")))
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    files = list(path.parent.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


@needs_file_modes
def test_a_folder_that_was_there_keeps_its_mode_and_the_file_loses_its_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    path = tmp_path / "x"
    path.touch(0o644)
    Store(path).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def works(store: Store) -> None:
    talk = conversation(exchange("1", end=completed()))
    assert store.save(ME, talk)
    assert seen(loaded(store, talk)) == seen(talk)


def test_a_folder_that_cannot_be_written_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with closing(Store(tmp_path / "file" / "page.sqlite3")) as store:
        works(store)
        assert store.trouble.startswith("Conversations are kept only until the page is stopped: ")
        assert str(tmp_path) in store.trouble


def test_without_a_home_folder_they_are_kept_in_memory() -> None:
    with closing(Store(None)) as store:
        works(store)
        assert "no home folder" in store.trouble


def test_a_folder_in_place_of_the_file_breaks_nothing(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        works(store)
        assert store.trouble


@pytest.mark.parametrize(
    ("pragmas", "words"),
    [
        (
            f"PRAGMA application_id = {database._APPLICATION}; PRAGMA user_version = {database._VERSION + 1}",
            "newer version",
        ),
        ("PRAGMA user_version = 1", "another program"),
        ("", "another program"),
    ],
)
def test_a_file_that_is_not_ours_is_left_as_it_is(tmp_path: Path, pragmas: str, words: str) -> None:
    path = tmp_path / "page.sqlite3"
    with closing(sqlite3.connect(path)) as base:
        base.executescript(f"CREATE TABLE t (x); {pragmas}")
    path.chmod(0o640)
    before = path.read_bytes()
    with closing(Store(path)) as store:
        works(store)
        assert words in store.trouble
    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("at", [0, 100, 4096 * 3])
def test_a_damaged_file_is_put_aside(store: Store, path: Path, clock: Clock, at: int) -> None:
    store.save(ME, conversation(*(exchange("x" * 3000, end=completed()) for _ in range(10))))
    store.close()
    broken = bytearray(path.read_bytes())
    broken[at : at + 4096] = b"broken" * 682 + b"1234"
    path.write_bytes(broken)
    with closing(Store(path, clock=clock)) as again:
        works(again)
        assert "was damaged" in again.trouble
    (aside,) = (one for one in path.parent.iterdir() if one != path)
    assert aside.read_bytes() == broken
    assert aside.name == "page.sqlite3.damaged-20270115-080000"
    with closing(Store(path, clock=clock)) as later:
        assert (len(later.list(ME)), later.trouble) == (1, "")


def test_what_fails_later_is_told_and_is_told_no_more_when_it_works_again(store: Store, path: Path) -> None:
    talk = conversation(exchange("1"))
    store._base.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert not store.save(ME, talk)
        assert store.trouble == f"Conversations could not be saved: another program holds it ({path})."
        assert not store.delete(ME, talk.id)
        assert not store.rename(ME, talk.id, "x")
        other.execute("ROLLBACK")
    assert store.save(ME, talk)
    assert not store.trouble


def test_a_full_disk_loses_nothing_that_was_saved(store: Store) -> None:
    talk = conversation(exchange("1", end=completed()))
    store.save(ME, talk)
    before = seen(talk)
    pages = store._base.execute("PRAGMA page_count").fetchone()[0]
    store._base.execute(f"PRAGMA max_page_count = {pages}")
    talk.add(exchange("x" * 100_000, end=completed()), talk.last)
    assert not store.save(ME, talk)
    assert "the disk is full" in store.trouble
    assert seen(loaded(store, talk)) == before
    store._base.execute("PRAGMA max_page_count = 1000000")
    assert store.save(ME, talk)
    assert seen(loaded(store, talk)) == seen(talk)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_under_the_page_is_told(path: Path, replaced: bool) -> None:
    with closing(Store(path)) as store:
        talk = conversation(exchange("1", end=completed()))
        assert store.save(ME, talk)
        for one in path.parent.iterdir():
            one.unlink()
        if replaced:
            Store(path).close()
        talk.add(exchange("2", end=completed()), talk.last)
        assert not store.save(ME, talk)
        assert "was removed or replaced" in store.trouble
        # What is open goes on, and it is told as long as that is so.
        assert seen(loaded(store, talk)) == seen(talk)
        assert "was removed or replaced" in store.trouble


def test_a_bug_is_raised(store: Store) -> None:
    store._base.execute("DROP TABLE shown")
    with pytest.raises(sqlite3.OperationalError, match="no such table"):
        store.save(ME, conversation(exchange("1")))
    # With nothing half done.
    assert store.list(ME) == []


# ---- where it is


def test_where_conversations_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / ".local/share/tokenwire/page.sqlite3"
    assert default_path({}) == home
    assert default_path({"XDG_DATA_HOME": "relative", "TOKENWIRE_PAGE_DATA": ""}) == home
    assert default_path({"XDG_DATA_HOME": "/data"}) == Path("/data/tokenwire/page.sqlite3")
    assert default_path({"XDG_DATA_HOME": "/data", "TOKENWIRE_PAGE_DATA": "/my/file"}) == Path("/my/file")
    assert default_path({"TOKENWIRE_PAGE_DATA": "~/file"}) == tmp_path / "file"
    assert default_path({"TOKENWIRE_PAGE_DATA": str(tmp_path)}) == tmp_path / "page.sqlite3"


def test_there_may_be_no_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert default_path({}) is None
    assert default_path({"XDG_DATA_HOME": "/data"}) is not None


def test_a_message_that_means_nothing_is_told(store: Store) -> None:
    talk = conversation(exchange("1"))
    store.save(ME, talk)
    store._base.execute("UPDATE asked SET question = ?", (b"\xff\xff",))
    assert store.load(ME, talk.id) is None
    assert "it is damaged" in store.trouble
    store._base.execute("UPDATE asked SET question = ?", (Message().SerializeToString(),))
    assert store.load(ME, talk.id) is not None


def test_a_stopped_answer_says_so_after_loading(store: Store) -> None:
    one = exchange("Half")
    one.stop()
    talk = conversation(one)
    store.save(ME, talk)
    assert loaded(store, talk).exchanges[0].problem == STOPPED


# ---- questions that wait


def fields(one: Waiting) -> tuple[object, ...]:
    return one.id, one.message, one.trouble, one.names, one.files, one.unchecked, one.instead and one.instead.id


def test_questions_that_wait_are_kept_with_their_files_and_their_reasons(store: Store, path: Path) -> None:
    talk = conversation(exchange("1", end=completed()))
    refused = Waiting(
        user(inline(b"%PDF-1", "application/pdf"), "What?"),
        "It can't be sent.",
        ["a.pdf"],
        [("b.xyz", b"\0\1"), ("b.xyz", b"\2")],
        instead=talk.last,
    )
    waiting = [refused, Waiting(user("And then?")), Waiting(Message(), files=[("only.xyz", b"")], unchecked=True)]
    assert all(store.wait(ME, talk, one) for one in waiting)
    waiting[1].trouble = "Later."
    waiting[2].files = []
    assert all(store.wait(ME, talk, one) for one in waiting)
    store.close()
    with closing(Store(path)) as again:
        found = again.waiting(ME, loaded(again, talk))
        assert [fields(one) for one in found] == [fields(one) for one in waiting]
        assert all(one.kept for one in found)
        assert not again.waiting(YOU, talk)
        assert not again.unwait(YOU, talk.id, refused.id)
        assert again.unwait(ME, talk.id, refused.id)
        assert not again.unwait(ME, talk.id, refused.id)
        assert [one.id for one in again.waiting(ME, talk)] == [waiting[1].id, waiting[2].id]


def test_a_conversation_of_which_nothing_is_asked_yet_is_listed_as_long_as_something_waits(store: Store) -> None:
    talk, one = Conversation(), Waiting(user("Why?"), "It can't be sent.", files=[("Notes.xyz", b"\0")])
    assert store.wait(ME, talk, one)
    assert [(found.id, found.title) for found in store.list(ME)] == [(talk.id, "Why?")]
    assert store.list(ME, "notes")
    assert store.unwait(ME, talk.id, one.id)
    assert store.list(ME) == []


def test_a_question_is_made_an_exchange_once(store: Store, path: Path) -> None:
    talk, one = conversation(exchange("1", end=completed())), Waiting(user("Why?"))
    one.kept = store.wait(ME, talk, one)
    with closing(Store(path)) as elsewhere:
        there = loaded(elsewhere, talk)
        (same,) = elsewhere.waiting(ME, there)
        asked, twice = exchange(question=one.message), exchange(question=one.message)
        asked.parent, twice.parent = talk.last, there.last
        assert store.ask(ME, talk, one, asked)
        assert not elsewhere.ask(ME, there, same, twice)
    assert [found.id for found in loaded(store, talk).exchanges] == [talk.exchanges[0].id, asked.id]
    assert not store.waiting(ME, talk)


def test_a_question_that_could_not_be_kept_is_asked_all_the_same(store: Store) -> None:
    talk, one = Conversation(), Waiting(user("Why?"))
    store._base.execute("PRAGMA query_only = ON")
    one.kept = store.wait(ME, talk, one)
    assert not one.kept
    assert store.ask(ME, talk, one, exchange(question=one.message))
    assert store.trouble
    store._base.execute("PRAGMA query_only = OFF")
    assert store.ask(ME, talk, one, exchange(question=one.message))
    assert len(loaded(store, talk).exchanges) == 1


def test_a_file_of_the_first_version_is_brought_up_to_date(path: Path, clock: Clock) -> None:
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as base:
        base.executescript(database._SCHEMA)
        base.execute(f"PRAGMA application_id = {database._APPLICATION}")
        base.execute("PRAGMA user_version = 1")
        base.execute(
            "INSERT INTO conversation (owner, id, title, heading, title_folded, updated)"
            " VALUES (?, 'c', 'T', '', 't', 0)",
            (_digest(ME),),
        )
        base.commit()
    with closing(Store(path, clock=clock)) as store:
        found = store.load(ME, "c")
        assert found is not None
        assert found.title == "T"
        assert store.wait(ME, found, Waiting(user("Why?")))
        assert len(store.waiting(ME, found)) == 1
