"""What Envoy is asked while it runs, by its administration."""

import http.client
import re
import socket

Admin = tuple[str, int] | str
"""Where Envoy's administration listens: an address and its port, or a Unix domain socket's path."""

_ANSWER_SECONDS = 5

# Of what callers asked, not of the administration's own.
_OPEN = "http.edge.downstream_rq_active"
_SERVING = "cluster.replicas.membership_healthy"


def begin(admin: Admin) -> None:
    """Tell callers with each answer to connect elsewhere, and load balancers by /healthz; what runs goes on.

    Raises OSError if it doesn't answer.
    """
    _asked(admin, "POST", "/healthcheck/fail")
    _asked(admin, "POST", "/drain_listeners?graceful&skip_exit")


def open_calls(admin: Admin) -> int:
    """How many calls run through it. Raises OSError if it doesn't answer."""
    return _counted(admin, _OPEN)


def serving_replicas(admin: Admin) -> int:
    """How many replicas have said last that they serve. Raises OSError if it doesn't answer."""
    return _counted(admin, _SERVING)


def _counted(admin: Admin, name: str) -> int:
    told = re.search(rf"^{re.escape(name)}: (\d+)$", _asked(admin, "GET", f"/stats?filter=^{name}$"), re.MULTILINE)
    if told is None:
        raise OSError(f"it doesn't tell its {name}")
    return int(told[1])


def _asked(admin: Admin, method: str, path: str) -> str:
    connection = _Connection(admin)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        told = answer.read().decode()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise OSError(f"it says {answer.status} to {path}")
    return told


class _Connection(http.client.HTTPConnection):
    """To an address and its port, or to a Unix domain socket."""

    def __init__(self, admin: Admin) -> None:
        super().__init__("localhost", timeout=_ANSWER_SECONDS)
        self._admin = admin

    def connect(self) -> None:
        if isinstance(self._admin, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(_ANSWER_SECONDS)
            self.sock.connect(self._admin)
        else:
            self.sock = socket.create_connection(self._admin, timeout=_ANSWER_SECONDS)
