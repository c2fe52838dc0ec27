"""The composition root: settings, then the model, then serve. The only place that picks a provider."""

import asyncio
import gc
import importlib
import os
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

from .admission.shared import Shared
from .calls import memory
from .generation.provider import Provider
from .providers import registry
from .providers.retry import Budget, Policy, Retrying, budgets
from .runtime import address, stop, workers
from .runtime.cores import cores
from .runtime.handover import Handover
from .runtime.observed import Observed
from .runtime.secured import Secured
from .settings import SettingError, Settings
from .telemetry import call_log
from .telemetry.watch import Watch

_FILES = 64

EXIT_SETTING = 2  # as argparse has it for a flag that can't be taken

# How variables begin by which LangChain itself is told to trace.
_TRACING = ("LANGSMITH_", "LANGCHAIN_")


def main(argv: Sequence[str], *, prog: str) -> int:
    """As `service.__main__.main`, which has taken the signals."""
    try:
        settings = Settings.load(argv, os.environ, prog=prog)
        stop.hang_up(reads=settings.follows_files)
        _need_upstream(settings)
        _need_files()
        _need_redis(settings)
        call_log.configure(settings.log_level, settings.log_format)
        _forget_foreign_variables(settings)
        _know_system(settings)
        memory.share()
        secured = Secured.of(settings, Settings.names(argv, os.environ))  # here, and not in each worker
        if settings.exposed and settings.insecure:
            call_log.warn("anybody who reaches %s can call: it lacks TLS or proofs of who calls", settings.address)
        count = settings.workers or (cores() if workers.possible() else 1)
        # Process 1 of a container has other processes to bury: that is for a parent to do, not for a server. But a Unix
        # domain socket can't be handed over.
        if settings.socket_path or (count == 1 and os.getpid() != 1):
            _alone(settings, secured)
        stop.end(_together(settings, count, secured))
    except SettingError as error:
        for line in str(error).splitlines():
            print(f"{prog}: {line}", file=sys.stderr)  # noqa: T201 - a person at a terminal reads this
    except registry.MissingExtra as error:
        print(f"{prog}: {error}", file=sys.stderr)  # noqa: T201 - a person at a terminal reads this
    except ModuleNotFoundError as error:
        text = f"{prog}: {error.name} is not installed; the server needs tokenwire's extra 'server'"
        print(text, file=sys.stderr)  # noqa: T201 - a person at a terminal reads this
    return EXIT_SETTING


def _alone(settings: Settings, secured: Secured) -> NoReturn:
    """One process, which imports the model in a thread, so that health checks are answered meanwhile."""
    from .runtime import process  # noqa: PLC0415 - of an extra; `main` says so where it is missing

    @asynccontextmanager
    async def open_model() -> AsyncIterator[Provider]:
        await asyncio.to_thread(registry.imported, settings.offers)
        gc.freeze()  # else the collector walks through all of it now and then, and every stream waits
        async with _model(settings, budgets(settings.offered), observed.watch) as model:
            yield model

    tell = _Tell(settings)
    observed = Observed.of(settings, traces=_sends_traces())
    observed.watch.metrics.join(0)
    serving = process.serve(settings, open_model, secured, observed, listening=tell.listening, ready=tell.ready)
    process.run(serving)


def _together(settings: Settings, count: int, secured: Secured) -> int:
    """Several processes on one port, forked from this one, which has imported the model for all of them."""
    from .runtime import process  # noqa: PLC0415 - of an extra; `main` says so where it is missing

    try:
        reserved = workers.reserve(settings.host, settings.port)
    except OSError as error:
        raise address.refusal(settings, error) from error
    settings = replace(settings, port=reserved.getsockname()[1])
    shared = Shared.of(
        slots=settings.slots, per_caller=settings.slots_per_caller, workers=count, counted=settings.asks_who
    )
    observed = Observed.of(settings, traces=_sends_traces(), workers=count)
    tell = _Tell(settings)
    budget = budgets(settings.offered)
    handover, orders = Handover(count), stop.Orders()

    def greet() -> int:
        greeting = process.greet(
            settings, handover, orders, secured=secured, listening=tell.listening, ready=tell.ready
        )
        return _run(greeting, processes=1 + count)  # of which the others are the workers

    def work(worker: int) -> int:
        shared.join(worker)
        observed.watch.metrics.join(worker)
        call_log.join(worker)
        open_model = partial(_model, settings, budget, observed.watch, tells=worker == 0)
        return _run(process.work(settings, open_model, shared, handover, orders, secured=secured, observed=observed))

    try:
        greeter = workers.fork(greet, orders)
    except OSError as error:
        raise SettingError(workers.no_process("the server", error)) from error

    def dismiss() -> None:
        orders.stop()
        os.waitpid(greeter, 0)

    stop.at_once(dismiss)
    handover.watch()
    registry.imported(settings.offers)
    # What the workers share stays shared only as long as nobody writes to it, and the collector would.
    gc.collect()
    gc.freeze()
    observed.watch.metrics.oversee()
    with call_log.never_waiting(forks=True):
        died = observed.watch.metrics.deaths.add
        return workers.Workers(work, orders, fatal=EXIT_SETTING, replaced=died).run(count, greeter)


