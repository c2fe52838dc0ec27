"""Who calls: by a client's certificate, an API key, or a signed token (JWT), in this order."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from ..errors import NotReady, Unauthenticated
from ..files import content, looks
from . import api_keys
from .callers import ANYBODY, Caller, Callers, CallersError
from .json_web_tokens import NoKeysYet, Refused, Tokens
from .remarks import counted, remarks

_MOST_BYTES = 16 * 1024 * 1024
"""Of the callers file, and of that of API keys."""
_START_SECONDS = 5.0


class Context(Protocol):
    """What is asked of a call."""

    def invocation_metadata(self) -> Any: ...

    def auth_context(self) -> Any: ...


class IdentityError(Exception):
    """The files can't be used; the message has a line for each mistake."""


class Proof(NamedTuple):
    """Who has been proven to call."""

    caller: Caller
    refused: str = ""
    """Why no proof was taken, for the log: then it is anybody."""


class _Known(NamedTuple):
    """What the files say; replaced as one, so that a call meets the old or the new."""

    keys: Mapping[str, api_keys.Key]
    """By their hashes."""
    callers: Callers
    tokens: Tokens
    is_read: bool = False
    """Whether the files have been read at all."""


class Identity:
    """Knows the callers, by files that may change while the server runs.

    Nothing here waits: a call is known at once, or it is refused.
    """

    def __init__(
        self,
        *,
        keys: str = "",
        callers: str = "",
        certificates: bool = False,
        offered: Collection[str] = (),
        names: Mapping[str, str] = MappingProxyType({"keys": "TOKENWIRE_API_KEYS", "callers": "TOKENWIRE_CALLERS"}),
        say: Callable[..., None] = lambda *_: None,
        warn: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Paths of the file of API keys and of the callers file; "" for none.

        `certificates`: whether a client's certificate says who calls; behind a proxy it is the proxy's. `offered`:
        the models on offer, by which names in the callers file are checked. `names`: what to call the settings of the
        files in messages. Changes are told by `say` and `warn`, as a
        logger's methods, and so is what can't be meant. Raises IdentityError.
        """
        self._paths = {"keys": keys, "callers": callers}
        self._names = names
        self._certificates = certificates
        self._offered = offered
        self._say, self._warn = say, warn
        self._known = _Known({}, Callers(), Tokens((), warn))
        self._last: Mapping[str, object] = {}
        """What the files looked like when they were looked at last."""
        self._looked = asyncio.Event()
        self._seen = self._look()
        """What each looked like when it was read."""
        self._unread: set[str] = set()
        """Those that couldn't be read: they are tried again, whatever they look like."""
        self._told: Mapping[str, Sequence[str]] = {}
        """What was wrong with each when it was read last, by whether it is that of "keys" or "callers"."""
        self._read(self._seen)
        if self._told:
            raise IdentityError("\n".join(_lines(self._told)))
        self._begin_to_follow()

    @property
    def is_asked(self) -> bool:
        """Whether callers have to show who they are."""
        return any(self._paths.values())

    def proof(self, context: Context) -> Proof:
        """Who calls. Raises NotReady."""
        if not self.is_asked:
            return Proof(ANYBODY)
        known = self._known
        certificates = context.auth_context().get("x509_pem_cert", ()) if self._certificates else ()
        for pem in certificates:
            for name in _names(pem):
                if (found := known.callers.by_certificate.get(name)) is not None:
                    return Proof(found)
        shown = [value for key, value in context.invocation_metadata() if key == "authorization"]
        if len(shown) != 1:
            why = "several tokens" if shown else "its certificate has no entry" if certificates else "no token"
            return Proof(ANYBODY, why)
        scheme, _, token = str(shown[0]).partition(" ")
        if scheme.lower() != "bearer" or not token:
            return Proof(ANYBODY, "no bearer token")
        return _by_token(token, known) if token.count(".") == 2 else _by_key(token, known)  # as a JWT has

    @property
    def named(self) -> Iterable[Caller]:
        """Callers with an entry."""
        return self._known.callers.by_name.values()

    # ---- changes

    async def follow(self, *, anew: bool = False) -> None:
        """Look whether the files have changed, and for keys of issuers; to be called each second.

        `anew`: read them all anew now, and look for the keys of all issuers, whether anything has changed or not.
        """
        for keys in self._known.tokens.keys.values():
            keys.begin()
        if all(keys.looked for keys in self._known.tokens.keys.values()):
            self._looked.set()
        seen = self._look()
        # One is read once it has stayed the same for a second: somebody may have emptied it, and be about to write.
        settled = {path for path, look in seen.items() if look == self._last.get(path)}
        self._last = seen
        if anew or settled & (self._changed(seen) | self._unread):
            await asyncio.to_thread(self.refresh, None if anew else settled, anew=anew)

    def refresh(self, settled: Collection[str] | None = None, *, anew: bool = False) -> None:
        """Read the files anew that have changed or couldn't be read; what can't be used is told, and stays as it was.

        `settled` are those that may be read; None: all. `anew`: all of them, and the keys of all issuers.
        """
        seen = self._look()
        changed = set(seen) if anew else self._changed(seen)
        due = changed | (self._unread & set(seen))
        if settled is not None:
            due &= set(settled)
        # From before they are read: what changes meanwhile is seen the next time.
        self._seen = {**self._seen, **{path: seen[path] for path in due}}
        before = self._told
        try:
            taken = self._read(due)
        except Exception as error:  # noqa: BLE001 - whatever the files hold, they are followed on
            self._warn("callers stay as they were: %s", type(error).__name__)
            return
        for which, wrong in self._told.items():
            # And not whenever it is tried again.
            if self._paths[which] in due & changed or wrong != before.get(which):
                for line in wrong:
                    self._warn("not taken, and as before: %s", line)
        known = self._known
        known.tokens.look_again(None if anew else due)
        self._begin_to_follow()
        if taken:
            found = counted(len(known.keys), "API key"), counted(len(known.callers.issuers), "issuer")
            self._say("callers are read anew: %s, %s", *found)

    def _changed(self, seen: Mapping[str, object]) -> set[str]:
        return {path for path, look in seen.items() if look != self._seen.get(path)}

    def _begin_to_follow(self) -> None:
        """Follow files of issuers' keys too that have only now been named."""
        self._seen = {**self._look(), **self._seen}

    async def looked(self) -> None:
        """Wait until the keys of all issuers have been looked for once, or for five seconds."""
        if self._known.callers.issuers:
            with suppress(TimeoutError):
                async with asyncio.timeout(_START_SECONDS):
                    await self._looked.wait()

    def _look(self) -> Mapping[str, object]:
        """What each of the files looks like, by its path."""
        return {path: looks(path) for path in (*filter(None, self._paths.values()), *self._known.tokens.sources)}

    def _read(self, due: Collection[str]) -> bool:
        """Read these files, each for itself: one that can't be used doesn't keep the other from being followed.

        Whether any was taken. At the first time nothing is unless all can be.
        """
        first = not self._known.is_read
        keys = self._taken("keys", due, api_keys.parse)
        callers = self._taken("callers", due, self._callers)
        if (keys is None and callers is None and not first) or (first and self._told):
            return False
        before = self._known
        keys = before.keys if keys is None else keys
        callers = before.callers if callers is None else callers
        for remark in remarks(callers, keys.values(), paths=self._paths, offered=self._offered):
            self._warn("%s", remark)
        self._known = _Known(keys, callers, Tokens(callers.issuers, self._warn, before.tokens, self._say), is_read=True)
        return True

    def _callers(self, text: str, path: str) -> Callers:
        """What the callers file says. Raises CallersError."""
        found = Callers.parse(text, path)
        if found.by_certificate and not self._certificates:
            raise CallersError(
                "\n".join(
                    f"{found.place(('callers', name), 'certificates')} certificates are named, and none says who calls "
                    "here: --tls-client-ca is wanted, and no --behind-proxy"
                    for name in dict.fromkeys(one.name for one in found.by_certificate.values())
                )
            )
        return found

    def _taken(self, which: str, due: Collection[str], parse: Callable[[str, str], Any]) -> Any:
        """What a file says; None where it isn't due, or can't be used: then it is noted why."""
        path = self._paths[which]
        if not path or path not in due:
            return None
        self._unread -= {path}
        name = self._names[which]
        wrong: Sequence[str] = ()
        found = None
        try:
            found = parse(content(path, _MOST_BYTES).decode(), path)
        except (CallersError, api_keys.KeysError) as error:
            wrong = [f"{line} ({name})" for line in str(error).splitlines()]
        except OSError as error:
            self._unread |= {path}
            hint = "; `tokenwire keys new` makes it" if which == "keys" and isinstance(error, FileNotFoundError) else ""
            wrong = [f"{name} is {path!r}: {error.strerror}{hint}"]
        except UnicodeDecodeError:
            wrong = [f"{name} is {path!r}: it isn't UTF-8"]
        except ValueError as error:
            wrong = [f"{name} is {path!r}: {error}"]
        self._told = {one: told for one, told in {**self._told, which: wrong}.items() if told}
        return found


def _by_key(key: str, known: _Known) -> Proof:
    # By its hash: what a caller can find out by the time that this takes is about bits that it can't choose.
    found = known.keys.get(api_keys.hashed(key))
    if found is None:
        return Proof(ANYBODY, "unknown key")
    name, callers = found.name, known.callers
    # A key of the name of an entry is that entry's, though it isn't listed there.
    return Proof(callers.by_api_key.get(name) or callers.by_name.get(name) or callers.unnamed(name))


def _by_token(token: str, known: _Known) -> Proof:
    try:
        subject = known.tokens.verified(token)
    except Refused as why:
        return Proof(ANYBODY, str(why))
    except NoKeysYet:
        raise NotReady("The server is starting; ask again in a moment", retry_after=1) from None
    found = known.callers.by_token.get((subject.issuer, subject.name))
    if found is not None:
        return Proof(found)
    if any(one.name == subject.issuer and one.admits_all for one in known.callers.issuers):
        return Proof(known.callers.unnamed(f"{subject.issuer}:{subject.name}"))
    return Proof(ANYBODY, "unknown subject")


@lru_cache(maxsize=1000)
def _names(pem: bytes) -> tuple[tuple[str, str], ...]:
    """The subject alternative names of a certificate, each with its kind, as `callers.san` has them.

    Not by gRPC, which ends a name at a zero byte, and doesn't tell kinds apart.
    """
    from cryptography import x509  # noqa: PLC0415 - for servers that take certificates only

    found: list[tuple[str, str]] = []
    try:
        names = (
            x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        )
        found += [("uri", name) for name in names.get_values_for_type(x509.UniformResourceIdentifier)]
        found += [("dns", name.lower()) for name in names.get_values_for_type(x509.DNSName)]
        found += [("ip", str(name)) for name in names.get_values_for_type(x509.IPAddress)]
    except Exception:  # noqa: BLE001 - a certificate that can't be read proves nothing
        return ()
    return tuple((kind, name) for kind, name in found if name.isprintable())


def _lines(told: Mapping[str, Sequence[str]]) -> Iterable[str]:
    return (line for lines in told.values() for line in lines)


def refusal() -> Unauthenticated:
    """The same words whatever is missing or wrong."""
    return Unauthenticated("This server has to know who calls: a valid credential is wanted")
