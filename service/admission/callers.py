"""The callers file: who may call, by which proofs, and how much. It is TOML.

[defaults]                      # for callers without an entry of their own, and for what an entry doesn't say
longest_deadline = 120

[issuers.google]                # whose signed tokens (JWT) are taken
issuer = "https://accounts.google.com"
audience = "https://tokenwire.example"
keys = "https://www.googleapis.com/oauth2/v3/certs"
algorithms = ["RS256"]
name = "email"                  # which of a token's claims says who calls

[callers.billing]
api_keys = ["billing"]          # names of keys that `tokenwire keys new` has made
tokens.google = ["billing@project.iam.gserviceaccount.com"]
certificates = ["spiffe://example/billing"]
models = ["gemini-3.8-flash"]
labels = { team = "billing" }
"""

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from . import api_keys

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""With which a token may be signed: those with two keys only, so that who checks a token can't make one."""

_KEY = re.compile(r"tw_[\w-]+")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_LONGEST_SECONDS = 3600
_MOST = 10**15


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Whom the server knows, and what it may."""

    name: str
    models: frozenset[str] | None = None
    """Those it may use, by their public names; None: all on offer."""
    streams: int | None = None
    """At once; None is no limit, here and below."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    longest_deadline: float | None = None
    """In seconds; None: as the server has it."""
    admin: bool = False
    """Whether it may look at what all callers have used."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Added to each call upstream, for the provider's bill."""


ANYBODY = Caller(name="")
"""Where no proof is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Whose signed tokens are taken."""

    name: str
    """In the file."""
    issuer: str
    """As its tokens have it in `iss`."""
    audience: tuple[str, ...]
    """One of these is in a token's `aud`."""
    keys: str
    """Where its public keys are: a URL, or the path of a file of a JWK Set."""
    algorithms: tuple[str, ...]
    claim: str = "sub"
    """The claim that says who calls."""
    admits_all: bool = False
    """Whether everybody with a token of it may call, and not only callers with an entry."""


class CallersError(Exception):
    """The file can't be used; the message has a line for each mistake."""


@dataclass(frozen=True, slots=True)
class Callers:
    """What the file says."""

    issuers: tuple[Issuer, ...] = ()
    defaults: Caller = ANYBODY
    by_api_key: Mapping[str, Caller] = field(default_factory=dict)
    """By the name of a key."""
    by_token: Mapping[tuple[str, str], Caller] = field(default_factory=dict)
    """By an issuer's name in the file, and the claim's value."""
    by_name: Mapping[str, Caller] = field(default_factory=dict)
    """Those with an entry."""
    by_certificate: Mapping[tuple[str, str], Caller] = field(default_factory=dict)
    """By a subject alternative name and its kind, as `san` has them."""
    place: Callable[[tuple[str, ...], str], str] = field(default=lambda *_: "", compare=False, repr=False)
    """For messages: the file, the line and the name of a table, by the table's path and a key in it."""

    @classmethod
    def parse(cls, text: str, path: str) -> Self:
        """Read the file's text; `path` is for messages. Raises CallersError with all that is wrong."""
        if not text.strip():
            raise CallersError(f"{path}: it is empty: callers, issuers or defaults are wanted")
        try:
            tables = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # TOMLDecodeError is a ValueError, as some others of it are
            raise CallersError(f"{path}: {hidden(str(error))}") from error
        reader = _Reader(text, path)
        found = cls(**reader.read(tables), place=reader.place)
        if reader.wrong:
            raise CallersError("\n".join(reader.wrong))
        return found

    def unnamed(self, name: str) -> Caller:
        """A caller without an entry: the defaults under its own name."""
        mine = {one.name: getattr(self.defaults, one.name) for one in fields(Caller)}
        return Caller(**{**mine, "name": name})


_Check = Callable[[Any], Any]
"""Gives a value as it is kept. Raises ValueError with what is wanted."""


def san(name: str) -> tuple[str, str]:
    """A subject alternative name with its kind: "uri", "ip" or "dns". One kind proves nothing for another."""
    if "://" in name:
        return "uri", name
    try:
        return "ip", str(ipaddress.ip_address(name))
    except ValueError:
        return "dns", name.lower()


