"""Keeps conversations in SQLite: they survive a reload of the page and a restart of its process.

An owner is a random secret that one browser holds. The file knows only its SHA-256, and every method gives only what
belongs to the owner. What is stored of an answer is every message as it came; the rest follows from these.
"""

import hashlib
import json
import secrets
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tokenwire.cli.meter import Meter
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import GenerateRequest, GenerateResponse

from .conversation import INTERRUPTED, UNTITLED, Arrival, Conversation, Exchange, Waiting, heading
from .database import PURGED_AFTER_DAYS, Database
from .words import one_line, pretty

_OWNER_LENGTH = 16
"""Characters of the shortest secret that is taken. A shorter one, or none, could be guessed."""

_ONE_THAT_WAITS = "id = ? AND conversation = (SELECT key FROM conversation WHERE owner = ? AND id = ?)"


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation as a list shows it."""

    id: str
    title: str
    """As `Conversation.name`: never empty."""
    updated: datetime
    """When something was last asked or answered in it; in UTC."""


def new_owner() -> str:
    """Make the secret of one browser: 43 characters, of 256 random bits."""
    return secrets.token_urlsafe(32)


class Store:
    """The conversations of all owners, in one file. For several threads, and several processes at a time.

    Where the file can't be used, it keeps them in memory and `trouble` says so. No method raises for what the file,
    the disk or another process does: it then gives nothing or False, and `trouble` tells why.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._database = Database(path, clock)
        self._base = self._database.connection

    @property
    def trouble(self) -> str:
        """Why conversations may not be kept, in words for a person; empty: they are."""
        return self._database.trouble

    def close(self) -> None:
        """Close the file. What was saved is in it already."""
        self._database.close()

    def list(self, owner: str, search: str = "") -> list[Summary]:
        """Give the owner's conversations, the latest first; with `search` those that have it in title or exchanges.

        Upper and lower case are the same, and so are full and half width. Thoughts aren't searched.
        """
        return [*self._listed(owner, "deleted IS NULL", _folded(search))]

    def deleted(self, owner: str) -> Sequence[Summary]:
        """Give what `undelete` brings back: the owner's deleted conversations, the latest deleted first."""
        return self._listed(owner, f"deleted >= {self._clock() - PURGED_AFTER_DAYS * 86400!r}")

    def load(self, owner: str, id: str) -> Conversation | None:  # noqa: A002  # as a conversation calls it
        """Give a conversation as it was saved; None: the owner has none of this id.

        Every answer has ended: one whose end was never saved is marked as interrupted. It may run on in another
        session, so saving it doesn't write that mark.
        """
        conversation: Conversation | None = None
        with self._database.guarded("read"), self._database.transaction("DEFERRED"):
            row = self._found(owner, id)
            if row is not None:
                conversation = self._loaded(id, *row)
        return conversation

    def save(self, owner: str, conversation: Conversation) -> bool:
        """Write what isn't stored yet; tells whether it was.

        An exchange that has ended is written once. Of one that runs only what has come since is added, so this can be
        called every second. The title is written the first time; `rename` changes it later. A deleted conversation
        stays deleted until something is asked in it.
        """
        with self._database.lock:  # so that what went wrong is of this call
            with self._database.guarded("saved"), self._database.transaction("IMMEDIATE"):
                self._save(owner, conversation)
            return not self._database.passing

    def wait(self, owner: str, conversation: Conversation, one: Waiting) -> bool:
        """Write a question that waits, or what has changed about it; tells whether it was.

        A deleted conversation is brought back: something happens in it.
        """
        with self._database.lock:
            with self._database.guarded("saved"), self._database.transaction("IMMEDIATE"):
                self._wait(owner, conversation, one)
            return not self._database.passing

    def waiting(self, owner: str, conversation: Conversation) -> Sequence[Waiting]:
        """Give the questions that wait in a conversation, and those dropped, in the order they were written."""
        found: list[Waiting] = []
        with self._database.guarded("read"), self._database.transaction("DEFERRED"):
            row = self._found(owner, conversation.id)
            if row is not None:
                found.extend(self._left_waiting(row[0], {one.id: one for one in conversation.exchanges}))
        return found

    def unwait(self, owner: str, id: str, one: str) -> bool:  # noqa: A002
        """Remove a question that waits, by its id; False: there is none."""
        rows = 0
        with self._database.guarded("saved"):
            rows = self._unwait(owner, id, one)
        return rows > 0

    def drop(self, owner: str, id: str, one: str, *, dropped: bool = True) -> bool:  # noqa: A002
        """Keep a question that waits as one that isn't to be asked, or undo that; False: there is none."""
        rows = 0
        with self._database.guarded("saved"):
            rows = self._base.execute(
                f"UPDATE waiting SET dropped = ? WHERE {_ONE_THAT_WAITS}",  # noqa: S608  # ours
                (dropped, one, _digest(owner), _plain(id)),
            ).rowcount
        return rows > 0

    def ask(self, owner: str, conversation: Conversation, one: Waiting, exchange: Exchange) -> bool:
        """Write the exchange that is made of a question that waits, in its place, before it is added.

        False: another process has asked or removed the question, and nothing is written. Where nothing can be written
        it is True, and `trouble` tells why. A deleted conversation is brought back.
        """
        with self._database.guarded("saved"), self._database.transaction("IMMEDIATE"):
            if not self._unwait(owner, conversation.id, one.id, "AND NOT dropped") and one.kept:
                return False
            key = self._save(owner, conversation)
            self._insert(key, exchange)
            self._revive(key)
        return True

    def rename(self, owner: str, id: str, title: str) -> bool:  # noqa: A002
        """Give a conversation another title, or with an empty one that of its first question; False: there is none."""
        title = _plain(one_line(title))
        return self._change(owner, id, "title = ?, title_folded = ?", (title, _folded(title)), "deleted IS NULL")

    def settle(self, owner: str, conversation: Conversation, *, begin: bool = False) -> bool:
        """Write a conversation's settings; False: nothing of it is stored yet. The first `save` writes them, too.

        `begin`: where nothing of it is stored, it is begun with them. No list shows it until something is asked.
        """
        if self._change(owner, conversation.id, "settings = ?", (json.dumps(conversation.settings),), "TRUE"):
            return True
        return begin and self.save(owner, conversation)

    def delete(self, owner: str, id: str) -> bool:  # noqa: A002
        """Take a conversation off the list; `undelete` brings it back, for 30 days. False: there is none."""
        return self._change(owner, id, "deleted = ?", (self._clock(),), "deleted IS NULL")

    def undelete(self, owner: str, id: str) -> bool:  # noqa: A002
        """Bring a deleted conversation back; False: there is none."""
        return self._change(owner, id, "deleted = NULL", (), "deleted IS NOT NULL")

    def _change(self, owner: str, id_: str, change: str, values: tuple[object, ...], condition: str) -> bool:
        """Change the row of a conversation; tells whether there was one."""
        rows = 0
        with self._database.guarded("saved"):
            rows = self._base.execute(
                f"UPDATE conversation SET {change} WHERE owner = ? AND id = ? AND {condition}",  # noqa: S608  # ours
                (*values, _digest(owner), _plain(id_)),
            ).rowcount
        return rows > 0

    # ---- reading

    def _listed(self, owner: str, condition: str, wanted: str = "") -> Sequence[Summary]:
        found = []
        with self._database.guarded("read"):
            found = self._base.execute(
                "SELECT id, title, heading, updated FROM conversation AS c"  # noqa: S608  # ours
                f" WHERE owner = :owner AND {condition}"
                # Where nothing was asked and nothing waits any more, there is nothing to see.
                " AND (EXISTS (SELECT 1 FROM exchange WHERE conversation = c.key)"
                " OR EXISTS (SELECT 1 FROM waiting WHERE conversation = c.key))"
                " AND (:wanted = '' OR instr(title_folded, :wanted)"
                " OR EXISTS (SELECT 1 FROM exchange WHERE conversation = c.key AND instr(folded, :wanted))"
                " OR EXISTS (SELECT 1 FROM waiting WHERE conversation = c.key AND instr(folded, :wanted)))"
                " ORDER BY coalesce(deleted, updated) DESC, key DESC",
                {"owner": _digest(owner), "wanted": wanted},
            ).fetchall()
        return [
            Summary(id_, title or heading_, datetime.fromtimestamp(updated, UTC))
            for id_, title, heading_, updated in found
        ]

    def _found(self, owner: str, id_: str) -> tuple[int, str, str] | None:
        row: tuple[int, str, str] | None = self._base.execute(
            "SELECT key, title, settings FROM conversation WHERE owner = ? AND id = ? AND deleted IS NULL",
            (_digest(owner), _plain(id_)),
        ).fetchone()
        return row

    def _loaded(self, id_: str, key: int, title: str, settings: str) -> Conversation:
        conversation = Conversation(id_, title)
        conversation.settings = json.loads(settings)
        exchanges: dict[str, Exchange] = {}
        rows = self._base.execute(
            "SELECT key, id, parent, follows_up, ended, problem, question, request, names FROM exchange"
            " JOIN asked ON asked.exchange = exchange.key WHERE conversation = ? ORDER BY key",
            (key,),
        )
        for row, name, parent, follows_up, ended, problem, question, request, names in rows:
            # Only differences of times are ever shown, and they were stored as such.
            exchange = Exchange(
                Message.FromString(question),
                GenerateRequest.FromString(request),
                Meter(asked_at=0.0),
                follows_up=bool(follows_up),
                names=json.loads(names),
                id=name,
            )
            for after, message in self._base.execute(
                "SELECT after, message FROM arrival WHERE exchange = ? ORDER BY number", (row,)
            ):
                exchange.saw(Arrival(GenerateResponse.FromString(message), after))
            _end(exchange, problem if ended else None)
            conversation.add(exchange, None if parent is None else exchanges[parent])
            exchanges[name] = exchange
        for above, child in self._base.execute("SELECT parent, child FROM shown WHERE conversation = ?", (key,)):
            conversation.shown[exchanges[above] if above else None] = exchanges[child]
        return conversation

    def _left_waiting(self, key: int, exchanges: Mapping[str, Exchange]) -> Sequence[Waiting]:
        rows = self._base.execute(
            "SELECT key, id, instead, trouble, unchecked, message, names, dropped FROM waiting"
            " WHERE conversation = ? ORDER BY key",
            (key,),
        ).fetchall()
        files = "SELECT name, data FROM held_file WHERE waiting = ? ORDER BY number"
        return [
            Waiting(
                Message.FromString(message),
                trouble,
                json.loads(names),
                self._base.execute(files, (row,)).fetchall(),
                bool(unchecked),
                exchanges.get(instead),
                id_,
                kept=True,
                dropped=bool(dropped),
            )
            for row, id_, instead, trouble, unchecked, message, names, dropped in rows
        ]

    # ---- writing

    def _wait(self, owner: str, conversation: Conversation, one: Waiting) -> None:
        key = self._save(owner, conversation)
        texts = [part.text for part in one.message.parts if part.text]
        (row,) = self._base.execute(
            "INSERT INTO waiting (conversation, id, instead, trouble, unchecked, message, names, folded)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (conversation, id) DO UPDATE SET trouble = excluded.trouble,"
            " unchecked = excluded.unchecked, message = excluded.message, names = excluded.names,"
            " folded = excluded.folded RETURNING key",
            (
                key,
                one.id,
                None if one.instead is None else one.instead.id,
                _plain(one.trouble),
                one.unchecked,
                one.message.SerializeToString(),
                json.dumps(one.names),
                "\n".join(_folded(text) for text in (*texts, *one.all_names)),
            ),
        ).fetchone()
        self._base.execute("DELETE FROM held_file WHERE waiting = ?", (row,))
        self._base.executemany(
            "INSERT INTO held_file (waiting, number, name, data) VALUES (?, ?, ?, ?)",
            ((row, number, _plain(name), data) for number, (name, data) in enumerate(one.files)),
        )
        if not conversation.exchanges:
            first = _plain(heading(one.message, one.all_names))
            self._base.execute("UPDATE conversation SET heading = ? WHERE key = ?", (first, key))
        self._revive(key)

    def _revive(self, key: int) -> None:
        self._base.execute("UPDATE conversation SET deleted = NULL, updated = ? WHERE key = ?", (self._clock(), key))

    def _unwait(self, owner: str, id_: str, one: str, condition: str = "") -> int:
        return self._base.execute(
            f"DELETE FROM waiting WHERE {_ONE_THAT_WAITS} {condition}",  # noqa: S608  # ours
            (one, _digest(owner), _plain(id_)),
        ).rowcount

    def _save(self, owner: str, conversation: Conversation) -> int:
        # Copied before the exchanges: whatever another thread adds meanwhile is shown only after it has been added.
        shown, path = conversation.shown.copy(), conversation.path()
        key = self._entry(owner, conversation, _plain(heading(path[0].question, path[0].names)) if path else UNTITLED)
        stored = {
            name: (row, ended, arrivals)
            for name, row, ended, arrivals in self._base.execute(
                "SELECT id, key, ended, arrivals FROM exchange WHERE conversation = ?", (key,)
            )
        }
        changed = False
        for exchange in conversation.exchanges[:]:
            row, ended, arrivals = stored.get(exchange.id, (None, False, 0))
            if row is None:
                row, changed = self._insert(key, exchange), True
            elif ended or exchange.problem == INTERRUPTED:
                continue
            changed |= self._append(row, exchange, arrivals)
        if changed:
            self._base.execute("UPDATE conversation SET updated = ? WHERE key = ?", (self._clock(), key))
        self._point(key, {parent.id if parent else "": child.id for parent, child in shown.items()})
        return key

    def _entry(self, owner: str, conversation: Conversation, first: str) -> int:
        """The conversation's row: made, or with its heading brought up to date."""
        digest, title = _digest(owner), _plain(one_line(conversation.title))
        self._base.execute(
            "INSERT INTO conversation (owner, id, title, heading, title_folded, updated, settings)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET heading = excluded.heading WHERE heading <> excluded.heading",
            (
                digest,
                _plain(conversation.id),
                title,
                first,
                _folded(title),
                self._clock(),
                json.dumps(conversation.settings),
            ),
        )
        row = self._base.execute(
            "SELECT key FROM conversation WHERE owner = ? AND id = ?", (digest, _plain(conversation.id))
        ).fetchone()
        return int(row[0])

    def _insert(self, key: int, exchange: Exchange) -> int:
        parent = None if exchange.parent is None else exchange.parent.id
        row = self._base.execute(
            "INSERT INTO exchange (conversation, id, parent, follows_up, ended, arrivals, problem, folded)"
            " VALUES (?, ?, ?, ?, 0, 0, '', ?)",
            (key, exchange.id, parent, exchange.follows_up, _searched(exchange)),
        ).lastrowid
        assert row is not None
        self._base.execute(
            "INSERT INTO asked (exchange, question, request, names) VALUES (?, ?, ?, ?)",
            (
                row,
                exchange.question.SerializeToString(),
                exchange.asked.SerializeToString(),
                json.dumps(exchange.names),
            ),
        )
        return row

    def _append(self, row: int, exchange: Exchange, stored: int) -> bool:
        """Write what has come since; tells whether there was anything."""
        # Asked first: another thread may be adding to it, and an exchange that has ended is never looked at again.
        ended = exchange.ended
        arrivals = exchange.arrivals[stored:]
        if not arrivals and not ended:
            return False
        asked_at = exchange.meter.asked_at
        self._base.executemany(
            "INSERT INTO arrival (exchange, number, after, message) VALUES (?, ?, ?, ?)",
            (
                (row, number, one.at - asked_at, one.message.SerializeToString())
                for number, one in enumerate(arrivals, stored)
            ),
        )
        self._base.execute(
            "UPDATE exchange SET ended = ?, arrivals = ?, problem = ?, folded = ? WHERE key = ?",
            (ended, stored + len(arrivals), _plain(exchange.problem) if ended else "", _searched(exchange), row),
        )
        return True

    def _point(self, key: int, shown: Mapping[str, str]) -> None:
        """Write which alternatives are shown, by the id of what they follow; it is empty for the beginning."""
        stored = dict(self._base.execute("SELECT parent, child FROM shown WHERE conversation = ?", (key,)).fetchall())
        self._base.executemany(
            "INSERT OR REPLACE INTO shown (conversation, parent, child) VALUES (?, ?, ?)",
            ((key, parent, child) for parent, child in shown.items() if stored.get(parent) != child),
        )


