"""`tokenwire ui`: the page in the browser."""

import argparse
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenwire import default_address
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
        return _fail(f"--port {options.port} on --host {options.host} can't be used: {why}.")
    # The page reads it as any caller does.
    os.environ["TOKENWIRE_ADDRESS"] = options.address
    return _serve(options.host, options.port)


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description="Serve the page: a chat in the browser.")
    parser.add_argument(
        "--port", type=arguments.port, default=DEFAULT_PORT, help="where to serve it (default: %(default)s)"
    )
    parser.add_argument(
        "--host", default="localhost", help="which address to listen on (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--address",
        type=arguments.address,
        default=default_address(),
        metavar="HOST:PORT",
        help="where the service is (default: TOKENWIRE_ADDRESS, else localhost:50051; now %(default)s)",
    )
    return parser


def _serve(host: str, port: int) -> int:
    from streamlit.web import cli  # noqa: PLC0415  # an extra, and slow to import

    settings = {
        "server.address": host,
        "server.port": port,
        "server.headless": "true",
        "server.showEmailPrompt": "false",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        # For both, since one color for all would make a theme of its own that ignores the browser's wish for dark.
        "theme.light.primaryColor": "#2563eb",
        "theme.dark.primaryColor": "#3b82f6",
        # With fast reruns a flipped switch looks like a Stop to the running script, and would end the answer.
        "runner.fastReruns": "false",
        "runner.magicEnabled": "false",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    cli.main(["run", str(_SCRIPT), *flags], standalone_mode=False)
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(message + "\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
