"""What the buttons of a conversation do."""

import streamlit as st

from tokenwire import tool, tool_result, user

from .chat.conversation import Waiting
from .chat.words import result_names
from .input.results import response, unfit
from .tab import Unread, Unsaid, shared_desk, this_tab

# Streamlit keeps the arguments of every button until its tab is closed, also of those that it draws no more. So they
# are ids: with the objects, each conversation that was ever shown in a tab would stay in memory, with its files.


def stop(exchange: str) -> None:
    live = this_tab().shown().live
    # By the time of the click it may have ended, and the next question been asked.
    if live is not None and live.exchange.id == exchange:
        live.stop()


def drop(waiting: str) -> None:
    tab = this_tab()
    talk = tab.shown()
    # A second click may come when it is gone already; and so below.
    if (one := talk.waits(waiting)) is not None:
        shared_desk().drop(talk, one)
        words = [part.text for part in one.message.parts]
        if one.instead is None and not one.files and words and all(words):
            tab.back = one.id, "\n\n".join(words)


def undrop(waiting: str) -> None:
    shared_desk().undrop(this_tab().shown(), waiting)


def now(waiting: str) -> None:
    talk = this_tab().shown()
    with talk.asking:
        if (one := talk.waits(waiting)) is not None:
            talk.waiting[:] = sorted(talk.waiting, key=lambda other: other is not one)
            talk.stop()


def despite(waiting: str) -> None:
    talk = this_tab().shown()
    with talk.asking:
        if (one := talk.waits(waiting)) is not None:
            one.trouble, one.files, one.unchecked = "", [], False
            shared_desk().put(talk, one)


def again(waiting: str) -> None:
    talk = this_tab().shown()
    with talk.asking:
        if (one := talk.waits(waiting)) is not None:
            one.trouble, one.unchecked = "", True
            shared_desk().put(talk, one)


def edit(exchange: str) -> None:
    this_tab().editing.add(exchange)


def leave(exchange: str) -> None:
    """Edit a question no more; what was typed instead of it is kept no more either."""
    tab = this_tab()
    tab.editing.discard(exchange)
    tab.done.append(f"edit-{exchange}")


def ask_anew(exchange: str) -> None:
    talk, words = this_tab().shown(), st.session_state[f"edit-{exchange}-words"].strip()
    earlier = talk.conversation.exchange(exchange)
    if earlier is None:
        return
    leave(exchange)
    if words:
        files = [part for part in earlier.question.parts if not part.text]
        shared_desk().put(talk, Waiting(user(*files, words), names=earlier.names, instead=earlier))


def retry(exchange: str) -> None:
    talk = this_tab().shown()
    earlier = talk.conversation.exchange(exchange)
    if earlier is None or talk.running() is not None:
        return
    # A second click may come when it is being asked already.
    if not any(one.instead is earlier for one in talk.waiting):
        shared_desk().put(talk, Waiting(earlier.question, names=earlier.names, instead=earlier))


def show(exchange: str) -> None:
    talk = this_tab().shown()
    if (one := talk.conversation.exchange(exchange)) is not None:
        talk.conversation.show(one)
        shared_desk().keep(talk)


def begin_results(exchange: str) -> None:
    this_tab().answering.add(exchange)


def leave_results(exchange: str) -> None:
    """Show the form no more; what was typed into it comes back with it."""
    this_tab().answering.discard(exchange)


def answer_calls(exchange: str) -> None:
    tab = this_tab()
    talk = tab.shown()
    # A second click may come when they have been sent already.
    if (one := talk.conversation.exchange(exchange)) is not None and talk.waits_for_results(one):
        written = [st.session_state[f"result-{exchange}-{place}"] for place in range(len(one.tool_calls))]
        if empty := frozenset(place for place, text in enumerate(written) if not text.strip()):
            tab.unread, tab.unsaid = None, Unsaid(exchange, empty)
            return
        tab.unsaid = None
        problems = [
            f"{name} begins like JSON, but can't be sent as it stands: {wrong}."
            for name, wrong in zip(result_names(one.tool_calls), map(unfit, written), strict=True)
            if wrong
        ]
        if problems:
            problems.append("Correct it, or send it again: then it goes as plain text.")
            unread = Unread(exchange, written, problems)
            if unread != tab.unread:
                tab.unread = unread
                return
        tab.unread = None
        tab.answering.discard(exchange)
        tab.done.append(f"result-{exchange}")
        results = [tool_result(call, response(text)) for call, text in zip(one.tool_calls, written, strict=True)]
        # Where something else has been asked since, that stays as an alternative.
        shared_desk().put(talk, Waiting(tool(*results), instead=talk.conversation.following(one)))
