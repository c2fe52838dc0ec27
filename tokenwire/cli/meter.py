"""How fast an answer came: the figures under it, in the terminal and on the page alike; and how figures are written."""

from collections.abc import Iterator
from dataclasses import dataclass

from tokenwire.v1.generation_service_pb2 import Completed, GenerateResponse

_LEAST_SECONDS = 0.1
"""From the first chunk to the last: what came faster came at once, and its rate would be that of this machine."""


def duration(seconds: float) -> str:
    """Write a time as people read it: milliseconds below one second."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def counted(count: int, one: str) -> str:
    """Write a number of things as people read it: "1 token", "30,720 tokens"."""
    return f"{count:,} {one}{'s' * (count != 1)}"


def size(count: int) -> str:
    """Write a number of bytes as people read it: "8 bytes", "1.5 kB", "12 kB", "3.4 MB". A kB is 1000 bytes."""
    if count < 1000:
        return counted(count, "byte")
    kilobytes = count / 1000
    if round(kilobytes) < 1000:
        return f"{kilobytes:.1f} kB" if round(kilobytes, 1) < 10 else f"{kilobytes:.0f} kB"
    return f"{count / 1_000_000:.1f} MB"


@dataclass(slots=True)
class Meter:
    """Counts one answer while it comes. All times are seconds of one monotonic clock."""

    asked_at: float
    first_chunk_at: float | None = None
    last_at: float | None = None
    """When the latest message came."""
    chunks: int = 0
    """Pieces of text."""
    characters: int = 0
    thinking: bool = False
    """Thoughts have come."""
    completed: Completed | None = None

    def saw(self, message: GenerateResponse, at: float) -> None:
        """Count a message that came at this time."""
        self.last_at = at
        match message.WhichOneof("event"):
            case "text":
                if self.first_chunk_at is None:
                    self.first_chunk_at = at
                self.chunks += 1
                self.characters += len(message.text)
            case "reasoning":
                self.thinking = True
            case "completed":
                self.completed = message.completed
            case "started" | "tool_call" | "grounding" | "logprobs" | "failed" | None:
                pass

    @property
    def first_chunk(self) -> float | None:
        """From the question to the first piece of text, as the caller felt it. None: there was none yet."""
        return None if self.first_chunk_at is None else self.first_chunk_at - self.asked_at

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer; None while it runs, and where the model's provider didn't say."""
        if self.completed is None or not self.completed.usage.exact:
            return None
        return self.completed.usage.output_tokens

    def rate(self, now: float) -> str:
        """How much came per second since the question, waiting included: tokens, or characters while unknown.

        Empty where that says nothing: a single chunk, or all of them at once.
        """
        if self.chunks < 2 or self.first_chunk_at is None or now - self.first_chunk_at < _LEAST_SECONDS:
            return ""
        amount, unit = self.characters, "character"
        if self.output_tokens is not None:
            amount, unit = self.output_tokens, "token"
        return f"{counted(round(amount / (now - self.asked_at)), unit)}/s"

    def figures(self, now: float | None = None) -> Iterator[str]:
        """Everything in short words; `now` while it runs, None once it has ended."""
        if self.first_chunk is not None:
            yield f"first chunk {duration(self.first_chunk)}"
        elif now is not None:
            yield f"{'thinking' if self.thinking else 'waiting'} {now - self.asked_at:.1f} s"
        if self.chunks:
            yield counted(self.chunks, "chunk")
            if rate := self.rate(now if now is not None else self.last_at or self.asked_at):
                yield rate
        if self.completed is not None and self.completed.usage.exact:
            usage = self.completed.usage
            thought = f", {usage.reasoning_tokens:,} thought" if usage.reasoning_tokens else ""
            cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
            yield f"{counted(usage.input_tokens, 'token')} in{cached}, {usage.output_tokens:,} out{thought}"
