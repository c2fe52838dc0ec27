"""Signed tokens (JWT): verified by their issuers' public keys, which are fetched beside the calls and never by one."""

import hashlib
import http.client
import json
import socket
import ssl
import threading
import urllib.request
import warnings
from base64 import urlsafe_b64decode
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from time import monotonic, time
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ..files import content
from .callers import Issuer
from .remarks import counted

_LATEST = 1e12
"""In seconds: no time is later."""
_SKEW_SECONDS = 60
"""How far the clocks of two machines may be apart."""

_LONGEST_BYTES = 16 * 1024
_REFRESH_SECONDS = 600.0
_AGAIN_SECONDS = 60.0
"""A token with an unknown key has the keys fetched anew, at most so often."""
_FETCH_SECONDS = 10.0
_MOST_BYTES = 1024 * 1024
_MOST_KEYS = 100
_MOST_KNOWN = 10_000
"""Tokens with a right signature that are remembered, so that the next call with one costs no arithmetic; and as many
with a wrong one.
"""
_FORGED_SECONDS = 60.0
"""So long a wrong signature is remembered."""
_PARTS = 3
_MOST_SAID = 200
"""Characters of a foreign error."""
_FEWEST_BITS = 2048
"""Of an RSA key."""


_Kept = TypeVar("_Kept")


class Refused(Exception):
    """A token isn't taken; the message says why, for the server's owner alone."""


class NoKeysYet(Exception):
    """The issuer's keys have never been looked for: the server has only just started."""


class Subject(NamedTuple):
    """Who a token is about."""

    issuer: str
    """The issuer's name in the callers file."""
    name: str
    """The claim that says who."""
    until: float
    """In seconds of `time.time`: from then on it isn't taken any more."""


class Keys:
    """The public keys of one issuer."""

    def __init__(self, issuer: Issuer, warn: Callable[..., None], say: Callable[..., None]) -> None:
        self._source = issuer.keys
        self._name = issuer.name
        self._warn, self._say = warn, say
        self._keys: dict[str, Any] = {}
        """By their ids."""
        self._tried = -float("inf")
        """When they were looked for last, on the monotonic clock."""
        self._wanted = False
        self._trouble = ""
        """Why they couldn't be had the last time; empty: they could."""
        self._told = ""
        """What the log was told of that."""
        self._unread = False
        """Whether that was since their file couldn't be read."""
        self._looking = False
        self.looked = False
        """Whether they have been looked for at all."""
        self.version = 0
        """Another number whenever the keys are others."""

    def find(self, key_id: object) -> Any:
        """The key of this id. Raises Refused, and has them looked for anew."""
        if not isinstance(key_id, str):
            if len(self._keys) == 1:
                return next(iter(self._keys.values()))
            raise Refused("it doesn't say by which key it is signed")
        if key_id not in self._keys:
            self._wanted = True
            raise Refused("it is signed by an unknown key")
        return self._keys[key_id]

    @property
    def due(self) -> bool:
        """Whether it is time to look for them."""
        return self._unread or monotonic() - self._tried >= (_AGAIN_SECONDS if self._wanted else _REFRESH_SECONDS)

    def look_again(self) -> None:
        """It is time to, and what fails then is told, though it has failed before."""
        self._tried, self._told = -float("inf"), ""

    def begin(self) -> None:
        """Begin to look for them, if it is time and nobody does; in a thread of its own, which nothing waits for."""
        if self.due and not self._looking:
            self._tried, self._wanted, self._looking = monotonic(), False, True
            threading.Thread(target=self._look, daemon=True, name="issuer's keys").start()

    def _look(self) -> None:
        """Fetch them. What fails is told once, and the keys stay what they were; that it is over is told, too."""
        told = self._told
        try:
            keys = _usable(_Fetch(self._source).content())
        except Exception as error:  # noqa: BLE001 - whatever a foreign server says, the old keys stay
            self._trouble = ascii(_words(error))[1:-1][:_MOST_SAID]
            self._unread = isinstance(error, OSError) and "://" not in self._source
            if self._trouble != told:
                self._warn("the keys of issuer %s can't be had from %s: %s", self._name, self._place, self._trouble)
            self._told = self._trouble
        else:
            others = _prints(keys) != _prints(self._keys)
            before, self._trouble, self._told, self._unread = self._trouble, "", "", False
            self._keys = keys
            # After the keys: what was verified by this version was so by these keys.
            self.version += others
            if before or (others and self.looked):
                found = counted(len(keys), "key")
                self._say("the keys of issuer %s are read anew from %s: %s", self._name, self._place, found)
        finally:
            self.looked, self._looking = True, False

    @property
    def _place(self) -> str:
        """Where they are, without what may be a secret."""
        if "://" not in self._source:
            return self._source
        parts = urlsplit(self._source)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _words(error: Exception) -> str:
    """What an error says; not where, which is told beside it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


class _Fetch:
    """One attempt to have what is at a source."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._connection: http.client.HTTPConnection | None = None

    def content(self) -> bytes:
        """What is there. Blocks, for ten seconds at most; raises OSError or ValueError."""
        if "://" not in self._source:
            return content(self._source, _MOST_BYTES)
        # A server may send a byte now and then, in its headers too, for which nothing else has a limit.
        end = threading.Timer(_FETCH_SECONDS, self._stop)
        end.daemon = True
        end.start()
        try:
            with self._opener().open(self._source, timeout=_FETCH_SECONDS) as response:
                found: bytes = response.read(_MOST_BYTES + 1)
        finally:
            end.cancel()
        if len(found) > _MOST_BYTES:
            raise ValueError(f"there is more than {_MOST_BYTES} bytes")
        return found

    def _stop(self) -> None:
        made = self._connection
        if made is not None and made.sock is not None:
            with suppress(OSError):
                made.sock.shutdown(socket.SHUT_RDWR)

    def _opener(self) -> urllib.request.OpenerDirector:
        fetch = self

        class Http(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(fetch._http, request)

        class Https(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(fetch._https, request)

        handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), Http(), Https()]
        if urlsplit(self._source).hostname in ("localhost", "127.0.0.1"):
            handlers.append(urllib.request.ProxyHandler({}))  # a proxy can't reach this machine's own loopback
        return urllib.request.build_opener(*handlers)

    def _http(self, host: str, **options: Any) -> http.client.HTTPConnection:
        self._connection = http.client.HTTPConnection(host, **options)
        return self._connection

    def _https(self, host: str, **options: Any) -> http.client.HTTPSConnection:
        self._connection = made = http.client.HTTPSConnection(host, context=ssl.create_default_context(), **options)
        return made


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come from where the file says, and from nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _prints(keys: Mapping[str, Any]) -> Mapping[str, str]:
    """By each id, what only one key has: one may take another's place under its id."""
    return {name: key.thumbprint() for name, key in keys.items()}


