"""Settings: one frozen object, made once of flags and the environment, which `app.py` hands in.

Each field of `Settings` is at once a flag (`--port`), a variable (`TOKENWIRE_PORT`), a line of `--help` and a row of
the table in docs/settings.md. A flag wins over its variable; an empty variable counts as unset.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Self

from .providers import addresses
from .providers.offers import SeveralError, completed, offers
from .providers.registry import PROVIDERS
from .providers.spec import DEFAULT_MODEL, GoogleCloud, Offer
from .setting_conflicts import LINK, LINKED, conflicts, is_exposed, misspelt, near
from .setting_kinds import (
    bracketed,
    file,
    host_and_port,
    listening,
    model_name,
    one_of,
    redis_url,
    seconds,
    switch,
    that,
    whole,
)

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")


class SettingError(ValueError):
    """A setting has a value it can't have, or one that is needed is missing; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a setting comes from and how it is told to people."""

    variable: str
    help: str
    parse: Callable[[str], Any]
    """Raises ValueError with what is wanted, as in "a whole number from 0 to 65535"."""
    secret: bool = False
    """Whether its value is told to nobody."""


def setting(default: Any, variable: str, parse: Callable[[str], Any], text: str, *, secret: bool = False) -> Any:
    return field(default=default, repr=not secret, metadata={"source": Source(variable, text, parse, secret)})


