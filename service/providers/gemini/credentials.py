"""Google's application default credentials: loaded once in a process, renewed by one thread, never on the event loop.

All of google.auth blocks: it runs `gcloud` and other programs, looks for a metadata server, fetches tokens. gRPC's own
way to renew credentials holds a thread for each call that waits, so each call gets its headers from here instead.
"""

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import google.auth
from google.auth.credentials import TokenState
from google.auth.transport.grpc import AuthMetadataPlugin
from google.auth.transport.requests import Request

from ... import errors

_HOST = "aiplatform.googleapis.com"
_SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)

# google.auth would wait for two minutes, several times; meanwhile nobody else can renew the credentials.
_REQUEST_SECONDS = 10.0

# Between two renewals of a token that still serves.
_PAUSE_SECONDS = 5.0

Headers = Sequence[tuple[str, str]]


class ApplicationDefault:
    """The credentials of this process. Independent of any event loop, and may be loaded before a fork."""

    def __init__(self) -> None:
        self._credentials: Any = None
        self._lock = threading.Lock()
        self._renewal: Future[_Failed | None] | None = None
        """The one that runs, or the latest; it gives what went wrong."""
        self._next = 0.0
        """When a token that still serves may be renewed, on `time.monotonic()`."""

    def load(self) -> None:
        """Find the credentials, which may block for seconds.

        Raises google.auth.exceptions.DefaultCredentialsError where there are none.
        """
        if self._credentials is None:
            self._credentials, _ = google.auth.default(default_scopes=_SCOPES)

    async def headers(self, deadline: float) -> Headers:
        """What a call has to carry, such as the token; waits for a renewal where that can't be avoided.

        `deadline` is on the event loop's clock. Raises UpstreamCredentials if there are none or they are refused,
        UpstreamUnavailable if the token server is away, UpstreamDeadline if it doesn't answer in time.
        """
        state = TokenState.INVALID if self._credentials is None else self._credentials.token_state
        if state is TokenState.INVALID:
            try:
                async with asyncio.timeout_at(deadline):
                    failed = await asyncio.wrap_future(self._renew())
            except TimeoutError as late:
                raise errors.UpstreamDeadline("The server's Google credentials were not renewed in time") from late
            if failed is not None:
                raise failed.error() from failed.cause
        elif state is TokenState.STALE and time.monotonic() > self._next:
            self._renew()
        found: dict[str, str] = {}
        self._credentials.apply(found)
        return tuple(found.items())

    def _renew(self) -> "Future[_Failed | None]":
        """The renewal that runs, or a new one."""
        with self._lock:
            if self._renewal is None or self._renewal.done():
                self._next = time.monotonic() + _PAUSE_SECONDS
                self._renewal = Future()
                self._renewal.set_running_or_notify_cancel()  # from now on none of those who wait can cancel it
                # Not of a pool: the process would wait for it when it ends.
                thread = threading.Thread(target=self._run, args=(self._renewal,), daemon=True, name="credentials")
                try:
                    thread.start()
                except RuntimeError as error:  # the system has none left
                    self._renewal.set_result(_Failed(error, away=True))
            return self._renewal

    def _run(self, renewal: "Future[_Failed | None]") -> None:
        request = _Request()
        try:
            self.load()
            # Google's own plugin for gRPC knows what each kind of credentials needs; it renews those that need it.
            plugin = AuthMetadataPlugin(self._credentials, request, default_host=_HOST)  # type: ignore[no-untyped-call] # google.auth has none
            plugin(SimpleNamespace(method_name="", service_url=f"https://{_HOST}/"), lambda *_: None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to those who wait
            renewal.set_result(_Failed(error, away=request.unanswered))
        else:
            renewal.set_result(None)


@cache
def application_default() -> ApplicationDefault:
    """The credentials of this process, shared by all models."""
    return ApplicationDefault()


class _Request(Request):
    """google.auth's way to ask, but for its patience; knows how the latest question was answered."""

    unanswered = False
    """Whether it was, but by nobody, or not in a way that says anything of the credentials."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        self.unanswered = True
        response = super().__call__(*args, **{"timeout": _REQUEST_SECONDS, **more})  # type: ignore[no-untyped-call] # google.auth has none
        self.unanswered = response.status not in _REFUSALS
        return response


# The statuses of HTTP by which a token server says that the credentials are no good.
_REFUSALS = frozenset(range(400, 500)) - {408, 429}


@dataclass(frozen=True, slots=True)
class _Failed:
    """A renewal that came to nothing."""

    cause: Exception
    away: bool
    """Whether that says nothing of the credentials."""

    def error(self) -> errors.UpstreamError:
        """Ours, a new one for each call that waited; google.auth's text is not relayed."""
        if self.away:
            return errors.UpstreamUnavailable(
                "Google's token server, which renews the server's credentials, is away",
                metadata={"upstream_code": "UNAVAILABLE"},
            )
        return errors.UpstreamCredentials(
            "The server's Google credentials can't be renewed; its owner has to renew its application default "
            "credentials",
            metadata={"upstream_code": "UNAUTHENTICATED"},
        )