def _usable(content: bytes) -> dict[str, Any]:
    """The keys of a JWK Set that can verify a signature, by their ids. Raises ValueError where there is none."""
    from joserfc import jwk  # noqa: PLC0415 - for servers that take tokens only

    found = {}
    for one in json.loads(content)["keys"][:_MOST_KEYS]:
        if not isinstance(one, dict) or one.get("kty") not in ("RSA", "EC", "OKP") or one.get("use", "sig") != "sig":
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                key = jwk.import_key({name: value for name, value in one.items() if name != "d"})
            if one["kty"] == "RSA" and len(urlsafe_b64decode(one["n"] + "==")) * 8 < _FEWEST_BITS:
                continue
        except Exception:  # noqa: BLE001, S112 - a key of a kind that we don't know is none for us
            continue
        found[str(one.get("kid", ""))] = key
    if not found:
        raise ValueError("there is no key that could verify a signature")
    return found


class _Forged(Refused):
    """Its signature isn't one of the issuer's key. That stays so, as long as the keys do."""


class Tokens:
    """Verifies tokens of these issuers."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        warn: Callable[..., None],
        before: "Tokens | None" = None,
        say: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Keys of `before` are kept for issuers that are the same. The log is told by `warn` and `say`."""
        self._by_issuer = {one.issuer: one for one in issuers}
        kept = {(one.name, one.keys): keys for one, keys in before.keys.items()} if before is not None else {}
        self.keys: dict[Issuer, Keys] = {one: kept.get((one.name, one.keys)) or Keys(one, warn, say) for one in issuers}
        """Of each issuer."""
        # Both by the SHA-256 of a token; the number is the version of its issuer's keys.
        self._known: dict[bytes, tuple[Subject, Issuer, int]] = {}
        self._forged: dict[bytes, tuple[float, Issuer, int]] = {}
        """Since when, on the monotonic clock."""

    def verified(self, token: str) -> Subject:
        """Whom the token is about. Raises Refused or NoKeysYet."""
        digest = hashlib.sha256(token.encode()).digest()
        if (known := self._known.get(digest)) is not None:
            subject, issuer, version = known
            if version == self.keys[issuer].version and time() < subject.until:
                return subject
            del self._known[digest]
        elif (forged := self._forged.get(digest)) is not None:
            since, issuer, version = forged
            if version == self.keys[issuer].version and monotonic() - since < _FORGED_SECONDS:
                raise _Forged("its signature is wrong")
            del self._forged[digest]
        subject, issuer, key, algorithm = self._claimed(token)
        # Before it is verified: the keys may change meanwhile, and then it is to be verified again.
        version = self.keys[issuer].version
        try:
            _verify(token, key, algorithm)
        except _Forged:
            _keep(self._forged, digest, (monotonic(), issuer, version))
            raise
        _keep(self._known, digest, (subject, issuer, version))
        return subject

    def _claimed(self, token: str) -> tuple[Subject, Issuer, Any, str]:
        """Whom the token says that it is about, and by which key and algorithm it says that it is signed.

        All that costs little is asked here. Raises Refused or NoKeysYet.
        """
        parts = token.split(".")
        if len(parts) != _PARTS or len(token) > _LONGEST_BYTES:
            raise Refused("it is no token")
        header, claims = _json(parts[0]), _json(parts[1])
        issuer = self._by_issuer.get(str(claims.get("iss")))
        if issuer is None:
            raise Refused("its issuer is unknown")
        algorithm = header.get("alg")
        if algorithm not in issuer.algorithms or "crit" in header:
            raise Refused("it is signed in a way that isn't allowed")
        keys = self.keys[issuer]
        if not keys.looked:
            raise NoKeysYet
        key = keys.find(header.get("kid"))
        if key.alg not in (None, algorithm):
            raise Refused("it is signed in a way that its key isn't for")
        return _subject(claims, issuer), issuer, key, algorithm

    @property
    def sources(self) -> Iterable[str]:
        """Files that hold keys."""
        return [one.keys for one in self.keys if "://" not in one.keys]

    def look_again(self, sources: Collection[str] | None = None) -> None:
        """Look for the keys of these sources anew; None: for all."""
        for issuer, keys in self.keys.items():
            if sources is None or issuer.keys in sources:
                keys.look_again()


