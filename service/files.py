"""Files that are followed while the server runs: how one looks, and what it holds."""

import os
import stat


def looks(path: str) -> object:
    """Something that is another whenever the file is, or whenever who may read it is."""
    try:
        seen = os.stat(path)  # noqa: PTH116 - asked each second, and before each handshake
    except OSError as error:
        return error.errno
    # By the last of them also what else decides whether it can be read, such as an access control list.
    return seen.st_dev, seen.st_ino, seen.st_mode, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns


def content(path: str, most: int) -> bytes:
    """What a file holds. Raises OSError; ValueError for one that is no file, or has more than `most` bytes.

    Never waits: a pipe, or a device without end, would hold up all that is followed beside it.
    """
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(opened, "rb") as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ValueError("it is no file")
        found = file.read(most + 1)
    if len(found) > most:
        raise ValueError(f"it has more than {most} bytes")
    return found
