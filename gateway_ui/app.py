"""The page: a chat that shows an answer while it is being written. Run by `tokenwire ui`."""

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import streamlit as st

from tokenwire import default_address
from tokenwire.v1.generation_service_pb2 import Model

from . import actions, asking, clicks, conversations, leftovers, offer, sidebar, taking
from .chat.conversation import Exchange, Waiting
from .chat.desk import Desk, Talk
from .chat.live import Live
from .chat.words import result_names
from .drawing import exchange_view
from .drawing.plain import label
from .drawing.reader import Told, reader
from .following import TICK_SECONDS, follow, outlast
from .sidebar import Choices
from .tab import Tab, shared_desk, this_tab

# gRPC waits for up to a second before it tries again to connect. A question isn't to fail of that.
_RECONNECT_SECONDS = 1.5

# How often a tab looks for what another one has asked in the same conversation, and whether the service is there.
_OTHERS_SECONDS = 1.5

# What a run has drawn may be on its way for so long. Streamlit throws it away where the next run begins meanwhile.
_TOLD_SECONDS = 1.0

# A :material: icon would be fetched from elsewhere.
_ICON = str(Path(__file__).with_name("drawing") / "assets" / "icon.svg")


def page() -> None:
    """Draw the page from top to bottom; the script of one run."""
    st.set_page_config(page_title="tokenwire", page_icon=_ICON, layout="centered")
    exchange_view.style()
    tab = this_tab()
    clicks.follow(tab)
    told = None
    if tab.talk is None:
        told = reader(tab.taken, tab.back, tab.done, tab.draft_of(), tab.answer)
        if not told.owner:
            # The browser says in a moment who it is, and the script runs again. There is no input until then: what it
            # says ends the run that a question begins, and Streamlit forgets what was typed if that comes too early.
            return
    above = taking.question_input(tab)
    told = told or reader(tab.taken, tab.back, tab.done, tab.draft_of(), tab.answer)
    desk = shared_desk()
    talk = conversations.opened(tab, desk, told.owner, told.went)
    conversations.go(tab, desk, told.owner, told.went)
    if session := taking.session():
        desk.shows(session, talk)
    _remember_old_answers(tab, talk)
    _follow_browser(tab, desk, talk, told)

    # Whatever touches the page may end this run, so the questions are kept before.
    hurry = bool(tab.typed or asking.to_check(talk))
    taking.keep_typed(tab, desk, talk)
    taking.tell_of_sent(tab, desk, talk, told.asks)
    models, trouble = offer.models(default_address(), patience=_RECONNECT_SECONDS if hurry else 0.0)
    unknown = trouble or "The service offers no model."
    tab.settle(desk)
    _restore(tab, desk, models)
    while talk.notes:
        st.toast(label(talk.notes[0]))
        talk.notes.pop(0)
    with st.sidebar:
        st.subheader("tokenwire")
        _connection(trouble, known=bool(models))
        sidebar.account([] if trouble else offer.usage(default_address()))
        conversations.new_button(desk, talk)
        # Over the settings, but drawn after them: a question that is asked now is in the list.
        list_ = st.container()
        choices = sidebar.drawer(talk.conversation.id, models)
    tab.choices = choices
    tab.settle(desk)
    # Another conversation may have been opened before the run that kept its question came to asking it.
    for left, said in [(one, said) for one, said in tab.unasked if one is not talk]:
        asking.ask(desk, left, said or choices, models, unknown)
    asking.ask(desk, talk, choices, models, unknown)
    tab.unasked.clear()
    st.set_page_config(page_title=f"{talk.conversation.name} · tokenwire")
    listed = conversations.listed(desk, talk)
    with list_:
        conversations.drawer(desk, talk, actions.undrop)
    shown = _Shown.of(talk)
    _elsewhere(
        lambda: (
            shown.is_old(talk)
            or conversations.listed(desk, talk) != listed
            or offer.have_changed(default_address(), models, trouble)
        )
    )
    # From here on, whatever is clicked ends this run; the next one goes on with the same answer.
    if tab.told_at == math.inf:
        tab.told_at = time.monotonic() + _TOLD_SECONDS
    _talk(talk, shown, choices, above)
    _outlast_preparing(talk, shown)


def _follow_browser(tab: Tab, desk: Desk, talk: Talk, told: Told) -> None:
    """Forget the question that the browser has put back into its input, and open those that were being edited."""
    if any(one.id == told.returned for one in talk.dropped):
        desk.forget(talk, told.returned)
    if tab.reopened != [*told.edited]:
        tab.reopened = [*told.edited]
        tab.editing.update(tab.reopened)