def source(of: "Field[Any]") -> Source:
    """How the field is set."""
    found: Source = of.metadata["source"]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the server was told. Times are in seconds, sizes in bytes."""

    host: str = setting(
        "127.0.0.1",
        "TOKENWIRE_HOST",
        listening,
        "address to listen on; 0.0.0.0 for every interface; unix:/PATH for a Unix domain socket of this user alone",
    )
    port: int = setting(50051, "TOKENWIRE_PORT", whole(0, 65535), "port to listen on; 0 picks a free one")
    tls_certificate: str = setting(
        "",
        "TOKENWIRE_TLS_CERTIFICATE",
        file,
        "PEM file: the server's certificate and those it rests on; it may change while the server runs",
    )
    tls_key: str = setting("", "TOKENWIRE_TLS_KEY", file, "PEM file: its key, without a passphrase; likewise")
    tls_client_ca: str = setting(
        "",
        "TOKENWIRE_TLS_CLIENT_CA",
        file,
        "PEM file: whose certificates callers have to show (mutual TLS); likewise",
    )
    api_keys: str = setting(
        "", "TOKENWIRE_API_KEYS", file, "file of the API keys that are taken, as tokenwire keys makes it; it may change"
    )
    callers: str = setting(
        "",
        "TOKENWIRE_CALLERS",
        file,
        "TOML file: who may call, by which proofs, and what each may; it may change while the server runs",
    )
    redis_url: str = setting(
        "",
        "TOKENWIRE_REDIS_URL",
        redis_url,
        "Redis in which replicas count together what callers use; one with a password by the variable only",
        secret=True,
    )
    redis_password_file: str = setting(
        "", "TOKENWIRE_REDIS_PASSWORD_FILE", file, "file of its password, which is read for each connection"
    )
    redis_away: str = setting(
        "open",
        "TOKENWIRE_REDIS_AWAY",
        one_of("open", "closed"),
        "while it is slow or away: open lets calls in as each server counts by itself, closed refuses them",
    )
    behind_proxy: bool = setting(
        False,
        "TOKENWIRE_BEHIND_PROXY",
        switch,
        "whether a proxy of ours makes the connections: their certificates are its own then, and no caller's",
    )
    insecure: bool = setting(
        False,
        "TOKENWIRE_INSECURE",
        switch,
        "whether others than this machine may reach the server though it lacks TLS or proofs of who calls",
    )
    model: str = setting(
        DEFAULT_MODEL, "TOKENWIRE_MODEL", model_name, "the model that answers when a request names none"
    )
    models: tuple[Offer, ...] = setting(
        (),
        "TOKENWIRE_MODELS",
        offers,
        "further models, separated by commas: NAME, or NAME=PROVIDER:MODEL?OPTION=VALUE; others are NOT_FOUND",
    )
    project: str = setting(
        "",
        "GOOGLE_CLOUD_PROJECT",
        that(addresses.is_word, "plain letters and signs, without spaces,"),
        "the Google Cloud project that Vertex AI is billed to",
    )
    location: str = setting(
        "us-central1",
        "GOOGLE_CLOUD_LOCATION",
        that(addresses.is_label, "a region, such as us-central1, or global"),
        "the Vertex AI region, or global",
    )
    emulator: str = setting(
        "", "VERTEX_EMULATOR_HOST", host_and_port, "host:port of a local Vertex; no Google credentials are needed then"
    )
    emulator_rest: str = setting(
        "", "VERTEX_EMULATOR_REST_HOST", host_and_port, "the same for models of the provider genai, which speaks HTTP"
    )
    reflection: bool = setting(
        True, "TOKENWIRE_REFLECTION", switch, "whether grpcurl and friends may ask the server for its schema"
    )
    max_prompt_bytes: int = setting(
        1_048_576,
        "TOKENWIRE_MAX_PROMPT_BYTES",
        whole(1, 64 * 1_048_576),
        "bytes; the largest request, history included, inline data not",
    )
    max_inline_bytes: int = setting(
        4 * 1_048_576,
        "TOKENWIRE_MAX_INLINE_BYTES",
        whole(0, 64 * 1_048_576),
        "bytes; the inline data of one request: images, audio, documents",
    )
    max_unfinished_bytes: int = setting(
        256 * 1_048_576,
        "TOKENWIRE_MAX_UNFINISHED_BYTES",
        whole(1, 1_048_576 * 1_048_576),
        "bytes; the memory of requests that are still arriving, in all; each worker takes one at a time, however large",
    )
    default_deadline: float = setting(
        120.0,
        "TOKENWIRE_DEFAULT_DEADLINE",
        seconds(0.1, 3600),
        "seconds, for calls that bring no deadline of their own",
    )
    max_deadline: float = setting(
        600.0,
        "TOKENWIRE_MAX_DEADLINE",
        seconds(0.1, 3600),
        "seconds; no call but a watch of health lasts longer, whatever deadline it brings",
    )
    write_timeout: float = setting(
        30.0,
        "TOKENWIRE_WRITE_TIMEOUT",
        seconds(0.1, 3600),
        "seconds after which a caller that does not read is given up",
    )
    workers: int = setting(
        0,
        "TOKENWIRE_WORKERS",
        whole(0, 256),
        "processes that share the port; 0 is one for each core that a container may use (on Linux, else one)",
    )
    scheduling: str = setting(
        "batch",
        "TOKENWIRE_SCHEDULING",
        one_of("batch", "normal"),
        "batch: under Linux's SCHED_BATCH a chunk costs a tenth less CPU, and comes some ms later where other programs "
        "keep all cores busy; normal",
    )
    slots: int = setting(500, "TOKENWIRE_SLOTS", whole(1, 100_000), "streams at once; more wait in the queue")
    slots_per_caller: int = setting(
        0,
        "TOKENWIRE_SLOTS_PER_CALLER",
        whole(0, 100_000),
        "streams at once for one peer address; 0 is no limit (leave it so behind a proxy, which is one address)",
    )
    queue: int = setting(
        100, "TOKENWIRE_QUEUE", whole(0, 100_000), "callers that may wait for a slot; more are refused at once"
    )
    queue_timeout: float = setting(
        1.0, "TOKENWIRE_QUEUE_TIMEOUT", seconds(0, 60), "seconds after which a caller in the queue is refused"
    )
    max_attempts: int = setting(
        3,
        "TOKENWIRE_MAX_ATTEMPTS",
        whole(1, 10),
        "how often a model is asked before its first chunk, the fallback not counted; 1 is no retry",
    )
    max_retry_delay: float = setting(
        5.0,
        "TOKENWIRE_MAX_RETRY_DELAY",
        seconds(0, 600),
        "seconds; a model that asks for a longer delay is not asked again, since a call that waits holds a slot",
    )
    fallback_model: str = setting(
        "",
        "TOKENWIRE_FALLBACK_MODEL",
        model_name,
        "the model to ask when the first is away or out of quota before its first chunk",
    )
    keepalive: float = setting(
        30.0,
        "TOKENWIRE_KEEPALIVE",
        seconds(0.1, 3600),
        "seconds between pings that find out whether a caller still lives",
    )
    keepalive_timeout: float = setting(
        10.0, "TOKENWIRE_KEEPALIVE_TIMEOUT", seconds(0.1, 3600), "seconds that a ping may stay unanswered"
    )
    max_connection_age: float = setting(
        0.0,
        "TOKENWIRE_MAX_CONNECTION_AGE",
        seconds(0, 86_400),
        "seconds after which callers are asked to connect anew, for balance; running streams go on; 0 is never",
    )
    drain_delay: float = setting(
        0.25,
        "TOKENWIRE_DRAIN_DELAY",
        seconds(0, 600),
        "seconds between NOT_SERVING and closing the port, for load balancers that look now and then",
    )
    grace: float = setting(
        30.0,
        "TOKENWIRE_GRACE",
        seconds(0, 3600),
        "seconds that running streams may go on after SIGTERM; a second signal ends all",
    )
    langsmith: bool = setting(
        False,
        "TOKENWIRE_LANGSMITH",
        switch,
        "whether LangChain may send prompts and answers to LangSmith, if it is set up",
    )
    metrics_port: int = setting(
        0,
        "TOKENWIRE_METRICS_PORT",
        whole(0, 65535),
        "port on which Prometheus finds the metrics at /metrics; 0 is none",
    )
    metrics_host: str = setting(
        "127.0.0.1",
        "TOKENWIRE_METRICS_HOST",
        that(lambda value: addresses.is_host(bracketed(value)), "an address or a name"),
        "address of that port, which asks nobody who reads it: 0.0.0.0 is for networks of your own",
    )
    log_upstream_text: bool = setting(
        False,
        "TOKENWIRE_LOG_UPSTREAM_TEXT",
        switch,
        "whether the log has upstream's own words for its errors, which may repeat parts of prompts, answers and keys",
    )
    log_level: str = setting("info", "TOKENWIRE_LOG_LEVEL", one_of(*LEVELS), f"one of {', '.join(LEVELS)}")
    log_format: str = setting(
        "auto",
        "TOKENWIRE_LOG_FORMAT",
        one_of(*FORMATS),
        "text, json (an object a line), or auto: text at a terminal, else json",
    )

    def __post_init__(self) -> None:
        if wrong := list(conflicts({one.name: getattr(self, one.name) for one in fields(self)}, {}, self.variables())):
            raise SettingError("\n".join(wrong))

    @property
    def offers(self) -> tuple[Offer, ...]:
        """Every model on offer, the default first."""
        known = {offer.name: offer for offer in self.models}
        names = (self.model, *known, self.fallback_model)
        return tuple(known.get(name, Offer(name)) for name in dict.fromkeys(names) if name)

    @property
    def offered(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(offer.name for offer in self.offers)

    @property
    def google(self) -> GoogleCloud:
        """Where Gemini is asked."""
        return GoogleCloud(
            project=self.project, location=self.location, emulator=self.emulator, emulator_rest=self.emulator_rest
        )

    @property
    def upstream(self) -> str:
        """Where the models are, for the log; whose project pays is nobody else's business."""
        places = (PROVIDERS[offer.provider].place(self.google) for offer in self.offers)
        return ", ".join(dict.fromkeys(places))

    @property
    def hosts(self) -> Mapping[str, str]:
        """By the name of each model on offer: whom it is asked of."""
        return {offer.name: PROVIDERS[offer.provider].host(offer, self.google) for offer in self.offers}

    @property
    def telemetry_names(self) -> Mapping[str, str]:
        """By the name of each model on offer: its provider, as OpenTelemetry calls it."""
        return {offer.name: PROVIDERS[offer.provider].telemetry_name for offer in self.offers}

    @property
    def needs_google(self) -> bool:
        """Whether a model on offer is on Vertex AI itself."""
        return any(PROVIDERS[offer.provider].needs_google(self.google) for offer in self.offers)

    @property
    def socket_path(self) -> str:
        """Of the Unix domain socket to listen on; empty: it is an address with a port."""
        return self.host.removeprefix("unix:") if self.host.startswith("unix:") else ""

    @property
    def address(self) -> str:
        """As gRPC takes it."""
        if self.socket_path:
            return self.host
        return f"{bracketed(self.host)}:{self.port}"

    @property
    def metrics_address(self) -> str:
        """Where the metrics are read, with its port."""
        return f"{bracketed(self.metrics_host)}:{self.metrics_port}"

    @property
    def asks_who(self) -> bool:
        """Whether callers have to prove who they are."""
        return bool(self.api_keys or self.callers)

    @property
    def follows_files(self) -> bool:
        """Whether it has files that may change while the server runs."""
        return bool(self.tls_certificate or self.asks_who)

    @property
    def exposed(self) -> bool:
        """Whether others than this machine can reach the server."""
        return is_exposed(self.host)

    @classmethod
    def variables(cls) -> Mapping[str, str]:
        """By the field of each setting: its variable."""
        return {one.name: source(one).variable for one in fields(cls)}

    @classmethod
    def names(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Mapping[str, str]:
        """By the field of each setting, what to call it in messages: the flag that sets it, else its variable."""
        flags, _ = _flags(parser(cls, ""), argv)
        return {one.name: _told(one, flags, environ)[0] or source(one).variable for one in fields(cls)}

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str], *, prog: str) -> Self:
        """Read the settings.

        Raises SettingError with all that is wrong, a line each; exits by itself, as argparse does, on --help.
        """
        flags, wrong = _flags(parser(cls, prog), argv)
        values: dict[str, Any] = {}
        told: dict[str, str] = {}
        """By setting: the flag or variable that has told it."""
        for one in fields(cls):
            origin = source(one)
            name, value = _told(one, flags, environ)
            if not name:
                continue
            told[one.name] = name
            try:
                values[one.name] = origin.parse(value)
            except SeveralError as error:
                values[one.name] = error.found
                start = f"{name} is {value!r}" if len(error.wanted) == 1 else name
                wrong += [f"{start}: {wanted} is wanted" for wanted in error.wanted]
            except ValueError as error:
                start = name if origin.secret else f"{name} is {value!r}"
                wrong.append(f"{start}: {error} is wanted")
                values[one.name] = None
        models = []
        for offer in values.get("models", ()):
            try:
                models.append(completed(offer, environ))
            except SeveralError as error:
                wrong += [f"{told['models']}: {wanted} is wanted" for wanted in error.wanted]
        by_default = {one.name: one.default for one in fields(cls)}
        wrong += conflicts(by_default | values, told, cls.variables())
        if wrong := [*wrong, *misspelt(cls.variables(), environ)]:
            raise SettingError("\n".join(wrong))
        return cls(**{**values, "models": tuple(models)})


