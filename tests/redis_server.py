"""A real Redis, which tests stop, start, and hang."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.ports import free_port

BINARY = shutil.which("redis-server")


class RedisServer:
    """One of its own, on loopback; what it holds outlives a stop."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._command = [
            *(str(BINARY), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "yes", *flags),
        ]
        self._password = flags[flags.index("--requirepass") + 1] if "--requirepass" in flags else None
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """It answers once this returns."""
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._process = process
        assert process.stdout is not None
        for line in process.stdout:
            if "Ready to accept connections" in line:
                # It says little more, but a pipe that is full would stop it.
                return
        raise AssertionError(f"redis-server has ended with {process.wait()}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.send_signal(signal.SIGCONT)
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def forget(self) -> None:
        """Lose all that it holds; it must not run."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()

    def hang(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self) -> "Redis":
        return Redis(port=self.port, password=self._password, decode_responses=True)

    def runs(self) -> int:
        """How often scripts have run."""
        with self.client() as client:
            stats: Any = client.info("commandstats")
            return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """It runs."""
    server = made(tmp_path)
    server.start()
    yield server
    server.stop(signal.SIGKILL)


def made(tmp_path: Path, *flags: str) -> RedisServer:
    """One that doesn't run yet."""
    assert BINARY is not None, "redis-server is not installed: `make tools` installs it"
    folder = tmp_path / "redis"
    folder.mkdir()
    return RedisServer(folder, *flags)
