"""Two servers of two processes each that count in one Redis."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from service.admission import api_keys
from tests.conftest import ServerProcess, StartProcess
from tests.redis_server import RedisServer, made
from tests.service.runtime.test_workers import children
from tokenwire import AsyncClient, BusyError, TokenwireError, UnavailableError
from vertex_emulator import Emulator
from vertex_emulator.script import answer, wait_for

SECRET = "in-no-line"


class Replicas:
    """Servers of one caller, who may so much."""

    def __init__(self, start: StartProcess, redis: RedisServer, folder: Path) -> None:
        self._start, self._redis, self._folder = start, redis, folder
        self.token = ""

    async def start(self, count: int, *flags: str, limits: str = "") -> list[ServerProcess]:
        keys, callers, password = (self._folder / name for name in ("keys", "callers.toml", "password"))
        if not self.token:
            self.token = (await asyncio.to_thread(api_keys.new, str(keys), "billing"))[1]
        callers.write_text(f'[callers.billing]\napi_keys = ["billing"]\n{limits}\n')
        password.write_text(SECRET)
        own = ("--workers", "2", "--api-keys", str(keys), "--callers", str(callers))
        where = ("--redis-url", self._redis.url, "--redis-password-file", str(password))
        servers = [await self._start(*own, *where, *flags) for _ in range(count)]
        for server in servers:
            await server.said("ready after")
            async with asyncio.timeout(60):
                while len(children(server)) > 2:  # noqa: ASYNC110 - the one that greets callers is about to end
                    await asyncio.sleep(0.05)
        return servers

    @asynccontextmanager
    async def client(self, server: ServerProcess) -> AsyncIterator[AsyncClient]:
        async with AsyncClient(server.address, token=self.token) as client:
            yield client

    async def ask(self, server: ServerProcess) -> str:
        """By a connection of its own, which any of its processes may get."""
        async with self.client(server) as client, client.generate("hi", timeout=20) as answered:
            return "".join([piece async for piece in answered.text()])

    async def used(self, server: ServerProcess) -> dict[str, int]:
        async with self.client(server) as client:
            (usage,) = await client.usage()
        return {quota.name: quota.used for quota in usage.quotas}

    async def until(self, server: ServerProcess, **wanted: int) -> None:
        """Wait until so much is used."""
        async with asyncio.timeout(60):
            while (await self.used(server)).items() & wanted.items() != wanted.items():  # noqa: ASYNC110 - others' doing
                await asyncio.sleep(0.02)


@pytest.fixture
def redis(tmp_path: Path) -> Any:
    server = made(tmp_path, "--requirepass", SECRET)
    server.start()
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture
def replicas(start_process: StartProcess, redis: RedisServer, tmp_path: Path) -> Replicas:
    return Replicas(start_process, redis, tmp_path)


async def test_replicas_hold_a_caller_to_its_quotas_together_and_tell_what_all_have_counted(
    emulator: Emulator, replicas: Replicas, tmp_path: Path
) -> None:
    emulator.script.play(*[answer("Hello")] * 1000)
    limit = 200
    servers = await replicas.start(2, limits=f"tokens_per_day = {limit}")
    requests = tokens = 0
    while tokens < limit:
        assert await replicas.ask(servers[requests % 2]) == "Hello"
        requests += 1
        await replicas.until(servers[requests % 2], requests_per_day=requests, streams=0)
        tokens = (await replicas.used(servers[requests % 2]))["tokens_per_day"]
    assert requests > 5
    for server in servers:
        with pytest.raises(BusyError) as caught:
            await replicas.ask(server)
        assert caught.value.reason == "QUOTA_EXCEEDED"
        await replicas.until(server, requests_per_day=requests, tokens_per_day=tokens, streams=0)
    (tmp_path / "token").write_text(replicas.token)
    command = [sys.executable, "-m", "tokenwire.cli", "usage", "--json", "--address", servers[1].address]
    told = await asyncio.create_subprocess_exec(
        *(*command, "--token-file", str(tmp_path / "token")), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await told.communicate()
    quotas = {quota["name"]: int(quota.get("used", 0)) for quota in json.loads(out)["quotas"]}
    assert quotas["requests_per_day"] == requests
    # A server that is started anew finds them.
    servers[0].signal(signal.SIGTERM)
    assert await asyncio.wait_for(servers[0].process.wait(), 30) == 0
    (third,) = await replicas.start(1, limits=f"tokens_per_day = {limit}")
    assert (await replicas.used(third))["requests_per_day"] == requests
    for server in (*servers, third):
        assert not any(SECRET in line for line in server.log)


def python(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_without_an_address_a_server_that_counts_needs_nothing_of_redis(tmp_path: Path) -> None:
    api_keys.new(str(tmp_path / "keys"), "billing")
    ended = python(f"""
