"""Everything at once, without an account: a local model, the service, an answer in the terminal, the chat page."""

import argparse
import itertools
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from tokenwire.cli.running import envoy_configuration
from tokenwire.cli.running.programs import program

QUESTION = "What is baseball?"
STOP_SECONDS = 10  # for a child to end by itself before it is killed
START_SECONDS = 180  # for one to begin to answer, on a slow machine under load

STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# What ListModels tells of it: what this one really takes.
MODEL = "smollm2-135m"
WHAT_IT_TAKES = (
    "input_kinds=text&tools=false&thinking=false&max_input_tokens=2048&max_output_tokens=2048"
    "&unsupported=config.response_mime_type+config.response_schema+config.response_logprobs+config.logprobs"
)


class DemoError(Exception):
    """The demo can't go on; the message says why."""


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire demo") -> int:
    """Run until Ctrl-C; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Start a local model (SmolLM2-135M), the service on it and the chat page; stream one answer to the "
        "terminal; then wait for Ctrl-C, which stops everything that was started.",
    )
    parser.add_argument(
        "question", nargs="?", default=QUESTION, metavar="PROMPT", help=f'the question (default: "{QUESTION}")'
    )
    parser.add_argument("--once", action="store_true", help="end after the answer, without the page")
    parser.add_argument("--edge", action="store_true", help="start Envoy in front of the service too, for HTTP")
    options = parser.parse_args(argv)
    # Whatever ends the demo, its children end first. (nohup has SIGHUP ignored.)
    for number in STOP:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        return _demo(options.question, once=options.once, edge=options.edge)
    except KeyboardInterrupt:
        return 130
    except DemoError as error:
        print(f"\n{prog}: {error}", file=sys.stderr)
        return 1


def _interrupt(*_: object) -> None:
    _stop_listening()
    raise KeyboardInterrupt


def _stop_listening() -> None:
    """One stop may come as several signals: the others must not end what ends the children."""
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)


def _demo(question: str, *, once: bool, edge: bool) -> int:
    from tokenwire.cli import ask, terminal  # noqa: PLC0415 - --help answers without them

    weights = program("vertex_emulator.answerers.weights")

    try:
        weights.fetch(say=print)
    except weights.WeightsError as error:
        raise DemoError(str(error)) from error
    begin = time.monotonic()
    vertex_port, port, page_port = _port(8087), _port(50051), _port(8501)
    with TemporaryDirectory(prefix="tokenwire-demo-") as logs, _Children(Path(logs)) as children:
        upstream = f"127.0.0.1:{vertex_port}"
        children.start(
            *("service", "serve", "--host", "127.0.0.1", "--port", str(port), "--emulator", upstream),
            *("--scheduling", "normal"),  # the local model keeps every core busy
            *("--model", MODEL, "--models", f"{MODEL}=vertex:smollm2-135m-instruct?{WHAT_IT_TAKES}"),
        )
        children.start("local model", "emulator", "--port", str(vertex_port))
        children.wait("Loading the local model", lambda: _listens(vertex_port))
        children.wait("Starting the service (ChatVertexAI takes a while to import)", lambda: _serving(port))
        print(f"\n  {question}   [SmolLM2, a very small model: fluent, but unreliable in its facts]\n", flush=True)
        code = ask.main([question, "--address", f"127.0.0.1:{port}", "--stats", "--max-output-tokens", "300"])
        if code not in (0, terminal.EXIT_UNFINISHED):
            return code
        print(f"\nAll of it took {time.monotonic() - begin:.1f} s.", flush=True)
        if once:
            return 0
        children.start("page", "ui", "--port", str(page_port), "--address", f"127.0.0.1:{port}")
        children.wait("Opening the page", lambda: _listens(page_port))
        body = '{"prompt":"What is baseball?"}'
        by_http = by_curl = ""
        if edge:
            edge_port = _port(8080)
            shown = envoy_configuration.folder() / "page.html"
            children.start(
                *("edge", "edge", "--host", "localhost", "--port", str(edge_port), "--page", str(shown)),
                *("--replica", f"127.0.0.1:{port}"),
            )
            children.wait("Starting Envoy", lambda: _listens(edge_port))
            by_http = f"\n  HTTP          http://localhost:{edge_port}"
            by_curl = f"\n  curl -N localhost:{edge_port}/v1/generate -d '{body}'"
        print(
            f"""
  Chat page     http://localhost:{page_port}
  gRPC service  localhost:{port}
  Local Vertex  localhost:{vertex_port}{by_http}

