"""The conversations that are open in this process, shared by all tabs of the browsers that they belong to."""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tokenwire.v1.generation_service_pb2 import GenerateRequest

from .conversation import INTERRUPTED, Conversation, Exchange, Waiting
from .live import Live
from .store import Store

WAITED_IN_VAIN = "It waited for an answer that was interrupted."
"""Why a question isn't asked that was waiting for its turn when the page's process died."""


@dataclass(weakref_slot=True, slots=True)
class Talk:
    """A conversation, the answer that is being written in it, and what is to be asked next, for any number of tabs."""

    owner: str
    conversation: Conversation
    live: Live | None = None
    request: GenerateRequest = field(default_factory=GenerateRequest)
    # What a tab has said last: model, system instruction, settings and tools. What waits is asked with it.
    trouble: str = ""
    # What is wrong with that, in words for a person; empty: nothing.
    waiting: list[Waiting] = field(default_factory=list)
    dropped: list[Waiting] = field(default_factory=list)
    # What isn't to be asked, unless that is undone.
    deleted: bool = False
    # Nothing is asked by itself then: that would bring it back, as all that somebody asks does.
    notes: list[str] = field(default_factory=list)
    # What was done to files, in words for a person, until a tab has shown it.
    asking: threading.RLock = field(default_factory=threading.RLock)
    # To be held while `waiting` is changed: when an answer ends, its thread and all tabs would ask what waits.

    def running(self) -> Live | None:
        """The answer that is being written, if it hasn't ended."""
        return self.live if self.live is not None and not self.live.exchange.ended else None

    def shown(self) -> Live | None:
        """The answer that is being written, or that a tab is still showing letter by letter."""
        live = self.live
        if live is None or not live.exchange.ended:
            return live
        # Nobody draws the letters of an answer whose place another one has taken.
        drawn = live.shown < len(live.exchange.text) and live.exchange in self.conversation.path()
        return live if drawn else None

    def is_new(self) -> bool:
        """Whether nothing has been asked in it, nor was to be."""
        return not (self.conversation.exchanges or self.waiting or self.dropped)

    def waits(self, waiting: str) -> Waiting | None:
        """Give the question of this id that waits; None: it is gone already."""
        return next((one for one in self.waiting if one.id == waiting), None)

    def waits_for_results(self, exchange: Exchange) -> bool:
        """Whether an answer's tool calls have no results, neither asked with nor waiting to be."""
        if exchange.problem or not exchange.tool_calls or self.conversation.has_answered(exchange):
            return False
        called = {call.id for call in exchange.tool_calls}
        return not any(part.tool_result.tool_call_id in called for one in self.waiting for part in one.message.parts)

    def stop(self) -> None:
        """End it, if there is one: also one that is being asked just now."""
        with self.asking:
            if self.live is not None:
                self.live.stop()


