"""The only file that knows redis-py: one connection at a time, and scripts that are run on it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import RedisError

from ..files import content
from .redis_counts import LinkError

_ANSWER_SECONDS = 1.0
"""After that long without an answer a connection is given up."""
_MOST_BYTES = 4096
"""Of a password."""


class Redis:
    """A connection. To be used by one task: an answer that nobody reads would be taken for the next one's."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection

    async def ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send all at once, and give their answers. Raises LinkError; the connection is of no use then."""
        connection = self._connection
        async with _told():
            await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
            return [await connection.read_response() for _ in commands]

    async def clock(self) -> float:
        """The time by its clock, as `time.time` has it."""
        ((seconds, micros),) = await self.ask([("TIME",)])
        return int(seconds) + int(micros) / 1e6

    async def load(self, script: str) -> bytes:
        """Have it keep a script; gives what `run` takes."""
        found: bytes = (await self.ask([("SCRIPT", "LOAD", script)]))[0]
        return found

    async def run(self, script: bytes, calls: Iterable[tuple[Any, ...]], *, keys: int) -> list[Any]:
        """Run a script once for each of `calls`, which hold so many keys and then its arguments."""
        return await self.ask([("EVALSHA", script, keys, *call) for call in calls])


class Link:
    """Where a Redis is, and how to get in."""

    def __init__(self, url: str, *, password_file: str = "") -> None:
        """`url` as the settings have it; `password_file` has the password, and is read for each connection."""
        parts = urlsplit(url)
        provider = _FromFile(parts.username or "", password_file) if password_file else None
        # Answers are waited for here, all of one time together; and asked again by those who know what that means.
        self._pool = ConnectionPool.from_url(
            url if provider is None else _without_user(url),
            credential_provider=provider,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=_ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Redis]:
        """A new connection. Raises LinkError."""
        connection = self._pool.make_connection()  # type: ignore[no-untyped-call] # so it is in redis-py
        try:
            async with _told():
                await connection.connect()
            yield Redis(connection)
        finally:
            await connection.disconnect(nowait=True)


class _FromFile(CredentialProvider):
    """The password may change while the server runs."""

    def __init__(self, user: str, path: str) -> None:
        self._user, self._path = user, path

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        password = (await asyncio.to_thread(content, self._path, _MOST_BYTES)).decode().strip()
        return (self._user, password) if self._user else (password,)

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        raise NotImplementedError  # of clients that wait


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """Raise LinkError for whatever goes wrong, with the kind of it: messages may hold what must not be logged."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            yield
    except TimeoutError as error:
        raise LinkError(f"no answer within {_ANSWER_SECONDS:g} s") from error
    except (RedisError, OSError, ValueError) as error:
        raise LinkError(type(error).__name__) from error
