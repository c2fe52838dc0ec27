"""The page's process: how it starts, and how it ends."""

import asyncio
import gc
import http.client
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import streamlit as st
from playwright.async_api import Page, expect
from streamlit.proto.WidgetStates_pb2 import WidgetState, WidgetStates
from streamlit.runtime.scriptrunner import StopException
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block
from streamlit.web import cli

import gateway_ui
from gateway_ui import app, conversations, sidebar
from gateway_ui.__main__ import main
from gateway_ui.chat.conversation import Exchange
from gateway_ui.drawing import exchange_view
from gateway_ui.drawing.reader import Told
from gateway_ui.tab import shared_desk
from tests.browser import wait_for_port
from tests.ports import free_port
from tests.signals import repeat
from tests.tokenwire.fake_service import FakeService, Refusal, completed, tool_call

APP = Path(gateway_ui.__file__).with_name("script.py")


@pytest.fixture
def ui(service: FakeService, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A page of this test's own, for it to end."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway_ui", "--port", str(port)],
        env={**os.environ, "TOKENWIRE_ADDRESS": service.address, "TOKENWIRE_PAGE_DATA": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_port(port, process)
    yield process, f"http://localhost:{port}"
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


@pytest.mark.browser
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_a_signal_ends_the_page_at_once_and_with_it_the_call(
    ui: tuple["subprocess.Popen[str]", str], tab: Page, service: FakeService, number: signal.Signals
) -> None:
    process, url = ui
    service.will_answer("Half", threading.Event())
    await tab.goto(url)
    question = tab.get_by_test_id("stChatInputTextArea")
    await question.fill("What is baseball?")
    await question.press("Enter")
    await expect(tab.get_by_test_id("stChatMessage").last).to_contain_text("Half")
    await asyncio.to_thread(repeat, number, process, seconds=5)
    assert process.returncode == 0
    assert service.cancelled.wait(5)
    said = process.communicate()[0]
    assert f"URL: {url}" in said
    assert "Traceback" not in said


@pytest.fixture
def broken_ui(tmp_path: Path) -> Iterator[str]:
    """A page whose script fails."""
    port = free_port()
    program = f"""
import sys
from gateway_ui import app
from gateway_ui.__main__ import main

def breaks():
    raise RuntimeError("secret")

app.page = breaks
sys.exit(main(["--port", "{port}"]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "TOKENWIRE_PAGE_DATA": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for_port(port, process)
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.browser
async def test_a_mistake_of_the_page_tells_nothing_of_itself_and_leads_nowhere(tab: Page, broken_ui: str) -> None:
    await tab.goto(broken_ui)
    box = tab.get_by_test_id("stException")
    await expect(box).to_contain_text("This app has encountered an error")
    for word in ("secret", "RuntimeError", "Traceback", "breaks"):
        await expect(box).not_to_contain_text(word)
    await expect(tab.locator("a:not([href^='#'])")).to_have_count(0)


def test_a_port_that_is_taken_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port), "--host", "127.0.0.1"]) == 1
    assert capsys.readouterr().err == (
        f"--port {port} on --host 127.0.0.1 can't be used: Address already in use. "
        "Give --port another one, or end what listens there.\n"
    )


def test_a_host_that_is_not_known_is_a_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", str(free_port()), "--host", "no such host"]) == 1
    told = capsys.readouterr().err
    assert "--host no such host can't be used: " in told
    assert told.endswith(". Give --host an address of this machine.\n")


def test_without_streamlit_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main([]) == 1
    assert "it comes with tokenwire's extra 'ui'" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "http"])
def test_a_port_that_is_none_is_refused(port: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--port", port])
    assert "--port" in capsys.readouterr().err


# ---- the script by itself, for machines without a browser

OWNER = "0" * 64


@pytest.fixture
def script(service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AppTest:
    """The page's script without a browser, which would have told who it is."""
    monkeypatch.setenv("TOKENWIRE_ADDRESS", service.address)
    monkeypatch.setenv("TOKENWIRE_PAGE_DATA", str(tmp_path))
    monkeypatch.setattr(app, "reader", lambda *_: Told(OWNER))
    st.cache_resource.clear()
    return AppTest.from_file(str(APP), default_timeout=30)


def said(script: AppTest) -> list[str]:
    """What the page has drawn in HTML."""
    return [one.proto.body for one in script.get("html")]


def test_the_script_answers_a_question(script: AppTest) -> None:
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    assert not script.exception
    assert any("<p>Hello there.</p>" in one for one in said(script))


def test_the_script_survives_a_refusal(script: AppTest, service: FakeService) -> None:
    service.will_answer(Refusal(grpc.StatusCode.INTERNAL, "INTERNAL"))
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    assert not script.exception
    script.chat_input[0].set_value("Again?").run()
    assert any("<p>Hello there.</p>" in one for one in said(script))


def test_a_conversation_that_is_shown_no_more_leaves_the_memory(script: AppTest, service: FakeService) -> None:
    call = tool_call("weather", {"city": "Oslo"})
    service.will_answer("Wait.", call, completed())
    service.will_answer("Hello there.", completed())
    script.run()
    script.chat_input[0].set_value("What is the weather?").run()
    # With a button of each kind: Edit, Retry, Send, Earlier, Later.
    next(one for one in script.button if one.label == "Retry").click().run()
    assert {"Edit", "Earlier", "Later"} <= {one.label for one in script.button}
    before = {one.id for one in script.session_state.tab.talk.conversation.exchanges}
    assert len(before) == 2
    next(one for one in script.button if one.label == "New conversation").click().run()
    script.chat_input[0].set_value("Something else?").run()
    assert not script.exception
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, Exchange) and one.id in before]


