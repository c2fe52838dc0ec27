"""Opens the models on offer, of every provider. Beside `app`, the only place that knows the providers."""

import importlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from service.generation.provider import Provider
from service.providers.offers import Offer
from service.providers.router import Router
from service.providers.spec import GoogleCloud


@dataclass(frozen=True, slots=True)
class _ProviderSpec:
    """How to open the models of one provider."""

    module: str
    extra: str
    """What has to be installed for it."""
    open: Callable[[Any, GoogleCloud, Sequence[Offer]], Any]
    """With the imported module; gives a Model that can be closed."""


def _vertex(module: Any, google: GoogleCloud, offers: Sequence[Offer]) -> Any:
    place = _place(google, offers[0])
    if google.emulator:
        return module.VertexProvider.local(google.emulator, offers, **place)
    return module.VertexProvider.google(offers, **place)


def _genai(module: Any, google: GoogleCloud, offers: Sequence[Offer]) -> Any:
    place = _place(google, offers[0])
    if google.emulator_rest:
        return module.GenAIProvider.local(google.emulator_rest, offers, **place)
    return module.GenAIProvider.google(offers, **place)


def _openai(module: Any, _: GoogleCloud, offers: Sequence[Offer]) -> Any:
    return module.OpenAIProvider(offers)


_PROVIDERS: Mapping[str, _ProviderSpec] = {
    "vertex": _ProviderSpec("service.providers.gemini.over_grpc", "server", _vertex),
    "genai": _ProviderSpec("service.providers.gemini.over_http", "genai", _genai),
    "openai": _ProviderSpec("service.providers.chat_completions", "openai", _openai),
    "azure": _ProviderSpec("service.providers.chat_completions", "openai", _openai),
}


class MissingExtra(ImportError):
    """A provider's library is not installed; the message says what to install."""


def imported(offers: Sequence[Offer]) -> None:
    """Import what these models need, which takes seconds. Raises MissingExtra."""
    for name in dict.fromkeys(offer.provider for offer in offers):
        provider = _PROVIDERS[name]
        try:
            importlib.import_module(provider.module)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"{error.name} is not installed; models of {name} need: pip install 'tokenwire[{provider.extra}]'"
            ) from error


@asynccontextmanager
async def opened(offers: Sequence[Offer], google: GoogleCloud) -> AsyncIterator[Provider]:
    """These models as one, the default first. Their connections belong to the running event loop."""
    async with AsyncExitStack() as stack:
        models = []
        for name, group in _groups(offers):
            provider = _PROVIDERS[name]
            model = provider.open(importlib.import_module(provider.module), google, group)
            stack.push_async_callback(model.close)
            models.append(model)
        yield models[0] if len(models) == 1 else Router(models, order=[offer.name for offer in offers])


def _groups(offers: Sequence[Offer]) -> list[tuple[str, list[Offer]]]:
    """The offers that share a client: of one provider, and on Vertex AI of one project and region."""

    def key(offer: Offer) -> tuple[str, ...]:
        return (offer.provider, offer.options.get("project", ""), offer.options.get("location", ""))

    return [(found[0], list(group)) for found, group in groupby(sorted(offers, key=key), key=key)]


def _place(google: GoogleCloud, offer: Offer) -> dict[str, str]:
    return {
        "project": offer.options.get("project", google.project),
        "location": offer.options.get("location", google.location),
    }
