"""docs/emulator.md says what is true."""

import re
from pathlib import Path

import pytest

from tests.vertex_emulator.conftest import Client, documented_scripts
from vertex_emulator import __main__ as command
from vertex_emulator import script as s
from vertex_emulator.emulator import Emulator

PAGE = (Path(__file__).parents[2] / "docs" / "emulator.md").read_text()


def test_there_are_examples() -> None:
    assert len(list(documented_scripts())) == 2


@pytest.mark.parametrize("text", [pytest.param(text, id=f"line {line}") for line, text in documented_scripts()])
async def test_each_json_example_is_a_script(emulator: Emulator, text: str) -> None:
    emulator.script.load(s.parse(text))


async def test_the_second_example_does_what_the_page_says(emulator: Emulator, client: Client) -> None:
    _, (_, text) = documented_scripts()
    emulator.script.load(s.parse(text))
    assert (await client.count_tokens()).total_tokens == 42
    assert (await client.ask("Something forbidden")).chunks[0].prompt_feedback.block_reason_message == "No."
    truncated = await client.ask()
    assert (truncated.text, truncated.finish_reasons) == ("The answer is", [0])


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