def _end(exchange: Exchange, problem: str | None) -> None:
    """Mark it as ended with this problem; None: its end was never stored."""
    if problem is None:
        if exchange.meter.completed is None:
            exchange.fail(INTERRUPTED)
        else:
            exchange.finish()
    elif problem:
        exchange.fail(problem)
    else:
        exchange.ended = True


def _digest(owner: str) -> bytes:
    if len(owner) < _OWNER_LENGTH:
        raise ValueError(f"an owner's secret has {len(owner)} characters; at least {_OWNER_LENGTH} are wanted")
    return hashlib.sha256(owner.encode("utf-8", "surrogatepass")).digest()


def _searched(exchange: Exchange) -> str:
    parts = exchange.question.parts
    said = [part.text for part in parts if part.text]
    said += [part.file_data.file_uri for part in parts if part.HasField("file_data")]
    said += [pretty(part.tool_result.response) for part in parts if part.HasField("tool_result")]
    # A line each: nobody searches for the end of one together with the beginning of another.
    return "\n".join(_folded(text) for text in (*said, exchange.text))


def _folded(text: str) -> str:
    """A text as it is compared in a search."""
    text = unicodedata.normalize("NFKC", _plain(text)).casefold()
    return one_line(unicodedata.normalize("NFKC", text))


def _plain(text: str) -> str:
    """A text without lone surrogates, which SQLite can't store."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
