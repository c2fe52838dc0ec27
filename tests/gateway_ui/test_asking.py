"""Each question is asked once, whatever comes at the same time."""

import contextlib
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from gateway_ui import actions, asking, conversations, following, sidebar, taking
from gateway_ui.chat.conversation import NOT_BEGUN, STOPPED, Conversation, Exchange, Piece, Waiting
from gateway_ui.chat.desk import Desk, Talk
from gateway_ui.chat.store import Store
from gateway_ui.input import attachments
from gateway_ui.input.attached import Attachment
from gateway_ui.sidebar import Choices
from gateway_ui.tab import Tab
from tests.tokenwire.fake_service import FakeService, Refusal, completed
from tokenwire import Client, inline, model, user
from tokenwire.cli.meter import Meter
from tokenwire.v1.generation_service_pb2 import GenerateRequest, Model

CHOICES = Choices(GenerateRequest(), "", borders=False, seconds_per_letter=0.0)
# It holds up no other.
REFUSED = Waiting(user("refused"), trouble="It can't be sent.")


def test_of_two_tabs_only_one_asks(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both find that no answer is being written; both would ask, if the first didn't keep the other out."""
    service.will_answer("a", threading.Event())
    both_are_in = threading.Barrier(2)
    with Client(service.address) as client:

        def entered(_: str) -> Client:
            with contextlib.suppress(threading.BrokenBarrierError):  # as it should be
                both_are_in.wait(0.5)
            return client

        monkeypatch.setattr(asking, "client_of", entered)
        talk = Talk("0" * 64, Conversation(), waiting=[REFUSED, Waiting(user("one")), Waiting(user("two"))])
        desk = Desk(Store(tmp_path / "page.sqlite3"))
        tabs = [threading.Thread(target=asking.ask, args=(desk, talk, CHOICES)) for _ in range(2)]
        for tab in tabs:
            tab.start()
        for tab in tabs:
            tab.join(10)
        assert [one.message for one in talk.waiting] == [REFUSED.message, user("two")]
        assert [one.question for one in talk.conversation.path()] == [user("one")]
        live: Any = talk.live
        talk.stop()
        live.thread.join(10)
        assert not live.thread.is_alive()


def test_files_are_prepared_beside_the_script_and_asked_where_they_were_sent(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gate, answered = threading.Event(), threading.Event(), threading.Event()

    def attach_all(files: list[tuple[str, bytes]], _: object, **__: int) -> tuple[list[Attachment], list[str]]:
        begun.set()
        assert gate.wait(10)
        return [Attachment(name, inline(data, "image/png"), "smaller") for name, data in files], []

    def client_of(_: str) -> Client:
        answered.set()
        return client

    monkeypatch.setattr(attachments, "attach_all", attach_all)
    with Client(service.address) as client:
        monkeypatch.setattr(asking, "client_of", client_of)
        photo = Waiting(user("What is this?"), files=[("a.png", b"1")], unchecked=True)
        talk, other = (Talk("0" * 64, Conversation()) for _ in range(2))
        talk.waiting += [photo, Waiting(user("And then?"))]
        other.waiting.append(Waiting(user("SECOND")))
        desk = Desk(Store(tmp_path / "page.sqlite3"))
        for _ in range(2):  # as two tabs do
            asking.ask(desk, talk, CHOICES, [Model()], "")
        assert begun.wait(10)
        # What was sent behind it keeps its place, and another conversation doesn't wait.
        assert (photo.preparing, len(talk.waiting), service.requests) == (True, 2, [])
        asking.ask(desk, other, CHOICES, [Model()], "")
        assert other.live is not None
        other.live.thread.join(10)
        answered.clear()
        gate.set()
        assert answered.wait(10)
        with talk.asking:  # until it has been asked
            assert talk.live is not None
        talk.live.thread.join(10)
        assert [list(one.messages) for one in service.requests] == [
            [user("SECOND")],
            [user(inline(b"1", "image/png"), "What is this?")],
        ]
        assert (photo.names, talk.notes) == (["a.png"], ["smaller"])
        assert [one.message for one in talk.waiting] == [user("And then?")]


def test_a_photo_does_not_bring_its_deleted_conversation_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "attach_all", lambda *_, **__: ([], []))
    one = Waiting(user("What is this?"), files=[("a.png", b"1")], unchecked=True, preparing=True)
    talk, desk = Talk("0" * 64, Conversation()), Desk(Store(tmp_path / "page.sqlite3"))
    desk.put(talk, one)
    talk.deleted = True
    desk.store.delete(talk.owner, talk.conversation.id)
    asking._prepare(desk, talk, one, Model())
    assert desk.store.list(talk.owner) == []
    assert (one.preparing, one.unchecked, talk.waiting) == (False, True, [one])


def test_a_mistake_in_preparing_is_the_questions_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(attachments, "attach_all", fails)
    one = Waiting(user("What is this?"), files=[("a.png", b"1")], unchecked=True, preparing=True)
    talk = Talk("0" * 64, Conversation(), waiting=[one])
    asking._prepare(Desk(Store(tmp_path / "page.sqlite3")), talk, one, Model())
    assert "The page has made a mistake" in one.trouble
    assert (one.preparing, one.files) == (False, [("a.png", b"1")])
    assert "a bug" in caplog.text


def test_what_waits_is_asked_when_its_turn_comes_though_no_tab_shows_its_conversation(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    service.will_answer("a", gate, completed())
    with Client(service.address) as client:
        monkeypatch.setattr(asking, "client_of", lambda _: client)
        desk = Desk(Store(tmp_path / "page.sqlite3"), is_open=lambda _: True)
        talk, other = desk.talk("0" * 64), desk.talk("0" * 64)
        desk.shows("a tab", other)
        for one in (Waiting(user("one")), Waiting(user("refused"), trouble="No."), Waiting(user("two"))):
            desk.put(talk, one)
        asking.ask(desk, talk, CHOICES)
        # What was chosen last counts, though no tab runs the script any more.
        asking.ask(desk, talk, replace(CHOICES, request=GenerateRequest(model="fake-2")))
        assert service.arrived.wait(10)
        assert len(service.requests) == 1
        service.arrived.clear()
        gate.set()
        assert service.arrived.wait(10)
        with talk.asking:  # until it has been asked
            live = talk.live
        assert live is not None
        live.thread.join(10)
        assert [(one.model, list(one.messages)) for one in service.requests] == [
            ("", [user("one")]),
            ("fake-2", [user("one"), model("a"), user("two")]),
        ]
        assert [one.message for one in talk.waiting] == [user("refused")]
        assert [one.problem for one in talk.conversation.path()] == ["", ""]


@pytest.mark.parametrize(
    ("code", "reason", "kept"),
    [
        (grpc.StatusCode.UNAVAILABLE, "", True),
        (grpc.StatusCode.UNAVAILABLE, "DRAINING", True),
        (grpc.StatusCode.UNAVAILABLE, "UPSTREAM_UNAVAILABLE", False),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "SERVER_BUSY", False),
    ],
)
def test_what_waits_is_not_spent_on_a_service_that_has_gone_away(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: Any, reason: str, *, kept: bool
) -> None:
    service.will_answer("a", Refusal(code, reason))
    service.will_answer("b", completed())
    with Client(service.address) as client:
        monkeypatch.setattr(asking, "client_of", lambda _: client)
        talk = Talk("0" * 64, Conversation(), waiting=[Waiting(user("one")), Waiting(user("two"))])
        desk = Desk(Store(tmp_path / "page.sqlite3"), lambda _: True)
        desk.shows("tab", talk)
        asking.ask(desk, talk, CHOICES)
        live: Any = talk.live
        live.thread.join(10)
        assert [one.trouble for one in talk.waiting] == ([asking.AWAY] if kept else [])
        live = talk.live
        live.thread.join(10)
        assert [one.question for one in talk.conversation.path()] == [user("one"), *([] if kept else [user("two")])]


@pytest.mark.parametrize("why", ["the browser has closed the page", "it was deleted", "nobody looked for long"])
def test_what_nobody_would_read_is_not_asked_by_itself(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    gate = threading.Event()
    service.will_answer("a", gate, completed())
    is_open = True
    with Client(service.address) as client:
        monkeypatch.setattr(asking, "client_of", lambda _: client)
        desk = Desk(Store(tmp_path / "page.sqlite3"), is_open=lambda _: is_open)
        talk, two = desk.talk("0" * 64), Waiting(user("two"))
        desk.shows("a tab", talk)
        for one in (Waiting(user("one")), two):
            desk.put(talk, one)
        asking.ask(desk, talk, CHOICES)
        live = talk.live
        assert live is not None
        if why == "it was deleted":
            talk.deleted = True
        elif why == "nobody looked for long":
            live.stop(unseen=True)
        else:
            is_open = False
        gate.set()
        live.thread.join(10)
        assert not live.thread.is_alive()
        assert (talk.live, talk.waiting) == (live, [two])
        # Who comes back has it asked.
        asking.ask(desk, talk, CHOICES)
        assert (talk.waiting, talk.deleted) == ([], False)
        assert talk.live is not live
        assert talk.live is not None
        talk.live.thread.join(10)
        assert [one.question for one in talk.conversation.path()] == [user("one"), user("two")]


def test_what_is_asked_as_its_conversation_is_deleted_is_stopped(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.will_answer("a", threading.Event())
    asks, deleted = threading.Event(), threading.Event()
    with Client(service.address) as client:

        def asked(_: str) -> Client:
            asks.set()
            deleted.wait(0.5)  # in vain: it is to wait until the question has been asked
            return client

        monkeypatch.setattr(asking, "client_of", asked)
        talk = Talk("0" * 64, Conversation(), waiting=[Waiting(user("one"))])
        thread = threading.Thread(target=asking.ask, args=(Desk(Store(tmp_path / "page.sqlite3")), talk, CHOICES))
        thread.start()
        assert asks.wait(10)
        talk.stop()
        deleted.set()
        thread.join(10)
        live = talk.live
        assert live is not None
        live.thread.join(10)
        assert live.exchange.problem in (STOPPED, NOT_BEGUN)


def test_each_that_waits_is_told_what_is_wrong_with_the_settings(tmp_path: Path) -> None:
    desk = Desk(Store(tmp_path / "page.sqlite3"))
    talk = Talk("0" * 64, Conversation(), waiting=[Waiting(user("one")), Waiting(user("two"))])
    asking.ask(desk, talk, replace(CHOICES, trouble="The tools can't be used."))
    assert [one.trouble for one in talk.waiting] == ["The tools can't be used."] * 2


def test_a_click_on_stop_that_comes_late_does_not_stop_the_next_answer(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.will_answer("a", threading.Event())
    with Client(service.address) as client:
        monkeypatch.setattr(asking, "client_of", lambda _: client)
        talk = Talk("0" * 64, Conversation(), waiting=[Waiting(user("two"))])
        asking.ask(Desk(Store(tmp_path / "page.sqlite3")), talk, CHOICES)
        monkeypatch.setattr(actions, "this_tab", lambda: Tab(talk))
        live = talk.running()
        assert live is not None
        actions.stop("the one before")
        assert talk.running() is live
        actions.stop(live.exchange.id)
        assert talk.running() is None
        live.thread.join(10)


def test_a_second_click_on_retry_asks_no_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = Exchange(user("one"), GenerateRequest(), Meter(asked_at=0))
    exchange.finish()
    talk = Talk("0" * 64, Conversation())
    talk.conversation.add(exchange, None)
    talk.waiting.append(REFUSED)
    desk = Desk(Store(tmp_path / "page.sqlite3"))
    monkeypatch.setattr(actions, "shared_desk", lambda: desk)
    monkeypatch.setattr(actions, "this_tab", lambda: Tab(talk))
    for _ in range(2):
        actions.retry(exchange.id)
    assert [one.instead for one in talk.waiting] == [None, exchange]


def test_a_question_goes_to_the_conversation_that_it_was_typed_in(tmp_path: Path) -> None:
    """A click may open another one before the run that takes the question comes to keeping it."""
    desk = Desk(Store(tmp_path / "page.sqlite3"))
    before, now = Talk("0" * 64, Conversation()), Talk("0" * 64, Conversation())
    others = Talk("1" * 64, Conversation())
    tab = Tab(now, choices=CHOICES)
    for of, words in ((before, "one"), (None, "two"), (others, "three"), (now, "four")):
        tab.typed.append((of, SimpleNamespace(text=words, files=[]), words))
    taking.keep_typed(tab, desk, now)
    said = [[one.message.parts[0].text for one in talk.waiting] for talk in (before, now, others)]
    assert said == [["one"], ["two", "three", "four"], []]
    assert [one for one, _ in tab.unasked] == [before, now, now, now]
    assert not tab.typed


def test_a_click_on_what_another_conversation_had_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser may send a click just as the page draws another conversation."""
    talk = Talk("0" * 64, Conversation(), waiting=[REFUSED])
    monkeypatch.setattr(actions, "this_tab", lambda: Tab(talk))
    monkeypatch.setattr(actions, "st", SimpleNamespace(session_state={"edit-gone-words": "other words"}))
    for clicked in (
        actions.retry,
        actions.ask_anew,
        actions.show,
        actions.answer_calls,
        actions.drop,
        actions.now,
        actions.despite,
        actions.again,
    ):
        clicked("gone")
    assert talk.waiting == [REFUSED]
    assert REFUSED.trouble
    assert talk.live is None


def test_a_conversation_is_opened_without_streamlit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request of the browser that comes meanwhile ends a click wherever that touches Streamlit."""

    class Ends:
        def __getattr__(self, _: str) -> None:
            raise InterruptedError

    desk, talk = Desk(Store(tmp_path / "page.sqlite3")), Talk("0" * 64, Conversation())
    tab = Tab(talk, restores=False)
    for module in (conversations, sidebar):
        monkeypatch.setattr(module, "st", Ends())
    monkeypatch.setattr(conversations, "this_tab", lambda: tab)
    conversations._open(desk, talk.owner)
    assert (tab.taken, tab.restores, tab.before) == (1, True, talk)
    assert tab.shown() is not talk


def test_the_words_are_drawn_as_they_come_and_the_seconds_below_them_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr(following, "time", clock)
    exchange = Exchange(user("one"), GenerateRequest(), Meter(asked_at=0))

    class Live:
        shown = 0
        looked_at = contextlib.nullcontext

        def __init__(self) -> None:
            self.exchange = exchange

        def wait(self, _version: int, _seconds: float) -> int:
            exchange.pieces.append(Piece("text", "a", clock.now))
            if len(exchange.pieces) == 100:
                exchange.finish()
            return len(exchange.pieces)

    drawn: list[tuple[str, float | None]] = []
    drawing: Any = SimpleNamespace(
        update=lambda shown: drawn.append(("words", shown)), note=lambda now=None: drawn.append(("note", now))
    )
    live: Any = Live()
    following.follow(live, drawing, 0.0, lambda: False)
    assert [shown for kind, shown in drawn if kind == "words"] == [*range(101)]
    *running, last = [now for kind, now in drawn if kind == "note"]
    assert last is None
    assert drawn[-1][0] == "note"
    # A hundred pictures of 30 ms each.
    assert 10 <= len(running) <= 16
    assert all(now is not None for now in running)


class Clock:
    """Plays the module `time`: it passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