def hidden(text: str) -> str:
    """The text without API keys, which somebody may have pasted in the wrong place."""
    return _KEY.sub("tw_...", text)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError("a text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("a list of texts, not empty,")
    return tuple(map(_text, value))


def _text_or_texts(value: Any) -> tuple[str, ...]:
    return _texts(value if isinstance(value, list) else [value])


def _key_names(value: Any) -> tuple[str, ...]:
    found = _texts(value)
    if any(_KEY.search(name) for name in found):
        raise ValueError("the name of a key, as tokenwire keys list tells it, and not the key itself,")
    return found


def _models(value: Any) -> frozenset[str]:
    return frozenset(_texts(value))


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST_SECONDS:
        raise ValueError(f"a number of seconds, above 0 and up to {_LONGEST_SECONDS},")
    return float(value)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST:
        raise ValueError("a whole number, 0 or more,")
    return value


def _yes(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - `_Check` says so
    return value


def _labels(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise ValueError('a table, such as { team = "billing" },')  # noqa: TRY004 - `_Check` says so
    for key, one in value.items():
        if not _LABEL_KEY.fullmatch(key) or not isinstance(one, str) or not _LABEL_VALUE.fullmatch(one):
            raise ValueError("labels of lower-case letters, digits, dashes and underscores, up to 63 of them,")
    return dict(value)


def _by_issuer(value: Any) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, dict):
        raise ValueError('a table such as { google = ["a@example.com"] },')  # noqa: TRY004 - `_Check` says so
    return {issuer: _texts(names) for issuer, names in value.items()}


def _algorithms(value: Any) -> tuple[str, ...]:
    found = _texts(value)
    if not set(found) <= set(ALGORITHMS):
        raise ValueError(f"some of {', '.join(ALGORITHMS)}")
    return found


def _admit(value: Any) -> bool:
    if value not in ("listed", "all"):
        raise ValueError('"listed" or "all"')
    return bool(value == "all")


def _keys(value: Any) -> str:
    text = _text(value)
    if "://" in text and not text.startswith(("https://", "http://localhost:", "http://127.0.0.1:")):
        raise ValueError("an https:// address, or the path of a file,")
    return text


_LIMITS: Mapping[str, _Check] = {
    "models": _models,
    "streams": _count,
    "requests_per_minute": _count,
    "tokens_per_minute": _count,
    "tokens_per_day": _count,
    "longest_deadline": _seconds,
    "labels": _labels,
    "admin": _yes,
}
_PROOFS: Mapping[str, _Check] = {"api_keys": _key_names, "tokens": _by_issuer, "certificates": _texts}
_ISSUER: Mapping[str, _Check] = {
    "issuer": _text,
    "audience": _text_or_texts,
    "keys": _keys,
    "algorithms": _algorithms,
    "name": _text,
    "admit": _admit,
}
_NEEDED = ("issuer", "audience", "keys", "algorithms")


def _shown(key: object) -> object:
    return key[1] if isinstance(key, tuple) else key


class _Reader:
    """Reads the tables, and keeps all that is wrong with them, each by its line."""

    def __init__(self, text: str, path: str) -> None:
        self._lines = text.splitlines()
        self._path = path
        self.wrong: list[str] = []

    def read(self, tables: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of `Callers`."""
        for name in tables.keys() - {"defaults", "issuers", "callers"}:
            self._add((name,), "", f"there is no {name!r}: defaults, issuers and callers are wanted")
        defaults = Caller(name="", **self._values(("defaults",), tables.get("defaults", {}), _LIMITS))
        issuers = tuple(filter(None, (self._issuer(*one) for one in self._tables(tables, "issuers"))))
        for one in issuers:
            if [other.issuer for other in issuers].count(one.issuer) > 1:
                self._add(("issuers", one.name), "issuer", f"{one.issuer!r} has two tables: one is wanted")
        found: dict[str, Any] = {"issuers": issuers, "defaults": defaults}
        taken: dict[object, str] = {}
        maps: dict[str, dict[Any, Caller]] = {"by_name": {}, "by_api_key": {}, "by_token": {}, "by_certificate": {}}
        for name, table in self._tables(tables, "callers"):
            where = ("callers", name)
            values = self._values(where, table, {**_LIMITS, **_PROOFS})
            proofs = {one: values.pop(one, ()) for one in _PROOFS}
            caller = Caller(**{**self._of(defaults), **values, "name": name})
            maps["by_name"][name] = caller
            if not any(proofs.values()):
                self._add(where, "", f"{name!r} has no proof: some of {', '.join(_PROOFS)} are wanted")
            for kind, key, line in self._proofs(where, proofs, {one.name for one in issuers}):
                if key in maps[kind]:
                    self._add(
                        where, line, f"{_shown(key)!r} is {taken[kind, key]!r}'s already: each proof has one caller"
                    )
                maps[kind][key], taken[kind, key] = caller, name
        return {**found, **maps}

    def _proofs(
        self, where: tuple[str, ...], proofs: Mapping[str, Any], issuers: set[str]
    ) -> Iterator[tuple[str, Any, str]]:
        """Each with the map that it belongs to, and the field that it stands in."""
        for name in proofs["api_keys"]:
            yield "by_api_key", name, "api_keys"
        for name in proofs["certificates"]:
            yield "by_certificate", san(name), "certificates"
        for issuer, names in (proofs["tokens"] or {}).items():
            if issuer not in issuers:
                self._add(where, "tokens", f"there is no [issuers.{issuer}]")
            for name in names:
                yield "by_token", (issuer, name), "tokens"

    def _issuer(self, name: str, table: Any) -> Issuer | None:
        where = ("issuers", name)
        values = self._values(where, table, _ISSUER)
        if missing := [one for one in _NEEDED if one not in table]:
            self._add(where, "", f"{name!r} lacks {', '.join(missing)}")
        if any(one not in values for one in _NEEDED):
            return None
        return Issuer(
            name=name,
            issuer=values["issuer"],
            audience=values["audience"],
            keys=self._beside(values["keys"]),
            algorithms=values["algorithms"],
            claim=values.get("name", "sub"),
            admits_all=values.get("admit", False),
        )

    def _beside(self, keys: str) -> str:
        """Where keys are; a path that isn't absolute begins where the callers file is, wherever the server started."""
        return keys if "://" in keys else os.path.join(os.path.dirname(self._path), keys)  # noqa: PTH118, PTH120 - a text

    def _tables(self, tables: Mapping[str, Any], kind: str) -> Iterable[tuple[str, dict[str, Any]]]:
        found = tables.get(kind, {})
        if not isinstance(found, dict):
            self._add((kind,), "", f"tables such as [{kind}.NAME] are wanted")
            return
        for name, table in found.items():
            if not api_keys.NAME.fullmatch(name):
                self._add((kind, name), "", f"{name!r} is no name: up to 63 letters, digits and any of . _ @ -")
            if isinstance(table, dict):
                yield name, table
            else:
                self._add((kind,), name, f"a table [{kind}.{name}] is wanted")

    def _values(self, where: tuple[str, ...], table: Any, checks: Mapping[str, _Check]) -> dict[str, Any]:
        found = {}
        if not isinstance(table, dict):
            self._add(where, "", f"a table [{'.'.join(where)}] is wanted")
            return {}
        for key, value in table.items():
            if key not in checks:
                self._add(where, key, f"there is no {key!r}: some of {', '.join(checks)} are wanted")
                continue
            try:
                found[key] = checks[key](value)
            except ValueError as error:
                self._add(where, key, f"{key} is {hidden(repr(value))}: {error} is wanted")
        return found

    @staticmethod
    def _of(defaults: Caller) -> dict[str, Any]:
        return {one.name: getattr(defaults, one.name) for one in fields(Caller)}

    def _add(self, where: tuple[str, ...], key: str, text: str) -> None:
        self.wrong.append(f"{self.place(where, key)} {text}")

    def place(self, where: tuple[str, ...], key: str) -> str:
        """As messages begin that are about this key of this table."""
        return f"{self._path}:{self._line(where, key)}: [{'.'.join(where)}]"

    def _line(self, where: tuple[str, ...], key: str) -> int:
        """The line of a key, else of its table's head, else 1: tomllib doesn't tell lines."""
        head = re.compile(r"\s*\[\s*" + r"\s*\.\s*".join(f"[\"']?{re.escape(one)}[\"']?" for one in where) + r"\s*\]")
        entry = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[.=]")
        found = 0
        for number, line in enumerate(self._lines, 1):
            if head.match(line):
                found = number
            elif found and key and line.lstrip().startswith("["):
                break
            elif found and key and entry.match(line):
                return number
        if not found and len(where) == 1:  # as a part of a longer head
            part = re.compile(rf"\s*\[\s*[\"']?{re.escape(where[0])}[\"']?\s*\.")
            found = next((number for number, line in enumerate(self._lines, 1) if part.match(line)), 0)
        return found or 1
