"""The page: a chat that shows an answer while it is being written. Run by `tokenwire ui`."""

import html
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.runtime.scriptrunner import RerunException
from tokenwire.v1.config_pb2 import GenerationConfig

from gateway_ui.client import Client, default_address
from gateway_ui.conversation import STOPPED, Conversation, Exchange
from gateway_ui.errors import InvalidRequestError, TokenwireError
from gateway_ui.meter import Meter, duration
from gateway_ui.pump import Pump
from gateway_ui.typewriter import Typewriter

# Streamlit sees a Stop only when the script touches the page, so it does so at least this often.
_TICK_SECONDS = 0.25
# A browser can't use more pictures a second than this.
_FRAME_SECONDS = 0.03
# Each picture holds the whole answer, so the longer it is the fewer there are.
_CHARACTERS_PER_SECOND = 500_000
# A switch flipped in mid-answer starts the script again, which then goes on with the same answer. Should it
# not (the tab was closed at that moment), the answer is cancelled after so long.
_HANDOVER_SECONDS = 3.0

# A :material: icon would be fetched from elsewhere.
_ICON = str(Path(__file__).with_name("icon.svg"))

_ARTICLE_SECONDS_PER_LETTER = 0.02

_STYLE = """
<style>
  .tw-figures, .tw-piece b { opacity: .6; font-size: .8rem; font-variant-numeric: tabular-nums; font-weight: 400; }
  .tw-figures { margin-top: .25rem; }
  .tw-problem {
    border-left: 3px solid #d97706; padding: .3rem .75rem; margin: .4rem 0; font-size: .9rem;
    background: rgba(217, 119, 6, .08); border-radius: 0 .4rem .4rem 0;
  }
  /* Upside down, so that it stays scrolled to its end while it grows. */
  .tw-pieces { display: flex; flex-direction: column-reverse; max-height: 60vh; overflow-y: auto; }
  .tw-piece {
    display: flex; gap: 1rem; padding: .3rem 0; border-bottom: 1px solid rgba(128, 128, 128, .3); line-height: 1.5;
  }
  .tw-piece:last-child { border-bottom: 0; }
  .tw-piece b { flex: 0 0 4.5rem; text-align: right; line-height: 1.9; white-space: nowrap; }
  .tw-piece span { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0; }
  .tw-dot {
    display: inline-block; width: .5em; height: .5em; margin-right: .5em; border-radius: 50%;
    background: #16a34a; animation: tw-pulse 1.2s ease-in-out infinite;
  }
  .tw-problem code, .tw-state code { font-size: .95em; white-space: nowrap; }
  .tw-on, .tw-off { display: inline-block; width: .55em; height: .55em; margin-right: .5em; border-radius: 50%; }
  .tw-on { background: #16a34a; }
  .tw-off { background: #d97706; }
  .tw-state { font-size: .85rem; opacity: .85; overflow-wrap: anywhere; }
  /* An answer's headings belong to the answer, not to the page. */
  [data-testid="stChatMessage"] :is(h1, h2, h3) { font-size: 1.2rem; padding: .6rem 0 .2rem; }
  @keyframes tw-pulse { 50% { opacity: .25; } }
  @media (prefers-reduced-motion: reduce) { .tw-dot { animation: none; } }

  /* A stopped script can't draw any more, so the mark is drawn beforehand and appears when the script stops. */
  .tw-if-stopped { display: none; }
  [data-test-script-state="notRunning"] .tw-if-stopped { display: block; }
  [data-test-script-state="notRunning"] .tw-dot { display: none; }
</style>
"""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the sidebar says."""

    model: str
    # Empty: the service's default.
    system_instruction: str
    max_output_tokens: int | None
    borders: bool
    seconds_per_letter: float
    # 0: as it comes.
    connection: Any
    # The place that says whether the service is there.


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

    def stop(self) -> None:
        """End the answer that is being written, if there is one."""
        if self.live is not None:
            self.live.stop()
            self.live = None


@st.cache_resource
def _client(address: str) -> Client:
    return Client(address)


@st.cache_data(ttl=60, show_spinner=False)
def _models(address: str) -> list[str]:
    return [model.name for model in _client(address).models(timeout=2)]


def page() -> None:
    """Draw the page from top to bottom; the script of one run."""
    st.set_page_config(page_title="tokenwire", page_icon=_ICON, layout="centered")
    st.html(_STYLE)
    if "chat" not in st.session_state:
        st.session_state.chat = Chat()
    chat: Chat = st.session_state.chat

    question = st.chat_input("Ask something, for example: What is baseball?", submit_mode="stop")
    choices = _sidebar()
    # From the first line that touches the page on, any line may be the last of this run.
    try:
        if question:
            _ask(chat, question, choices)
        _talk(chat, choices, taken_over=not question)
    except RerunException:
        if chat.live is not None:
            chat.live.pump.close_unless_kept(_HANDOVER_SECONDS)
        raise
    except BaseException:
        # Stop, a closed tab, a bug: nobody reads on.
        chat.stop()
        raise


def _talk(chat: Chat, choices: Choices, *, taken_over: bool) -> None:
    if not chat.conversation.exchanges:
        _welcome()
    for exchange in chat.conversation.exchanges:
        with st.chat_message("user", avatar=":material/person:"):
            st.text(exchange.question)
        with st.chat_message("assistant", avatar=":material/bolt:"):
            if chat.live is not None and chat.live.exchange is exchange and not exchange.ended:
                _follow(chat.live, choices, taken_over=taken_over)
                chat.stop()
                if exchange.problem:
                    # What was true of the service before may not be any more.
                    _models.clear()
                    _connected(choices.connection, _offered(default_address())[1])
            else:
                _draw(st.empty(), exchange, choices.borders)
                _note(st.empty(), exchange)


def _welcome() -> None:
    st.title("Ask a question")
    st.markdown("and read the answer while it is being written.")


def _sidebar() -> Choices:
    address = default_address()
    with st.sidebar:
        st.subheader("tokenwire")
        names, trouble = _offered(address)
        model = st.selectbox("Model", names, key="model", disabled=not names, placeholder="the service's default")
        system = st.text_area("System instruction", key="system", placeholder="How the model is to behave", height=80)
        longest = st.number_input(
            "Longest answer, in tokens", min_value=1, value=None, step=1, key="longest", placeholder="the model's limit"
        )
        borders = st.toggle("Mark the chunks", key="borders", help="A ruled line between the pieces, as they came.")
        smooth = st.toggle("Letter by letter", key="smooth", help="Shows the text evenly, and hurries when it is late.")
        seconds = st.slider(
            "Seconds per letter",
            0.005,
            0.1,
            _ARTICLE_SECONDS_PER_LETTER,
            0.005,
            key="pace",
            format="%.3f",
            disabled=not smooth,
        )
        st.button("New conversation", key="new", on_click=_forget, width="stretch", icon=":material/edit_square:")
        connection = st.empty()
        _connected(connection, trouble)
    return Choices(model or "", system.strip(), longest, borders, seconds if smooth else 0.0, connection)


def _connected(place: Any, trouble: str) -> None:
    state = _words(trouble) if trouble else f"Connected to {html.escape(default_address())}"
    place.html(f'<div class="tw-state"><span class="tw-{"off" if trouble else "on"}"></span>{state}</div>')


def _offered(address: str) -> tuple[list[str], str]:
    """The names of the models, and what is wrong when there are none."""
    try:
        return _models(address), ""
    except TokenwireError as error:
        return [], str(error)


def _forget() -> None:
    st.session_state.chat.stop()
    st.session_state.chat = Chat()


def _ask(chat: Chat, question: str, choices: Choices) -> None:
    chat.stop()
    client = _client(default_address())
    now = time.monotonic()
    history = list(chat.conversation.history())
    exchange = Exchange(question, Meter(asked_at=now), follows_up=bool(history))
    chat.conversation.exchanges.append(exchange)
    try:
        answer = client.generate(
            question,
            messages=history,
            system_instruction=choices.system_instruction,
            model=choices.model,
            config=GenerationConfig(max_output_tokens=choices.max_output_tokens),
        )
    except ValueError as error:
        exchange.fail(f"This cannot be asked: {error}")
    else:
        chat.live = Live(exchange, Pump(answer), Typewriter(now))


def _follow(live: Live, choices: Choices, *, taken_over: bool) -> None:
    """Show the answer until it has ended and everything is on the page."""
    exchange = live.exchange
    live.pump.keep()
    text, note = st.empty(), st.empty()
    pause = _FRAME_SECONDS
    if taken_over:
        # The Stop in the chat input is gone after a rerun.
        stop = st.empty()
        stop.button("Stop", key="stop", on_click=live.stop, icon=":material/stop:")
    drawn, shown = -1, 0
    while True:
        _advance(live, wait=_TICK_SECONDS if shown == len(exchange.text) else _FRAME_SECONDS)
        now = time.monotonic()
        available = len(exchange.text)
        shown = live.typewriter.advance(available, now, seconds_per_letter=choices.seconds_per_letter)
        if shown != drawn:
            size = _draw(text, exchange, choices.borders, shown)
            pause = min(max(_FRAME_SECONDS, size / _CHARACTERS_PER_SECOND), _TICK_SECONDS)
            drawn = shown
        if exchange.ended and shown == available:
            break
        _note(note, exchange, now)
        time.sleep(pause)
    _note(note, exchange)
    if taken_over:
        stop.empty()


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


def _draw(place: Any, exchange: Exchange, borders: bool, shown: int | None = None) -> int:
    """Draw the first `shown` letters of the answer, or all of it; gives the size of the picture in characters."""
    if not exchange.text:
        return 0
    if borders:
        picture = _pieces(exchange, len(exchange.text) if shown is None else shown)
        place.html(picture)
    else:
        # An image would be fetched from wherever the model says, and would tell that place that it was shown.
        picture = exchange.text[:shown].replace("![", "!\N{ZERO WIDTH SPACE}[")
        place.markdown(picture)
    return len(picture)


def _pieces(exchange: Exchange, left: int) -> str:
    rows = []
    for number, piece in enumerate(exchange.pieces, 1):
        if left <= 0:
            break
        rows.append(
            f'<div class="tw-piece"><b>{number} · {duration(piece.after)}</b>'
            f"<span>{html.escape(piece.text[:left])}</span></div>"
        )
        left -= len(piece.text)
    return f'<div class="tw-pieces"><div>{"".join(rows)}</div></div>'


def _note(place: Any, exchange: Exchange, now: float | None = None) -> None:
    """Draw the line under the answer: how it ended, or how it is coming along."""
    parts = []
    if now is not None:
        parts.append(f'<div class="tw-problem tw-if-stopped">{STOPPED}</div>')
    elif exchange.problem:
        parts.append(f'<div class="tw-problem" role="alert">{_words(exchange.problem)}</div>')
    figures = " · ".join(exchange.meter.figures(now))
    dot = '<span class="tw-dot"></span>' if now is not None else ""
    parts.append(f'<div class="tw-figures">{dot}{figures}</div>')
    place.html("".join(parts))


def _words(text: str) -> str:
    """Give words as HTML, with what stands between backticks as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", html.escape(text))


page()