import asyncio, sys
sys.modules["redis"] = None
from service import app
from service.runtime.server import Server
from service.settings import Settings
from service.testing import FakeProvider
settings = Settings(port=0, api_keys={str(tmp_path / "keys")!r})
app._need_redis(settings)
async def main():
    server = Server(settings)
    assert server._servicer._accounts._quotas is not None
    await server.start()
    await server.announce_serving(FakeProvider([]))
    await server.leave()
asyncio.run(main())
""")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_without_its_extra_the_server_says_what_is_missing_and_not_the_password() -> None:
    flags = ["--emulator", "127.0.0.1:1", "--api-keys", "k"]
    ended = python(f"""
import os, sys
sys.modules["redis"] = None
os.environ["TOKENWIRE_REDIS_URL"] = "redis://:{SECRET}@h"
from service import app
sys.exit(app.main({flags}, prog="p"))
""")
    assert ended.returncode == 2
    assert ended.stderr == "p: redis is not installed; TOKENWIRE_REDIS_URL needs tokenwire's extra 'redis'\n"


async def test_streams_of_killed_workers_and_servers_are_free_and_nothing_counted_is_lost(
    emulator: Emulator, replicas: Replicas
) -> None:
    streams = 6
    emulator.script.play(*[answer("Hello", wait_for("the end"))] * 100)
    first, second = await replicas.start(2, limits=f"streams = {streams}")

    async def stream(server: ServerProcess) -> None:
        with pytest.raises(TokenwireError):
            await replicas.ask(server)

    running = [asyncio.ensure_future(stream(server)) for server in (first, second) for _ in range(streams // 2)]
    for server in (first, second):
        await replicas.until(server, streams=streams)
        with pytest.raises(BusyError, match="6 streams"):
            await replicas.ask(server)
    tokens = (await replicas.used(second))["tokens_per_day"]
    victims = children(first)
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    await asyncio.gather(*running[: streams // 2])
    await first.said("starting another", times=len(victims))
    # By those that take their places; the ones of the other server stay.
    await replicas.until(second, streams=streams // 2, requests_per_day=streams, tokens_per_day=tokens)
    for pid in (first.process.pid, *children(first)):
        os.kill(pid, signal.SIGKILL)
    for pid in (second.process.pid, *children(second)):
        os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*running)
    (third,) = await replicas.start(1, limits=f"streams = {streams}")
    await replicas.until(third, streams=0, requests_per_day=streams, tokens_per_day=tokens)


@pytest.mark.thorough
async def test_redis_stops_and_starts_ten_times_under_load_and_counts_are_right_in_the_end(
    emulator: Emulator, replicas: Replicas, redis: RedisServer
) -> None:
    emulator.script.play(*[answer("Hello")] * 10_000)
    servers = await replicas.start(2)
    answered = 0
    going = True

    async def load(server: ServerProcess) -> None:
        nonlocal answered
        async with replicas.client(server) as client:
            while going:
                async with client.generate("hi", timeout=20) as call:
                    assert "".join([piece async for piece in call.text()]) == "Hello"
                answered += 1

    async def more(calls: int) -> None:
        wanted = answered + calls
        async with asyncio.timeout(60):
            while answered < wanted:  # noqa: ASYNC110 - callers' own doing
                await asyncio.sleep(0.005)

    loads = [asyncio.ensure_future(load(server)) for server in servers for _ in range(4)]
    for turn in range(10):
        await more(20)
        if turn % 2:
            redis.hang()
            await more(20)
            redis.go_on()
        else:
            await asyncio.to_thread(redis.stop)
            await more(20)
            await asyncio.to_thread(redis.start)
        for server in servers:
            await server.said("Redis is away", times=turn + 1)
            await server.said("Redis is back", times=turn + 1)
    going = False
    await asyncio.gather(*loads)
    for server in servers:
        await replicas.until(server, requests_per_day=answered, streams=0)
        told = [line for line in server.log if "Redis is" in line]
        gone = sum("Redis is away" in line for line in told)
        assert len(told) - gone <= gone <= len(told) - gone + 2  # each worker says either once, in turns


async def test_without_redis_a_server_starts_and_is_closed_where_it_was_told_so(
    emulator: Emulator, replicas: Replicas, redis: RedisServer
) -> None:
    emulator.script.play(*[answer("Hello")] * 10)
    redis.stop()
    (opened,) = await replicas.start(1)
    (closed,) = await replicas.start(1, "--redis-away", "closed")
    assert await replicas.ask(opened) == "Hello"
    with pytest.raises(UnavailableError) as caught:
        await replicas.ask(closed)
    assert caught.value.reason == "QUOTAS_UNAVAILABLE"
    redis.start()
    await closed.said("Redis is back", times=2)
    await opened.said("Redis is back", times=2)
    assert await replicas.ask(closed) == "Hello"
    await replicas.until(opened, requests_per_day=2)