def _restore(tab: Tab, desk: Desk, models: Sequence[Model]) -> None:
    """Have the drawer say what it did in this conversation, once it is opened."""
    conversation = tab.shown().conversation
    was_set_up = sidebar.is_set(conversation.settings)
    if tab.restores and tab.before is not None and not conversation.settings and conversation.last is None:
        # A new one goes on with what was chosen, which stands there to be seen.
        conversation.settings = sidebar.usable(tab.before.conversation.settings)
        desk.store.settle(tab.shown().owner, conversation)
    kept, last = conversation.settings, conversation.last
    if not kept and last is not None:  # of a version that kept none
        kept = {"model": last.asked.model, "system": last.asked.system_instruction}
    if tab.restores:
        sidebar.restore(conversation.id, kept, models)
        tab.told_at = math.inf
        tab.restores, tab.before, tab.settings = False, None, sidebar.settings(conversation.id)
        tab.given = None if was_set_up else tab.settings
    else:
        if time.monotonic() < tab.told_at:
            sidebar.say_again(conversation.id)
        sidebar.prefer(conversation.id, kept, models)


def _remember_old_answers(tab: Tab, talk: Talk) -> None:
    """Note which answers were there when this tab opened the conversation: they aren't read out."""
    if tab.opened != talk.conversation.id:
        tab.opened = talk.conversation.id
        tab.old_answers = {one.id for one in talk.conversation.exchanges if one.ended}


def _connection(trouble: str, *, known: bool) -> None:
    """Say whether the service is there. `known`: whether some models are, in any case."""
    said = f"{trouble} Its models are shown as they were." if known else trouble
    state = exchange_view.words(said if trouble else f"Connected to {default_address()}")
    st.html(f'<div class="tw-state" role="status"><span class="tw-{"off" if trouble else "on"}"></span>{state}</div>')


class _Shown(NamedTuple):
    """What a run of the script shows of a conversation, as it was in one moment.

    Other tabs, and threads that prepare files, change it at any time. A run that met half of a change would show a
    question without its answer, and nothing would have it run again.
    """

    path: Sequence[Exchange]
    waiting: Sequence[Waiting]
    live: Live | None
    state: tuple[object, ...]
    """All that a click may change, in any tab, to be compared."""

    @classmethod
    def of(cls, talk: Talk) -> Self:
        """As it is now."""
        with talk.asking:
            path, waiting, live = talk.conversation.path(), [*talk.waiting], talk.shown()
            cards = [(one.id, one.trouble, one.preparing) for one in waiting]
            return cls(path, waiting, live, ([one.id for one in path], cards, len(talk.dropped)))

    def is_old(self, talk: Talk) -> bool:
        """Whether it has changed since."""
        return self.of(talk).state != self.state


def _elsewhere(is_old: Callable[[], bool]) -> None:
    """Notice by itself what others do, once the script has run to its end: whether what is drawn `is_old`."""

    @st.fragment(run_every=_OTHERS_SECONDS)
    def look() -> None:
        if is_old():
            st.rerun()

    # Alone in a container. Where a fragment runs before the browser has been told of what the script has drawn for it,
    # Streamlit leaves that out, and what stands behind it would come one place too early.
    with st.container():
        look()


def _talk(talk: Talk, shown: _Shown, choices: Choices, above: Any) -> None:
    path, live, left_out = shown.path, shown.live, talk.conversation.left_out()
    with above:
        _waiting(shown.waiting)
        stop = st.empty()
        if live is not None:
            clicks.button(
                "Stop",
                key=f"stop-{live.exchange.id}",  # else a late click would stop the answer that is written next
                on_click=actions.stop,
                args=(live.exchange.id,),
                icon=":material/stop:",
                help="Or press Escape",
                draw=stop.button,
            )
    if not path:
        _welcome()
    exchange_view.drawn(taking.session())
    for exchange in path:
        last = exchange is path[-1]
        with st.chat_message("user", avatar=":material/person:"):
            _asked(exchange)
        with st.chat_message("assistant", avatar=":material/bolt:"):
            new = exchange.id not in this_tab().old_answers
            drawn = exchange_view.Drawing(exchange, borders=choices.borders and last, new=new)
            if live is not None and live.exchange is exchange:
                follow(live, drawn, choices.seconds_per_letter, partial(shown.is_old, talk))
                stop.empty()
                if talk.waiting or shown.is_old(talk):
                    st.rerun()
            else:
                drawn.update()
                drawn.note()
            if last and exchange.problem:
                offer.doubt(default_address())
            _actions(talk, exchange, last=last, left_out=exchange.id in left_out)
    if live is not None and live.exchange not in path:
        outlast(live, stop, partial(shown.is_old, talk))
        if talk.waiting or shown.is_old(talk):
            st.rerun()


def _welcome() -> None:
    conversations.missing(this_tab(), shared_desk())
    st.title("Ask a question", anchor=False)
    st.html("<p>and read the answer while it is being written.</p>")


def _waiting(waiting: Sequence[Waiting]) -> None:
    """What isn't asked yet: because an answer is being written, or because it can't be."""
    for place, one in enumerate(waiting):
        with st.container(key=f"waiting-{place}", border=True):
            exchange_view.waiting(one.message, one.all_names, one.trouble, preparing=one.preparing)
            with st.container(horizontal=True):
                if one.preparing:
                    pass  # it is asked as soon as it can be
                elif not one.trouble:
                    clicks.button("Stop, and ask this now", key=f"now-{one.id}", on_click=actions.now, args=(one.id,))
                elif one.files:
                    words = "Ask" if one.unchecked else "Try again"
                    clicks.button(words, key=f"again-{one.id}", on_click=actions.again, args=(one.id,))
                if one.trouble and one.message.parts:
                    files = "the files" if one.unchecked else "the refused files"
                    words = f"Ask without {files}" if one.files else "Ask"
                    clicks.button(words, key=f"now-{one.id}", on_click=actions.despite, args=(one.id,))
                clicks.button("Don't ask", key=f"not-{one.id}", on_click=actions.drop, args=(one.id,))


