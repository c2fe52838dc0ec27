"""`python -m vertex_emulator`: the emulator as a process of its own."""

import argparse
import asyncio
import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from .answerers import script, weights
from .answerers.base import Mind, MindError
from .answerers.scripted import Scripted
from .answerers.smollm2 import SmolLM2, runtime
from .emulator import Emulator
from .protos.script_pb2 import Script

DEFAULT_PORT = 8087
DEFAULT_REST_PORT = 8088

STOP = (signal.SIGTERM, signal.SIGINT)

EPILOG = """\
examples:
  %(prog)s                            SmolLM2 answers; its weights (93 MB) are fetched once
  %(prog)s --script answers.json      a script answers; docs/emulator.md says what it can say
  %(prog)s --mind script --port 0     a script that comes later, over the Control service
  %(prog)s --port 0 --rest-port 0     both on free ports; the first lines tell which

point tokenwire at it:
  VERTEX_EMULATOR_HOST=localhost:8087 tokenwire serve

point ChatVertexAI at it, in Python:
  transport = PredictionServiceGrpcAsyncIOTransport(channel=grpc.aio.insecure_channel("localhost:8087"))
  model = ChatVertexAI(model="any", project="local", async_client=PredictionServiceAsyncClient(transport=transport))

point ChatGoogleGenerativeAI at it, in Python:
  model = ChatGoogleGenerativeAI(
      model="any", vertexai=True, project="local", location="us-central1", base_url="http://localhost:8088",
      credentials=google.oauth2.credentials.Credentials(token="local"),
  )

point ChatOpenAI or AzureChatOpenAI at it, in Python:
  model = ChatOpenAI(model="any", base_url="http://localhost:8088/v1", api_key="any")
  model = AzureChatOpenAI(
      azure_deployment="any", azure_endpoint="http://localhost:8088", api_version="any", api_key="any"
  )

variables:
  TOKENWIRE_CACHE   where the weights are kept (default: tokenwire in XDG_CACHE_HOME, or ~/.cache/tokenwire)

exit status:
  0 ended by SIGTERM or Ctrl-C, 1 couldn't start, 2 wrong usage
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m vertex_emulator") -> int:
    """Serve until SIGTERM or SIGINT; returns the exit status."""
    arguments = _parse(argv, prog)
    try:
        played = script.load(arguments.script) if arguments.script else None
        mind = _mind(arguments, played)
        return asyncio.run(_serve(arguments, mind, relay=arguments.relay or _needs_relay(played)))
    except KeyboardInterrupt:
        return 0
    except (script.ScriptError, MindError, OSError) as error:
        _warn(f"{prog}: {error}")
        return 1


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="A local Vertex AI: Google's PredictionService (v1 and v1beta1) over gRPC and HTTP, without TLS.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, help=f"of gRPC; 0 takes a free one (default: {DEFAULT_PORT})")
    parser.add_argument(
        "--rest-port",
        type=_port,
        metavar="PORT",
        help="of HTTP (Google's REST form, OpenAI's protocol), which needs uvicorn; 0 takes a free one "
        f"(default: {DEFAULT_REST_PORT} beside the default --port, else none)",
    )
    parser.add_argument(
        "--mind",
        choices=("smollm2", "script"),
        help="who answers (default: smollm2, or script where --script is given)",
    )
    parser.add_argument("--script", type=Path, metavar="FILE", help="a JSON script")
    parser.add_argument(
        "--threads", type=_positive, default=1, metavar="COUNT", help="of the model (default: %(default)s)"
    )
    parser.add_argument(
        "--max-concurrent-streams",
        type=_positive,
        metavar="COUNT",
        help="that one connection may have open (default: no limit)",
    )
    parser.add_argument(
        "--relay",
        action="store_true",
        help="let scripts cut connections; implied where the script does (costs some speed)",
    )
    arguments = parser.parse_args(argv)
    if arguments.script and arguments.mind == "smollm2":
        parser.error("--script and --mind smollm2 exclude each other")
    if arguments.port is None:
        arguments.port = DEFAULT_PORT
        if arguments.rest_port is None and importlib.util.find_spec("uvicorn") is not None:
            arguments.rest_port = DEFAULT_REST_PORT
    return arguments


def _port(text: str) -> int:
    return _whole(text, 0, 65535)


def _positive(text: str) -> int:
    return _whole(text, 1, 1_000_000)


def _whole(text: str, least: int, most: int) -> int:
    if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} to {most}")
    return int(text)


def _mind(arguments: argparse.Namespace, played: Script | None) -> Mind:
    if arguments.script or arguments.mind == "script":
        return Scripted(played)
    # Here, and not when the mind starts, so that Ctrl-C ends a download at once.
    runtime()
    return SmolLM2(threads=arguments.threads, weights=weights.fetch(say=_warn))


def _needs_relay(played: Script | None) -> bool:
    return played is not None and any(
        map(script.needs_relay, (*(one for one in played.answers), played.default_answer))
    )


async def _serve(arguments: argparse.Namespace, mind: Mind, *, relay: bool) -> int:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in STOP:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(ended.set))
    emulator = Emulator(
        mind,
        host=arguments.host,
        port=arguments.port,
        rest_port=arguments.rest_port,
        relay=relay,
        max_concurrent_streams=arguments.max_concurrent_streams,
    )
    async with emulator:
        # The process that started this one waits for the line.
        lines = [f"Vertex emulator listening on {emulator.address}"]
        if arguments.rest_port is not None:
            lines.append(f"Google's REST form and OpenAI's protocol on http://{emulator.rest_address}")
        _say("\n".join(lines))
        await ended.wait()
    # One stop may come as several signals. Python would be ended by one that comes as it ends.
    for number in STOP:
        signal.signal(number, signal.SIG_IGN)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _warn(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
