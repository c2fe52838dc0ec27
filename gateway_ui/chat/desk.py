"""The conversations that are open in this process, shared by all tabs of the browsers that they belong to."""

import threading
import weakref
from dataclasses import dataclass, field

from tokenwire.v1.content_pb2 import Message

from .conversation import Conversation, Exchange, new_id
from .live import Live
from .store import Store


@dataclass
class Waiting:
    """A question that is asked once the answer before it has ended."""

    message: Message
    trouble: str = ""
    # Why it can't be asked, in words for a person; empty: it can.
    names: list[str] = field(default_factory=list)
    # Of its files.
    refused: list[str] = field(default_factory=list)
    # Of files that can't go along.
    instead: Exchange | None = None
    # Asked before, as it is or in other words: it takes this one's place, which stays as an alternative.
    id: str = field(default_factory=new_id)


@dataclass(weakref_slot=True, slots=True)
class Talk:
    """A conversation, the answer that is being written in it, and what is to be asked next, for any number of tabs."""

    owner: str
    conversation: Conversation
    live: Live | None = None
    waiting: list[Waiting] = field(default_factory=list)
    asking: threading.RLock = field(default_factory=threading.RLock)
    # Held by the tab that asks: when an answer ends, all of them would ask what waits.

    def running(self) -> Live | None:
        """The answer that is being written, if it hasn't ended."""
        return self.live if self.live is not None and not self.live.exchange.ended else None

    def shown(self) -> Live | None:
        """The answer that is being written, or that a tab is still showing letter by letter."""
        live = self.live
        return live if live is not None and (not live.exchange.ended or live.shown < len(live.exchange.text)) else None

    def drop(self, waiting: str) -> Waiting | None:
        """Take the question of this id off those that wait, and give it; None: it is gone already."""
        found = next((one for one in self.waiting if one.id == waiting), None)
        self.waiting[:] = [one for one in self.waiting if one is not found]
        return found

    def stop(self) -> None:
        """End it, if there is one."""
        if self.live is not None:
            self.live.stop()


class Desk:
    """Finds a conversation, and keeps what is said in it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._open: weakref.WeakValueDictionary[tuple[str, str], Talk] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def talk(self, owner: str, number: str = "") -> Talk:
        """The conversation of this number, if the owner has it; else a new one."""
        with self._lock:
            found = self._open.get((owner, number))
            if found is None:
                kept = self.store.load(owner, number) if number else None
                found = Talk(owner, kept if kept is not None else Conversation())
                self._open[owner, found.conversation.id] = found
            return found

    def keep(self, talk: Talk) -> None:
        """Save what has changed in a conversation; the store tells if it can't be."""
        self.store.save(talk.owner, talk.conversation)
