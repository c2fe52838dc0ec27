"""`tokenwire SUBCOMMAND ...`: finds the subcommand and hands over. Imports nothing before it knows what is needed."""

import sys
from collections.abc import Callable, Sequence

from tokenwire.cli.running.programs import program

# name -> (module, as `program` finds it, whose `main(argv, prog=...)` runs it, the line that help shows)
COMMANDS = {
    "serve": ("service.__main__", "run the gRPC server"),
    "keys": ("service.keys", "make, list and revoke API keys"),
    "ask": ("cli.ask", "stream an answer to the terminal"),
    "chat": ("cli.chat", "talk with a model in the terminal"),
    "health": ("cli.health", "tell whether the service serves"),
    "models": ("cli.models", "list what the service offers"),
    "count": ("cli.count", "count the tokens of a question"),
    "usage": ("cli.usage", "tell what a caller has used of its quotas"),
    "ui": ("gateway_ui.__main__", "serve the chat page"),
    "edge": ("cli.running.edge", "run Envoy in front of it, for HTTP and browsers"),
    "emulator": ("vertex_emulator.__main__", "run a local Vertex AI: SmolLM2, or a script for tests"),
    "demo": ("cli.running.demo", "run all of these together, without an account"),
}

HELP = """usage: tokenwire COMMAND [OPTIONS]

Carries Gemini's answer over gRPC while it is being written.

commands:
{commands}

`tokenwire COMMAND --help` tells a command's options. `tokenwire --version` tells the version.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit code, 2 for one that doesn't exist."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in ("-h", "--help", "help"):
        print(HELP.format(commands="\n".join(f"  {one:<10} {text}" for one, (_, text) in COMMANDS.items())), end="")
        return 0
    if name == "--version":
        from importlib import metadata  # noqa: PLC0415 - half of the time until a command begins

        print(f"tokenwire {metadata.version('tokenwire')}")
        return 0
    if name not in COMMANDS:
        import difflib  # noqa: PLC0415 - only needed here

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)} is wanted"
        print(f"tokenwire: there is no command {name!r}: {hint}", file=sys.stderr)
        return 2
    run: Callable[..., int] = program(COMMANDS[name][0]).main
    return run(rest, prog=f"tokenwire {name}")


if __name__ == "__main__":
    sys.exit(main())
