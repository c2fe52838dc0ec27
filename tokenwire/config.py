"""How an answer is to be made, as a plain dict: `config={"temperature": 0.0, "max_output_tokens": 40}`."""

from collections.abc import Iterable, Mapping
from typing import TypedDict

from google.protobuf.struct_pb2 import Struct


class GenerationConfigDict(TypedDict, total=False):
    """The fields of the contract's GenerationConfig. Without a key, or with None: the model's default."""

    temperature: float | None
    """0.0 to 2.0. Lower is more predictable."""
    top_p: float | None
    """Nucleus sampling: above 0.0, up to 1.0."""
    top_k: int | None
    """Samples from the k most probable tokens: 1 to 1000."""
    max_output_tokens: int | None
    """At most this many tokens of answer, thoughts included: 1 or more. One that is cut by it is a TokenLimitError."""
    stop_sequences: Iterable[str] | None
    """The answer ends before the first of these. At most 5, none empty."""
    seed: int | None
    """The same seed and request give the same answer as far as the model can."""
    presence_penalty: float | None
    """-2.0 up to, but not including, 2.0. Positive: tokens that the answer already has become less likely."""
    frequency_penalty: float | None
    """-2.0 up to, but not including, 2.0. Like presence_penalty, in proportion to how often."""
    thinking_budget: int | None
    """At most this many tokens of thought; 0: none, where the model allows that; -1: the model decides."""
    include_thoughts: bool | None
    """Whether the thoughts are streamed too, as `reasoning` events."""
    response_mime_type: str | None
    """"text/plain", "application/json" or "text/x.enum"."""
    response_schema: Mapping[str, object] | Struct | None
    """The JSON schema (OpenAPI 3.0 subset) of the answer. Needs one of the latter two MIME types."""
    response_logprobs: bool | None
    """The log probability of each token of the answer."""
    logprobs: int | None
    """Together with response_logprobs, so many alternatives for each token: 1 to 20."""