def _asked(exchange: Exchange) -> None:
    """The question, and a way to ask it in other words."""
    key = f"edit-{exchange.id}"
    if exchange.id not in this_tab().editing:
        exchange_view.question(exchange.question, exchange.names)
        if any(part.text for part in exchange.question.parts):
            clicks.button(
                "Edit", key=key, on_click=actions.edit, args=(exchange.id,), type="tertiary", icon=":material/edit:"
            )
        return
    exchange_view.marked()
    words = "\n\n".join(part.text for part in exchange.question.parts if part.text)
    with st.form(key, border=False):
        st.text_area("Your question", words, key=f"{key}-words")
        with st.container(horizontal=True):
            clicks.submit("Ask anew", f"anew-{exchange.id}", actions.ask_anew, (exchange.id,))
            clicks.submit("Cancel", f"leave-{exchange.id}", actions.leave, (exchange.id,))


def _actions(talk: Talk, exchange: Exchange, *, last: bool, left_out: bool) -> None:
    """What can be done with an answer that has ended. `left_out`: no later question brings it along."""
    if left_out:
        exchange_view.left_out()
    with st.container(horizontal=True, vertical_alignment="center", key=f"actions-{exchange.id}"):
        if exchange.text:
            exchange_view.copy_button(exchange, key=f"copy-{exchange.id}")
        if last:
            clicks.button(
                "Retry",
                key=f"retry-{exchange.id}",
                on_click=actions.retry,
                args=(exchange.id,),
                type="tertiary",
                icon=":material/refresh:",
            )
        _others(talk, exchange)
    if talk.waits_for_results(exchange):
        if last or exchange.id in this_tab().answering:
            _results_form(exchange, last=last)
        else:
            clicks.button(
                "Answer the calls",
                key=f"answer-calls-{exchange.id}",
                on_click=actions.begin_results,
                args=(exchange.id,),
                help="What has been asked since stays as another version",
            )
    if exchange.pieces:
        # Charts are large, so only those are drawn that someone looks at.
        fold = st.expander("Chunks", key=f"chunks-{exchange.id}", type="compact", on_change="rerun")
        if fold.open:
            with fold:
                exchange_view.chart(exchange.pieces)


def _others(talk: Talk, exchange: Exchange) -> None:
    """A way to the other answers to this question, and to the answers to its other versions."""
    all_ = talk.conversation.alternatives(exchange)
    if len(all_) < 2:
        return
    place = all_.index(exchange)
    steps = (("Earlier", "chevron_left", place - 1), ("Later", "chevron_right", place + 1))
    for words, icon, to in steps:
        clicks.button(
            words,
            key=f"{words}-{exchange.id}",
            on_click=actions.show,
            args=((all_[to] if 0 <= to < len(all_) else exchange).id,),
            disabled=not 0 <= to < len(all_),
            type="tertiary",
            icon=f":material/{icon}:",
        )
    st.html(f'<span class="tw-place">{place + 1} of {len(all_)}</span>')


def _results_form(exchange: Exchange, *, last: bool) -> None:
    """Let a person run what the model asked for, and say what came of it.

    `last`: nothing has been asked since. Else it can be left, and what was typed comes back with it.
    """
    with st.form(f"results-{exchange.id}"):
        unsaid = this_tab().unsaid
        empty = unsaid.places if unsaid is not None and unsaid.exchange == exchange.id else ()
        for place, name in enumerate(result_names(exchange.tool_calls)):
            key = f"result-{exchange.id}-{place}"
            st.text_area(label(name), key=key, placeholder="JSON, or plain text", height=80)
            if place in empty:
                exchange_view.problem(f"Not sent: {name} is empty. Say what the tool gave; if nothing, write null.")
        unread = this_tab().unread
        if unread is not None and unread.exchange == exchange.id:
            exchange_view.problem(" ".join(unread.problems))
        with st.container(horizontal=True):
            clicks.submit("Send", f"send-{exchange.id}", actions.answer_calls, (exchange.id,))
            if not last:
                clicks.submit("Not now", f"not-now-{exchange.id}", actions.leave_results, (exchange.id,))


def _outlast_preparing(talk: Talk, shown: _Shown) -> None:
    """Wait until the files of all questions have been prepared, and show what came of it.

    Whatever is clicked meanwhile ends this run.
    """
    touched = st.empty()
    leftovers.clear()
    while not shown.is_old(talk):
        if not any(one.preparing for one in shown.waiting):
            return
        time.sleep(TICK_SECONDS)
        touched.empty()
    st.rerun()
