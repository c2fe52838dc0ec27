"""The models on offer: each a public name, and which provider's model answers to it.

    TOKENWIRE_MODELS="gemini-2.5-pro, fast=openai:gpt-4.1-mini, local=openai:smollm2?base_url=http://127.0.0.1:8080/v1"

A line is NAME, or NAME=PROVIDER:MODEL, with options behind a question mark as in a URL. A bare name is a model of
Vertex AI's own.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from ..generation.capabilities import FIELDS, ModelCard
from . import addresses
from .registry import PROVIDERS
from .spec import Offer

KINDS = frozenset({"text", "image", "audio", "video", "pdf"})

_ABOUT = (
    "input_kinds",
    "tools",
    "thinking",
    "json_with_tools",
    "unsupported",
    "max_input_tokens",
    "max_output_tokens",
    "metadata.KEY",
)
"""Options of every provider: what the model can take, where LangChain's profile of it is missing or wrong."""

_METADATA = "metadata."


def offers(value: str) -> tuple[Offer, ...]:
    """The models of a comma-separated list. Raises ValueError with what is wanted."""
    found = tuple(_offer(line.strip()) for line in value.split(",") if line.strip())
    if not found:
        raise ValueError("a comma-separated list of models")
    if len({offer.name for offer in found}) < len(found):
        raise ValueError("a list that has each name once")
    return found


def completed(offer: Offer, environ: Mapping[str, str]) -> Offer:
    """The offer with what its provider needs of the environment. Raises ValueError with what is missing, and where."""
    spec, options = PROVIDERS[offer.provider], dict(offer.options)
    for option, variable in spec.variables.items():
        if not options.get(option) and not environ.get(variable):
            raise ValueError(f"{offer.name!r} with the option {option} of {offer.provider}, or with {variable} set,")
        if not options.get(option):
            options[option] = environ[variable]
            _check_plain(offer.name, option, environ[variable], variable)
    if not spec.key_variable:
        return replace(offer, options=MappingProxyType(options))
    variable = options.get("api_key_env", spec.key_variable)
    key = environ.get(variable) or (_NO_KEY if options.get("base_url") and "api_key_env" not in options else "")
    if not key:
        raise ValueError(f"{offer.name!r} with an API key in {variable}, which is not set,")
    if not addresses.is_plain(key):  # pasted with a line's end, or a word processor's
        raise ValueError(f"{offer.name!r} with an API key in {variable} of plain letters and signs, without spaces,")
    return replace(offer, options=MappingProxyType(options), api_key=key)


def amended(card: ModelCard, offer: Offer) -> ModelCard:
    """The card with what the offer says of its model instead."""
    said: dict[str, Any] = {name: _PARSE[name](value) for name, value in offer.options.items() if name in _PARSE}
    unsupported = card.unsupported | said.pop("unsupported", frozenset())
    metadata = {
        name.removeprefix(_METADATA): value for name, value in offer.options.items() if name.startswith(_METADATA)
    }
    return replace(card, unsupported=unsupported, metadata=metadata, **said)


_ADDRESSES = frozenset({"base_url", "endpoint"})

_WORDS = {
    "project": addresses.is_word,
    "location": addresses.is_label,
    "organization": addresses.is_plain,
    "api_version": addresses.is_word,
}
"""Options that stand in a header, a host or a path: whether they can."""

_MOST_TOKENS = 2**32 - 1
"""That the contract's uint32 holds."""

_NO_KEY = "none"  # for servers of one's own, many of which want none


def _offer(line: str) -> Offer:
    if not line.isprintable():
        raise ValueError(f"{line!r} without line breaks and other controls")
    name, mapped, target = line.partition("=")
    if not mapped:
        return Offer(name)
    provider, _, rest = target.partition(":")
    model, _, query = rest.partition("?")
    if not name or provider not in PROVIDERS or not model:
        raise ValueError(f"{line!r} as NAME or NAME=PROVIDER:MODEL?OPTION=VALUE with one of {', '.join(PROVIDERS)}")
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise ValueError(f"{name!r} with options as OPTION=VALUE&OPTION=VALUE") from None
    known = (*PROVIDERS[provider].options, *_ABOUT)
    for option, value in options.items():
        if option not in known and not option.startswith(_METADATA):
            raise ValueError(f"{name!r} with options of {provider}, which are {', '.join(known)}, and not {option!r},")
        if check := _PARSE.get(option) or _CHECK.get(option):
            check(value)
        _check_plain(name, option, value)
    return Offer(name, provider, model, MappingProxyType(options))


def _check_plain(name: str, option: str, value: str, variable: str = "") -> None:
    """Raises ValueError with what is wanted, where the option is an address, or goes into one, and the value can't."""
    where = f" in {variable}" if variable else ""
    if option in _ADDRESSES and not addresses.is_address(value):
        raise ValueError(f"{name!r} with {option}{where} as https://HOST/PATH, or http://HOST:PORT/PATH,")
    if (fits := _WORDS.get(option)) and not fits(value):
        raise ValueError(f"{name!r} with {option}{where} of plain letters and signs, without spaces,")


def _kinds(value: str) -> frozenset[str]:
    kinds = frozenset(value.split())  # a plus sign between them is a space in a URL's query
    if not kinds or not kinds <= KINDS:
        raise ValueError(f"input_kinds of {'+'.join(sorted(KINDS))}")
    return kinds


def _paths(value: str) -> frozenset[str]:
    paths = frozenset(value.split())
    if not paths <= FIELDS:  # one that nothing looks for would be taken in silence
        raise ValueError(
            f"unsupported fields by their paths, such as config.top_k, which are {', '.join(sorted(FIELDS))},"
        )
    return paths


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("an option of true or false")
    return value == "true"


def _count(value: str) -> int:
    if not (
        value.isascii() and value.isdigit() and len(value) <= len(str(_MOST_TOKENS)) and int(value) <= _MOST_TOKENS
    ):
        raise ValueError(f"an option of a whole number of tokens, up to {_MOST_TOKENS},")
    return int(value)


def _token_limit(value: str) -> None:
    if value not in ("max_tokens", "max_completion_tokens"):
        raise ValueError("an option token_limit of max_tokens or max_completion_tokens")


def _effort(value: str) -> None:
    if not re.fullmatch(r"[a-z]{1,20}", value):
        raise ValueError("an option reasoning_effort of one word, such as low, medium or high")


def _thoughts_back(value: str) -> None:
    if value not in ("reasoning_content", "reasoning", "reasoning_details", "google"):
        raise ValueError("an option thoughts_back of reasoning_content, reasoning, reasoning_details or google")


_CHECK: Mapping[str, Callable[[str], object]] = {
    "token_limit": _token_limit,
    "stream_options": _switch,
    "reasoning_effort": _effort,
    "thoughts": _switch,
    "thoughts_back": _thoughts_back,
    "strict": _switch,
}
"""Options that the provider itself makes use of."""

_PARSE: Mapping[str, Callable[[str], Any]] = {
    "input_kinds": _kinds,
    "tools": _switch,
    "thinking": _switch,
    "json_with_tools": _switch,
    "unsupported": _paths,
    "max_input_tokens": _count,
    "max_output_tokens": _count,
}
