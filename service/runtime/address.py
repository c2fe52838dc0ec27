"""The address to listen on, and which setting is wrong where it can't be had."""

import errno
import os
import socket
import stat
from typing import Any

from ..settings import SettingError, Settings

Resolved = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


def free(host: str, port: int) -> Resolved:
    """What the address resolves to, as `socket.getaddrinfo` tells it, once nobody has it. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    with socket.socket(*found[:3]) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(found[4])
    return found


def clear(path: str) -> None:
    """Let a Unix domain socket be made at `path`. Raises SettingError if a process listens there, or it is no socket.

    gRPC would take it away from either without a word.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # there is none, or gRPC fails as well
    with socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(mode):
            why = "something else than a socket is there"
        elif probe.connect_ex(path) == 0:
            why = os.strerror(errno.EADDRINUSE)
        else:
            return
    raise SettingError(f"cannot listen on unix:{path}: {why}. Set TOKENWIRE_HOST to another path, or remove it")


def _socket_refusal(path: str) -> SettingError:
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(path)
        os.unlink(path)  # noqa: PTH108 - made by the line before
        reason = "it is refused"
    except OSError as error:
        reason = str(error.strerror)
    return SettingError(f"cannot listen on unix:{path}: {reason}. Set TOKENWIRE_HOST to a path that this user may make")


def refusal(settings: Settings, error: OSError | None = None) -> SettingError:
    """What is wrong with an address that has been refused, by `error` or for a reason that is looked for here."""
    if settings.socket_path:
        return _socket_refusal(settings.socket_path)
    if error is None:
        try:
            free(settings.host, settings.port)
        except OSError as found:
            error = found
    return _refusal(settings.address, error, "TOKENWIRE_HOST", "TOKENWIRE_PORT", usual=50051)


def metrics_refusal(settings: Settings, error: OSError) -> SettingError:
    """What is wrong with the address of the metrics, which has been refused by `error`."""
    return _refusal(settings.metrics_address, error, "TOKENWIRE_METRICS_HOST", "TOKENWIRE_METRICS_PORT", usual=9464)


def _refusal(where: str, error: OSError | None, host: str, port: str, *, usual: int) -> SettingError:
    """`host` and `port` are the settings that name the address; `usual`: a port that anybody may have."""
    if isinstance(error, socket.gaierror) or (error and error.errno == errno.EADDRNOTAVAIL):
        wanted = f"Set {host} to an address of this machine"
    elif error and error.errno == errno.EADDRINUSE:
        wanted = f"Set {port} to one that nothing else uses"
    elif error and error.errno in (errno.EACCES, errno.EPERM):
        wanted = f"Set {port} to one that this user may have, such as {usual}"
    else:
        wanted = f"Set {host} or {port}"
    reason = error.strerror if error else "it is refused"
    return SettingError(f"cannot listen on {where}: {reason}. {wanted}")
