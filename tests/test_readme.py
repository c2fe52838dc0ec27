"""The README and the pages of docs/ tell the truth: tables are those of the code, and examples run."""

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from bench.report import in_short
from service import errors
from service.admission.counts import Counts
from service.admission.identity import Identity
from service.admission.quotas import Quotas
from service.admission.slots import Slots
from service.generation.events import Event, Finished, FinishReason, Started, Text, Usage
from service.runtime.readings import Readings
from service.settings import Settings, shown, source
from service.telemetry.metrics import Metrics
from service.telemetry.numbers import Reading
from service.testing import FakeProvider
from tests.conftest import Serve
from tokenwire.cli.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path for path in [*ROOT.glob("*.md"), *sorted((ROOT / "docs").glob("*.md"))]}
SETTINGS, ERRORS, ARCHITECTURE, OPERATIONS = (
    PAGES[f"{name}.md"].read_text() for name in ("settings", "errors", "architecture", "operations")
)


def blocks(language: str, page: str = README) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert found, f"the page has no {language} example"
    return found


def settings_table() -> str:
    rows = [
        f"| `--{one.name.replace('_', '-')}` | `{source(one).variable}` | {shown(one.default)} | {source(one).help} |"
        for one in fields(Settings)
    ]
    return "\n".join(rows)


def readings() -> list[Reading]:
    """Where a server stands that has done nothing."""
    return list(Readings(Slots(slots=1, per_caller=0), Identity(), Quotas(Counts()), lambda: 0.0)())


def metrics_table() -> str:
    """What docs/operations.md says of the metrics."""
    metrics = Metrics({"a": "b"})
    counts = [(one.name, one.kind, one.labels, one.text) for one in metrics.all]
    gauges = [(one.name, "gauge", one.labels, one.text) for one in readings()]
    rows = ["| metric | kind | labels | what it is |", "|---|---|---|---|"]
    for name, kind, labels, text in counts + gauges:
        rows.append(f"| `{name}` | {kind} | {', '.join(f'`{one}`' for one in labels) or '-'} | {text} |")
    return "\n".join(rows)


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    assert metrics_table() in OPERATIONS


def test_the_settings_table_is_that_of_the_code() -> None:
    assert settings_table() in SETTINGS


def tree(kind: type[errors.CallError]) -> Iterator[type[errors.CallError]]:
    for child in kind.__subclasses__():
        yield child
        yield from tree(child)


def test_no_reason_is_left_out_of_those_that_are_counted() -> None:
    assert set(errors.reasons()) == {reason for _, reason in REASONS}


REASONS = {(kind.code.name, kind.reason) for kind in tree(errors.CallError) if "reason" in vars(kind)} | {
    ("INVALID_ARGUMENT", "EMPTY_PROMPT"),
    ("INVALID_ARGUMENT", "MALFORMED_REQUEST"),
    ("DEADLINE_EXCEEDED", "SERVER_DEADLINE"),
    ("DEADLINE_EXCEEDED", "FIRST_CHUNK_TIMEOUT"),
    ("DEADLINE_EXCEEDED", "IDLE_TIMEOUT"),
    ("DEADLINE_EXCEEDED", "READER_STALLED"),
    ("DEADLINE_EXCEEDED", "REQUEST_STALLED"),
}


def test_the_errors_table_has_every_reason_and_no_other() -> None:
    told = re.findall(r"^\| ([A-Z_]+) \| `([A-Z_]+)` \|", ERRORS, re.MULTILINE)
    assert len(told) == len(set(told))
    assert set(told) == REASONS


def test_the_tree_in_the_errors_docstring_is_the_tree() -> None:
    tree_in_words = re.sub(r",\n +\| +", ", ", errors.__doc__ or "")
    drawn = re.findall(r"[|`]- (\w+) +([A-Z_]+) +([A-Z_, ]+)$", tree_in_words, re.MULTILINE)
    told = {(name, code, reason) for name, code, reasons in drawn for reason in reasons.split(", ")}
    real = {(kind.__name__, kind.code.name, kind.reason) for kind in tree(errors.CallError) if "reason" in vars(kind)}
    assert real <= told
    assert {(code, reason) for _, code, reason in told} == REASONS


def test_every_file_of_the_map_is_there() -> None:
    (house,) = blocks("text", ARCHITECTURE)
    folder = ""
    for line in house.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            assert (ROOT / name).exists(), name
        elif (found := re.match(r"  (\S+\.py) ", line)) is not None:
            assert (ROOT / folder / found[1]).exists(), folder + found[1]


def test_every_module_of_the_service_is_on_the_map() -> None:
    (house,) = blocks("text", ARCHITECTURE)
    for path in (ROOT / "service").rglob("*.py"):
        if path.name != "__init__.py":
            assert f"  {path.relative_to(ROOT / 'service')} " in house, path


