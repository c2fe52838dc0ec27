"""Keeps conversations in SQLite: they survive a reload of the page and a restart of its process.

An owner is a random secret that one browser holds. The file knows only its SHA-256, and every method gives only what
belongs to the owner. What is stored of an answer is every message as it came; the rest follows from these.
"""

import hashlib
import json
import os
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from tokenwire.cli.meter import Meter
from tokenwire.v1.content_pb2 import Message
from tokenwire.v1.generation_service_pb2 import GenerateRequest, GenerateResponse

from .conversation import INTERRUPTED, UNTITLED, Arrival, Conversation, Exchange, Waiting, heading, one_line, pretty

PURGED_AFTER_DAYS = 30
"""A deleted conversation can be brought back for so long."""

_VERSION = 3
_APPLICATION = 0x746F6B77
"""SQLite's application id of our files: "tokw"."""
_FILE = "page.sqlite3"
_BUSY_SECONDS = 5.0
_OWNER_LENGTH = 16
"""Characters of the shortest secret that is taken. A shorter one, or none, could be guessed."""

_SCHEMA = """
CREATE TABLE conversation (
    key INTEGER PRIMARY KEY,
    owner BLOB NOT NULL,  -- SHA-256 of the secret
    id TEXT NOT NULL,
    title TEXT NOT NULL,  -- what a person called it, or empty
    heading TEXT NOT NULL,  -- of the first question
    title_folded TEXT NOT NULL,  -- for the search
    updated REAL NOT NULL,  -- seconds since 1970, as all times
    deleted REAL,
    UNIQUE (owner, id)
);
CREATE INDEX conversation_by_update ON conversation (owner, updated);
CREATE TABLE exchange (
    key INTEGER PRIMARY KEY,  -- in the order they were added
    conversation INTEGER NOT NULL REFERENCES conversation (key) ON DELETE CASCADE,
    id TEXT NOT NULL,
    parent TEXT,
    follows_up INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    arrivals INTEGER NOT NULL,  -- how many are stored
    problem TEXT NOT NULL,
    folded TEXT NOT NULL,  -- question and answer, for the search
    UNIQUE (conversation, id),
    FOREIGN KEY (conversation, parent) REFERENCES exchange (conversation, id) ON DELETE CASCADE
);
CREATE INDEX exchange_by_parent ON exchange (conversation, parent);
CREATE TABLE asked (  -- apart, since it may be large, and never changes
    exchange INTEGER PRIMARY KEY REFERENCES exchange (key) ON DELETE CASCADE,
    question BLOB NOT NULL,  -- a Message
    request BLOB NOT NULL,  -- a GenerateRequest
    names TEXT NOT NULL  -- of the question's files, as JSON
);
CREATE TABLE arrival (
    exchange INTEGER NOT NULL REFERENCES exchange (key) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    after REAL NOT NULL,  -- seconds since the question
    message BLOB NOT NULL,  -- a GenerateResponse
    PRIMARY KEY (exchange, number)
) WITHOUT ROWID;
CREATE TABLE shown (
    conversation INTEGER NOT NULL REFERENCES conversation (key) ON DELETE CASCADE,
    parent TEXT NOT NULL,  -- empty: the beginning
    child TEXT NOT NULL,
    PRIMARY KEY (conversation, parent)
) WITHOUT ROWID;
"""

_SCHEMA_2 = """
-- of the drawer, as JSON
ALTER TABLE conversation ADD COLUMN settings TEXT NOT NULL DEFAULT '{}';
CREATE TABLE waiting (
    key INTEGER PRIMARY KEY,  -- in the order they were written
    conversation INTEGER NOT NULL REFERENCES conversation (key) ON DELETE CASCADE,
    id TEXT NOT NULL,
    instead TEXT,  -- the id of the exchange whose place it takes
    trouble TEXT NOT NULL,
    unchecked INTEGER NOT NULL,
    message BLOB NOT NULL,
    names TEXT NOT NULL,  -- of the message's files, as JSON
    folded TEXT NOT NULL,  -- for the search
    UNIQUE (conversation, id)
);
CREATE TABLE held_file (  -- doesn't go along with the question as it is
    waiting INTEGER NOT NULL REFERENCES waiting (key) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    name TEXT NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (waiting, number)
);
"""
_SCHEMA_3 = """
-- not to be asked, unless that is undone
ALTER TABLE waiting ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
"""
_SCHEMAS = (_SCHEMA, _SCHEMA_2, _SCHEMA_3)
"""What leads from each version to the next."""

