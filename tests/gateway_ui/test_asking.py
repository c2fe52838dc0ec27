"""Each question is asked once, whatever comes at the same time."""

import contextlib
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway_ui import app
from gateway_ui.chat.conversation import Conversation, Exchange, Waiting
from gateway_ui.chat.desk import Desk, Talk
from gateway_ui.chat.store import Store
from gateway_ui.sidebar import Choices
from tests.tokenwire.fake_service import FakeService
from tokenwire import Client, user
from tokenwire.cli.meter import Meter
from tokenwire.v1.generation_service_pb2 import GenerateRequest

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

        monkeypatch.setattr(app, "_client", entered)
        monkeypatch.setattr(app, "st", SimpleNamespace(query_params={}))
        talk = Talk("0" * 64, Conversation(), waiting=[REFUSED, Waiting(user("one")), Waiting(user("two"))])
        desk = Desk(Store(tmp_path / "page.sqlite3"))
        tabs = [threading.Thread(target=app._ask, args=(desk, talk, CHOICES)) for _ in range(2)]
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


def test_a_second_click_on_retry_asks_no_second_time(tmp_path: Path) -> None:
    exchange = Exchange(user("one"), GenerateRequest(), Meter(asked_at=0))
    exchange.finish()
    talk = Talk("0" * 64, Conversation())
    talk.conversation.add(exchange, None)
    talk.waiting.append(REFUSED)
    desk = Desk(Store(tmp_path / "page.sqlite3"))
    for _ in range(2):
        app._retry(desk, talk, exchange)
    assert [one.instead for one in talk.waiting] == [None, exchange]
