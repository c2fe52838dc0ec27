"""Vertex AI, by either way."""

from operator import attrgetter

from ..spec import GoogleCloud, Offer, ProviderSpec, host_of


def host(location: str) -> str:
    """Vertex AI's own in this region."""
    return f"{'' if location == 'global' else location + '-'}aiplatform.googleapis.com"


def http_host(location: str) -> str:
    """Vertex AI's own by HTTP, as Google's SDK has it."""
    return f"aiplatform.{location}.rep.googleapis.com" if location in ("us", "eu") else host(location)


def _host(offer: Offer, google: GoogleCloud) -> str:
    return google.emulator or host(google.of(offer).location)


def _http_host(offer: Offer, google: GoogleCloud) -> str:
    return host_of(offer.options.get("base_url", "")) or google.emulator_rest or http_host(google.of(offer).location)


VERTEX = ProviderSpec(
    name="vertex",
    title="Vertex AI",
    telemetry_name="gcp.vertex_ai",
    module=".gemini.over_grpc",
    extra="server",
    options=("project", "location"),
    host=_host,
    local=attrgetter("emulator"),
)

GENAI = ProviderSpec(
    name="genai",
    title="Vertex AI",
    telemetry_name="gcp.vertex_ai",
    module=".gemini.over_http",
    extra="genai",
    options=("project", "location", "base_url"),
    host=_http_host,
    foreign_variables=("GEMINI_", "GOOGLE_API_KEY", "GOOGLE_GENAI_", "GOOGLE_GEMINI_", "GOOGLE_VERTEX_"),
    local=attrgetter("emulator_rest"),
)
