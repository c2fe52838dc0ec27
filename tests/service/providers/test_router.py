"""Several providers in one server: each prompt goes to the one that offers its model."""

import asyncio
import importlib
import importlib.util
import sys
import tomllib
from pathlib import Path

import pytest

from service.generation.capabilities import ModelCard
from service.generation.events import Finished, FinishReason, Started, Text
from service.generation.prompt import Prompt, Role, Turn
from service.providers import registry
from service.providers.offers import completed, offers
from service.providers.router import Router
from service.providers.spec import GoogleCloud, ProviderSpec
from service.settings import Settings
from service.testing import FakeProvider
from tests.conftest import Serve
from tokenwire.v1 import generation_service_pb2 as pb
from vertex_emulator.emulator import Emulator
from vertex_emulator.script import answer

FINISHED = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=None)


def fake(name: str, text: str, tokens: int) -> FakeProvider:
    return FakeProvider(
        [Started(name), Text(text), FINISHED], cards=[ModelCard(name=name, provider="p")], tokens=tokens
    )


async def test_each_prompt_is_asked_of_whom_it_names(serve: Serve) -> None:
    first, second = fake("a", "from a", 1), fake("b", "from b", 2)
    served = await serve(Router([second, first], order=["a", "b"]))
    listed = (await served.stub.ListModels(pb.ListModelsRequest())).models
    assert [(one.name, one.default) for one in listed] == [("a", True), ("b", False)]
    assert (await served.ask())[1].text == "from a"
    assert (await served.ask(model="b"))[1].text == "from b"
    counted = await served.stub.CountTokens(pb.CountTokensRequest(prompt="hi", model="b"))
    assert counted.total_tokens == 2
    assert [len(model.asked) for model in (first, second)] == [1, 2]


async def test_models_of_several_providers_answer_in_one_server(serve: Serve) -> None:
    async with Emulator(rest_port=0) as emulator:
        emulator.script.play(default=answer("hello", uses=0))
        line = f"g=genai:gemini-2.5-flash,v=vertex:gemini-2.5-pro?location=global,o=openai:gpt?base_url=http://{emulator.rest_address}/v1"
        places = {"VERTEX_EMULATOR_HOST": emulator.address, "VERTEX_EMULATOR_REST_HOST": str(emulator.rest_address)}
        settings = Settings.load(["--model", "g", "--models", line], places, prog="tokenwire serve")
        await asyncio.to_thread(registry.imported, settings.offers)
        async with registry.opened(settings.offers, settings.google) as model:
            served = await serve(model)
            for name in ("g", "v", "o"):
                assert (await served.ask(model=name))[1].text == "hello"
        names = [call.request.model.rpartition("/")[2] for call in emulator.calls if call.request is not None]
        assert names == ["gemini-2.5-flash", "gemini-2.5-pro", "gpt"]
        assert [call.transport for call in emulator.calls] == ["rest", "grpc", "openai"]
        request = emulator.calls[1].request
        assert request is not None
        assert "/locations/global/" in request.model


@pytest.mark.parametrize(
    ("provider", "library", "extra"),
    [("openai", "langchain_openai", "openai"), ("genai", "langchain_google_genai", "genai")],
)
def test_a_provider_whose_library_is_missing_says_what_to_install(
    provider: str, library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(
        sys.modules,
        importlib.util.resolve_name(registry.PROVIDERS[provider].module, registry.__package__),
        raising=False,
    )
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(registry.MissingExtra) as caught:
        registry.imported(offers(f"m={provider}:x"))
    assert str(caught.value).endswith(f"models of {provider} need tokenwire's extra {extra!r}")


@pytest.mark.parametrize("spec", registry.PROVIDERS.values(), ids=lambda spec: spec.name)
def test_a_provider_in_the_table_can_be_installed_and_opened(spec: ProviderSpec) -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert spec.extra in project["optional-dependencies"]
    assert callable(importlib.import_module(spec.module, registry.__package__).open_models)
    options = {"endpoint": "https://h", "api_version": "2024-10-21", "base_url": "http://h/v1"}
    line = f"m={spec.name}:x?" + "&".join(f"{name}={options[name]}" for name in spec.options if name in options)
    (offer,) = offers(line)
    assert completed(offer, {spec.key_variable: "k"}).options.keys() == {*spec.variables} | (
        {"base_url"} & {*spec.options}
    )
    google = GoogleCloud(location="here")
    assert spec.needs_google(google) == (spec.place(google) == f"{spec.title} in here")


IMAGE = Prompt(model="first", turns=(Turn(Role.USER, ("hi",)),), labels={"team": "a"})


@pytest.mark.parametrize(
    ("card", "takes"),
    [
        (ModelCard(name="second", provider="p"), True),
        (ModelCard(name="second", provider="p", unsupported=frozenset({"labels"})), False),
        (ModelCard(name="second", provider="p", unsupported=frozenset({"config.top_k"})), True),
    ],
)
def test_a_card_knows_what_its_model_could_be_asked(card: ModelCard, takes: bool) -> None:
    assert card.takes(IMAGE) == takes
