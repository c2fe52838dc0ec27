"""What a model on offer can take."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from service.generation.prompt import File, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a model on offer can take. None is unknown, and not refused: its provider will tell."""

    name: str
    """Its public name."""
    provider: str
    """Who runs it, in the words of OpenTelemetry's GenAI conventions."""
    unsupported: frozenset[str] = frozenset()
    """Fields of a request that its provider has no word for, by their paths, such as "config.top_k"."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """What else the server's owner wants callers to know."""
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    input_kinds: frozenset[str] | None = None
    """Of "text", "image", "audio", "video" and "pdf"."""
    file_schemes: frozenset[str] | None = None
    """Of the URIs that its provider follows, such as "gs"."""
    answer_types: tuple[str, ...] = ("text/plain", "application/json", "text/x.enum")
    """Media types that an answer may have."""
    max_stop_sequences: int = 5
    thinking: bool | None = None
    tools: bool | None = None
    json_with_tools: bool | None = None
    """Whether it answers in JSON where it may also call tools."""

    def takes(self, prompt: Prompt) -> bool:
        """Whether the model can be asked this, one that was validated for another model."""
        used = prompt.uses()
        in_json = prompt.sampling.response_mime_type not in (None, "text/plain")
        files = {part.uri.partition("://")[0] for turn in prompt.turns for part in turn.parts if isinstance(part, File)}
        return not (
            used & self.unsupported
            or (self.tools is False and "tools" in used)
            or (self.thinking is False and used & {"config.thinking_budget", "config.include_thoughts"})
            or (self.json_with_tools is False and "tools" in used and in_json)
            or (self.input_kinds is not None and not prompt.kinds() <= self.input_kinds)
            or (self.file_schemes is not None and not files <= self.file_schemes)
            or (prompt.sampling.response_mime_type or "text/plain") not in self.answer_types
            or len(prompt.sampling.stop_sequences) > self.max_stop_sequences
        )
