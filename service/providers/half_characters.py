"""Text that comes in pieces of JSON, where a character may be cut in two. No I/O."""

from .foreign_json import fault, joined, sound


class Words:
    """Text of one kind. Half of a character's surrogate pair may stand in one message, and half in the next."""

    def __init__(self, place: str) -> None:
        """`place` is where it stands in a message."""
        self._place = place
        self._half = ""

    def take(self, text: str) -> str:
        """What may be told so far. Raises UpstreamFault for half of a character with no other half behind it."""
        if not text or (text.isascii() and not self._half):
            return text
        whole = joined(self._half + text)
        self._half = whole[-1:] if "\ud800" <= whole[-1:] <= "\udbff" else ""
        return sound(whole.removesuffix(self._half) if self._half else whole, self._place)

    def end(self) -> None:
        """Raises UpstreamFault if half of a character is left."""
        if self._half:
            raise fault(self._place)
