"""Who may import whom, by room (docs: where things live)."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("tokenwire", "service", "gateway_ui", "vertex_emulator", "tests", "bench")


def rooms(page: str) -> dict[str, set[str]]:
    """By room: what it may import of ours, beside itself. A file belongs to the longest name that fits."""
    table = re.findall(r"^\| `([\w/.]+)` \| .* \| (-|`.+`) \|$", page.partition("## Where does it go")[0], re.MULTILINE)

    def module(path: str) -> str:
        return path.removesuffix(".py").replace("/", ".")

    return {module(room): {module(name) for name in re.findall("`(.+?)`", known)} for room, known in table}


ROOMS = rooms((ROOT / "docs/architecture.md").read_text())

# outside library -> the only modules that may know it
ONLY = {
    "langchain_google_vertexai": {"service.providers.gemini.over_grpc", "service.providers.gemini.shortcuts"},
    "langchain_google_genai": {"service.providers.gemini.over_http"},
    "langchain_openai": {"service.providers.chat_completions.provider"},
    "langchain_core": {
        "service.providers.chat_completions.provider",
        "service.providers.gemini.chat_vertex",
        "service.providers.gemini.over_grpc",
        "service.providers.gemini.shortcuts",
        "service.providers.langchain_messages",
        "service.providers.tracing",
    },
    "google.cloud": {
        "service.providers.gemini.chat_vertex",
        "service.providers.gemini.over_grpc",
        "service.providers.gemini.shortcuts",
    },
    "google.auth": {"service.app", "service.providers.gemini.credentials"},
    "google.genai": {"service.providers.gemini.over_http"},
    "openai": {"service.providers.chat_completions.failures", "service.providers.chat_completions.provider"},
    "envoy": {"tokenwire.cli.running.envoy_process"},
    "yaml": {"tokenwire.cli.running.envoy_configuration"},
    "uvicorn": {"vertex_emulator.http.server"},
    "streamlit": {
        *(
            f"gateway_ui.{name}"
            for name in (
                *("__main__", "actions", "app", "asking", "clicks", "conversations", "following"),
                *("leftovers", "offer", "sidebar", "tab", "taking"),
            )
        ),
        *(f"gateway_ui.drawing.{name}" for name in ("exchange_view", "reader")),
    },
    "PIL": {"gateway_ui.input.images"},
    "markdown_it": {
        f"gateway_ui.drawing.markdown.{name}"
        for name in (
            *("colours", "direction", "ends", "formulas", "growing", "links", "mathml"),
            *("paragraphs", "parser", "renderer"),
        )
    },
    "pygments": {"gateway_ui.drawing.markdown.colours"},
    "latex2mathml": {"gateway_ui.drawing.markdown.mathml"},
    "opentelemetry": {"service.telemetry.traces"},
    "prometheus_client": {"service.telemetry.prometheus"},
    "redis": {"service.admission.redis_link"},
    "xllamacpp": {"vertex_emulator.answerers.smollm2"},
}

READ_THE_ENVIRONMENT = {"service.__main__", "service.app", "service.keys"}


def imports(source: str, module: str) -> Iterator[str]:
    """Everything that a module imports, wherever in it, by its full name."""
    package = module if module in PACKAGES else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = "." * node.level + (node.module or "")
            yield from (f"{importlib.util.resolve_name(name, package)}.{alias.name}" for alias in node.names)


def within(name: str, rooms: set[str]) -> bool:
    return any(name == room or name.startswith(room + ".") for room in rooms)


def room_of(name: str) -> str:
    found = [room for room in ROOMS if within(name, {room})]
    assert found, f"{name} is in no room"
    return max(found, key=len)


def forbidden(module: str, source: str) -> set[str]:
    """What a module imports against the rules."""
    room = room_of(module)
    return {
        name
        for name in imports(source, module)
        if name.split(".")[0] in OURS
        and name != "service"
        and not within(name, ROOMS[room])
        and not (within(name, {room}) and room_of(name) == room)
    }


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


PATHS = {
    name_of(path): path
    for package in ("tokenwire", "service", "gateway_ui", "vertex_emulator")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "_pb2" not in path.name and path.read_text().strip()
}
PACKAGES = {name for name, path in PATHS.items() if path.name == "__init__.py"}
SOURCES = {module: path.read_text() for module, path in PATHS.items() if module != "service"}


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_only_from_the_rooms_that_its_own_may_know(module: str) -> None:
    assert forbidden(module, SOURCES[module]) == set()


def reached(room: str) -> dict[str, str]:
    """All modules of ours that a room's import, themselves or through others; of each, one that imports it."""
    found: dict[str, str] = {}
    unseen = [module for module in SOURCES if room_of(module) == room]
    while unseen:
        module = unseen.pop()
        for name in imports(SOURCES[module], module):
            for known in (name, name.rpartition(".")[0]):
                if known in SOURCES and known not in found:
                    found[known] = module
                    unseen.append(known)
    return found


