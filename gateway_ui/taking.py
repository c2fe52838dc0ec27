"""Takes the questions that are typed, each once, and tells the browser which of them have come."""

import uuid
from typing import Any, NamedTuple, Self

import streamlit as st
from streamlit.delta_generator import DeltaGenerator
from streamlit.runtime.scriptrunner import get_script_run_ctx

from tokenwire import user
from tokenwire.v1.content_pb2 import Message

from .chat.conversation import Waiting
from .chat.desk import Desk, Talk
from .input import attachments
from .tab import Tab


def id_of(session: str, number: int) -> str:
    """The id of a question, which the browser can tell by, too: the thing of this number that came in a session."""
    return uuid.uuid5(uuid.NAMESPACE_OID, f"{session} {number}").hex


class Sent(NamedTuple):
    """A question that a browser has sent, and doesn't know whether it has come."""

    asked_with: str
    """Another one each time that the browser asks."""
    session: str
    number: int
    of: str
    """The conversation's id; empty: the browser didn't know it yet."""

    @classmethod
    def read(cls, said: object) -> Self | None:
        """Of what a browser says; None where it says nothing of the kind."""
        match said:
            case [str(asked_with), str(session), int(number), str(of)]:
                return cls(asked_with, session, number, of)
            case _:
                return None


def question(typed: Any, number: str) -> Waiting:
    """What was typed into the input, as Streamlit gives it, as a question that waits. `number`: its id."""
    text = user(typed.text) if typed.text.strip() else Message()
    files = [(file.name, file.getvalue()) for file in typed.files]
    return Waiting(text, files=files, unchecked=bool(files), id=number)


def question_input(tab: Tab) -> DeltaGenerator:
    """Draw the input, and take what was typed; gives the place above it."""
    with st.bottom:
        above = st.container(key="above")
        typed = st.chat_input(
            "Ask, for example: What is baseball?",
            key="question",
            # Always the same: an input that changes forgets what was typed into it.
            accept_file="multiple",
            max_upload_size=attachments.UPLOAD_MEGABYTES,
        )
    if typed is not None:
        if typed.text.strip() or typed.files:
            tab.typed.append((tab.talk, typed, id_of(session(), tab.taken + 1)))
        tab.taken += 1
    return above


def session() -> str:
    """This tab's, as Streamlit calls it; another one for the same tab once the page is loaded anew."""
    context = get_script_run_ctx()
    return "" if context is None else context.session_id


def keep_typed(tab: Tab, desk: Desk, talk: Talk) -> None:
    """Put each question to the conversation that it was typed in, to be asked. Nothing here touches the page."""
    while tab.typed:
        of, typed, number = tab.typed[0]
        if of is None or of.owner != talk.owner:  # typed before the browser had said who it is
            of = talk
        desk.put(of, question(typed, number))
        tab.unasked.append((of, tab.choices))
        tab.typed.pop(0)


def tell_of_sent(tab: Tab, desk: Desk, talk: Talk, asks: object) -> None:
    """Tell the browser once whether a question has come that it has sent. The script runs again for that."""
    sent = Sent.read(asks)
    if sent is None or (tab.answer is not None and tab.answer[0] == sent.asked_with):
        return
    if sent.session == session():
        taken = sent.number <= tab.taken
    else:
        taken = not desk.gives_back(talk.owner, sent.of or talk.conversation.id, id_of(sent.session, sent.number))
    tab.answer = sent.asked_with, taken
    st.rerun()
