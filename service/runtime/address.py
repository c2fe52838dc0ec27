"""The address to listen on, and which setting is wrong where it can't be had."""

import errno
import socket
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


def refusal(settings: Settings, error: OSError | None = None) -> SettingError:
    """What is wrong with an address that has been refused, by `error` or for a reason that is looked for here."""
    if error is None:
        try:
            free(settings.host, settings.port)
        except OSError as found:
            error = found
    if isinstance(error, socket.gaierror) or (error and error.errno == errno.EADDRNOTAVAIL):
        wanted = "Set TOKENWIRE_HOST to an address of this machine"
    elif error and error.errno == errno.EADDRINUSE:
        wanted = "Set TOKENWIRE_PORT to one that nothing else uses"
    elif error and error.errno in (errno.EACCES, errno.EPERM):
        wanted = "Set TOKENWIRE_PORT to one that this user may have, such as 50051"
    else:
        wanted = "Set TOKENWIRE_HOST or TOKENWIRE_PORT"
    reason = error.strerror if error else "it is refused"
    return SettingError(f"cannot listen on {settings.address}: {reason}. {wanted}")
