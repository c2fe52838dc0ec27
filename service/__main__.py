"""The composition root: settings, then the model, then serve. The only place that picks a provider."""

import asyncio
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from service import log
from service.config import SettingError, Settings
from service.retry import Policy, Retrying

EXIT_SETTING = 2  # as argparse has it for a flag that can't be taken


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m service") -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    # Until the model is ready there is nothing to drain, and an import can't be interrupted: end at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        settings = Settings.load(sys.argv[1:] if argv is None else argv, os.environ, prog=prog)
        _need_upstream(settings)
        log.configure(settings.log_level)
        _keep_tracing_off(settings)
        asyncio.run(_serve(settings))
    except SettingError as error:
        print(f"{prog}: {error}", file=sys.stderr)  # noqa: T201 - a person at a terminal reads this
        return EXIT_SETTING
    except ModuleNotFoundError as error:
        text = f"{prog}: {error.name} is not installed; the server needs: pip install 'tokenwire[server]'"
        print(text, file=sys.stderr)  # noqa: T201 - as above
        return EXIT_SETTING
    return 0


async def _serve(settings: Settings) -> None:
    from service.server import Server  # noqa: PLC0415 - of an extra; `main` says so where it is missing

    begin = time.perf_counter()
    server = Server(settings)
    port = await server.start()
    log.say("listening on %s:%d; importing ChatVertexAI, which takes seconds", settings.host, port)
    model = await _load(settings)
    policy = Policy(max_attempts=settings.max_attempts, fallback=settings.fallback_model)
    await server.serve(Retrying(model, policy))
    offered = ", ".join(settings.offered)
    log.say("ready after %.1f s: %s from %s", time.perf_counter() - begin, offered, settings.upstream)

    first, second = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (second if first.is_set() else first).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    await first.wait()
    drained = asyncio.ensure_future(server.stop(settings.grace))
    hurried = asyncio.ensure_future(second.wait())
    await asyncio.wait((drained, hurried), return_when=asyncio.FIRST_COMPLETED)
    if hurried.done():
        await server.stop(0)
    hurried.cancel()
    await drained
    await model.close()
    log.say("stopped")


async def _load(settings: Settings) -> Any:
    # In a thread, so that health checks are answered meanwhile; the channel then belongs to this event loop.
    vertex = await asyncio.to_thread(importlib.import_module, "service.vertex")
    where = {"names": settings.offered, "project": settings.project, "location": settings.location}
    if settings.emulator:
        return vertex.VertexModel.local(settings.emulator, **where)
    return vertex.VertexModel.google(**where)


def _need_upstream(settings: Settings) -> None:
    """Raise SettingError where no model could ever answer: better now than at the first call."""
    if settings.emulator:
        return
    if not settings.project:
        raise SettingError(
            "neither GOOGLE_CLOUD_PROJECT nor VERTEX_EMULATOR_HOST is set.\n"
            "  For Gemini on Vertex AI: GOOGLE_CLOUD_PROJECT=your-project, and application default credentials\n"
            "    (gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=key.json).\n"
            "  For a local model without an account: run `tokenwire emulator`, and set "
            "VERTEX_EMULATOR_HOST=127.0.0.1:8087."
        )
    import google.auth  # noqa: PLC0415 - of an extra, and only needed here
    from google.auth.exceptions import DefaultCredentialsError  # noqa: PLC0415 - as above

    try:
        google.auth.default()
    except DefaultCredentialsError as error:
        raise SettingError(
            f"GOOGLE_CLOUD_PROJECT is {settings.project!r}, but there are no application default credentials: "
            "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from error


def _keep_tracing_off(settings: Settings) -> None:
    """LangChain would send prompts and answers to LangSmith if a stray variable said so."""
    if not settings.langsmith:
        for name in ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2"):
            os.environ[name] = "false"


if __name__ == "__main__":
    sys.exit(main())
