"""What is wrong with settings that don't fit each other, and with variables that are none.

By the names of their fields: this file doesn't know the settings themselves, which import it.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .providers import addresses
from .setting_kinds import bracketed, has_password

_PREFIX = "TOKENWIRE_"
_NEARLY = 0.7

# What Kubernetes sets for services that are called tokenwire or tokenwire-...: TOKENWIRE_PORT=tcp://10.0.0.1:50051 and
# more. Of those names one is a setting.
LINKED = "TOKENWIRE_PORT"
LINK = re.compile(r"(tcp|udp|sctp)://")

_OF_KUBERNETES = re.compile(
    r"TOKENWIRE_([A-Z0-9_]+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)

_NAMES_OF_OTHERS = (
    *("ADDRESS", "CA", "CLIENT_CERTIFICATE", "CLIENT_KEY", "TOKEN", "TOKEN_FILE"),
    *("CACHE", "PAGE_DATA", "STRICT", "STORM"),
)
_OF_OTHERS = frozenset(f"{_PREFIX}{name}" for name in _NAMES_OF_OTHERS)
"""Variables that callers, the local Vertex, the page and the tests read, which may be set for all of them at once."""


def near(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest, if one is near."""
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=_NEARLY)), "")


_PAIRS = (
    *(("tls_certificate", "tls_key"), ("tls_key", "tls_certificate"), ("tls_client_ca", "tls_certificate")),
    ("redis_password_file", "redis_url"),
)
"""Settings of which the first is nothing without the second."""
_PROOFS = ("api_keys", "callers", "tls_client_ca")
"""With any of these, not everybody can call."""


def conflicts(values: Mapping[str, Any], told: Mapping[str, str], variables: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with settings that don't fit each other; None: a value that can't be taken anyway.

    All by the names of settings: their `values`, the flags or variables by which they were `told`, as far as they were,
    and their `variables`.
    """
    if None not in (values["default_deadline"], values["max_deadline"]):
        yield from _beyond(values["default_deadline"], values["max_deadline"], variables, told)
    for one, other in _PAIRS:
        if values[one] and not values[other]:
            yield f"{told.get(one, variables[one])} is set: {variables[other]} is wanted beside it"
    host = values["host"] or "localhost"
    if host.startswith("unix:") and (values["workers"] or 1) > 1:
        yield (
            f"{told.get('workers', variables['workers'])} is {values['workers']}: 1 is wanted, since processes can't "
            "share a Unix domain socket"
        )
    if host.startswith("unix:") and values["tls_certificate"]:
        yield (
            f"{told.get('tls_certificate', variables['tls_certificate'])} is set: none is wanted on a Unix domain "
            "socket, which nobody else can read"
        )
    if values["port"] and values["port"] == values["metrics_port"] and not host.startswith("unix:"):
        first, second = (told.get(name, variables[name]) for name in ("port", "metrics_port"))
        yield f"{second} is {values['metrics_port']}: another port than that of {first} is wanted"
    yield from _wrong_with_redis(values, variables, told)
    lacks = [
        *([] if values["tls_certificate"] else ["TLS (TOKENWIRE_TLS_CERTIFICATE, TOKENWIRE_TLS_KEY)"]),
        *(
            []
            if any(values[one] for one in _PROOFS)
            else ["proofs of who calls (TOKENWIRE_API_KEYS or TOKENWIRE_CALLERS)"]
        ),
    ]
    if is_exposed(host) and lacks and values["insecure"] is False:
        yield (
            f"{told.get('host', variables['host'])} is {host!r}, which others than this machine can reach: "
            f"{' and '.join(lacks)} are wanted, or --insecure true"
        )


def _wrong_with_redis(
    values: Mapping[str, Any], variables: Mapping[str, str], told: Mapping[str, str]
) -> Iterator[str]:
    """What is wrong where counts are to be kept in Redis."""
    if not values["redis_url"]:
        return
    name = told.get("redis_url", variables["redis_url"])
    if not (values["api_keys"] or values["callers"]):
        yield (
            f"{name} is set: proofs of who calls (TOKENWIRE_API_KEYS or TOKENWIRE_CALLERS) are wanted beside it, since "
            "nothing is counted without"
        )
    if has_password(values["redis_url"]):
        if name != variables["redis_url"] and "redis_url" in told:
            yield (
                f"{name} has a password, which others on this machine can read: "
                f"{variables['redis_url']} or {variables['redis_password_file']} is wanted for it"
            )
        if values["redis_password_file"]:
            yield f"{name} has a password: none is wanted beside {variables['redis_password_file']}"


def is_exposed(host: str) -> bool:
    """Whether others than this machine can reach what listens there."""
    if host.startswith("unix:"):
        return False
    return not addresses.is_loopback(bracketed(host))


def _beyond(default: float, most: float, variables: Mapping[str, str], told: Mapping[str, str]) -> Iterator[str]:
    """What is wrong where the default deadline is beyond the maximum."""
    if default <= most:
        return
    first, second = (told.get(name, variables[name]) for name in ("default_deadline", "max_deadline"))
    if "max_deadline" in told and "default_deadline" not in told:
        yield f"{second} is {most:g}: at least {first}, which is unset and so {default:g}, is wanted; set both"
    else:
        unset = "" if "max_deadline" in told else ", which is unset"
        yield f"{first} is {default:g}: at most {second} ({most:g}{unset}) is wanted"


def misspelt(variables: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[str]:
    """What is wrong with variables that begin as settings do and are none: a server without them isn't as intended.

    `variables`: by the names of settings.
    """
    meant = {variable.removeprefix(_PREFIX): variable for variable in variables.values()}
    meant |= {name.upper(): variable for name, variable in variables.items()}
    for name, value in environ.items():
        if not value or not name.startswith(_PREFIX) or name in variables.values() or name in _OF_OTHERS:
            continue
        if _OF_KUBERNETES.fullmatch(name) or (name.endswith("_PORT") and LINK.match(value)):
            continue
        known = meant.get(near(name.removeprefix(_PREFIX), meant), "")
        yield f"{name} is set, and is no setting: {known or 'one that --help tells'} is wanted"
