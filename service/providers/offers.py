"""The models on offer: each a public name, and which provider's model answers to it.

    TOKENWIRE_MODELS="gemini-2.5-pro, fast=openai:gpt-4.1-mini, local=openai:smollm2?base_url=http://127.0.0.1:8080/v1"

A line is NAME, or NAME=PROVIDER:MODEL, with options behind a question mark as in a URL. A bare name is a model of
Vertex AI's own.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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


class SeveralError(ValueError):
    """All that is wrong with a list of models, each as what is wanted; `found` are the models that can be taken."""

    def __init__(self, wanted: Sequence[str], found: Sequence[Offer] = ()) -> None:
        super().__init__("; ".join(wanted))
        self.wanted = tuple(wanted)
        self.found = tuple(found)


def offers(value: str) -> tuple[Offer, ...]:
    """The models of a comma-separated list. Raises SeveralError with what is wanted."""
    found: dict[str, Offer] = {}
    wanted: list[str] = []
    twice = False
    for line in filter(None, map(str.strip, value.split(","))):
        try:
            offer = _offer(line)
        except SeveralError as error:
            wanted += error.wanted
            continue
        twice = twice or offer.name in found
        found[offer.name] = offer
    if twice:
        wanted.append("a list that has each name once")
    if not found and not wanted:
        wanted.append("a comma-separated list of models")
    if wanted:
        raise SeveralError(wanted, tuple(found.values()))
    return tuple(found.values())


def completed(offer: Offer, environ: Mapping[str, str]) -> Offer:
    """The offer with what its provider needs of the environment.

    Raises SeveralError with what is missing, or can't be taken, and where.
    """
    spec, options = PROVIDERS[offer.provider], dict(offer.options)
    wanted: list[str] = []
    for option, variable in spec.variables.items():
        if options.get(option):
            continue
        if not environ.get(variable):
            wanted.append(f"{offer.name!r} with the option {option} of {offer.provider}, or with {variable} set,")
        else:
            options[option] = environ[variable]
            wanted += _unfit(offer.name, option, environ[variable], variable)
    key = ""
    if spec.key_variable:
        variable = options.get("api_key_env", spec.key_variable)
        key = environ.get(variable) or (_NO_KEY if options.get("base_url") and "api_key_env" not in options else "")
        if not key:
            wanted.append(f"{offer.name!r} with an API key in {variable}, which is not set,")
        elif not addresses.is_plain(key):  # pasted with a line's end, or a word processor's
            wanted.append(f"{offer.name!r} with an API key in {variable} of plain letters and signs, without spaces,")
    if wanted:
        raise SeveralError(wanted)
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
    """Raises SeveralError."""
    if not line.isprintable():
        raise SeveralError([f"{line!r} without line breaks and other controls"])
    name, mapped, target = line.partition("=")
    if not mapped:
        return Offer(name)
    provider, _, rest = target.partition(":")
    model, _, query = rest.partition("?")
    if not name or provider not in PROVIDERS or not model:
        raise SeveralError([f"{line!r} as NAME or NAME=PROVIDER:MODEL?OPTION=VALUE with one of {', '.join(PROVIDERS)}"])
    try:
        options = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise SeveralError([f"{name!r} with options as OPTION=VALUE&OPTION=VALUE"]) from None
    known = (*PROVIDERS[provider].options, *_ABOUT)
    wanted: list[str] = []
    for option, value in options.items():
        if option not in known and not option.startswith(_METADATA):
            wanted.append(f"{name!r} with options of {provider}, which are {', '.join(known)}, and not {option!r},")
        else:
            wanted += _unfit(name, option, value)
    if wanted:
        raise SeveralError(wanted)
    return Offer(name, provider, model, MappingProxyType(options))


def _unfit(name: str, option: str, value: str, variable: str = "") -> Iterator[str]:
    """What is wanted of the option, where the value, read from `variable` if from any, isn't that."""
    where = f"{name!r} with {option}{f' in {variable}' if variable else ''}"
    if option in _ADDRESSES and not addresses.is_address(value):
        yield f"{where} as https://HOST/PATH, or http://HOST:PORT/PATH,"
    if (fits := _WORDS.get(option)) and not fits(value):
        yield f"{where} of plain letters and signs, without spaces,"
    if check := _PARSE.get(option) or _CHECK.get(option):
        try:
            check(value)
        except ValueError as error:
            yield f"{where} of {error}"


def _kinds(value: str) -> frozenset[str]:
    kinds = frozenset(value.split())  # a plus sign between them is a space in a URL's query
    if not kinds or not kinds <= KINDS:
        raise ValueError("+".join(sorted(KINDS)))
    return kinds


def _paths(value: str) -> frozenset[str]:
    paths = frozenset(value.split())
    if not paths <= FIELDS:  # one that nothing looks for would be taken in silence
        raise ValueError(f"fields by their paths, such as config.top_k, which are {', '.join(sorted(FIELDS))},")
    return paths


def _switch(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("true or false")
    return value == "true"


def _count(value: str) -> int:
    if not (
        value.isascii() and value.isdigit() and len(value) <= len(str(_MOST_TOKENS)) and int(value) <= _MOST_TOKENS
    ):
        raise ValueError(f"a whole number of tokens, up to {_MOST_TOKENS},")
    return int(value)


def _token_limit(value: str) -> None:
    if value not in ("max_tokens", "max_completion_tokens"):
        raise ValueError("max_tokens or max_completion_tokens")


def _effort(value: str) -> None:
    if not re.fullmatch(r"[a-z]{1,20}", value):
        raise ValueError("one word, such as low, medium or high")


def _thoughts_back(value: str) -> None:
    if value not in ("reasoning_content", "reasoning", "reasoning_details", "google"):
        raise ValueError("reasoning_content, reasoning, reasoning_details or google")


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