def click(script: AppTest, words: str) -> None:
    next(one for one in script.button if one.label == words).click().run()
    assert not script.exception


def told_by(script: AppTest) -> Any:
    """What a browser tells of all fields that it shows."""
    told = cast(Any, script)._tree.get_widget_states()
    for place in reversed([place for place, one in enumerate(told.widgets) if one.HasField("trigger_value")]):
        del told.widgets[place]  # a browser tells of a button only that it was clicked
    return told


def titles() -> list[str]:
    return [one.title for one in shared_desk().store.list(OWNER)]


def test_what_a_field_for_a_title_said_is_its_own_conversations_and_no_change_however_late_it_comes(
    script: AppTest,
) -> None:
    """Streamlit takes all that a browser tells of a field that isn't there any more for a change."""
    browser: Any = script
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    next(one for one in script.text_input if one.label == "Name").set_value("Mine").run()
    late = told_by(script)
    click(script, "New conversation")
    script.chat_input[0].set_value("What is cricket?").run()
    assert titles() == ["What is cricket?", "Mine"]
    browser._run(late)
    assert titles() == ["What is cricket?", "Mine"]
    # Nor does it undo what another tab has called it.
    mine = shared_desk().store.list(OWNER)[1].id
    shared_desk().rename(OWNER, mine, "Theirs")
    browser._run(late)
    assert titles() == ["What is cricket?", "Theirs"]
    # What a person has typed there counts, also where it comes late.
    (field,) = (one for one in late.widgets if one.string_value == "Mine")
    field.string_value = " Ours  now"
    browser._run(late)
    assert titles() == ["What is cricket?", "Ours now"]


def test_what_the_field_for_a_title_said_before_another_tab_named_the_conversation_is_no_change(
    script: AppTest,
) -> None:
    """A browser that hasn't been told yet goes on telling it, also once the script has drawn the new title."""
    browser: Any = script
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    late = told_by(script)
    number = script.session_state.tab.talk.conversation.id
    for title in ("Theirs", "Theirs again"):
        shared_desk().rename(OWNER, number, title)
        script.run()
        for _ in range(2):
            browser._run(late)
            assert titles() == [title]
            assert next(one for one in script.text_input if one.label == "Name").value == title
    # What a person has typed there counts.
    (field,) = (one for one in late.widgets if one.string_value == "What is baseball?")
    field.string_value = " Ours  now"
    browser._run(late)
    assert titles() == ["Ours now"]
    assert next(one for one in script.text_input if one.label == "Name").value == "Ours now"


def test_the_field_for_a_title_says_what_the_conversation_is_called(script: AppTest) -> None:
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    name = next(one for one in script.text_input if one.label == "Name")
    assert name.value == "What is baseball?"
    name.set_value("Mine").run()
    for given, called in (("Theirs", "Theirs"), ("", "What is baseball?")):  # in another tab
        shared_desk().rename(OWNER, script.session_state.tab.talk.conversation.id, given)
        script.run()
        assert next(one for one in script.text_input if one.label == "Name").value == called
    next(one for one in script.text_input if one.label == "Name").set_value("").run()
    assert next(one for one in script.text_input if one.label == "Name").value == "What is baseball?"
    assert titles() == ["What is baseball?"]