class Desk:
    """Finds a conversation, keeps what is said in it, and knows which browsers have the page open."""

    def __init__(self, store: Store, is_open: Callable[[str], bool] = lambda _: False) -> None:
        self.store = store
        self._is_open = is_open
        """Tells of a tab whether it is still there."""
        self._tabs: dict[str, tuple[str, str]] = {}
        """Tabs, and of what each shows the owner and the number."""
        self._open: weakref.WeakValueDictionary[tuple[str, str], Talk] = weakref.WeakValueDictionary()
        self._given_back: set[tuple[str, str]] = set()
        """Owners and ids of questions whose words went back into the input. Coming late, they aren't asked."""
        self._lock = threading.Lock()

    def talk(self, owner: str, number: str = "") -> Talk:
        """The conversation of this number, as the file has it by now, if the owner has it; else a new one."""
        with self._lock:
            found = self._open.get((owner, number))
            if found is None:
                kept = self.store.load(owner, number) if number else None
                found = Talk(owner, kept if kept is not None else Conversation())
                self._open[owner, found.conversation.id] = found
                if kept is not None:
                    left = self._left_waiting(found)
                    found.waiting.extend(one for one in left if not one.dropped)
                    found.dropped.extend(one for one in left if one.dropped)
                return found
        self.look(found)
        return found

    def begun(self, owner: str, number: str = "") -> Talk:
        """As `talk` gives it, and kept though it is new: no list shows it until something is asked."""
        talk = self.talk(owner, number)
        if talk.deleted:  # what a tab still shows of it stays there, and nobody else opens it
            talk.deleted = self.store.load(owner, number) is None
            talk = self.talk(owner) if talk.deleted else talk
        if talk.is_new():
            self.store.settle(owner, talk.conversation, begin=True)
        return talk

    def look(self, talk: Talk) -> None:
        """Add what other processes have made of a conversation."""
        with talk.asking:
            kept = self.store.load(talk.owner, talk.conversation.id)
            if kept is None:
                return  # deleted, or not kept at all: here it goes on
            talk.conversation.merge(kept)
            left = self._left_waiting(talk)
            for here, dropped in ((talk.waiting, False), (talk.dropped, True)):
                there = {one.id: one for one in left if one.dropped == dropped}
                here[:] = [one for one in here if not one.kept or one.id in there]
                known = {one.id for one in here}
                here.extend(one for one in there.values() if one.id not in known)

    def shows(self, tab: str, talk: Talk) -> None:
        """A tab shows this conversation from now on."""
        shown = talk.owner, talk.conversation.id
        with self._lock:
            if self._tabs.get(tab) != shown:
                self._tabs = {one: what for one, what in self._tabs.items() if self._is_open(one)}
                self._tabs[tab] = shown

    def is_elsewhere(self, talk: Talk) -> bool:
        """Whether a tab of the owner's shows another conversation, from which they may come back to this one.

        One that should show this one, but doesn't look at its answer, has failed.
        """
        return any(number != talk.conversation.id for number in self._shown(talk.owner))

    def is_open(self, talk: Talk) -> bool:
        """Whether the owner has the page open in any tab, whatever it shows."""
        return any(True for _ in self._shown(talk.owner))

    def _shown(self, owner: str) -> Iterator[str]:
        """The numbers of what the owner's tabs show."""
        with self._lock:
            tabs = [*self._tabs.items()]
        return (number for tab, (whose, number) in tabs if whose == owner and self._is_open(tab))

    def _left_waiting(self, talk: Talk) -> Sequence[Waiting]:
        waiting = self.store.waiting(talk.owner, talk.conversation)
        if talk.conversation.exchanges and talk.conversation.exchanges[-1].problem == INTERRUPTED:
            # Asked by itself it could come days later, or while another process still answers the one before.
            for one in waiting:
                one.trouble = one.trouble or WAITED_IN_VAIN
        return waiting

    def put(self, talk: Talk, one: Waiting) -> None:
        """Have a question wait, or keep what has changed about one that does."""
        with talk.asking:
            if (talk.owner, one.id) in self._given_back:
                return
            talk.deleted = False
            if not any(other is one for other in talk.waiting):
                talk.waiting.append(one)
            one.kept = self.store.wait(talk.owner, talk.conversation, one)

    def gives_back(self, owner: str, number: str, sent: str) -> bool:
        """Whether a question isn't in the conversation of this number, by its id: then it never will be."""
        talk = self.talk(owner, number)
        with talk.asking:
            ids = {one.id for one in (*talk.waiting, *talk.dropped)} | {one.id for one in talk.conversation.exchanges}
            if sent not in ids:
                self._given_back.add((owner, sent))
            return sent not in ids

    def drop(self, talk: Talk, one: Waiting) -> None:
        """Have it wait no more, which can be undone."""
        with talk.asking:
            talk.waiting[:] = [other for other in talk.waiting if other is not one]
            if not one.kept or self.store.drop(talk.owner, talk.conversation.id, one.id):
                one.dropped = True
                talk.dropped.append(one)

    def undrop(self, talk: Talk, dropped: str) -> None:
        """Have a question wait again that was dropped."""
        with talk.asking:
            for one in [one for one in talk.dropped if one.id == dropped]:
                self.forget(talk, dropped, stored=False)
                if not one.kept or self.store.drop(talk.owner, talk.conversation.id, dropped, dropped=False):
                    one.dropped = False
                    talk.waiting.append(one)

    def forget(self, talk: Talk, dropped: str, *, stored: bool = True) -> None:
        """Keep a question no longer that was dropped: its words stand elsewhere."""
        with talk.asking:
            talk.dropped[:] = [one for one in talk.dropped if one.id != dropped]
            if stored:
                self.store.unwait(talk.owner, talk.conversation.id, dropped)

    def ask(self, talk: Talk, one: Waiting, exchange: Exchange) -> bool:
        """Make an exchange of a question that waits; False: another process has done so, or dropped it."""
        conversation = talk.conversation
        with talk.asking:
            talk.deleted = False
            talk.waiting[:] = [other for other in talk.waiting if other is not one]
            exchange.parent = conversation.last if one.instead is None else one.instead.parent
            if not self.store.ask(talk.owner, conversation, one, exchange):
                self.look(talk)
                return False
            conversation.add(exchange, exchange.parent)
            self.keep(talk)
            return True

    def rename(self, owner: str, number: str, title: str) -> None:
        """Give a conversation another title, or with an empty one that of its first question."""
        with self._lock:
            found = self._open.get((owner, number))
        if found is not None:
            found.conversation.title = title
        self.store.rename(owner, number, title)

    def keep(self, talk: Talk) -> None:
        """Save what has changed in a conversation; the store tells if it can't be."""
        self.store.save(talk.owner, talk.conversation)