# What holds whatever docs/architecture.md says, and through whatever lies between.
NEVER = [
    ("service.calls", "service.providers"),
    ("service.providers", "service.settings"),
]
ALONE = ["service.generation", "service.errors", "service.telemetry", "tokenwire", "vertex_emulator"]


@pytest.mark.parametrize(("room", "other"), NEVER)
def test_a_room_never_knows_another(room: str, other: str) -> None:
    assert {name: by for name, by in reached(room).items() if within(name, {other})} == {}


def test_what_lies_between_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SOURCES, "service.calls.x", "from service.settings import Settings\n")
    assert reached("service.calls")["service.providers.registry"] in {"service.settings", "service.providers.offers"}


@pytest.mark.parametrize("room", ALONE)
def test_a_room_knows_nothing_of_ours_but_itself(room: str) -> None:
    assert ROOMS[room] == set()
    assert {name: by for name, by in reached(room).items() if not within(name, {room})} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_import_each_other_in_no_circle(room: str) -> None:
    graph = {}
    for module, source in SOURCES.items():
        if room_of(module) == room:
            known = [(name, name.rpartition(".")[0]) for name in imports(source, module)]
            graph[module] = {one for names in known for one in names if one in SOURCES and one != module}
    assert list(TopologicalSorter(graph).static_order()) or not graph


def test_only_one_place_knows_each_outside_library() -> None:
    for module, source in SOURCES.items():
        for name in imports(source, module):
            for library, places in ONLY.items():
                assert not within(name, {library}) or module in places, f"{module} imports {name}"


def test_only_the_composition_roots_read_the_environment() -> None:
    readers = {
        module
        for module, source in SOURCES.items()
        if within(module, {"service"}) and re.search(r"\bos\.(environ|getenv)\b|from os import", source)
    }
    assert readers == READ_THE_ENVIRONMENT


def test_the_vocabulary_knows_no_library() -> None:
    for module, source in SOURCES.items():
        if within(module, {"service.generation"}):
            outside = {name for name in imports(source, module) if name.split(".")[0] not in sys.stdlib_module_names}
            assert {name for name in outside if not within(name, {"service.generation"})} == set(), module


def texts(source: str) -> Iterator[str]:
    """What a module may say to people: its texts, but for those that stand alone, as docstrings do."""
    tree = ast.parse(source)
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


INDEX = re.compile(r"\b(pip3?|pipx|uv|poetry|conda)\s+(install|add|pip)\b|\buvx\b|pypi", re.IGNORECASE)


@pytest.mark.parametrize("module", PATHS)
def test_no_text_names_an_index_which_may_not_have_us(module: str) -> None:
    assert [text for text in texts(PATHS[module].read_text()) if INDEX.search(text)] == []


@pytest.mark.parametrize(
    "source",
    ["raise ImportError(\"pip install 'tokenwire[ui]'\")", "x = f'{name}: see pypi.org'", "print('run uv add x')"],
)
def test_a_text_that_names_an_index_is_noticed(source: str) -> None:
    assert any(map(INDEX.search, texts(source)))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("service.calls.x", "from service.providers import retry\n"),
        ("service.calls.x", "def f():\n    from service.providers.retry import Policy\n"),
        ("service.generation.x", "import service.errors\n"),
        ("service.contract.x", "from service import settings\n"),
        ("service.admission.x", "from tokenwire.v1 import content_pb2\n"),
        ("service.runtime.x", "from service.admission.slot_queue import Admission\n"),
        ("service.providers.x", "from service.settings import Settings\n"),
        ("tokenwire.x", "from tokenwire.cli import ask\n"),
        ("tokenwire.cli.x", "from service import app\n"),
        ("gateway_ui.x", "from vertex_emulator import Emulator\n"),
        ("vertex_emulator.x", "import tokenwire\n"),
    ],
)
def test_a_rule_that_is_broken_is_noticed(module: str, source: str) -> None:
    assert forbidden(module, source)
