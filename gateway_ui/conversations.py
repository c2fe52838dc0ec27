"""The page's list of conversations: find one, name it, put it into a file, delete it."""

from collections.abc import Callable
from functools import partial

import streamlit as st

from . import clicks
from .chat import export
from .chat.conversation import Conversation, heading
from .chat.database import PURGED_AFTER_DAYS
from .chat.desk import Desk, Talk
from .chat.words import one_line
from .drawing import exchange_view
from .drawing.markdown import STYLE, closed, standalone
from .drawing.plain import label
from .tab import Tab, this_tab

# So many are shown, and again so many with each wish for more.
_SHOWN = 30
# So many can be looked through without a search.
_FEW = 5


def opened(tab: Tab, desk: Desk, owner: str, went: object) -> Talk:
    """The conversation of this tab: the one in its address, else a new one. The script runs again when it is found.

    `went`: where Back or Forward has led before, which the address knows better by now.
    """
    if tab.talk is None or tab.talk.owner != owner:
        if isinstance(went, list) and went:
            tab.went = str(went[0])
        _follow(tab, desk, owner, st.query_params.get("c", ""))
        st.rerun()  # so that the browser is told whose draft stands in the input
    return tab.shown()


def go(tab: Tab, desk: Desk, owner: str, went: object) -> None:
    """Open what the browser's Back or Forward has led to, once. The script runs again then."""
    match went:
        case [str(word), str(number)] if word != tab.went:
            tab.went = word
            _follow(tab, desk, owner, number)
            tab.taken += 1
            st.rerun()


def _follow(tab: Tab, desk: Desk, owner: str, number: str) -> None:
    """Open the conversation that the browser's address names; another one stands in for one that isn't here."""
    _show(tab, desk, owner, number)
    if number not in ("", tab.shown().conversation.id):
        tab.not_here = tab.shown().conversation.id, number


def _show(tab: Tab, desk: Desk, owner: str, number: str) -> None:
    """Show a conversation; without a number the new one that was set up and left, else another new one.

    The browser's address names it, so that it is kept from its first moment.
    """
    begun = None if number else tab.set_up()
    tab.open(begun if begun is not None and begun.owner == owner else desk.begun(owner, number))


def missing(tab: Tab, desk: Desk) -> None:
    """Say that what the address named isn't here, where another conversation stands in for it."""
    shown, number = tab.not_here
    talk = tab.shown()
    if shown != talk.conversation.id:
        return
    if any(one.id == number for one in desk.store.deleted(talk.owner)):
        exchange_view.problem("This conversation was deleted.")
        clicks.button("Bring it back", key=f"back-{number}", on_click=_undelete, args=(desk, talk.owner, number))
    else:
        # The words are the same where another browser has it and where nobody has: nobody can find out which there are.
        exchange_view.problem("This conversation isn't here, or is another browser's.")


def new_button(desk: Desk, talk: Talk) -> None:
    """Draw what opens a new one."""
    clicks.button("New conversation", key="new", on_click=_open, args=(desk, talk.owner), width="stretch")


def drawer(desk: Desk, talk: Talk, undrop: Callable[[str], None]) -> None:
    """Draw the list. `undrop`: has a question wait again, by its id."""
    if desk.store.trouble:
        st.html(f'<div class="tw-problem" role="alert">{desk.store.trouble}</div>')
    if talk.conversation.exchanges:
        _this_one(desk, talk)
    _undo(desk, talk)
    _dropped(talk, undrop)
    _deleted(desk, talk)
    search = st.session_state.get("find", "")
    found = desk.store.list(talk.owner, search)
    if search or len(found) > _FEW:
        st.text_input("Search conversations", key="find", placeholder="Search", label_visibility="collapsed")
    with st.container(key="conversations"):
        shown = st.session_state.get("listed", _SHOWN)
        for one in found[:shown]:
            clicks.button(
                label(one.title),
                key=f"open-{one.id}",
                on_click=_open,
                args=(desk, talk.owner, one.id),
                type="primary" if one.id == talk.conversation.id else "tertiary",
                width="stretch",
            )
        if search and not found:
            st.caption("None has these words.")
    if len(found) > shown:
        clicks.button(
            f"Show more ({len(found) - shown})", key="more", on_click=_list_more, args=(shown,), width="stretch"
        )


def listed(desk: Desk, talk: Talk) -> object:
    """What the list tells, to be compared: another tab may add, name, delete and bring back."""
    there = [(one.id, one.title) for one in desk.store.list(talk.owner)]
    return there, [one.id for one in desk.store.deleted(talk.owner)], talk.conversation.name


def _list_more(shown: int) -> None:
    st.session_state.listed = shown + _SHOWN


