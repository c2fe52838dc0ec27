"""Vertex AI, by either way."""

from operator import attrgetter

from ..spec import ProviderSpec

VERTEX = ProviderSpec(
    name="vertex",
    title="Vertex AI",
    telemetry_name="gcp.vertex_ai",
    module=".gemini.over_grpc",
    extra="server",
    options=("project", "location"),
    local=attrgetter("emulator"),
)

GENAI = ProviderSpec(
    name="genai",
    title="Vertex AI",
    telemetry_name="gcp.vertex_ai",
    module=".gemini.over_http",
    extra="genai",
    options=("project", "location", "base_url"),
    local=attrgetter("emulator_rest"),
)
