"""The composition root: settings, then the model, then serve. The only place that picks a provider."""

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

# Its core reads this when it is imported. It would write what peers send to standard error as it came, line breaks
# included.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from service import address, log, memory, providers, workers
from service.config import SettingError, Settings
from service.handover import Handover
from service.model import Model
from service.retry import Budget, Policy, Retrying, budgets
from service.slots import Slots

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
        memory.share()
        count = settings.workers or (workers.cores() if workers.possible() else 1)
        return _alone(settings) if count == 1 else _together(settings, count)
    except SettingError as error:
        print(f"{prog}: {error}", file=sys.stderr)  # noqa: T201 - a person at a terminal reads this
    except providers.MissingExtra as error:
        print(f"{prog}: {error}", file=sys.stderr)  # noqa: T201 - as above
    except ModuleNotFoundError as error:
        text = f"{prog}: {error.name} is not installed; the server needs: pip install 'tokenwire[server]'"
        print(text, file=sys.stderr)  # noqa: T201 - as above
    return EXIT_SETTING


def _alone(settings: Settings) -> int:
    """One process, which imports the model in a thread, so that health checks are answered meanwhile."""
    from service import process  # noqa: PLC0415 - of an extra; `main` says so where it is missing

    @asynccontextmanager
    async def open_model() -> AsyncIterator[Model]:
        await asyncio.to_thread(providers.imported, settings)
        gc.freeze()  # lest the collector walks through all of it now and then, and every stream waits
        async with _model(settings, budgets(settings.offered)) as model:
            yield model

    tell = _Tell(settings)
    process.run(process.serve(settings, open_model, listening=tell.listening, ready=tell.ready))
    return 0


def _together(settings: Settings, count: int) -> int:
    """Several processes on one port, forked from this one, which has imported the model for all of them."""
    from service import process  # noqa: PLC0415 - as above

    try:
        reserved = workers.reserve(settings.host, settings.port)
    except OSError as error:
        raise address.refusal(settings, error) from error
    settings = replace(settings, port=reserved.getsockname()[1])
    slots = Slots(slots=settings.slots, per_caller=settings.slots_per_caller, workers=count)
    tell = _Tell(settings)
    budget = budgets(settings.offered)
    handover = Handover(count)

    def greet() -> int:
        process.run(process.greet(settings, handover, tell.listening))
        handover.leave()
        tell.ready()
        return 0

    def work(worker: int) -> int:
        slots.join(worker)
        try:
            process.run(process.work(settings, partial(_model, settings, budget), slots, handover))
        except SettingError as error:
            log.say("worker %d: %s", worker, error)
            return EXIT_SETTING
        return 0

    workers.fork(greet)
    handover.watch()
    providers.imported(settings)
    # What the workers share stays shared only as long as nobody writes to it, and the collector would.
    gc.collect()
    gc.freeze()
    return workers.Workers(work, fatal=EXIT_SETTING).run(count)


@asynccontextmanager
async def _model(settings: Settings, budget: Mapping[str, Budget]) -> AsyncIterator[Model]:
    """All models on offer, with retries. Their connections belong to the running event loop."""
    policy = Policy(
        max_attempts=settings.max_attempts, cap_seconds=settings.max_retry_delay, fallback=settings.fallback_model
    )
    async with providers.opened(settings) as model:
        yield Retrying(model, policy, budget)


class _Tell:
    """What the server's owner reads while it starts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._begin = time.perf_counter()

    def listening(self, port: int) -> None:
        log.say("listening on %s:%d; importing what the models need, which takes seconds", self._settings.host, port)

    def ready(self) -> None:
        seconds = time.perf_counter() - self._begin
        log.say("ready after %.1f s: %s from %s", seconds, ", ".join(self._settings.offered), self._settings.upstream)


def _need_upstream(settings: Settings) -> None:
    """Raise SettingError where no model could ever answer: better now than at the first call."""
    if not settings.needs_google:
        return
    if not settings.project:
        raise SettingError(
            "neither GOOGLE_CLOUD_PROJECT nor VERTEX_EMULATOR_HOST is set.\n"
            "  For Gemini on Vertex AI: GOOGLE_CLOUD_PROJECT=your-project, and application default credentials\n"
            "    (gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS=key.json).\n"
            "  For a local model without an account: run `tokenwire emulator`, and set "
            "VERTEX_EMULATOR_HOST=127.0.0.1:8087."
        )
    from google.auth.exceptions import DefaultCredentialsError  # noqa: PLC0415 - of an extra, and only needed here

    from service.credentials import application_default  # noqa: PLC0415 - as above

    try:
        application_default().load()  # kept, so that no worker has to find them again
    except DefaultCredentialsError as error:
        raise SettingError(
            "GOOGLE_CLOUD_PROJECT is set, but there are no application default credentials: "
            "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from error


def _keep_tracing_off(settings: Settings) -> None:
    """LangChain would send prompts and answers to LangSmith if a stray variable said so.

    By tracing, or by LANGSMITH_GATEWAY, which puts LangSmith between it and the models. Others, such as
    LANGCHAIN_HANDLER, have it fail every call. None of them is needed but those by which connections are tuned.
    """
    if not settings.langsmith:
        for name in list(os.environ):
            if name.startswith(("LANGSMITH_", "LANGCHAIN_")) and not name.startswith("LANGCHAIN_OPENAI_"):
                del os.environ[name]


if __name__ == "__main__":
    sys.exit(main())
