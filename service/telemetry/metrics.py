"""The metrics of a server: what is counted, under which names. Names and units are OpenTelemetry's where it has them.

https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics and .../rpc/rpc-metrics, as Prometheus writes them.
Labels say what the owner has configured or this project has named: models, methods, codes, reasons. Never anything that
a caller chose, nor a word of a prompt or an answer.
"""

import time
from collections.abc import Mapping, Sequence

from .call_record import CallRecord
from .numbers import Counter, Gauge, Histogram, Number, share

METHODS = {
    "Generate": "tokenwire.v1.GenerationService/Generate",
    "CountTokens": "tokenwire.v1.GenerationService/CountTokens",
    "ListModels": "tokenwire.v1.GenerationService/ListModels",
    "GetUsage": "tokenwire.v1.GenerationService/GetUsage",
    "Check": "grpc.health.v1.Health/Check",
    "List": "grpc.health.v1.Health/List",
    "Watch": "grpc.health.v1.Health/Watch",
    "ServerReflectionInfo": "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}
"""By its name in a call's record: what OpenTelemetry calls it."""

CODES = (
    *("OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS"),
    *("PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED"),
    *("INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"),
)
CAUSES = ("caller", "deadline", "shutdown")

CANCELLED = "CANCELLED"
"""How an attempt ends that is left in the middle: its caller has gone, or a limit of time has struck."""

_DURATIONS = tuple(0.01 * 2**step for step in range(14))
_FIRST_TOKENS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH_TOKENS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = tuple(4.0**step for step in range(14))
_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class Metrics:
    """All that a server counts of itself, in every process of it."""

    def __init__(
        self,
        models: Mapping[str, str],
        *,
        reasons: Sequence[str] = (),
        fallback: str = "",
        redis: bool = False,
        workers: int = 0,
    ) -> None:
        """To be made before the workers are forked, who then `join`; no `workers`: this process is the only one.

        `models`: by the public name of each on offer, its provider's name in OpenTelemetry. `reasons` of errors.
        `fallback`: the model that may answer for another one. `redis`: whether callers are counted there.
        """
        self._providers = models
        self._reasons = frozenset(reasons)
        names = tuple(models)
        each = [(one,) for one in names]
        asked = [("chat", models[one], one, one) for one in names]
        asked += [("chat", models[fallback], one, fallback) for one in names if fallback and one != fallback]
        endings = ("", CANCELLED, *reasons)
        about = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model", "gen_ai_response_model")
        self.calls = Histogram(
            "rpc_server_call_duration_seconds",
            "How long calls took, from when they were opened until their status",
            _DURATIONS,
            ("rpc_method", "rpc_response_status_code"),
            [(METHODS[method], code) for method in METHODS for code in CODES],
        )
        self.requests = Histogram(
            "gen_ai_server_request_duration_seconds",
            "How long calls of Generate took that had a model; error_type is the reason, or empty",
            _DURATIONS,
            (*about, "error_type"),
            [(*one, ending) for one in asked for ending in endings],
        )
        self.first_tokens = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "How long callers waited for the first word of the model, its thoughts included",
            _FIRST_TOKENS,
            about,
            asked,
        )
        self.each_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "How long each further token took in answers that are whole",
            _EACH_TOKENS,
            about,
            asked,
        )
        self.tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of calls as upstream counted them; output with the thoughts",
            _TOKENS,
            (*about, "gen_ai_token_type"),
            [(*one, kind) for one in asked for kind in ("input", "output")],
        )
        self.special_tokens = Counter(
            "tokenwire_special_tokens_total",
            "Of these tokens: of input those from a cache, of output those of thoughts",
            ("model", "kind"),
            [(one, kind) for one in names for kind in ("cached", "reasoning")],
        )
        self.messages = Counter(
            "tokenwire_messages_total", "Messages of answers, of calls that have ended", ("model",), each
        )
        self.errors = Counter(
            "tokenwire_errors_total",
            "Calls that ended with an error or were refused, by its reason",
            ("reason",),
            [(one,) for one in reasons],
        )
        self.unproven = Counter(
            "tokenwire_unauthenticated_total", "Calls without a proof that is taken, of all services"
        )
        self.cancellations = Counter(
            "tokenwire_cancellations_total",
            "Calls that were cancelled, by why: the caller left, its own deadline passed, the server went",
            ("cause",),
            [(one,) for one in CAUSES],
        )
        self.attempts = Counter(
            "tokenwire_upstream_attempts_total",
            "Attempts to have a model answer, by how they ended: OK, the reason, CANCELLED",
            ("model", "outcome"),
            [(one, ending or "OK") for one in names for ending in endings],
        )
        self.retries = Counter("tokenwire_retries_total", "Further attempts with the same model", ("model",), each)
        self.fallbacks = Counter(
            "tokenwire_fallbacks_total",
            "Calls that went on to the fallback model, by the model that was asked first",
            ("model",),
            [(one,) for one in names if fallback and one != fallback],
        )
        self.open_attempts = Gauge("tokenwire_upstream_attempts_open", "Attempts that are being made")
        self.orphans = Gauge("tokenwire_orphans", "Attempts that go on though their calls are over: must stay 0")
        self.lag = Histogram(
            "tokenwire_event_loop_lag_seconds", "By how much the event loop was late, four times a second", _LAGS
        )
        worker = [(str(one),) for one in range(max(1, workers))]
        self.started = Gauge(
            "tokenwire_worker_start_time_seconds", "When each worker began, as Unix time", ("worker",), worker
        )
        self.connections = Gauge(
            "tokenwire_opened_connections",
            "Connections that a worker has opened: to upstream; to Redis, a collector or issuers where these are set",
            ("worker",),
            worker,
        )
        self.redis_up = Gauge(
            "tokenwire_redis_up",
            "Whether each worker counts in Redis; not there where none is set",
            ("worker",),
            worker if redis else [],
        )
        self.redis_losses = Counter("tokenwire_redis_losses_total", "How often Redis became slow or went away")
        self.redis_undecided = Counter(
            "tokenwire_redis_undecided_total", "Calls that were let in, or refused, without Redis"
        )
        self.deaths = Counter("tokenwire_worker_deaths_total", "Workers that ended by themselves and were replaced")
        self.all: Sequence[Number] = [one for one in vars(self).values() if isinstance(one, Number)]
        self._parent = workers
        self._worker = 0
        self._redis = (0, 0)
        if workers:
            share(self.all, workers + 1)

    def join(self, worker: int) -> None:
        """Count as this worker from here on."""
        self._worker = worker
        for one in self.all:
            one.join(worker)
        self.started.set(time.time(), str(worker))

    def oversee(self) -> None:
        """Count as the parent of the workers from here on."""
        for one in self.all:
            one.join(self._parent)

    def ended(self, record: CallRecord, code: str) -> None:
        """A call is over, and about to get this status."""
        seconds = time.perf_counter() - record.begin
        self.calls.observe(seconds, METHODS.get(record.method, ""), code)
        if code == CANCELLED:
            self.cancellations.add(record.cause)
        elif record.reason:
            self.errors.add(record.reason)
        if record.refused:
            self.unproven.add()
        if record.method == "Generate" and record.model:
            self._generated(record, code, seconds)

    def _generated(self, record: CallRecord, code: str, seconds: float) -> None:
        model = record.model
        about = ("chat", self._providers.get(model, ""), record.asked or model, model)
        self.requests.observe(seconds, *about, "" if code == "OK" else record.reason or code)
        if record.messages:
            self.messages.add(model, by=record.messages)
        if record.first is not None:
            self.first_tokens.observe(record.first, *about)
        if record.tokens_in is not None and record.tokens_out is not None:
            self.tokens.observe(record.tokens_in, *about, "input")
            self.tokens.observe(record.tokens_out, *about, "output")
            self.special_tokens.add(model, "cached", by=record.tokens_cached or 0)
            self.special_tokens.add(model, "reasoning", by=record.tokens_reasoning or 0)
            if code == "OK" and record.first is not None and record.tokens_out > 1:
                self.each_token.observe((seconds - record.first) / (record.tokens_out - 1), *about)

    def outcome(self, error: BaseException) -> str:
        """How an attempt ended that this has ended."""
        if not isinstance(error, Exception):
            return CANCELLED
        reason = getattr(error, "reason", "")  # errors of libraries have one, too, which may say anything
        return reason if isinstance(reason, str) and reason in self._reasons else "INTERNAL"

    def connected(self, count: int) -> None:
        """Take note of how many connections this process has opened."""
        self.connections.set(count, str(self._worker))

    def redis(self, *, up: bool, losses: int, undecided: int) -> None:
        """Take note of how it stands with Redis: what this worker has seen of it since it began."""
        self.redis_up.set(up, str(self._worker))
        for counter, count, place in ((self.redis_losses, losses, 0), (self.redis_undecided, undecided, 1)):
            counter.add(by=count - self._redis[place])
        self._redis = (losses, undecided)
