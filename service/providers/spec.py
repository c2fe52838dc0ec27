"""What the providers are handed, and what the server knows of each before its library is imported."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogleCloud:
    """Where Gemini is asked, unless a model's own line says otherwise."""

    project: str = ""
    location: str
    """A region of Vertex AI, or "global"."""
    emulator: str = ""
    """host:port of a local Vertex that speaks gRPC; empty: Vertex AI itself."""
    emulator_rest: str = ""
    """The same for one that speaks HTTP."""
