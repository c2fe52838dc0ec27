"""JSON schemas, the same for every provider."""

from collections.abc import Callable
from typing import Any


def typed(schema: Any, how: Callable[[str], str]) -> Any:
    """The same schema, one without mistakes, with the names of its types as providers want them: `str.lower`, say."""
    if isinstance(schema, list):
        return [typed(one, how) for one in schema]
    made = dict(schema)
    for key, value in schema.items():
        if key == "type":
            made[key] = how(value)
        elif key == "properties":
            made[key] = {name: typed(one, how) for name, one in value.items()}
        elif key in ("items", "anyOf"):
            made[key] = typed(value, how)
    return made