def _open(desk: Desk, owner: str, number: str = "") -> None:
    tab = this_tab()
    _show(tab, desk, owner, number)
    tab.taken += 1


def _this_one(desk: Desk, talk: Talk) -> None:
    conversation = talk.conversation
    with st.expander("This conversation", key=f"this-{conversation.id}"):
        of = talk.owner, conversation.id
        said = _titles_said(conversation.id)
        if said[-1] not in ("", conversation.name):  # another tab has named it
            said.append("")
        said[-1] = conversation.name
        turn = len(said) - 1
        key = _title_key(conversation.id, turn)
        if st.session_state.get(key) != conversation.name:
            st.session_state[key] = conversation.name
        st.text_input("Name", key=key, on_change=_rename, args=(desk, *of, turn), max_chars=200)
        # Written when they are asked for: an answer may have come since.
        writes: tuple[tuple[str, str, str, Callable[[Conversation], str]], ...] = (
            ("Markdown", "md", "text/markdown", partial(export.as_markdown, close=closed)),
            ("JSON", "json", "application/json", export.as_json),
            ("Web page", "html", "text/html", partial(export.as_html, render=standalone, style=STYLE)),
        )
        st.html('<div class="tw-caption">Download as</div>')
        with st.container(horizontal=True):
            for words, ending, mime, write in writes:
                st.download_button(
                    words,
                    data=partial(write, conversation),
                    file_name=export.file_name(conversation, ending),
                    mime=mime,
                    key=f"download-{ending}-{conversation.id}",
                    help="To share: one file that any browser shows" if ending == "html" else None,
                    on_click="ignore",
                    width="stretch",
                )
        key = f"delete-{conversation.id}"
        clicks.button("Delete", key=key, on_click=_delete, args=(desk, *of), width="stretch")


# What Streamlit keeps of a button, also of one that it draws no more, holds no conversation: each would stay in memory.
# And what a field or a button tells may come when another conversation is shown: each says by ids what it is about.


def _title_key(number: str, turn: int) -> str:
    """The key of the field for a title. Where another tab has named the conversation, it is another field.

    A browser may go on telling for a while what a field said before, and Streamlit takes that for a change.
    """
    return f"title-{number}-{turn}"


def _titles_said(number: str) -> list[str]:
    """What each of the fields for a conversation's title has said last; empty: what is drawn next."""
    named = f"named-{number}"
    if named not in st.session_state:
        st.session_state[named] = [""]
    said: list[str] = st.session_state[named]
    return said


def _rename(desk: Desk, owner: str, number: str, turn: int) -> None:
    title, said = one_line(st.session_state[_title_key(number, turn)]), _titles_said(number)
    if title != said[turn]:
        said[turn] = title
        desk.rename(owner, number, title)


def _delete(desk: Desk, owner: str, number: str) -> None:
    tab, talk = this_tab(), desk.talk(owner, number)
    if talk.conversation.id != number:
        return  # gone already
    talk.deleted = True
    talk.stop()
    desk.store.delete(owner, number)
    tab.unasked = [(one, choices) for one, choices in tab.unasked if one is not talk]
    tab.deleted = number
    if tab.shown() is talk:
        _open(desk, owner)


def _undo(desk: Desk, talk: Talk) -> None:
    """A way back from the last delete, at once."""
    one = next((one for one in desk.store.deleted(talk.owner) if one.id == this_tab().deleted), None)
    if one is not None:
        words = f"Undo: delete {label(one.title)}"
        clicks.button(words, key=f"undo-{one.id}", on_click=_undelete, args=(desk, talk.owner, one.id), width="stretch")


def _dropped(talk: Talk, undrop: Callable[[str], None]) -> None:
    """A way back for what isn't to be asked in this conversation."""
    with st.container(key="undroppable"):
        for one in reversed(talk.dropped):
            words = f"Undo: don't ask {label(heading(one.message, one.all_names))}"
            clicks.button(words, key=f"undrop-{one.id}", on_click=undrop, args=(one.id,), width="stretch")


def _deleted(desk: Desk, talk: Talk) -> None:
    """All deleted conversations of this browser that can be brought back."""
    deleted = desk.store.deleted(talk.owner)
    if not deleted:
        return
    fold = st.expander("Deleted", key="deleted-ones", on_change="rerun")
    if fold.open:
        with fold, st.container(key="undeletable"):
            st.caption(f"For {PURGED_AFTER_DAYS} days.")
            for one in deleted:
                clicks.button(
                    f"Bring back {label(one.title)}",
                    key=f"undelete-{one.id}",
                    on_click=_undelete,
                    args=(desk, talk.owner, one.id),
                    width="stretch",
                )


def _undelete(desk: Desk, owner: str, number: str) -> None:
    desk.store.undelete(owner, number)
    _open(desk, owner, number)