def test_a_click_that_comes_first_of_all_opens_another_conversation_as_any_click_does(script: AppTest) -> None:
    """The page's process has begun anew, and the button is of the one before."""
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    number = script.session_state.tab.talk.conversation.id
    (new,) = (one.proto.id for one in script.button if one.label == "New conversation")
    session = AppTest.from_file(str(APP), default_timeout=30)
    session.query_params["c"] = number
    cast(Any, session)._run(WidgetStates(widgets=[WidgetState(id=new, trigger_value=True)]))
    assert not session.exception
    assert session.session_state.tab.talk.is_new()
    assert not session.chat_message


# Of the tab, whichever conversation it shows.
OF_THE_TAB = {"new", "question", "reader", "settings", "borders", "smooth", "pace", "find", "more", "deleted-ones"}


def keys(script: AppTest) -> set[str]:
    """Of all that says something to the script: fields, buttons and forms."""
    drawn: Any = script
    protos = [one.proto for one in drawn._tree if not isinstance(one, Block)]
    ids = {str(getattr(one, name, "")) for one in protos for name in ("id", "form_id")}
    # A widget's id is made of "$$ID", a hash and its key.
    return {one.split("-", 2)[2] if one.startswith("$$ID-") else one for one in ids} - {""}


def test_what_belongs_to_a_conversation_has_no_key_that_another_ones_has(script: AppTest, service: FakeService) -> None:
    """Else what is typed or clicked in one of them is taken for the other's, by the browser or by Streamlit."""
    script.run()

    def all_of_it() -> set[str]:
        for _ in range(2):
            service.will_answer("Wait.", tool_call("weather", {"city": "Oslo"}), completed())
        script.chat_input[0].set_value("What is the weather?").run()
        click(script, "Retry")
        click(script, "Edit")
        next(one for one in script.toggle if one.label == "Answer in JSON").set_value(True).run()
        next(one for one in script.number_input if one.label == "Temperature").set_value(9.0).run()
        script.chat_input[0].set_value("And then?").run()
        assert {"Ask", "Don't ask", "Ask anew", "Cancel", "Send", "Delete"} <= {one.label for one in script.button}
        return keys(script)

    first = all_of_it()
    click(script, "New conversation")
    second = all_of_it()
    assert len(first) > 30
    listed = {f"open-{one.id}" for one in shared_desk().store.list(OWNER)}
    assert first & second <= OF_THE_TAB | listed


def test_what_was_typed_in_the_moment_before_another_conversation_is_opened_is_kept(script: AppTest) -> None:
    script.run()
    script.chat_input[0].set_value("What is baseball?").run()
    next(one for one in script.text_area if one.label == "System instruction").set_value("Be brief.")
    click(script, "New conversation")  # one run sees both
    script.chat_input[0].set_value("What is cricket?").run()
    next(one for one in script.text_area if one.label == "System instruction").set_value("Be long.")
    click(script, "What is baseball?")
    assert next(one for one in script.text_area if one.label == "System instruction").value == "Be brief."
    click(script, "What is cricket?")
    assert next(one for one in script.text_area if one.label == "System instruction").value == "Be long."


