"""Asks the questions that wait, each in its conversation and in its turn, with its files made into parts before."""

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial

import streamlit as st

from tokenwire import Client, default_address, user
from tokenwire.cli.meter import Meter
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import GenerateRequest, Model

from .chat.conversation import Exchange, Waiting
from .chat.desk import WAITED_IN_VAIN, Desk, Talk
from .chat.live import Live
from .input import attachments
from .sidebar import Choices

AWAY = "The service has gone away while it waited."
SETTLED = "What kept it from being asked is settled: it can be asked now."
OTHER_MODEL = "Another model is chosen by now, which may take what was refused."


@st.cache_resource
def client_of(address: str) -> Client:
    """The connection to the service, one for all tabs."""
    return Client(address)


def to_check(talk: Talk) -> list[Waiting]:
    """The questions whose files are to be looked at, as soon as a model says which it takes."""
    return [one for one in talk.waiting if one.unchecked and not one.trouble]


def _prepare(desk: Desk, talk: Talk, one: Waiting, model: Model) -> None:
    """Make parts of a question's files, as far as the model takes them, and then ask it; in a thread of its own.

    What the model doesn't take stays with the question, and is its trouble.
    """
    before = attachments.inline_bytes([*(other.question for other in talk.conversation.path()), one.message])
    try:
        attached, problems = attachments.attach_all(one.files, attachments.kinds(model), before=before)
    except Exception:
        logging.getLogger(__name__).exception("files could not be prepared")
        attached, problems = [], ["The page has made a mistake with these files, which its log tells."]
    with talk.asking:
        one.preparing = False
        if talk.waits(one.id) is None or talk.deleted:  # not to be asked any more, or only when it is back
            return
        one.unchecked = False
        one.trouble = " ".join(problems)
        one.refused = attachments.kinds(model), one.trouble
        # By their place: two files may have one name.
        taken = {added.place for added in attached}
        one.files = [file for place, file in enumerate(one.files) if place not in taken]
        one.names = [*one.names, *(added.name for added in attached)]
        files = [part for part in one.message.parts if not part.text]
        texts = [part for part in one.message.parts if part.text]
        parts = [*files, *(added.part for added in attached), *texts]
        one.message = user(*parts) if parts else Message()
        talk.notes += [added.note for added in attached if added.note]
        desk.put(talk, one)
        _ask_next(desk, talk)


def ask(desk: Desk, talk: Talk, choices: Choices, models: Sequence[Model] = (), unknown: str = "") -> None:
    """Ask the next question that waits, if none is being answered; have the files of all be prepared.

    What still waits is asked with the same choices, unless a tab says otherwise by then.

    Where there are no models, `unknown` says why: then nobody knows which files they take.
    """
    with talk.asking:
        talk.request, talk.trouble = choices.request, choices.trouble
        model = next((one for one in models if one.name == choices.request.model), Model())
        for one in talk.waiting:
            if one.trouble and (trouble := _trouble_now(talk, one, model, "" if models else unknown)) != one.trouble:
                one.trouble = trouble
                desk.put(talk, one)
        for one in to_check(talk):
            if not models:
                one.trouble = unknown
                desk.put(talk, one)
            elif not one.preparing:
                one.preparing, talk.deleted = True, False
                # A photo takes seconds. The tab may show another conversation by then.
                work = (desk, talk, one, model)
                threading.Thread(target=_prepare, args=work, name="tokenwire-prepare", daemon=True).start()
        _ask_next(desk, talk)


def _trouble_now(talk: Talk, one: Waiting, model: Model, unknown: str) -> str:
    """Say what is to be said by now of a question that could not be asked; never nothing: it would be asked by itself.

    `model`: the one that is chosen. `unknown`: why none is known; empty: some are.
    """
    if one.trouble in (AWAY, WAITED_IN_VAIN):
        return one.trouble  # it has happened, and stays so
    if one.unchecked:
        return unknown or SETTLED
    if one.files:
        if unknown or one.refused is None:
            return one.trouble
        kinds, why = one.refused
        return why if kinds == attachments.kinds(model) else OTHER_MODEL
    return _refusal(talk, one, _history(talk, one)) or SETTLED


def _history(talk: Talk, one: Waiting) -> list[Message]:
    """The turns that come before a question."""
    return talk.conversation.history(model=talk.request.model, then=one.message, before=one.instead)


def _refusal(talk: Talk, one: Waiting, history: Sequence[Message]) -> str:
    """Why a question can't be asked as it is; empty: it can."""
    return talk.trouble or attachments.too_much([*history, one.message])


def _go_on(desk: Desk, talk: Talk, away: bool) -> None:
    """Ask the next question that waits, once an answer has ended, whether a tab shows the conversation or not.

    Where the browser has closed the page, nobody would read the answer: there the question waits until it is back.
    Where the service has gone `away`, all that wait would fail one after the other: they are for their owner to ask.
    """
    with talk.asking:
        if away:
            for one in talk.waiting:
                one.trouble = one.trouble or AWAY
                desk.put(talk, one)
        elif not talk.deleted and desk.is_open(talk):
            _ask_next(desk, talk)


def _ask_next(desk: Desk, talk: Talk) -> None:
    # One that can't be asked is for its owner to decide on, and holds up no other. Any other is asked in its turn.
    while (
        talk.running() is None
        and (waiting := next((one for one in talk.waiting if not one.trouble), None)) is not None
        and not waiting.unchecked
    ):
        if _is_asked(desk, talk, waiting):
            return


def _is_asked(desk: Desk, talk: Talk, waiting: Waiting) -> bool:
    """Ask it if that can be done; else it says why not, or another process has asked it."""
    client = client_of(default_address())  # from here on nothing touches the page, which could end this run
    asked = talk.request
    history = _history(talk, waiting)
    waiting.trouble = _refusal(talk, waiting, history)
    if waiting.trouble:
        desk.put(talk, waiting)
        return False
    exchange = Exchange(
        waiting.message,
        asked,
        Meter(asked_at=time.monotonic()),
        follows_up=bool(history),
        names=waiting.names,
        id=waiting.id,
    )
    if not desk.ask(talk, waiting, exchange):
        return False
    request = GenerateRequest(messages=[*history, waiting.message])
    request.MergeFrom(asked)
    talk.live = Live(
        exchange,
        partial(client.stream, request),
        partial(desk.keep, talk),
        open_elsewhere=partial(desk.is_elsewhere, talk),
        then=partial(_go_on, desk, talk),
    )
    return True