def _run(main: Coroutine[Any, Any, None], *, processes: int = 1) -> int:
    """Run it in this child, which ends with it; gives the exit code if it can't begin."""
    from .runtime import process  # noqa: PLC0415 - of an extra; `main` says so where it is missing

    try:
        process.run(main, processes=processes)
    except SettingError as error:
        call_log.fail("%s", error)
    return EXIT_SETTING


@asynccontextmanager
async def _model(
    settings: Settings, budget: Mapping[str, Budget], watch: Watch | None = None, *, tells: bool = True
) -> AsyncIterator[Provider]:
    """All models on offer, with retries. Their connections belong to the running event loop.

    `tells`: whether this process says what is wrong with them, as one of several does.
    """
    policy = Policy(
        max_attempts=settings.max_attempts, cap_seconds=settings.max_retry_delay, fallback=settings.fallback_model
    )
    async with registry.opened(settings.offers, settings.google) as model:
        for card in model.cards:
            if tells and card.deprecated:
                call_log.say("%s is deprecated: its provider is about to take it away; offer another one", card.name)
        yield Retrying(model, policy, budget, watch=watch)


class _Tell:
    """What the server's owner reads while it starts."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._begin = time.perf_counter()

    def listening(self, port: int) -> None:
        address = replace(self._settings, port=port).address
        call_log.say("listening on %s; importing what the models need, which takes seconds", address)

    def ready(self) -> None:
        seconds = time.perf_counter() - self._begin
        call_log.say(
            "ready after %.1f s: %s from %s", seconds, ", ".join(self._settings.offered), self._settings.upstream
        )


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

    from .providers.gemini.credentials import application_default  # noqa: PLC0415 - of an extra, only needed here

    try:
        application_default().load()  # kept, so that no worker has to find them again
    except DefaultCredentialsError as error:
        raise SettingError(
            "GOOGLE_CLOUD_PROJECT is set, but there are no application default credentials: "
            "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"
        ) from error


def _need_files() -> None:
    """Raise SettingError where this process may open too few files to begin; gRPC would abort without a word."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - not made for Windows

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < _FILES:
        raise SettingError(
            f"the limit on open files (ulimit -n) is {limit}: at least {_FILES} is wanted, and each caller "
            "takes one more"
        )


def _need_redis(settings: Settings) -> None:
    """Import what counting in Redis needs, for all processes. Raises SettingError where that isn't there."""
    if not settings.redis_url:
        return
    try:
        from .admission import redis_link  # noqa: F401, PLC0415 - of an extra, and only needed here
    except ModuleNotFoundError as error:
        raise SettingError(
            f"{str(error.name).partition('.')[0]} is not installed; TOKENWIRE_REDIS_URL needs tokenwire's extra 'redis'"
        ) from error


def _sends_traces() -> bool:
    """Whether OpenTelemetry's own variables ask for traces; imports what sends them, for all processes."""
    environ = os.environ
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or environ.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    if not endpoint or off:
        return False
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "", "http/protobuf"):
        call_log.warn(
            "no traces are sent: OTEL_EXPORTER_OTLP_PROTOCOL is %s, and only http/protobuf is spoken", protocol
        )
        return False
    try:
        from .telemetry import traces  # noqa: F401, PLC0415 - of an extra, and only needed here
    except ModuleNotFoundError:
        call_log.warn("no traces are sent: OTEL_EXPORTER_OTLP_ENDPOINT is set, and tokenwire's extra 'otel' is missing")
        return False
    return True


def _know_system(settings: Settings) -> None:
    """Find out what LangChain tells LangSmith of this system, where it may tell anything. It runs other programs."""
    if settings.langsmith:
        with suppress(ModuleNotFoundError):  # said when the models are imported, with what is to be installed
            importlib.import_module(".providers.tracing", __package__).know_system()


def _forget_foreign_variables(settings: Settings) -> None:
    """What a provider's library would read from the environment for itself is none of the settings, and has been read.

    A stray one changes what is asked, or of whom: AZURE_OPENAI_AD_TOKEN goes along with each request, by tracing or
    LANGSMITH_GATEWAY prompts go to LangSmith, LANGCHAIN_HANDLER has every call fail. Those by which connections are
    tuned stay.
    """
    specs = registry.PROVIDERS.values()
    foreign = tuple(name for spec in specs for name in spec.foreign_variables)
    tuning = tuple(name for spec in specs for name in spec.tuning_variables)
    if not settings.langsmith:
        foreign += _TRACING
    for name in list(os.environ):
        if name.startswith(foreign) and not name.startswith(tuning):
            del os.environ[name]