def test_the_way_of_a_request_is_counted_as_it_is_listed() -> None:
    section = ARCHITECTURE.partition("## How long the way is")[2]
    today, before = re.findall(r"^```\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    above: list[str] = []
    stays: list[tuple[str, str]] = []
    for line in today.splitlines():
        indent, path, named = re.fullmatch(r"( *)(\S+) +(.+)", line).groups()  # type: ignore[union-attr]
        source = (ROOT / "service" / path).read_text()
        for name in named.removesuffix(" (end)").split(", "):
            assert re.search(rf"(def|class) {name.rpartition('.')[2]}\b", source), line
        assert len(indent) // 2 <= len(above), line
        above = [*above[: len(indent) // 2], path]
        if len(above) > 1:
            assert above[-1] != above[-2], line
            stays.append((above[-2], path))
    rooms = sum(one.partition("/")[0] != other.partition("/")[0] for one, other in stays)
    files = {path for stay in stays for path in stay}
    assert f"| today | {len(files)} | {len(stays)} | {rooms} |" in section
    old = re.findall(r"\w+", before)
    assert f" | {len(set(old))} | {len(old) - 1} | - |" in section
    pair = {"providers/gemini/over_grpc.py", "providers/gemini/shortcuts.py"}
    assert sum(set(stay) == pair for stay in stays) == 7


def test_every_make_target_and_command_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE):
        assert name in targets, f"make {name}"
    for name in re.findall(r"\btokenwire ([a-z]+)\b", "\n".join([*blocks("sh"), *re.findall(r"`([^`\n]+)`", README)])):
        assert name in COMMANDS, f"tokenwire {name}"


@pytest.mark.parametrize("name", PAGES)
def test_every_link_into_the_tree_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[name].read_text()):
        if "://" not in link:
            path, _, heading = link.partition("#")
            page = (PAGES[name].parent / path) if path else PAGES[name]
            assert page.exists(), link
            assert not heading or heading in headings(page), link


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in found}


def at(address: str, example: str) -> str:
    assert "localhost:50051" in example
    return example.replace("localhost:50051", address)


async def run(*command: str, cwd: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told, _ = await asyncio.wait_for(process.communicate(), 100)
    assert process.returncode == 0, told.decode()
    return told.decode()


@pytest.fixture
async def answering(serve: Serve) -> str:
    """The address of a server that answers every prompt alike."""
    usage = Usage(input_tokens=5, output_tokens=6, total_tokens=11)
    finished = Finished(reason=FinishReason.STOP, upstream_reason="STOP", usage=usage)
    events: list[Event] = [Started("gemini-2.5-flash"), Text("Base"), Text("ball is a game."), finished]
    return (await serve(FakeProvider(events))).address


PYTHON = [block for block in blocks("python") if "streamlit" not in block]


@pytest.mark.parametrize("number", range(len(PYTHON)))
async def test_the_python_examples_stream_an_answer(number: int, answering: str, tmp_path: Path) -> None:
    example = tmp_path / "example.py"
    example.write_text(at(answering, PYTHON[number]))
    told = await run(sys.executable, str(example), cwd=tmp_path)
    assert told.startswith("Baseball is a game.\n")


async def test_the_streamlit_example_shows_an_answer(answering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (block for block in blocks("python") if "streamlit" in block)
    monkeypatch.setenv("TOKENWIRE_ADDRESS", answering)
    page = AppTest.from_string(example)

    def ask() -> None:
        page.run(timeout=20)
        page.chat_input[0].set_value("What is baseball?").run(timeout=20)

    await asyncio.to_thread(ask)
    assert not page.exception
    assert [text.value for text in page.markdown] == ["Baseball is a game."]


def test_what_a_chunk_costs_is_what_the_benchmark_has_measured() -> None:
    page = PAGES["benchmark.md"].read_text()
    assert README.count(" us |") == 8
    assert in_short(README, page) == README
    older = re.sub(r"\d(?=,?\d* us)", "1", README)
    assert older != README
    assert in_short(older, page) == README


def test_both_languages_show_the_same() -> None:
    """What programs read: examples, links, figures; and as many sections, promises and rows."""
    japanese = (ROOT / "README.ja.md").read_text()

    def shown(page: str) -> list[list[str]]:
        fences = re.findall(r"^```.*?^```$", page, re.DOTALL | re.MULTILINE)
        links = sorted(re.findall(r"\]\(([^)]+)\)", page))
        figures = re.findall(r"[\d,]+ us", page)
        shape = [
            "#" if line.startswith("#") else line[0] for line in page.splitlines() if re.match(r"#+ |- |\| ", line)
        ]
        return [fences, links, figures, shape]

    for english, translated in zip(shown(README), shown(japanese), strict=True):
        assert translated == [link.replace("README.ja.md", "README.md") for link in english]


async def test_the_node_example_streams_an_answer(answering: str, tmp_path: Path) -> None:
    (install,) = re.findall(r"`(npm install [^`]+)`", README)
    await run("sh", "-ec", install, cwd=tmp_path)
    (tmp_path / "protos").symlink_to(ROOT / "protos")
    (tmp_path / "example.js").write_text(at(answering, blocks("js")[0]))
    told = await run("node", "example.js", cwd=tmp_path)
    assert told == "Baseball is a game.\nFINISH_REASON_STOP\n"


async def test_the_grpcurl_example_is_answered_through_reflection_as_buf_curl_sends_it(
    answering: str, tmp_path: Path
) -> None:
    """The same bytes: grpcurl itself comes from no package index, and takes the same body and path."""
    (line,) = [block.strip() for block in blocks("sh") if block.startswith("grpcurl")]
    found = re.fullmatch(r"grpcurl -plaintext -d '(.+)' (\S+) (\S+)", line)
    assert found is not None
    body, address, method = found.groups()
    assert address == "localhost:50051"
    buf = Path(sys.executable).with_name("buf")
    command = [str(buf), "curl", "--http2-prior-knowledge", "--protocol", "grpc", "-d", body]
    told = await run(*command, f"http://{answering}/{method}", cwd=tmp_path)
    chunks, decoder, rest = [], json.JSONDecoder(), told
    while rest.strip():
        chunk, end = decoder.raw_decode(rest.lstrip())
        chunks.append(chunk)
        rest = rest.lstrip()[end:]
    assert "".join(chunk.get("text", "") for chunk in chunks) == "Baseball is a game."
    assert chunks[-1]["completed"]["finishReason"] == "FINISH_REASON_STOP"
