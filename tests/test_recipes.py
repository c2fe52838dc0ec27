"""The recipes run as they stand: the server over the real ChatVertexAI, over a local Vertex that plays a script."""

import re
import sys
from pathlib import Path

import pytest

from service.providers.offers import offers
from service.providers.registry import PROVIDERS
from tests.conftest import Serve
from tests.test_readme import at, run
from vertex_emulator.emulator import Emulator
from vertex_emulator.protos import prediction_pb2 as google
from vertex_emulator.script import answer, function_call, thought, usage

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))

PNG = bytes.fromhex("89504e470d0a1a0a")


async def cooked(title: str, serve_vertex: Serve, tmp_path: Path) -> str:
    """What the recipe prints."""
    served = await serve_vertex()
    example = tmp_path / "example.py"
    example.write_text(at(served.address, RECIPES[title]))
    return await run(sys.executable, str(example), cwd=tmp_path)


def asked(emulator: Emulator, number: int = -1) -> google.GenerateContentRequest:
    request = emulator.calls[number].request
    assert isinstance(request, google.GenerateContentRequest)
    return request


def test_every_recipe_is_tested() -> None:
    assert set(RECIPES) == {"Ask about an image", "JSON by a schema", "A round of tool use", "Thoughts"}


async def test_ask_about_an_image(emulator: Emulator, serve_vertex: Serve, tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(PNG)
    emulator.script.play(answer("A bat", " and a ball."))
    assert await cooked("Ask about an image", serve_vertex, tmp_path) == "A bat and a ball."
    (content,) = asked(emulator).contents
    assert content.parts[1].inline_data == google.Blob(mime_type="image/png", data=PNG)


async def test_json_by_a_schema(emulator: Emulator, serve_vertex: Serve, tmp_path: Path) -> None:
    emulator.script.play(answer('{"sport": "base', 'ball", "players": 9}'))
    assert await cooked("JSON by a schema", serve_vertex, tmp_path) == "baseball 9\n"
    config = asked(emulator).generation_config
    assert config.response_mime_type == "application/json"
    assert set(config.response_schema.properties) == {"sport", "players"}


async def test_a_round_of_tool_use(emulator: Emulator, serve_vertex: Serve, tmp_path: Path) -> None:
    emulator.script.play(
        answer("Let me see. ", function_call("weather", {"city": "Rome"}, signature=b"s")), answer("No coat.")
    )
    assert await cooked("A round of tool use", serve_vertex, tmp_path) == "Let me see. No coat."
    question, model, results = asked(emulator).contents
    assert question.parts[0].text == "Do I need a coat in Rome?"
    assert [part.WhichOneof("data") for part in model.parts] == ["text", "function_call"]
    assert model.parts[1].thought_signature == b"s"
    response = results.parts[0].function_response
    assert (response.name, response.response["city"], response.response["degrees"]) == ("weather", "Rome", 20)


async def test_thoughts(emulator: Emulator, serve_vertex: Serve, tmp_path: Path) -> None:
    emulator.script.play(answer(thought("It bends."), "It bends late.", usage=usage(3, 4, thoughts=5)))
    told = await cooked("Thoughts", serve_vertex, tmp_path)
    assert told == "(It bends.)It bends late.\n5 tokens of thought\n"
    assert asked(emulator).generation_config.thinking_config.thinking_budget == 1024


def test_the_lines_of_another_provider_are_taken() -> None:
    found = re.search(r"TOKENWIRE_MODELS='(.+)'", PAGE)
    assert found is not None
    assert [offer.provider for offer in offers(found[1])] == ["openai", "genai", "openai"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_every_provider_and_option_is_told(provider: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{provider}` |"))
    for option in PROVIDERS[provider].options:
        assert f"`{option}`" in row
