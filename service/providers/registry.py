"""The table of providers, and how the models on offer are opened."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import groupby

from ..generation.provider import Provider
from .chat_completions.specs import AZURE, OPENAI
from .gemini.specs import GENAI, VERTEX
from .router import Router
from .spec import GoogleCloud, Offer, ProviderSpec

PROVIDERS: Mapping[str, ProviderSpec] = {spec.name: spec for spec in (VERTEX, GENAI, OPENAI, AZURE)}

# Imported with the providers: it needs LangChain, which comes with their extras.
_TRACING = ".tracing"


class MissingExtra(ImportError):
    """A provider's library is not installed; the message says what to install."""


def imported(offers: Sequence[Offer]) -> None:
    """Import what these models need, which takes seconds. Raises MissingExtra."""
    for name in dict.fromkeys(offer.provider for offer in offers):
        spec = PROVIDERS[name]
        try:
            importlib.import_module(spec.module, __package__)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"{error.name} is not installed; models of {name} need tokenwire's extra {spec.extra!r}"
            ) from error
    importlib.import_module(_TRACING, __package__)


@asynccontextmanager
async def opened(offers: Sequence[Offer], google: GoogleCloud) -> AsyncIterator[Provider]:
    """These models as one, the default first. Their connections belong to the running event loop."""
    await asyncio.to_thread(importlib.import_module(_TRACING, __package__).open_client)
    async with AsyncExitStack() as stack:
        models = []
        for name, group in _groups(offers):
            model = importlib.import_module(PROVIDERS[name].module, __package__).open_models(group, google.of(group[0]))
            stack.push_async_callback(model.close)
            models.append(model)
        yield models[0] if len(models) == 1 else Router(models, order=[offer.name for offer in offers])


def _groups(offers: Sequence[Offer]) -> list[tuple[str, list[Offer]]]:
    """The offers that share a client: of one provider, and on Vertex AI of one project and region."""

    def key(offer: Offer) -> tuple[str, ...]:
        return (offer.provider, offer.options.get("project", ""), offer.options.get("location", ""))

    return [(found[0], list(group)) for found, group in groupby(sorted(offers, key=key), key=key)]
