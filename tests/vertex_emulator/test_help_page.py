"""docs/emulator.md says what is true."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.vertex_emulator.conftest import Client, documented_scripts
from vertex_emulator import __main__ as command
from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator

PAGE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()


def test_there_are_examples() -> None:
    assert len(list(documented_scripts())) == 3


@pytest.mark.parametrize("text", [pytest.param(text, id=f"line {line}") for line, text in documented_scripts()])
async def test_each_json_example_is_a_script(emulator: Emulator, text: str) -> None:
    emulator.script.load(s.parse(text))


async def test_the_second_example_does_what_the_page_says(emulator: Emulator, client: Client) -> None:
    _, (_, text), _ = documented_scripts()
    emulator.script.load(s.parse(text))
    first, second = await client.ask(), await client.ask()
    call = first.chunks[-1].candidates[0].content.parts[0]
    assert (call.function_call.name, call.thought_signature) == ("search", b"signature 2")
    assert first.usages[-1] == (12, 5, 9, 8, 26)
    assert second.text == "Baseball is a bat-and-ball game."
    quoted = second.chunks[-2].candidates[0].citation_metadata.citations[0]
    assert second.text[quoted.start_index : quoted.end_index] == "is a bat-and-ball game."
    last = second.chunks[-1].candidates[0]
    assert last.grounding_metadata.grounding_supports[0].segment.text == "Baseball"
    assert (last.finish_reason, len(last.safety_ratings)) == (1, 1)


async def test_the_third_example_does_what_the_page_says(emulator: Emulator, client: Client) -> None:
    *_, (_, text) = documented_scripts()
    emulator.script.load(s.parse(text))
    assert (await client.count_tokens()).total_tokens == 42
    assert (await client.ask("Something forbidden")).chunks[0].prompt_feedback.block_reason_message == "No."
    truncated = await client.ask()
    assert (truncated.text, truncated.finish_reasons) == ("The answer is", [0])


async def test_the_curl_example_is_answered() -> None:
    (url, body) = re.findall(r"curl -N '([^']+)'.*?-d '([^']+)'", PAGE, re.DOTALL)[0]
    async with Emulator(rest_port=0) as emulator, httpx.AsyncClient() as http:
        told = await http.post(url.replace("localhost:8088", emulator.rest_address), content=body)
        assert (told.status_code, told.headers["content-type"]) == (200, "text/event-stream")
        request = emulator.calls[0].request
        assert request is not None
        assert request.contents[0].parts[0].text == "What is baseball?"


async def test_the_python_example_over_http_can_be_played() -> None:
    (code,) = (one for one in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "test_over_http" in one)
    space: dict[str, Any] = {}
    exec(code, space)
    await space["test_over_http"]()


def test_every_step_is_in_the_table() -> None:
    table = PAGE.split("step by step:")[1].split("And around")[0]
    told = set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line)))
    assert told == {field.camelcase_name for field in s.Step.DESCRIPTOR.fields}


def test_every_option_is_in_the_table_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    options = set(re.findall(r"^  (--[a-z-]+)", capsys.readouterr().out, re.MULTILINE))
    assert options == set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.MULTILINE))
    assert f"| `--port` | `{command.DEFAULT_PORT}` |" in PAGE
    assert f"| `--rest-port` | `{command.DEFAULT_REST_PORT}` beside the default `--port`, else none |" in PAGE


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_each_python_example_compiles_and_its_imports_exist(code: str) -> None:
    compile(code, "docs/emulator.md", "exec")
    imports = re.findall(r"^(?:from [\w.]+ import (?:\([^)]*\)|[^\n]+)|import [\w.]+)", code, re.MULTILINE)
    for line in imports:
        if "google.cloud" in line or "langchain" in line:
            continue  # seconds to import; the tests of those clients run these examples' calls
        exec(line, {})
