"""`tokenwire ui`: the page in the browser."""

import argparse
import contextlib
import errno
import importlib.util
import os
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenwire import connection
from tokenwire.cli import arguments

_SCRIPT = Path(__file__).with_name("script.py")

DEFAULT_PORT = 8501


def main(argv: Sequence[str] | None = None, *, prog: str = "tokenwire ui") -> int:
    """Serve the page until SIGINT or SIGTERM, and return the exit code."""
    options = _parser(prog).parse_args(argv)
    if importlib.util.find_spec("streamlit") is None:
        return _fail("The page needs streamlit, which isn't installed: it comes with tokenwire's extra 'ui'")
    try:
        # Streamlit would try; but it says so only after it has started, in its own words.
        with socket.create_server((options.host, options.port)):
            pass
    except OSError as error:
        # Python adds the address in brackets, and we say it already.
        why = (error.strerror or "it failed").partition(" (")[0]
        remedy = "Give --port another one, or end what listens there"
        if (error.errno or 0) < 0 or error.errno == errno.EADDRNOTAVAIL:  # below zero: the resolver's numbers
            remedy = "Give --host an address of this machine"
        elif error.errno in (errno.EACCES, errno.EPERM):
            remedy = "Give --port one that this user may have, such as 8501"
        return _fail(f"--port {options.port} on --host {options.host} can't be used: {why}. {remedy}.")
    shown = connection.Identity.found(arguments.identity(options))
    try:
        connection.Connection(options.address, shown).credentials()
    except ValueError as error:
        return _fail(f"The service can't be called: {error}.")
    except OSError as error:
        return _fail(f"{error.filename} can't be read: {error.strerror}.")
    # The page reads them as any caller does.
    os.environ["TOKENWIRE_ADDRESS"] = options.address or connection.default_address()
    os.environ |= shown.environ()
    return _serve(options.host, options.port, options.name)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Serve the page: a chat in the browser.")
    parser.add_argument(
        "--port", type=arguments.port, default=DEFAULT_PORT, help="where to serve it (default: %(default)s)"
    )
    parser.add_argument(
        "--host", default="localhost", help="which address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="HOST",
        help="another name under which browsers reach the page, such as a proxy's; any number of times",
    )
    arguments.add_address(parser)
    return parser


def _own_names(host: str, names: Iterable[str]) -> list[str]:
    """Under which names a browser may reach the page: this machine's own, its addresses, and what was told."""
    found = {"localhost", "127.0.0.1", "::1", host, *names}
    if host in ("0.0.0.0", "::", ""):  # noqa: S104 - it listens on all addresses that this machine has
        name = socket.gethostname()
        found |= {name, socket.getfqdn()}
        with contextlib.suppress(OSError):  # a name that nobody knows
            found |= {str(address[0]) for *_, address in socket.getaddrinfo(name, None)}
        for family, anywhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
            # Nothing is sent: the kernel says which of its addresses it would use.
            with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((anywhere, 9))
                found.add(probe.getsockname()[0])
    return sorted(found - {"0.0.0.0", "::", ""})  # noqa: S104 - these mean all addresses, and are no names


def _serve(host: str, port: int, names: Sequence[str]) -> int:
    from streamlit.web import cli  # noqa: PLC0415  # an extra, and slow to import

    settings = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        # What has failed is told in the log. Streamlit would offer to ask Google and ChatGPT about it.
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        # For both, since one color for all would make a theme of its own that ignores the browser's wish for dark.
        "theme.light.primaryColor": "#2563eb",
        "theme.dark.primaryColor": "#2563eb",
        # With fast reruns a flipped switch looks like a Stop to the running script, and would end the answer.
        "runner.fastReruns": "false",
        "runner.magicEnabled": "false",
        # A full collection after each run, for which all threads stand still: with 20 tabs up to a second together.
        "runner.postScriptGC": "false",
        # For how many ends of a run a browser keeps a large message that isn't drawn; twice as many as else, and more:
        # it is told of one before a run waits, too (leftovers.py).
        "global.maxCachedMessageAge": "6",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    # Else a page of a name that leads here could talk to this one as the reader's own (DNS rebinding).
    flags += [f"--server.allowedHosts={name}" for name in _own_names(host, names)]
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        cli.main(["run", str(_SCRIPT), *flags], standalone_mode=False)
    finally:
        # One stop may come as several signals: none that Streamlit has heeded is to end this before all is saved.
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, signal.SIG_IGN)
        from .chat import live  # noqa: PLC0415  # needs nothing but what the page has imported

        live.save_all()
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(message + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
