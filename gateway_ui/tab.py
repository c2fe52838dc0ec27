"""What a tab of the page knows from one run of its script to the next, and what all tabs share."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import streamlit as st
from streamlit import runtime

from . import sidebar
from .chat.database import default_path
from .chat.desk import Desk, Talk
from .chat.store import Store
from .sidebar import Choices


@st.cache_resource
def shared_desk() -> Desk:
    # By now everything has been imported, and lives as long as the process. A collection, for which all threads stand
    # still, needn't look at it.
    gc.collect()
    gc.freeze()
    return Desk(Store(default_path()), runtime.get_instance().is_active_session)


@dataclass(frozen=True)
class Unread:
    """Results that look like JSON and can't be sent as such, which was said. Sent once more, they are plain text."""

    exchange: str
    written: list[str]
    problems: list[str] = field(compare=False)


@dataclass(frozen=True)
class Unsaid:
    """Calls of tools whose results were to be sent while their fields were empty, by their places."""

    exchange: str
    places: frozenset[int]


@dataclass
class Tab:
    """One tab.

    A click ends the run that is on its way, and even what another click was doing, wherever either touches Streamlit
    or its session state. What is changed here can't be cut in two by that.
    """

    talk: Talk | None = None
    """The conversation that is shown; None: the browser hasn't said yet whose tab this is."""
    typed: list[tuple[Talk | None, Any, str]] = field(default_factory=list)
    """What isn't kept yet, as Streamlit gives it, each with the conversation that was shown, and the question's id."""
    taken: int = 0
    """So many questions, and clicks that open a conversation, have come. The browser holds others back until then."""
    unasked: list[tuple[Talk, Choices | None]] = field(default_factory=list)
    """Where something waits to be asked, and with which settings."""
    choices: Choices | None = None
    """What the drawer said when it was drawn last."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The same as it is kept with a conversation."""
    left: list[tuple[Talk, dict[str, Any]]] = field(default_factory=list)
    """Conversations that were left since the drawer was drawn last, each with what it said of them then."""
    before: Talk | None = None
    """The one that was left last, until the fields of the next one are set: a new one goes on with its settings."""
    told_at: float = 0.0
    """When the browser surely knows what the fields were set to, by time.monotonic(); until then it is told again."""
    given: dict[str, Any] | None = None
    """What the drawer said of a new conversation before anything was changed; None: it had been set up before."""
    begun: tuple[Talk, dict[str, Any] | None] | None = None
    """The new conversation that was left last, and what was `given` in it: it may have been set up, to be asked in."""
    restores: bool = True
    """Whether the fields are to say what they did in the conversation that has just been opened."""
    went: str = ""
    """The word with which the browser told last where its Back or Forward led."""
    opened: str = ""
    old_answers: set[str] = field(default_factory=set)
    """The answers that were there when this conversation was opened: they aren't read out."""
    not_here: tuple[str, str] = "", ""
    """The conversation that stands in the place of one that isn't here, and that one."""
    deleted: str = ""
    editing: set[str] = field(default_factory=set)
    """The exchanges whose questions are being edited, in any conversation."""
    answering: set[str] = field(default_factory=set)
    """The exchanges whose calls are being answered, though something else has been asked since."""
    reopened: list[str] = field(default_factory=list)
    """Those of them that the browser has told: it keeps what was typed there before this tab was loaded."""
    done: list[str] = field(default_factory=list)
    """What was sent or cancelled, by the beginnings of its fields' keys: the browser keeps no draft of it any more."""
    answer: tuple[str, bool] | None = None
    """What the browser asked last with about a question on its way, and whether that has been taken."""
    back: tuple[str, str] | None = None
    """A question's id and words, which go back into the input if that is empty."""
    unread: Unread | None = None
    unsaid: Unsaid | None = None
    buttons: set[str] = field(default_factory=set)
    """The keys of all that were ever drawn here."""
    clicked: list[tuple[Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    """What clicks want that came before their buttons were drawn here: see `clicks`."""

    def open(self, talk: Talk) -> None:
        """Show another conversation. Nothing of Streamlit is touched, so a second click doesn't undo this one."""
        if self.talk is not None and not self.restores:
            self.left.append((self.talk, self.settings))
            if self.talk.is_new():
                self.begun = self.talk, self.given
        self.before, self.talk, self.restores = self.talk, talk, True
        self.back = None  # it goes into the input of the conversation that it comes from, or stays in the drawer

    def set_up(self) -> Talk | None:
        """Give the new conversation that was set up and left with nothing asked in it; None: there is none."""
        if self.begun is None:
            return None
        talk, given = self.begun
        return talk if talk.is_new() and _differ(given, talk.conversation.settings) else None

    def settle(self, desk: Desk) -> None:
        """Keep what the drawer says with the conversation, where it was changed here: another tab may say otherwise.

        And with those that were left, whose last change the script may see together with the click that left them.
        """
        while self.left:
            _settle(desk, *self.left[0])
            self.left.pop(0)
        if not self.restores:  # else the fields don't say yet what is kept
            self.settings = _settle(desk, self.shown(), self.settings)

    def draft_of(self) -> tuple[str, bool] | None:
        """Whose draft stands in the input: the id, and whether nothing was asked there, nor is about to be."""
        if (talk := self.talk) is None:
            return None
        return talk.conversation.id, talk.is_new() and not self.typed

    def shown(self) -> Talk:
        """The conversation that is shown, once there is one."""
        assert self.talk is not None
        return self.talk


def _settle(desk: Desk, talk: Talk, seen: dict[str, Any]) -> dict[str, Any]:
    """Keep what the fields of a conversation say by now, which is given, unless they have said it before."""
    said = sidebar.settings(talk.conversation.id)
    if not talk.conversation.settings or seen != said:
        talk.conversation.settings = {**talk.conversation.settings, **said}
        desk.store.settle(talk.owner, talk.conversation)
    return said


def _differ(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> bool:
    """Whether somebody has changed a setting. A model that wasn't there before is the first one on offer."""
    return before is None or any(value != before[name] for name, value in now.items() if name in before)


def this_tab() -> Tab:
    """The tab whose script is running, or whose click is being followed."""
    if "tab" not in st.session_state:
        st.session_state.tab = Tab()
    tab: Tab = st.session_state.tab
    return tab