def _told(one: "Field[Any]", flags: Mapping[str, str | None], environ: Mapping[str, str]) -> tuple[str, str]:
    """Which flag or variable sets it, and to what; empty: none does."""
    variable = source(one).variable
    for name, value in ((_flag(one), flags.get(one.name)), (variable, environ.get(variable))):
        if value and not (name == LINKED and LINK.match(value)):
            return name, value
    return "", ""


def _flag(one: "Field[Any]") -> str:
    return "--" + one.name.replace("_", "-")


def _flags(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[Mapping[str, str | None], list[str]]:
    """The values of flags, and what is wrong with flags themselves."""
    try:
        found, others = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        flag = error.argument_name or ""
        kind = next((_kind(one) for one in fields(Settings) if _flag(one) == flag), "")
        if not kind:
            return {}, [str(error).removeprefix("argument ")]
        return {}, [f"{flag} has no value: {kind.replace('|', ' or ')} is wanted"]
    wrong = []
    known = [f"--{name.replace('_', '-')}" for name in vars(found)]
    unknown = False
    for one in others:
        if one.startswith("-"):
            flag = one.partition("=")[0]
            wrong.append(f"{flag} is no flag: {near(flag, known) or 'one that --help tells'} is wanted")
            unknown = "=" not in one
        elif not unknown:  # else it is that flag's value
            wrong.append(f"{one!r} belongs to no flag: flags and their values are wanted")
        else:
            unknown = False
    return vars(found), wrong


def parser(settings: type[Settings], prog: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog=prog,
        description="Serve tokenwire.v1.GenerationService: Gemini's answers, streamed over gRPC.",
        epilog="Each flag can be set by the variable in brackets instead; the flag wins.",
        allow_abbrev=False,
        exit_on_error=False,
    )
    for one in fields(settings):
        assert one.default is not MISSING
        made.add_argument(
            _flag(one),
            help=f"{source(one).help} [{source(one).variable}; {shown(one.default)}]".replace("%", "%%"),
            metavar=_kind(one),
        )
    return made


def _kind(one: "Field[Any]") -> str:
    """What kind of value a flag wants, and in which unit."""
    if source(one).parse is host_and_port:
        return "HOST:PORT"
    if source(one).parse is file:
        return "FILE"
    match one.default:
        case bool():
            return "true|false"
        case float():
            return "SECONDS"
        case int() if not one.name.endswith("port"):
            return "BYTES" if one.name.endswith("_bytes") else "COUNT"
    return one.name.rpartition("_")[2].upper()


def shown(default: object) -> str:
    """A default as people write it."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float):
        return f"{default:g}"
    return str(default) if default not in ("", ()) else "unset"
