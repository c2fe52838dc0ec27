"""Stands in for monitoring: takes the spans of a service, and reads its metrics every five seconds."""

import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

EVERY_SECONDS = 5


class Watcher(NamedTuple):
    """Where it is."""

    collector: str
    """The address to which spans go."""
    metrics: list[int]
    """The ports that it reads; more may be added."""


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """Take whatever comes."""
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in the library
        """Nothing."""


def free_port() -> int:
    """A port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def watching() -> Iterator[Watcher]:
    """It watches until it is left. It runs in threads of this process, whose CPU time is not measured."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    watcher, over = Watcher(f"http://127.0.0.1:{server.server_address[1]}", []), threading.Event()

    def read() -> None:
        while not over.wait(EVERY_SECONDS):
            for port in watcher.metrics:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as told:
                    told.read()

    threads = [threading.Thread(target=server.serve_forever), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    try:
        yield watcher
    finally:
        over.set()
        server.shutdown()
        for thread in threads:
            thread.join()
        server.server_close()