def _verify(token: str, key: Any, algorithm: str) -> None:
    """Raise _Forged unless the token is signed by this key; Refused where that can't be told."""
    from joserfc import errors, jwt  # noqa: PLC0415 - for servers that take tokens only

    try:
        with warnings.catch_warnings(action="ignore"):
            jwt.decode(token, key, algorithms=[algorithm])
    except errors.JoseError as error:
        raise _Forged("its signature is wrong") from error
    except Exception as error:
        raise Refused("it can't be verified") from error


def _keep(found: dict[bytes, _Kept], digest: bytes, one: _Kept) -> None:
    """Remember it, and forget the one that came first if there are too many."""
    if len(found) >= _MOST_KNOWN:
        del found[next(iter(found))]
    found[digest] = one


def _json(part: str) -> Mapping[str, Any]:
    """A part of a token. Raises Refused."""
    try:
        found = json.loads(urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError) as error:
        raise Refused("it is no token") from error
    if not isinstance(found, dict):
        raise Refused("it is no token")
    return found


def _subject(claims: Mapping[str, Any], issuer: Issuer) -> Subject:
    """Whom claims are about. Raises Refused where they don't hold, or not now."""
    audience = claims.get("aud")
    meant = audience if isinstance(audience, list) else [audience]
    if not any(one in issuer.audience for one in meant):
        raise Refused("it is for another audience")
    now = time()
    ends = _moment(claims, "exp")
    if ends is None:
        raise Refused("it has no end")
    if ends + _SKEW_SECONDS <= now:
        raise Refused("it has expired")
    if max(_moment(claims, "nbf") or 0, _moment(claims, "iat") or 0) - _SKEW_SECONDS > now:
        raise Refused("it isn't valid yet")
    name = claims.get(issuer.claim)
    if not isinstance(name, str) or not name or not name.isprintable():
        raise Refused(f"its {issuer.claim} names nobody")
    if issuer.claim == "email" and claims.get("email_verified") is not True:
        raise Refused("its email isn't verified")
    return Subject(issuer.name, name, ends + _SKEW_SECONDS)


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    """In seconds of `time.time`; None: the token doesn't say. Raises Refused."""
    found = claims.get(name)
    if found is None:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) < _LATEST:
        raise Refused(f"its {name} is no time")
    return float(found)
