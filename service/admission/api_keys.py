"""API keys: made once, told once, kept as hashes in a file.

Each line of the file is a key: its id, the caller's name, when it was made, and the SHA-256 of the key.

    8Q4mT2 billing 2026-01-31 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""

import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

PREFIX = "tw_"
"""How every key begins, so that scanners for leaked secrets can find one."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}")
"""How callers may be called, here and in the callers file."""

_LINE = re.compile(r"(?P<id>[A-Za-z0-9_-]{6,32}) (?P<name>\S+) (?P<made>\d{4}-\d\d-\d\d) (?P<hash>[0-9a-f]{64})")
_MOST_WRONG = 20
"""Lines that are told of one file."""
_ID_BYTES = 6
_SECRET_BYTES = 32


class KeysError(Exception):
    """The file can't be used, or not for this; the message says why."""


class Key(NamedTuple):
    """One line of the file."""

    id: str
    """For people: to revoke it by."""
    name: str
    """Of the caller."""
    made: str
    """The day, in UTC."""
    hash: str
    """SHA-256 of the key, in hexadecimal digits."""


def hashed(key: str) -> str:
    """What is kept of a key. A key has 256 random bits, so that nothing slower is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse(text: str, path: str) -> Mapping[str, Key]:
    """The keys of a file by their hashes; `path` is for messages. Raises KeysError with all that is wrong."""
    found: dict[str, Key] = {}
    wrong = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or not NAME.fullmatch(match["name"]):
            wrong.append(
                f"{path}:{number}: no key: ID NAME YYYY-MM-DD SHA256 is wanted, as `tokenwire keys new` writes it"
            )
            continue
        key = Key(match["id"], match["name"], match["made"], match["hash"])
        if key.hash in found:
            wrong.append(f"{path}:{number}: the same key as {found[key.hash].id}: each stands there once")
        found[key.hash] = key
    if len(wrong) > 1 and not found:
        raise KeysError(
            f"{path}: it is no file of API keys, as `tokenwire keys new` makes it; the callers file, which is TOML, is "
            "for --callers"
        )
    if len(wrong) > _MOST_WRONG:
        wrong[_MOST_WRONG:] = [f"{path}: there are more like these"]
    if wrong:
        raise KeysError("\n".join(wrong))
    return found


def new(path: str, name: str) -> tuple[Key, str]:
    """Add a key for the caller of this name; gives what was added, and the key itself. Raises KeysError or OSError."""
    if not NAME.fullmatch(name):
        raise KeysError(f"{name!r} is no name: up to 63 letters, digits and any of . _ @ - are wanted")
    secret = PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    key = Key(secrets.token_hex(_ID_BYTES), name, f"{datetime.now(UTC):%Y-%m-%d}", hashed(secret))
    with _changing(path) as keys:
        keys.append(key)
    return key, secret


def revoke(path: str, key_id: str) -> Key:
    """Take a key away; gives it. Raises KeysError or OSError."""
    with _changing(path) as keys:
        found = next((key for key in keys if key.id == key_id), None)
        if found is None:
            raise KeysError(f"{path} has no key {key_id!r}: `tokenwire keys list` tells them")
        keys.remove(found)
    return found


def listed(path: str) -> Iterable[Key]:
    """All keys of a file. Raises KeysError or OSError."""
    return parse(Path(path).read_text(encoding="utf-8"), path).values()


@contextmanager
def _changing(path: str) -> Iterator[list[Key]]:
    """The keys, to be changed, which nobody else does meanwhile. A server sees the file as it was or as it will be."""
    folder = os.open(Path(path).absolute().parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        try:
            keys = list(listed(path))
        except FileNotFoundError:
            keys = []
        yield keys
        following = Path(f"{path}.new")
        following.unlink(missing_ok=True)
        opened = os.open(following, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(opened, "w", encoding="utf-8") as file:
            with suppress(FileNotFoundError):
                # A server that runs as another user has to be able to read it on.
                before = Path(path).stat()
                os.fchown(opened, before.st_uid, before.st_gid)
                os.fchmod(opened, stat.S_IMODE(before.st_mode))
            file.write("".join(f"{' '.join(key)}\n" for key in keys))
            file.flush()
            os.fsync(file.fileno())
        following.replace(path)
    finally:
        os.close(folder)
