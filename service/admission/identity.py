"""Who calls: by a client's certificate, an API key, or a signed token (JWT), in this order."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from ..errors import NotReady, Unauthenticated
from ..files import content, looks
from . import api_keys
from .callers import ANYBODY, Caller, Callers, CallersError
from .json_web_tokens import NoKeysYet, Refused, Tokens
from .remarks import remarks

_MOST_BYTES = 16 * 1024 * 1024
"""Of the callers file, and of that of API keys."""
_START_SECONDS = 5.0


class Context(Protocol):
    """What is asked of a call."""

    def invocation_metadata(self) -> Any: ...

    def auth_context(self) -> Any: ...


class IdentityError(Exception):
    """The files can't be used; the message has a line for each mistake."""


class _Known(NamedTuple):
    """What the files say; replaced as one, so that a call meets the old or the new."""

    keys: Mapping[str, api_keys.Key]
    """By their hashes."""
    callers: Callers
    tokens: Tokens


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
        say: Callable[..., None] = lambda *_: None,
        warn: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Paths of the file of API keys and of the callers file; "" for none.

        `certificates`: whether a client's certificate says who calls; behind a proxy it is the proxy's. `offered`:
        the models on offer, by which names in the callers file are checked. Changes are told by `say` and `warn`, as a
        logger's methods, and so is what can't be meant. Raises IdentityError.
        """
        self._paths = {"keys": keys, "callers": callers}
        self._certificates = certificates
        self._offered = offered
        self._say, self._warn = say, warn
        self._known = _Known({}, Callers(), Tokens((), warn))
        self._last: object = None
        """What the files looked like when they were looked at last."""
        self._looked = asyncio.Event()
        self._seen = self._look()
        """What they looked like when they were read."""
        self._read(first=True)

    @property
    def is_asked(self) -> bool:
        """Whether callers have to show who they are."""
        return any(self._paths.values())

    def caller(self, context: Context) -> tuple[Caller, str]:
        """Who calls, and "", or anybody and why not, for the log. Raises NotReady."""
        if not self.is_asked:
            return ANYBODY, ""
        known = self._known
        if self._certificates:
            for pem in context.auth_context().get("x509_pem_cert", ()):
                for name in _names(pem):
                    if (found := known.callers.by_certificate.get(name)) is not None:
                        return found, ""
        shown = [value for key, value in context.invocation_metadata() if key == "authorization"]
        if len(shown) != 1:
            return ANYBODY, "no token" if not shown else "several tokens"
        scheme, _, token = str(shown[0]).partition(" ")
        if scheme.lower() != "bearer" or not token:
            return ANYBODY, "no bearer token"
        return _by_token(token, known) if token.count(".") == 2 else _by_key(token, known)  # as a JWT has

    @property
    def named(self) -> Iterable[Caller]:
        """Callers with an entry."""
        return self._known.callers.by_name.values()

    # ---- changes

    async def follow(self) -> None:
        """Look whether the files have changed, and for keys of issuers; to be called each second."""
        for keys in self._known.tokens.keys.values():
            keys.begin()
        if all(keys.looked for keys in self._known.tokens.keys.values()):
            self._looked.set()
        seen = self._look()
        # Read once they have stayed the same for a second: somebody may have emptied one, and be about to write.
        changed, self._last = seen != self._seen and seen == self._last, seen
        if changed:
            await asyncio.to_thread(self.refresh, seen)

    def refresh(self, seen: object = None) -> None:
        """Read the files anew if they have changed; what can't be used is told, and stays what it was.

        `seen` is what they look like, where that is known.
        """
        seen = self._look() if seen is None else seen
        if seen == self._seen:
            return
        # From before they are read: what changes meanwhile is seen the next time.
        self._seen = seen
        try:
            self._read()
        except IdentityError as error:
            for line in str(error).splitlines():
                self._warn("not taken, and as before: %s", line)
        except Exception as error:  # noqa: BLE001 - whatever the files hold, they are followed on
            self._warn("callers stay as they were: %s", type(error).__name__)

    async def looked(self) -> None:
        """Wait until the keys of all issuers have been looked for once, or for five seconds."""
        if self._known.callers.issuers:
            with suppress(TimeoutError):
                async with asyncio.timeout(_START_SECONDS):
                    await self._looked.wait()

    def _look(self) -> object:
        return tuple(map(looks, (*self._paths.values(), *self._known.tokens.sources)))

    def _read(self, *, first: bool = False) -> None:
        """Read the files anew, each for itself: one that can't be used doesn't keep the other from being followed.

        Raises IdentityError, at `first` before anything is taken.
        """
        wrong: list[str] = []
        hashes = _taken(lambda path: api_keys.parse(_content(path), path), self._paths["keys"], wrong)
        callers = _taken(lambda path: Callers.parse(_content(path), path), self._paths["callers"], wrong)
        if callers is not None and callers.by_certificate and not self._certificates:
            wrong += [
                f"{callers.place(('callers', name), 'certificates')} certificates are named, and none says who calls "
                "here: --tls-client-ca is wanted, and no --behind-proxy"
                for name in dict.fromkeys(one.name for one in callers.by_certificate.values())
            ]
            callers = None
        if wrong and first:
            raise IdentityError("\n".join(wrong))
        before = self._known
        keys = before.keys if hashes is None else hashes
        callers = before.callers if callers is None else callers
        for remark in remarks(callers, keys.values(), paths=self._paths, offered=self._offered):
            self._warn("%s", remark)
        tokens = Tokens(callers.issuers, self._warn, before.tokens)
        tokens.look_again()
        self._known = _Known(keys, callers, tokens)
        if not first:
            self._say("callers are read anew: %d API keys, %d issuers", len(keys), len(callers.issuers))
        if wrong:
            raise IdentityError("\n".join(wrong))


def _by_key(key: str, known: _Known) -> tuple[Caller, str]:
    # By its hash: what a caller can find out by the time that this takes is about bits that it can't choose.
    found = known.keys.get(api_keys.hashed(key))
    if found is None:
        return ANYBODY, "unknown key"
    name, callers = found.name, known.callers
    # A key of the name of an entry is that entry's, though it isn't listed there.
    return callers.by_api_key.get(name) or callers.by_name.get(name) or callers.unnamed(name), ""


def _by_token(token: str, known: _Known) -> tuple[Caller, str]:
    try:
        subject = known.tokens.verified(token)
    except Refused as why:
        return ANYBODY, str(why)
    except NoKeysYet:
        raise NotReady("The server is starting; ask again in a moment", retry_after=1) from None
    found = known.callers.by_token.get((subject.issuer, subject.name))
    if found is not None:
        return found, ""
    if any(one.name == subject.issuer and one.admits_all for one in known.callers.issuers):
        return known.callers.unnamed(f"{subject.issuer}:{subject.name}"), ""
    return ANYBODY, "unknown subject"


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


def _content(path: str) -> str:
    return content(path, _MOST_BYTES).decode()


def _taken(read: Callable[[str], Any], path: str, wrong: list[str]) -> Any:
    if not path:
        return None
    try:
        return read(path)
    except (CallersError, api_keys.KeysError) as error:
        wrong += str(error).splitlines()
    except OSError as error:
        wrong.append(f"{path}: {error.strerror}")
    except UnicodeDecodeError:
        wrong.append(f"{path}: it isn't UTF-8")
    except ValueError as error:
        wrong.append(f"{path}: {error}")
    return None


def refusal() -> Unauthenticated:
    """The same words whatever is missing or wrong."""
    return Unauthenticated("This server has to know who calls: a valid credential is wanted")
