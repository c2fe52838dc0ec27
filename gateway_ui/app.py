"""The page: a chat that shows an answer while it is being written. Run by `tokenwire ui`."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import RerunException

from tokenwire import Client, InvalidRequestError, TokenwireError, default_address, tool, tool_result, user
from tokenwire.cli.meter import Meter
from tokenwire.v1.content_pb2 import Message, ToolCall
from tokenwire.v1.generation_service_pb2 import GenerateRequest, Model

from . import attachments, exchange_view, sidebar
from .conversation import Conversation, Exchange, response
from .export import as_json, as_markdown
from .pump import Pump
from .sidebar import Choices
from .typewriter import Typewriter

# Streamlit sees a Stop only when the script touches the page, so it does so at least this often.
_TICK_SECONDS = 0.25
# A browser can't use more pictures a second than this.
_FRAME_SECONDS = 0.03
# Each picture holds the whole answer, so the longer it is the fewer there are.
_CHARACTERS_PER_SECOND = 500_000
# A switch flipped in mid-answer starts the script again, which then goes on with the same answer. Should it
# not (the tab was closed at that moment), the answer is cancelled after so long.
_HANDOVER_SECONDS = 3.0

# Far more than can be sent: only what would fill the memory is stopped at the door.
_UPLOAD_MEGABYTES = 4 * attachments.MAX_MEGABYTES

# A :material: icon would be fetched from elsewhere.
_ICON = str(Path(__file__).with_name("assets") / "icon.svg")


@dataclass(frozen=True, slots=True)
class Question:
    """What a person asked, or a button asked again."""

    message: Message
    trouble: str = ""
    # Why it can't be asked, in words for a person; empty: it can.
    typed: bool = False
    # Whether it came from the chat input, which then shows a Stop of its own.
    instead: Exchange | None = None
    # Of which it is to be an alternative.


@dataclass(slots=True)
class Live:
    """The answer that is being written; it outlives a rerun of the script."""

    exchange: Exchange
    pump: Pump
    typewriter: Typewriter

    def stop(self) -> None:
        """Cancel it, and mark the answer incomplete unless it had ended."""
        self.pump.close()
        self.exchange.stop()


@dataclass(slots=True)
class Chat:
    """What the session remembers. One object, since a run that is being stopped can't write to the session."""

    conversation: Conversation = field(default_factory=Conversation)
    live: Live | None = None
    pending: Question | None = None
    # To be asked by the next run.

    def stop(self) -> None:
        """End the answer that is being written, if there is one."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def retry(self) -> None:
        """Ask the last question again; the earlier answer stays as an alternative."""
        self.stop()
        last = self.conversation.path()[-1]
        self.pending = Question(last.question, instead=last)


@st.cache_resource
def _client(address: str) -> Client:
    return Client(address)


@st.cache_data(ttl=60, show_spinner=False)
def _models(address: str) -> list[Model]:
    return _client(address).models(timeout=2)


def page() -> None:
    """Draw the page from top to bottom; the script of one run."""
    st.set_page_config(page_title="tokenwire", page_icon=_ICON, layout="centered")
    exchange_view.style()
    if "chat" not in st.session_state:
        st.session_state.chat = Chat()
    chat: Chat = st.session_state.chat

    models, trouble = _offered(default_address())
    question = _question(chat, sidebar.chosen(models))
    with st.sidebar:
        st.subheader("tokenwire")
        connection = st.empty()
        _connected(connection, trouble)
        choices = sidebar.drawer(models)
        st.button("New conversation", key="new", on_click=_forget, width="stretch", icon=":material/edit_square:")
    # From the first line that touches the page on, any line may be the last of this run.
    try:
        if question is not None:
            _ask(chat, question, choices)
        _downloads(chat.conversation)
        _talk(chat, choices, connection, taken_over=question is None or not question.typed)
    except RerunException:
        if chat.live is not None:
            chat.live.pump.close_unless_kept(_HANDOVER_SECONDS)
        raise
    except BaseException:
        # Stop, a closed tab, a bug: nobody reads on.
        chat.stop()
        raise


def _offered(address: str) -> tuple[list[Model], str]:
    """The models, and what is wrong when there are none."""
    try:
        return _models(address), ""
    except TokenwireError as error:
        return [], str(error)


def _connected(place: Any, trouble: str) -> None:
    state = exchange_view.words(trouble or f"Connected to {default_address()}")
    place.html(f'<div class="tw-state"><span class="tw-{"off" if trouble else "on"}"></span>{state}</div>')


def _question(chat: Chat, model: Model) -> Question | None:
    """What is to be asked by this run, if anything."""
    # Streamlit asks without what it has refused itself, so it is to refuse next to nothing: `attach` says why.
    typed = st.chat_input(
        "Ask, for example: What is baseball?",
        key="question",
        accept_file="multiple" if attachments.endings(model.input_kinds) else False,
        max_upload_size=_UPLOAD_MEGABYTES,
        submit_mode="stop",
    )
    if typed is not None:
        chat.pending = None
        return Question(user(typed), typed=True) if isinstance(typed, str) else _with_files(typed, model.input_kinds)
    again, chat.pending = chat.pending, None
    return again


def _with_files(typed: Any, kinds: Iterable[str]) -> Question:
    parts, problems = [], []
    for file in typed.files:
        try:
            parts.append(attachments.attach(file.name, file.getvalue(), kinds))
        except ValueError as error:
            problems.append(str(error))
    if typed.text:
        parts.append(user(typed.text).parts[0])
    message = user(*parts) if parts else user(", ".join(file.name for file in typed.files))
    return Question(message, " ".join(problems), typed=True)


def _downloads(conversation: Conversation) -> None:
    files = (("JSON", as_json, "json", "application/json"), ("Markdown", as_markdown, "md", "text/markdown"))
    with st.sidebar, st.container(horizontal=True):
        for label, write, ending, mime in files:
            st.download_button(
                label,
                # Written when it is asked for: an answer may have come since.
                data=partial(write, conversation),
                file_name=f"conversation.{ending}",
                mime=mime,
                key=f"download-{ending}",
                help=f"Download the conversation as {label}",
                on_click="ignore",
                icon=":material/download:",
                disabled=not conversation.exchanges,
                width="stretch",
            )


def _forget() -> None:
    st.session_state.chat.stop()
    st.session_state.chat = Chat()


def _ask(chat: Chat, question: Question, choices: Choices) -> None:
    chat.stop()
    client = _client(default_address())
    now = time.monotonic()
    asked = choices.request
    conversation, instead = chat.conversation, question.instead
    history = conversation.history(model=asked.model, then=question.message, before=instead)
    exchange = Exchange(question.message, asked, Meter(asked_at=now), follows_up=bool(history))
    conversation.add(exchange, conversation.last if instead is None else instead.parent)
    if trouble := question.trouble or choices.trouble:
        exchange.fail(trouble)
        return
    request = GenerateRequest(messages=[*history, question.message])
    request.MergeFrom(asked)
    chat.live = Live(exchange, Pump(client.stream(request)), Typewriter(now))


def _talk(chat: Chat, choices: Choices, connection: Any, *, taken_over: bool) -> None:
    exchanges = chat.conversation.path()
    if not exchanges:
        _welcome()
    for number, exchange in enumerate(exchanges):
        with st.chat_message("user", avatar=":material/person:"):
            exchange_view.question(exchange.question)
        with st.chat_message("assistant", avatar=":material/bolt:"):
            drawn = exchange_view.Drawing(exchange, borders=choices.borders)
            if chat.live is not None and chat.live.exchange is exchange and not exchange.ended:
                _follow(chat, chat.live, drawn, choices.seconds_per_letter, taken_over=taken_over)
                chat.stop()
                if exchange.problem:
                    # What was true of the service before may not be any more.
                    _models.clear()
                    _connected(connection, _offered(default_address())[1])
            else:
                drawn.update()
                drawn.note()
            _actions(chat, exchange, number, last=exchange is exchanges[-1])


def _welcome() -> None:
    st.title("Ask a question")
    st.markdown("and read the answer while it is being written.")


def _actions(chat: Chat, exchange: Exchange, number: int, *, last: bool) -> None:
    """What can be done with an answer that has ended."""
    with st.container(horizontal=True, vertical_alignment="center", key=f"actions-{number}"):
        if exchange.text:
            exchange_view.copy_button(exchange, key=f"copy-{number}")
        if last:
            _retry_button(chat, "retry")
    if last and exchange.tool_calls:
        _results_form(chat, exchange.tool_calls)
    if exchange.pieces:
        # Charts are large, so only those are drawn that someone looks at.
        fold = st.expander("Chunks", key=f"chunks-{number}", type="compact", on_change="rerun")
        if fold.open:
            with fold:
                exchange_view.chart(exchange.pieces)


def _results_form(chat: Chat, calls: Sequence[ToolCall]) -> None:
    """Let a person run what the model asked for, and say what came of it."""
    with st.form("results"):
        for place, call in enumerate(calls):
            st.text_area(f"Result of {call.name}", key=f"result-{place}", placeholder="JSON, or plain text", height=80)
        st.form_submit_button("Send", on_click=_answer_calls, args=(chat, calls))


def _answer_calls(chat: Chat, calls: Sequence[ToolCall]) -> None:
    written = [st.session_state[f"result-{place}"] for place in range(len(calls))]
    results = (tool_result(call, response(text)) for call, text in zip(calls, written, strict=True))
    chat.pending = Question(tool(*results))


def _retry_button(chat: Chat, key: str) -> None:
    st.button("Retry", key=key, on_click=chat.retry, type="tertiary", icon=":material/refresh:")


def _follow(
    chat: Chat, live: Live, drawn: exchange_view.Drawing, seconds_per_letter: float, *, taken_over: bool
) -> None:
    """Show the answer until it has ended and everything is on the page."""
    exchange = live.exchange
    live.pump.keep()
    below = st.empty()
    with below.container():
        if taken_over:
            # The Stop in the chat input is gone after a rerun.
            st.button("Stop", key="stop", on_click=live.stop, icon=":material/stop:")
        # A stopped script can't draw any more, so the button is drawn beforehand and appears when the script stops.
        with st.container(key="retry-if-stopped"):
            _retry_button(chat, "retry-stopped")
    shown = 0
    while True:
        _advance(live, wait=_TICK_SECONDS if shown == len(exchange.text) else _FRAME_SECONDS)
        now = time.monotonic()
        available = len(exchange.text)
        shown = live.typewriter.advance(available, now, seconds_per_letter=seconds_per_letter)
        size = drawn.update(shown)
        if exchange.ended and shown == available:
            break
        drawn.note(now)
        time.sleep(min(max(_FRAME_SECONDS, size / _CHARACTERS_PER_SECOND), _TICK_SECONDS))
    drawn.note()
    below.empty()


def _advance(live: Live, wait: float) -> None:
    if live.exchange.ended:
        return
    try:
        arrivals = live.pump.take(wait)
    except TokenwireError as error:
        too_long = isinstance(error, InvalidRequestError) and live.exchange.follows_up
        hint = " If this conversation has become too long, start a new one." if too_long else ""
        live.exchange.fail(str(error) + hint)
        return
    if arrivals is None:
        live.exchange.finish()
        return
    for arrival in arrivals:
        live.exchange.saw(arrival)
