"""What rules and renderer are told besides the text: the keys of markdown-it's `env`."""

from collections.abc import MutableMapping
from typing import Any

Env = MutableMapping[str, Any]
GROWING = "growing"
"""The text is the beginning of an answer, of which more is coming."""
STANDALONE = "standalone"
"""The HTML is for a file without a script."""
