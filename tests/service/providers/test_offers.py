"""The models on offer: one line each, and what is said of a line that can't be taken."""

import pytest

from service.generation.capabilities import ModelCard
from service.providers.offers import amended, offers
from service.providers.spec import Offer
from service.settings import SettingError, Settings


def load(models: str, **environ: str) -> Settings:
    return Settings.load([], {"TOKENWIRE_MODELS": models} | environ, prog="tokenwire serve")


def test_a_bare_name_is_a_model_of_vertex_ai() -> None:
    (offer,) = offers("gemini-2.5-pro")
    assert (offer.name, offer.provider, offer.upstream_name) == ("gemini-2.5-pro", "vertex", "gemini-2.5-pro")


def test_a_line_maps_a_public_name_to_provider_model_and_options() -> None:
    (offer,) = offers(
        "fast=openai:org/gpt-4.1:free?base_url=http://127.0.0.1:8080/v1&tools=false&input_kinds=text+image"
    )
    assert (offer.name, offer.provider, offer.model) == ("fast", "openai", "org/gpt-4.1:free")
    assert offer.options == {"base_url": "http://127.0.0.1:8080/v1", "tools": "false", "input_kinds": "text image"}


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("fast=gpt", "'fast=gpt' as NAME or NAME=PROVIDER:MODEL?OPTION=VALUE with one of vertex, genai, openai, azure"),
        ("fast=cohere:x", "'fast=cohere:x' as NAME or NAME=PROVIDER:MODEL?OPTION=VALUE with one of vertex, genai"),
        ("fast=openai:", "'fast=openai:' as NAME or NAME=PROVIDER:MODEL"),
        ("=openai:x", "'=openai:x' as NAME or NAME=PROVIDER:MODEL"),
        ("a=openai:x?colour=red", "'a' with options of openai, which are base_url, api_key_env, organization, tok"),
        ("a=openai:x?colour", "'a' with options as OPTION=VALUE&OPTION=VALUE"),
        ("a=openai:x?tools=perhaps", "'a' with tools of true or false"),
        ("a=openai:x?max_input_tokens=many", "'a' with max_input_tokens of a whole number of tokens"),
        ("a=openai:x?unsupported=Top K", "'a' with unsupported of fields by their paths, such as config.top_k"),
        ("a=openai:x?unsupported=config.topk", "'a' with unsupported of fields by their paths, such as config.top_k"),
        ("a=openai:x?input_kinds=smell", "'a' with input_kinds of audio+image+pdf+text+video"),
        ("a=openai:x?token_limit=most", "'a' with token_limit of max_tokens or max_completion_tokens"),
        ("a=openai:x?stream_options=no", "'a' with stream_options of true or false"),
        ("a=openai:x?reasoning_effort=9", "'a' with reasoning_effort of one word, such as low, medium or high"),
        ("a=azure:x?thoughts=", "'a' with thoughts of true or false"),
        (
            "a=azure:x?thoughts_back=yes",
            "'a' with thoughts_back of reasoning_content, reasoning, reasoning_details or google",
        ),
        ("a=azure:x?strict=maybe", "'a' with strict of true or false"),
        ("a=vertex:x?thoughts=true", "'a' with options of vertex, which are project, location, "),
    ],
)
def test_a_line_that_cannot_be_taken_says_what_is_wanted(line: str, wanted: str) -> None:
    with pytest.raises(SettingError) as caught:
        load(line)
    assert str(caught.value).startswith(f"TOKENWIRE_MODELS is {line!r}: {wanted}")


def test_all_that_is_wrong_with_a_list_is_told_at_once_naming_model_and_option() -> None:
    lines = [
        "a=openai:x?tools=perhaps&strict=maybe&colour=red&base_url=h",
        "b=cohere:x",
        "c=azure:x?api_version=1 2",
        "d=openai:x?api_key_env=NONE",
        "e=vertex:x",
    ]
    for flag in (True, False):
        told = ["--models", ",".join(lines)] if flag else []
        with pytest.raises(SettingError) as caught:
            Settings.load(told, {} if flag else {"TOKENWIRE_MODELS": ",".join(lines)}, prog="p")
        starts = [line.partition(",")[0] for line in str(caught.value).splitlines()]
        name = "--models" if flag else "TOKENWIRE_MODELS"
        assert starts == [
            f"{name}: 'a' with tools of true or false is wanted",
            f"{name}: 'a' with strict of true or false is wanted",
            f"{name}: 'a' with options of openai",
            f"{name}: 'a' with base_url as https://HOST/PATH",
            f"{name}: 'b=cohere:x' as NAME or NAME=PROVIDER:MODEL?OPTION=VALUE with one of vertex",
            f"{name}: 'c' with api_version of plain letters and signs",
            f"{name}: 'd' with an API key in NONE",
        ]