_ONE_THAT_WAITS = "id = ? AND conversation = (SELECT key FROM conversation WHERE owner = ? AND id = ?)"

# What the file, the disk or another process can do to us; any other error is a bug of ours, and is raised.
_TROUBLES = {
    sqlite3.SQLITE_BUSY: "another program holds it",
    sqlite3.SQLITE_LOCKED: "another program holds it",
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "it can't be written",
    sqlite3.SQLITE_PERM: "it can't be written",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened",
    sqlite3.SQLITE_IOERR: "the disk failed",
    sqlite3.SQLITE_NOLFS: "it is too large for the disk",
    sqlite3.SQLITE_TOOBIG: "it is too large",
    sqlite3.SQLITE_NOMEM: "there is too little memory",
    sqlite3.SQLITE_CORRUPT: "it is damaged",
    sqlite3.SQLITE_NOTADB: "it is damaged",
}


@dataclass(frozen=True, slots=True)
class Summary:
    """A conversation as a list shows it."""

    id: str
    title: str
    """As `Conversation.name`: never empty."""
    updated: datetime
    """When something was last asked or answered in it; in UTC."""


class _RefusedError(Exception):
    """A file that isn't used; in words for a person."""


def new_owner() -> str:
    """Make the secret of one browser: 43 characters, of 256 random bits."""
    return secrets.token_urlsafe(32)


