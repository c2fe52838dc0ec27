"""The SQLite file that conversations are kept in: its schema, how it is opened, and what may go wrong with it."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

PURGED_AFTER_DAYS = 30
"""A deleted conversation can be brought back for so long."""

_VERSION = 3
_APPLICATION = 0x746F6B77
"""SQLite's application id of our files: "tokw"."""
_FILE = "page.sqlite3"
_BUSY_SECONDS = 5.0

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


class _RefusedError(Exception):
    """A file that isn't used; in words for a person."""


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


class Database:
    """The file, and the one connection to it. For several threads, and several processes at a time.

    Where the file can't be used, the connection is to a database in memory, and `trouble` says so.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lasting = ""
        """What is wrong for as long as this is open."""
        self.passing = ""
        """What was wrong with the latest use of it, in words for a person."""
        self._file = path
        self._inode: tuple[int, int] | None = None
        """Which file it is: another one of this name isn't written to."""
        # Not one connection for each thread: the page has a new thread for each run of its script.
        self.lock = threading.RLock()
        """To be held while the connection is used: several threads share it."""
        self.connection = self._opened(path)

    @property
    def trouble(self) -> str:
        """Why conversations may not be kept, in words for a person; empty: they are."""
        return " ".join(filter(None, (self._lasting, self.passing)))

    def close(self) -> None:
        """Close the file. What was committed is in it already."""
        with self.lock:
            self.connection.close()

    @contextmanager
    def guarded(self, done: str) -> Iterator[None]:
        """Hold the lock, and turn what the file or the disk does into words."""
        with self.lock:
            try:
                yield
                self.passing = self._removed()
            except (sqlite3.Error, DecodeError) as error:
                self.passing = f"Conversations could not be {done}: {_why(error)}{_named(self._file)}."

    def transaction(self, kind: str) -> AbstractContextManager[None]:
        """Begin a transaction, "DEFERRED" or "IMMEDIATE". It is committed, or rolled back where something is raised."""
        return _transaction(self.connection, kind)

    def _removed(self) -> str:
        """What is wrong where the file is no more: SQLite goes on with what it has open, which nobody finds again."""
        if self._file is None or self._inode is None:
            return ""
        with suppress(OSError):
            if _inode(self._file.stat()) == self._inode:
                return ""
        return f"Conversations are not kept: their file was removed or replaced ({self._file}). Start the page again."

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
        long_ago = now - PURGED_AFTER_DAYS * 86400
        base.execute("DELETE FROM conversation WHERE deleted < ?", (long_ago,))
        # Set up, and nothing was ever asked.
        base.execute(
            "DELETE FROM conversation WHERE updated < ? AND title = ''"
            " AND key NOT IN (SELECT conversation FROM exchange) AND key NOT IN (SELECT conversation FROM waiting)",
            (long_ago,),
        )


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
