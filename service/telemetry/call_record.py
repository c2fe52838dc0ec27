"""What is known of one call: the guard opens the record, others fill it in, and the log has it in the end."""

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class CallRecord:
    """One call of one method. Empty text, and None for a number: not known, or not yet."""

    method: str
    """Without its service: "Generate"."""
    generation_id: str = ""
    """Ours, which the caller is told."""
    request_id: str = ""
    """The caller's own, if it gave one that may be logged."""
    trace_id: str = ""
    """Of the trace that it belongs to, in 32 hexadecimal digits."""
    caller: str = ""
    """Who called, as the callers file has it; empty where nobody has to prove it."""
    refused: str = ""
    """Why the caller's proof wasn't taken; the caller isn't told."""
    peer: str = ""
    """From which address that caller called, without its port."""
    model: str = ""
    """The public name of the model that answered, else of the one that was asked."""
    asked: str = ""
    """That of the one that was asked, where another one answered."""
    messages: int | None = None
    """How many were made for the caller."""
    first: float | None = None
    """Seconds until the model said its first word."""
    attempts: int | None = None
    """How often upstream was asked, where it was told."""
    tokens_in: int | None = None
    tokens_out: int | None = None
    """As upstream counted them; `tokens_out` with the thoughts."""
    tokens_cached: int | None = None
    tokens_reasoning: int | None = None
    """Of these: of input those from a cache, of output those of thoughts. None where there are none."""
    finish: str = ""
    """The finish reason's name, if the answer has one."""
    unread: str = ""
    """The reason of an error that came when the last message was on its way already; the caller wasn't told."""
    reason: str = ""
    """That of the error that the caller was told."""
    quota: str = ""
    """Which quota that was about."""
    upstream: str = ""
    """Where upstream failed: its code, HTTP status and own reason, as far as told: "RESOURCE_EXHAUSTED/429/QUOTA"."""
    host: str = ""
    """Whose failure that was."""
    said: str = ""
    """Upstream's own words for it, where the log is to have them."""
    cause: str = ""
    """Why it was cancelled: "caller" (it left), "deadline" (its own has passed) or "shutdown"."""
    span: Any = None
    """In that trace, where it is sent."""
    over: bool = False
    """Whether it has ended."""
    begin: float = field(default_factory=time.perf_counter)
    """When it was opened, in seconds from any moment."""

    def facts(self) -> list[tuple[str, object]]:
        """What is known, by its name in the log."""
        return [
            (name, value)
            for name, value in (
                ("generation_id", self.generation_id),
                ("request_id", self.request_id),
                ("trace_id", self.trace_id),
                ("caller", self.caller),
                ("refused", self.refused),
                ("peer", self.peer),
                ("model", self.model),
                ("asked", self.asked),
                ("messages", self.messages),
                ("first", self.first),
                ("attempts", self.attempts),
                ("tokens_in", self.tokens_in),
                ("tokens_out", self.tokens_out),
                ("tokens_cached", self.tokens_cached),
                ("tokens_reasoning", self.tokens_reasoning),
                ("finish", self.finish),
                ("unread", self.unread),
                ("reason", self.reason),
                ("quota", self.quota),
                ("upstream", self.upstream),
                ("host", self.host),
                ("upstream_text", self.said),
                ("cause", self.cause),
            )
            if value not in ("", None)
        ]