def test_all_that_a_model_lacks_is_told_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load(["--models", "a=azure:x"], {}, prog="p")
    assert [line.rpartition(" with ")[0][:24] for line in str(caught.value).splitlines()] == [
        "--models: 'a' with the o",
        "--models: 'a' with the o",
        "--models: 'a'",
    ]


def test_keys_come_from_the_environment_and_are_not_printed() -> None:
    settings = load("a=openai:x,b=openai:y?api_key_env=OTHER", OPENAI_API_KEY="one", OTHER="two")
    assert [offer.api_key for offer in settings.models] == ["one", "two"]
    assert "one" not in repr(settings)
    assert "two" not in repr(settings)


def test_a_key_that_is_missing_is_named() -> None:
    with pytest.raises(SettingError) as caught:
        load("a=openai:x")
    assert str(caught.value) == "TOKENWIRE_MODELS: 'a' with an API key in OPENAI_API_KEY, which is not set, is wanted"


def test_a_server_of_ones_own_needs_no_key() -> None:
    assert load("a=openai:x?base_url=http://127.0.0.1:1/v1").models[0].api_key


def test_azure_takes_its_place_from_options_or_variables() -> None:
    variables = {"AZURE_OPENAI_ENDPOINT": "https://e", "OPENAI_API_VERSION": "v", "AZURE_OPENAI_API_KEY": "k"}
    by_variable = load("a=azure:d", **variables).models[0]
    by_option = load("a=azure:d?endpoint=https://e&api_version=v", AZURE_OPENAI_API_KEY="k").models[0]
    assert by_variable == by_option
    with pytest.raises(SettingError, match="'a' with the option endpoint of azure, or with AZURE_OPENAI_ENDPOINT set"):
        load("a=azure:d", AZURE_OPENAI_API_KEY="k")


def test_a_default_or_fallback_that_has_a_line_is_that_line() -> None:
    settings = Settings.load(
        ["--model", "b", "--fallback-model", "c", "--models", "a=vertex:x,b=vertex:y"], {}, prog="tokenwire serve"
    )
    assert [(offer.name, offer.upstream_name) for offer in settings.offers] == [("b", "y"), ("a", "x"), ("c", "c")]


def test_google_is_needed_only_where_a_model_is_there() -> None:
    assert Settings().needs_google
    assert not Settings(emulator="127.0.0.1:1").needs_google
    there = Settings(emulator="127.0.0.1:1", models=(Offer("a", "genai", "x"),))
    assert there.needs_google
    elsewhere = Settings(model="a", models=(Offer("a", "openai", "x"),))
    assert not elsewhere.needs_google
    assert elsewhere.upstream == "OpenAI"


def test_what_a_line_says_of_its_model_is_on_the_card() -> None:
    (offer,) = offers("a=vertex:x?input_kinds=text&thinking=false&max_output_tokens=7")
    known = ModelCard(name="a", provider="p", input_kinds=frozenset({"text", "image"}), thinking=True, tools=True)
    card = amended(known, offer)
    assert card.input_kinds == frozenset({"text"})
    assert (card.thinking, card.tools, card.max_output_tokens) == (False, True, 7)


def test_a_line_can_say_what_is_not_taken_and_what_else_callers_should_know() -> None:
    (offer,) = offers("a=openai:x?unsupported=config.seed+tools&metadata.region=europe&metadata.note=new one")
    card = amended(ModelCard(name="a", provider="p", unsupported=frozenset({"config.top_k"})), offer)
    assert card.unsupported == frozenset({"config.top_k", "config.seed", "tools"})
    assert card.metadata == {"region": "europe", "note": "new one"}
