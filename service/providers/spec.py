"""What the server knows of a provider before its library is imported, and what the provider is then handed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from urllib.parse import urlsplit

DEFAULT_MODEL = "gemini-3.8-flash"
"""What answers unless the server is told otherwise: neither deprecated nor a preview, by LangChain's own profiles."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A model on offer."""

    name: str
    """Its public name."""
    provider: str = "vertex"
    """A name in `registry.PROVIDERS`."""
    model: str = ""
    """Its name there; empty: the same."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    api_key: str = field(default="", repr=False)
    """Read from the environment, never from the line."""

    @property
    def upstream_name(self) -> str:
        return self.model or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogleCloud:
    """Where Gemini is asked, unless a model's own line says otherwise."""

    project: str = ""
    location: str
    """A region of Vertex AI, or "global"."""
    emulator: str = ""
    """host:port of a local Vertex that speaks gRPC; empty: Vertex AI itself."""
    emulator_rest: str = ""
    """host:port of a local Vertex that speaks HTTP."""

    def of(self, offer: Offer) -> "GoogleCloud":
        """Give a copy with the project and location that the offer names."""
        options = offer.options
        return replace(
            self,
            project=options.get("project", self.project),
            location=options.get("location", self.location),
        )


def host_of(address: str) -> str:
    """Of a URL: its host, perhaps with its port, and never who asks."""
    return urlsplit(address).netloc.rpartition("@")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderSpec:
    """All that is said of a provider outside of its own module, beside which it stands: `specs.py`, `*_specs.py`."""

    name: str
    """In TOKENWIRE_MODELS."""
    title: str
    """For people."""
    telemetry_name: str
    """In OpenTelemetry's GenAI conventions."""
    module: str
    """Imports the provider's library; its `open_models(offers, google)` gives a Provider that can be closed."""
    extra: str
    """Of our package: what has to be installed for the module."""
    options: tuple[str, ...]
    """What a line can say beside what it can say of every model."""
    host: Callable[[Offer, GoogleCloud], str]
    """Whom its models are asked of: a host, perhaps with its port. For the log."""
    key_variable: str = ""
    """The variable that holds the API key unless the option api_key_env names another; empty: it takes no key."""
    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By option that has to be there: the variable that stands in for it."""
    foreign_variables: tuple[str, ...] = ()
    """How variables begin that its library reads by itself. The server forgets them before it imports any library."""
    tuning_variables: tuple[str, ...] = ()
    """How variables begin by which its library tunes connections. They stay, whatever else they begin like."""
    local: Callable[[GoogleCloud], str] | None = None
    """Of models on Google Cloud: the address of the local Vertex that is asked instead, "" for none."""

    def place(self, google: GoogleCloud) -> str:
        """Where its models are, in words."""
        if self.local is None:
            return self.title
        address = self.local(google)
        return f"the local Vertex at {address}" if address else f"{self.title} in {google.location}"

    def needs_google(self, google: GoogleCloud) -> bool:
        """Whether its models are on Google Cloud itself, which wants a project and credentials."""
        return self.local is not None and not self.local(google)