def default_path(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Where conversations are kept: TOKENWIRE_PAGE_DATA, or the user's folder for data. None: there is no such folder.

    TOKENWIRE_PAGE_DATA names a file, or a folder that is there.
    """
    if named := environ.get("TOKENWIRE_PAGE_DATA"):
        path = Path(os.path.expanduser(named))  # noqa: PTH111  # Path's own raises where there is no home
        return path / _FILE if path.is_dir() else path
    # The XDG specification wants a relative one ignored.
    data = environ.get("XDG_DATA_HOME", "")
    folder = data if Path(data).is_absolute() else os.path.expanduser("~/.local/share")  # noqa: PTH111
    return None if folder.startswith("~") else Path(folder) / "tokenwire" / _FILE


class Store:
    """The conversations of all owners, in one file. For several threads, and several processes at a time.

    Where the file can't be used, it keeps them in memory and `trouble` says so. No method raises for what the file,
    the disk or another process does: it then gives nothing or False, and `trouble` tells why.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lasting = ""
        """What is wrong for as long as this store is open."""
        self._passing = ""
        """What was wrong with the latest call."""
        self._file = path
        self._inode: tuple[int, int] | None = None
        """Which file it is: another one of this name isn't written to."""
        # Not one connection for each thread: the page has a new thread for each run of its script.
        self._lock = threading.RLock()
        self._base = self._opened(path)

    @property
    def trouble(self) -> str:
        """Why conversations may not be kept, in words for a person; empty: they are."""
        return " ".join(filter(None, (self._lasting, self._passing)))

    def close(self) -> None:
        """Close the file. What was saved is in it already."""
        with self._lock:
            self._base.close()

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
        with self._guarded("read"), self._transaction("DEFERRED"):
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
        with self._lock:  # so that what went wrong is of this call
            with self._guarded("saved"), self._transaction("IMMEDIATE"):
                self._save(owner, conversation)
            return not self._passing

    def wait(self, owner: str, conversation: Conversation, one: Waiting) -> bool:
        """Write a question that waits, or what has changed about it; tells whether it was.

        A deleted conversation is brought back: something happens in it.
        """
        with self._lock:
            with self._guarded("saved"), self._transaction("IMMEDIATE"):
                self._wait(owner, conversation, one)
            return not self._passing

    def waiting(self, owner: str, conversation: Conversation) -> Sequence[Waiting]:
        """Give the questions that wait in a conversation, and those dropped, in the order they were written."""
        found: list[Waiting] = []
        with self._guarded("read"), self._transaction("DEFERRED"):
            row = self._found(owner, conversation.id)
            if row is not None:
                found.extend(self._left_waiting(row[0], {one.id: one for one in conversation.exchanges}))
        return found

    def unwait(self, owner: str, id: str, one: str) -> bool:  # noqa: A002
        """Remove a question that waits, by its id; False: there is none."""
        rows = 0
        with self._guarded("saved"):
            rows = self._unwait(owner, id, one)
        return rows > 0

    def drop(self, owner: str, id: str, one: str, *, dropped: bool = True) -> bool:  # noqa: A002
        """Keep a question that waits as one that isn't to be asked, or undo that; False: there is none."""
        rows = 0
        with self._guarded("saved"):
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
        with self._guarded("saved"), self._transaction("IMMEDIATE"):
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

    def settle(self, owner: str, conversation: Conversation) -> bool:
        """Write a conversation's settings; False: nothing of it is stored yet. The first `save` writes them, too."""
        return self._change(owner, conversation.id, "settings = ?", (json.dumps(conversation.settings),), "TRUE")

    def delete(self, owner: str, id: str) -> bool:  # noqa: A002
        """Take a conversation off the list; `undelete` brings it back, for 30 days. False: there is none."""
        return self._change(owner, id, "deleted = ?", (self._clock(),), "deleted IS NULL")

    def undelete(self, owner: str, id: str) -> bool:  # noqa: A002
        """Bring a deleted conversation back; False: there is none."""
        return self._change(owner, id, "deleted = NULL", (), "deleted IS NOT NULL")

    def _change(self, owner: str, id_: str, change: str, values: tuple[object, ...], condition: str) -> bool:
        """Change the row of a conversation; tells whether there was one."""
        rows = 0
        with self._guarded("saved"):
            rows = self._base.execute(
                f"UPDATE conversation SET {change} WHERE owner = ? AND id = ? AND {condition}",  # noqa: S608  # ours
                (*values, _digest(owner), _plain(id_)),
            ).rowcount
        return rows > 0

    # ---- reading

    def _listed(self, owner: str, condition: str, wanted: str = "") -> Sequence[Summary]:
        found = []
        with self._guarded("read"):
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

    # ---- the file

    @contextmanager
    def _guarded(self, done: str) -> Iterator[None]:
        """Hold the lock, and turn what the file or the disk does into words."""
        with self._lock:
            try:
                yield
                self._passing = self._removed()
            except (sqlite3.Error, DecodeError) as error:
                self._passing = f"Conversations could not be {done}: {_why(error)}{_named(self._file)}."

    def _removed(self) -> str:
        """What is wrong where the file is no more: SQLite goes on with what it has open, which nobody finds again."""
        if self._file is None or self._inode is None:
            return ""
        with suppress(OSError):
            if _inode(self._file.stat()) == self._inode:
                return ""
        return f"Conversations are not kept: their file was removed or replaced ({self._file}). Start the page again."

    @contextmanager
    def _transaction(self, kind: str) -> Iterator[None]:
        with _transaction(self._base, kind):
            yield

    def _opened(self, path: Path | None) -> sqlite3.Connection:
        if path is None:
            self._lasting = "Conversations are kept only until the page is stopped: there is no home folder."
        else:
            try:
                return self._with_file(path)
            except _RefusedError as refusal:
                why = str(refusal)
            except OSError as error:
                why = f"{path} can't be used ({error.strerror or error})"
            except sqlite3.Error as error:
                why = f"{path} can't be used ({_why(error)})"
            self._lasting = f"Conversations are kept only until the page is stopped: {why}."
        self._file = None
        base = _connected(":memory:")
        _prepare(base, self._clock())
        return base

    def _with_file(self, path: Path) -> sqlite3.Connection:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for attempt in range(2):
            file = _made(path)
            base = _connected(path)
            try:
                _check(base, path)
                with suppress(PermissionError):  # of a file of ours that another user made
                    path.chmod(0o600)
                _prepare(base, self._clock())
            except sqlite3.Error as error:
                base.close()
                if attempt or _code(error) not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    raise
                aside = _put_aside(path, file, self._clock())
                self._lasting = f"{path} was damaged. It is kept as {aside}; conversations begin anew."
            except BaseException:
                base.close()
                raise
            else:
                self._inode = _inode(path.stat())
                return base
        raise AssertionError


def _made(path: Path) -> tuple[int, int]:
    """Make the file unless it is there, for nobody else to read; gives which one it is."""
    # SQLite gives the files that it puts beside this one the same mode.
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        return _inode(os.fstat(file))
    finally:
        os.close(file)


def _inode(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _connected(path: Path | str) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    base.execute("PRAGMA foreign_keys = ON")
    base.execute("PRAGMA secure_delete = ON")  # what is purged is gone from the file
    return base


def _check(base: sqlite3.Connection, path: Path) -> None:
    """Raise what is wrong with a file, before anything is written to it."""
    with _transaction(base, "DEFERRED"):
        version, application = _pragma(base, "user_version"), _pragma(base, "application_id")
        (tables,) = base.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != _APPLICATION and (tables or version or application):
            raise _RefusedError(f"{path} belongs to another program, and was left as it is")
        if version > _VERSION:
            raise _RefusedError(f"{path} is of a newer version of tokenwire, and was left as it is")
        found = _pragma(base, "quick_check(1)")
    if found != "ok":
        error = sqlite3.DatabaseError(found)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _prepare(base: sqlite3.Connection, now: float) -> None:
    """Bring the file to this version, and purge what was deleted long ago."""
    _patiently(lambda: base.execute("PRAGMA journal_mode = WAL").fetchone())
    base.execute("PRAGMA synchronous = NORMAL")  # with WAL a process may die at any moment, and nothing is lost
    with _transaction(base, "IMMEDIATE"):
        # Read again: another process may have made the tables meanwhile.
        for schema in _SCHEMAS[_pragma(base, "user_version") :]:
            for statement in schema.split(";\n"):
                base.execute(statement)
        base.execute(f"PRAGMA application_id = {_APPLICATION}")
        base.execute(f"PRAGMA user_version = {_VERSION}")
        base.execute("DELETE FROM conversation WHERE deleted < ?", (now - PURGED_AFTER_DAYS * 86400,))


@contextmanager
def _transaction(base: sqlite3.Connection, kind: str) -> Iterator[None]:
    base.execute(f"BEGIN {kind}")
    try:
        yield
        base.execute("COMMIT")
    except BaseException:
        # It may be over already: SQLite ends it by itself where the disk is full.
        with suppress(sqlite3.Error):
            base.execute("ROLLBACK")
        raise


def _patiently(change: Callable[[], Any]) -> None:
    """Try again while another process is at it: SQLite doesn't wait where it changes a file's journal."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            change()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _put_aside(path: Path, file: tuple[int, int], now: float) -> Path:
    """Rename a damaged file, and what SQLite keeps beside it, unless another process has done so."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.fromtimestamp(now, UTC):%Y%m%d-%H%M%S}")
    with suppress(FileNotFoundError):
        if _inode(path.stat()) == file and not aside.exists():
            path.rename(aside)
            for ending in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    return aside


def _pragma(base: sqlite3.Connection, name: str) -> Any:
    with closing(base.execute(f"PRAGMA {name}")) as rows:
        return rows.fetchone()[0]


def _code(error: sqlite3.Error) -> int:
    """SQLite's primary code of an error; 0 where it isn't SQLite's own."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _why(error: Exception) -> str:
    """The reason in words. Raises the error itself where it is a bug of ours."""
    if isinstance(error, DecodeError):
        return _TROUBLES[sqlite3.SQLITE_CORRUPT]
    if isinstance(error, sqlite3.Error) and (words := _TROUBLES.get(_code(error))):
        return words
    raise error


def _named(file: Path | None) -> str:
    return "" if file is None else f" ({file})"


# ---- what is stored of an exchange


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
