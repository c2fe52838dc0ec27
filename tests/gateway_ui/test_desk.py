"""The conversations that are open in this process, while others change the same ones in the file."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gateway_ui.chat.conversation import INTERRUPTED, Arrival, Waiting
from gateway_ui.chat.desk import WAITED_IN_VAIN, Desk, Talk
from gateway_ui.chat.store import Store
from tests.gateway_ui.test_conversation import exchange
from tests.tokenwire.fake_service import completed
from tokenwire import user
from tokenwire.v1 import generation_service_pb2 as pb

ME = "my secret, 16 or longer"


@pytest.fixture
def desks(tmp_path: Path) -> Iterator[tuple[Desk, Desk]]:
    """Those of two processes on one file."""
    with closing(Store(tmp_path / "x")) as one, closing(Store(tmp_path / "x")) as other:
        yield Desk(one), Desk(other)
        assert not one.trouble
        assert not other.trouble


def said(talk: Talk) -> list[str]:
    return [one.text for one in talk.conversation.path()]


def add(desk: Desk, talk: Talk, text: str) -> None:
    talk.conversation.add(exchange(text, end=completed()), talk.conversation.last)
    desk.keep(talk)


def test_a_reload_shows_what_two_processes_have_made_of_a_conversation(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    mine = here.talk(ME)
    add(here, mine, "One.")
    yours = there.talk(ME, mine.conversation.id)
    add(there, yours, "Theirs.")
    add(here, mine, "Mine.")
    first = mine.conversation.path()[0]
    for desk, talk in ((here, mine), (there, yours)):
        assert desk.talk(ME, mine.conversation.id) is talk
        assert said(talk) == ["One.", "Mine."]
        assert [one.text for one in talk.conversation.alternatives(talk.conversation.path()[1])] == ["Theirs.", "Mine."]
    assert mine.conversation.path()[0] is first  # what is drawn keeps its meaning


def test_an_answer_that_runs_in_another_process_is_caught_up_with(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    mine, running = here.talk(ME), exchange("Half")
    mine.conversation.add(running, None)
    here.keep(mine)
    yours = there.talk(ME, mine.conversation.id)
    (seen,) = yours.conversation.path()
    assert (seen.text, seen.problem) == ("Half", INTERRUPTED)
    running.saw(Arrival(pb.GenerateResponse(text=" and half."), 20))
    running.saw(Arrival(pb.GenerateResponse(completed=completed()), 21))
    running.finish()
    here.keep(mine)
    there.talk(ME, mine.conversation.id)
    assert (seen.text, seen.problem) == ("Half and half.", "")
    assert list(seen.meter.figures()) == list(running.meter.figures())
    assert said(mine) == ["Half and half."]


def test_of_two_processes_one_asks_what_waits(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    mine, one = here.talk(ME), Waiting(user("Why?"))
    here.put(mine, one)
    yours = there.talk(ME, mine.conversation.id)
    (same,) = yours.waiting
    assert there.ask(yours, same, exchange("Because.", question=same.message, end=completed()))
    assert not here.ask(mine, one, exchange(question=one.message))
    assert (mine.waiting, yours.waiting) == ([], [])
    assert [one.question for one in mine.conversation.path()] == [user("Why?")]


def test_what_another_process_puts_or_drops_is_seen_after_a_reload(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    mine, dropped = here.talk(ME), Waiting(user("No."), "Refused.")
    here.put(mine, dropped)
    yours = there.talk(ME, mine.conversation.id)
    there.drop(yours, yours.waiting[0])
    there.put(yours, Waiting(user("Yes."), "Refused."))
    here.talk(ME, mine.conversation.id)
    assert [one.message for one in mine.waiting] == [user("Yes.")]
    assert [one.message for one in mine.dropped] == [user("No.")]


def test_what_was_dropped_can_be_had_back_with_its_files_also_elsewhere(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    mine, one = here.talk(ME), Waiting(user("No."), "Refused.", files=[("a.xyz", b"1")])
    here.put(mine, one)
    here.drop(mine, one)
    assert not here.ask(mine, one, exchange(question=one.message))
    yours = there.talk(ME, mine.conversation.id)
    assert (yours.waiting, [other.files for other in yours.dropped]) == ([], [[("a.xyz", b"1")]])
    there.undrop(yours, one.id)
    here.look(mine)
    assert ([other.files for other in mine.waiting], mine.dropped) == ([[("a.xyz", b"1")]], [])
    there.drop(yours, yours.waiting[0])
    there.forget(yours, one.id)
    here.look(mine)
    assert (mine.waiting, mine.dropped, yours.dropped) == ([], [], [])


def test_what_waited_for_an_interrupted_answer_says_so_and_what_waited_for_a_whole_one_is_asked(
    desks: tuple[Desk, Desk],
) -> None:
    here, there = desks
    for end, trouble in ((None, WAITED_IN_VAIN), (completed(), "")):
        mine = here.talk(ME)
        mine.conversation.add(exchange("Half", end=end), None)
        here.keep(mine)
        here.put(mine, Waiting(user("Next")))
        assert [one.trouble for one in there.talk(ME, mine.conversation.id).waiting] == [trouble]
        assert [one.trouble for one in mine.waiting] == [""]


def test_a_new_conversation_is_found_again_by_its_owner_alone_and_is_in_no_list(desks: tuple[Desk, Desk]) -> None:
    here, there = desks
    new = here.begun(ME).conversation.id
    assert there.begun(ME, new).conversation.id == new
    assert there.begun("your secret, 16 or longer", new).conversation.id != new
    assert not there.store.list(ME)
    assert not there.store.deleted(ME)


def test_a_deleted_conversation_is_opened_only_when_it_is_back_also_while_a_tab_shows_it(
    desks: tuple[Desk, Desk],
) -> None:
    here, there = desks
    shown = here.begun(ME)
    add(here, shown, "One.")
    number = shown.conversation.id
    shown.deleted = here.store.delete(ME, number)
    assert here.begun(ME, number).conversation.id != number
    there.store.undelete(ME, number)
    assert here.begun(ME, number) is shown
    assert not shown.deleted


def test_what_is_not_kept_goes_on_here(desks: tuple[Desk, Desk]) -> None:
    here, _ = desks
    mine = here.talk(ME)
    assert here.talk(ME, mine.conversation.id) is mine
    add(here, mine, "One.")
    here.store.delete(ME, mine.conversation.id)
    assert said(here.talk(ME, mine.conversation.id)) == ["One."]


def test_a_browser_is_elsewhere_as_long_as_one_of_its_tabs_shows_another_conversation(tmp_path: Path) -> None:
    there = {"1", "2", "3"}
    with closing(Store(tmp_path / "x")) as store:
        desk = Desk(store, there.__contains__)
        mine, other, theirs = desk.talk(ME), desk.talk(ME), desk.talk("another secret, also long")
        desk.shows("1", mine)
        desk.shows("3", theirs)
        assert not desk.is_elsewhere(mine)
        assert not desk.is_elsewhere(theirs)
        desk.shows("2", other)
        assert desk.is_elsewhere(mine)
        assert desk.is_elsewhere(other)
        there.remove("2")
        assert not desk.is_elsewhere(mine)
        assert desk.is_open(mine)
        assert desk.is_open(other)
        there.remove("1")
        assert not desk.is_open(mine)
        assert desk.is_open(theirs)
        there.add("1")
        desk.shows("1", other)
        assert desk.is_elsewhere(mine)


def test_a_question_that_a_browser_has_had_back_is_not_asked_when_it_comes_late(tmp_path: Path) -> None:
    with closing(Store(tmp_path / "page.sqlite3")) as store:
        desk = Desk(store)
        mine, came, late = desk.talk(ME), Waiting(user("Why?")), Waiting(user("And then?"))
        desk.put(mine, came)
        assert not desk.gives_back(ME, mine.conversation.id, came.id)
        assert desk.gives_back(ME, mine.conversation.id, late.id)
        desk.put(mine, late)
        assert mine.waiting == [came]
        assert desk.gives_back("1" * 64, mine.conversation.id, came.id)  # somebody else's isn't told
