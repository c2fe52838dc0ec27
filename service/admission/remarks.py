"""What the log is told of the files of callers: what they say that can't be meant, and is no mistake by itself."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice

from .api_keys import Key
from .callers import Callers, hidden

MOST = 20
"""Remarks at a time."""


def remarks(
    callers: Callers, keys: Iterable[Key], *, paths: Mapping[str, str], offered: Collection[str]
) -> Iterator[str]:
    """Each with its place in its file.

    `paths` are those of the files, "keys" and "callers", "" for none; `offered` are the models' public names, none
    where they aren't known.
    """
    found = _all(callers, keys, paths, offered)
    yield from islice(found, MOST)
    if next(found, ""):
        yield f"{paths['callers']}: there are more like these"


def _all(callers: Callers, keys: Iterable[Key], paths: Mapping[str, str], offered: Collection[str]) -> Iterator[str]:
    if not paths["callers"]:
        return
    defaults = callers.defaults.models
    models = {("defaults",): defaults} | {
        ("callers", name): one.models for name, one in callers.by_name.items() if one.models != defaults
    }
    for where, named in models.items():
        unknown = sorted(named - set(offered)) if named and offered else []
        if unknown:
            yield (
                f"{callers.place(where, 'models')} models names {_listed(unknown)}, which no provider offers here: "
                f"{', '.join(offered)} are on offer"
            )
    made: dict[str, list[str]] = {}
    for key in keys:
        made.setdefault(key.name, []).append(key.id)
    for name in sorted(callers.by_api_key.keys() - made.keys()):
        file = f"isn't in {paths['keys']}" if paths["keys"] else "is in no file: --api-keys is wanted"
        where = "callers", callers.by_api_key[name].name
        yield f"{callers.place(where, 'api_keys')} api_keys names {_listed([name])}, which {file}"
    for name in sorted(made.keys() - callers.by_api_key.keys() - callers.by_name.keys()):
        yield (
            f"{paths['keys']}: the API key {', '.join(made[name])} is of {name}, which has no entry in "
            f"{paths['callers']}: it is let in, with what [defaults] say"
        )


def counted(count: int, what: str) -> str:
    """As people write it: "1 API key", "2 API keys"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    return hidden(", ".join(map(repr, names)))