Try, in another terminal:{by_curl}
  grpcurl -plaintext -d '{body}' localhost:{port} tokenwire.v1.GenerationService/Generate
  {_command()} ask "Why is the sky blue?" --address localhost:{port}

Ctrl-C stops everything.""",
            flush=True,
        )
        while children.all_run():
            time.sleep(0.5)
        raise DemoError("a part of the demo has ended by itself" + children.last_words())


class _Children:
    """The processes that the demo has started. They end with it."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _stop_listening()
        children = [child for _, child in self._running]
        for child in reversed(children):
            child.terminate()
        for child in children:
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def start(self, name: str, *command: str) -> None:
        with (self._logs / name).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "tokenwire.cli", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo alone, which then ends them in good order
            )
        self._running.append((name, child))

    def wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Show `what` and the seconds it takes until it is `ready`. Raises DemoError if a child ends meanwhile."""
        end = time.monotonic() + START_SECONDS
        with _progress(what) as tick:
            while not ready():
                if time.monotonic() > end:
                    raise DemoError(f"it took more than {START_SECONDS} s")
                if not self.all_run():
                    raise DemoError("a part of the demo did not start" + self.last_words())
                tick()
                time.sleep(0.1)

    def all_run(self) -> bool:
        return all(child.poll() is None for _, child in self._running)

    def last_words(self) -> str:
        """What the children that have ended wrote last."""
        words = ""
        for name, child in self._running:
            if child.poll() is not None:
                lines = (self._logs / name).read_text(errors="replace").strip().splitlines()[-15:]
                words += f"\n{name} (exit code {child.returncode}):\n  " + "\n  ".join(lines)
        return words


@contextmanager
def _progress(what: str) -> Iterator[Callable[[], None]]:
    """One line that shows it is alive: a counter on a terminal, dots elsewhere."""
    begin = time.monotonic()
    beats = itertools.count(1)
    terminal = sys.stdout.isatty()
    print(what, end="" if terminal else " ", flush=True)

    def tick() -> None:
        if terminal:
            print(f"\r{what} ... {time.monotonic() - begin:.0f} s", end="", flush=True)
        elif next(beats) % 10 == 0:
            print(".", end="", flush=True)

    yield tick
    print(
        f"\r{what} ... {time.monotonic() - begin:.1f} s" if terminal else f" {time.monotonic() - begin:.1f} s",
        flush=True,
    )


def _port(preferred: int) -> int:
    """`preferred` if it is free, else any free one."""
    for number in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise DemoError("there is no free port on 127.0.0.1")


def _command() -> str:
    """What to type for `tokenwire` where this was started: it may not be on the PATH."""
    return f"{sys.executable} -m tokenwire.cli" if Path(sys.argv[0]).name == "__main__.py" else shlex.quote(sys.argv[0])


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _serving(port: int) -> bool:
    """Ask the service itself whether it is ready."""
    from tokenwire import TokenwireError  # noqa: PLC0415 - --help answers without it
    from tokenwire.cli import health  # noqa: PLC0415 - --help answers without it
    from tokenwire.connection import Connection, Identity  # noqa: PLC0415 - --help answers without it

    address = f"127.0.0.1:{port}"
    try:
        return health.state(address, Connection(address, Identity()), timeout=2) == health.SERVING
    except TokenwireError:
        return False


if __name__ == "__main__":
    sys.exit(main())