def test_what_a_run_set_that_the_browser_may_not_have_seen_is_told_again(
    script: AppTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamlit may throw away what such a run has drawn: a picker without its value would choose the first model."""
    script.run()
    script.selectbox[0].set_value("fake-2").run()
    script.text_area[0].set_value("Be brief.").run()
    script.chat_input[0].set_value("one").run()
    click(script, "New conversation")

    def ends(*_: object) -> None:
        raise StopException

    with monkeypatch.context() as patched:
        patched.setattr(conversations, "drawer", ends)
        click(script, "one")
    script.run()
    told = [(one.proto.set_value, one.value) for one in (script.selectbox[0], script.text_area[0])]
    assert told == [(True, "fake-2"), (True, "Be brief.")]
    # Also by a run that follows at once on one that came to its end: Streamlit may not have sent all of it yet.
    script.run()
    assert script.selectbox[0].proto.set_value
    script.session_state.tab.told_at = time.monotonic()
    script.run()
    assert not script.selectbox[0].proto.set_value


def test_what_a_field_said_is_there_again_with_a_model_that_takes_it(script: AppTest, service: FakeService) -> None:
    script.run()

    def choose(model: str) -> None:
        next(one for one in script.selectbox if one.label == "Model").set_value(model).run()

    next(one for one in script.number_input if one.label == "Top K").set_value(40.0).run()
    next(one for one in script.number_input if one.label == "Top K").set_value(41.0).run()
    choose("fake-3")
    assert not [one for one in script.number_input if one.label == "Top K"]
    script.chat_input[0].set_value("What is baseball?").run()
    choose("fake-1")
    assert next(one for one in script.number_input if one.label == "Top K").value == 41
    script.chat_input[0].set_value("What is cricket?").run()
    assert [one.config.top_k for one in service.requests] == [0, 41]


@pytest.mark.parametrize("one", sidebar._NUMBERS, ids=lambda one: one.name)
def test_a_number_is_used_in_its_range_and_else_holds_the_question_and_is_no_other_conversations(
    script: AppTest, service: FakeService, one: sidebar._Number
) -> None:
    script.run()
    next(box for box in script.selectbox if box.label == "Model").set_value("fake-2").run()

    def say(value: float) -> None:
        next(field for field in script.number_input if field.label == one.label).set_value(value).run()

    refused = [one.least - one.step, one.most + one.step, 1e300, -1e300]
    if one.whole:
        refused.append((one.least + one.most) // 2 + 0.5)
    for value in refused:
        say(value)
        (told,) = [words for words in said(script) if f"{one.label} is " in words and "; must be " in words]
        assert 'role="alert"' in told
    script.chat_input[0].set_value("What is baseball?").run()
    assert not service.requests
    assert any("Not asked" in words and "What is baseball?" in words for words in said(script))
    click(script, "New conversation")
    assert next(field for field in script.number_input if field.label == one.label).value is None
    assert not [words for words in said(script) if "; must be " in words]
    click(script, "What is baseball?")
    assert next(field for field in script.number_input if field.label == one.label).value == refused[-1]
    for value in (one.least, one.most):
        say(value)
        script.chat_input[0].set_value("And now?").run()
        assert getattr(service.requests[-1].config, one.name) == pytest.approx(value)


def test_a_script_that_fails_before_it_shows_the_answer_cancels_it(
    script: AppTest, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.will_answer(threading.Event())

    def breaks(*_: object) -> None:
        assert service.arrived.wait(10)
        raise RuntimeError

    script.run()
    monkeypatch.setattr(exchange_view, "question", breaks)
    script.chat_input[0].set_value("What is baseball?").run()
    assert script.exception
    assert service.cancelled.wait(20)


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 101), ("127.0.0.1", 101), ("[::1]", 101), ("page.example", 101), ("attacker.example", 403)],
)
def test_only_its_own_names_reach_it(service: FakeService, tmp_path: Path, host: str, status: int) -> None:
    """A name of somebody else's that leads to this machine would else be the page's own to a browser."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway_ui", "--port", str(port), "--name", "page.example"],
        env={**os.environ, "TOKENWIRE_ADDRESS": service.address, "TOKENWIRE_PAGE_DATA": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        wait_for_port(port, process)
        connection = http.client.HTTPConnection("localhost", port, timeout=10)
        headers = {
            "Host": f"{host}:{port}",
            "Origin": f"http://{host}:{port}",
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "MTIzNDU2Nzg5MDEyMzQ1Ng==",
        }
        connection.request("GET", "/_stcore/stream", headers=headers)
        assert connection.getresponse().status == status
        connection.close()
    finally:
        process.kill()
        process.wait()


def test_no_run_of_the_script_stops_all_threads_for_a_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit collects after each run unless it is told otherwise."""
    told: list[str] = []
    monkeypatch.setattr(cli, "main", lambda args, **_: told.extend(args))
    assert main(["--port", str(free_port())]) == 0
    assert "--runner.postScriptGC=false" in told


def test_a_collection_leaves_out_what_lives_as_long_as_the_process(script: AppTest) -> None:
    gc.unfreeze()
    script.run()
    try:
        assert gc.get_freeze_count() > 100_000 > len(gc.get_objects())
    finally:
        gc.unfreeze()
