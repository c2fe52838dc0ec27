"""What calls have to know of the settings. `service.settings.Settings` is one; this room can't import that.

Settings know the providers, by whose names and options models are offered, and no call may.
"""

from collections.abc import Mapping
from typing import Protocol


class CallSettings(Protocol):
    """Times are in seconds, sizes in bytes."""

    @property
    def max_prompt_bytes(self) -> int:
        """Of all of a request but its inline data."""
        ...

    @property
    def max_inline_bytes(self) -> int:
        """Of a request's inline data together."""
        ...

    @property
    def queue(self) -> int:
        """How many callers may wait for a slot."""
        ...

    @property
    def queue_timeout(self) -> float:
        """For how long each may."""
        ...

    @property
    def default_deadline(self) -> float:
        """Of a call that came without one."""
        ...

    @property
    def max_deadline(self) -> float:
        """Of any call."""
        ...

    @property
    def write_timeout(self) -> float:
        """For how long a caller may leave a message unread."""
        ...

    @property
    def log_upstream_text(self) -> bool:
        """Whether the log has upstream's own words."""
        ...

    @property
    def hosts(self) -> Mapping[str, str]:
        """By the name of each model on offer: whom it is asked of."""
        ...
