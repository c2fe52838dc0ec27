"""Every package that our code imports is declared where it is needed: what is there through another may go away."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"tokenwire", "service", "gateway_ui", "vertex_emulator", "bench", "tests"}

# By the longest name that fits: sets of extras, each of which is enough for the module beside what every caller has.
NEEDS: dict[str, list[set[str]]] = {
    "tokenwire": [set()],
    "tokenwire.cli.running.edge": [{"edge"}],
    "tokenwire.cli.running.envoy_configuration": [{"edge"}],
    "tokenwire.cli.running.envoy_process": [{"edge"}],
    "service": [{"server"}],
    "service.admission.redis_link": [{"server", "redis"}],
    "service.telemetry.traces": [{"server", "otel"}],
    "service.providers.gemini.over_http": [{"server", "genai"}],
    "service.providers.gemini.http_messages": [{"server", "genai"}],
    "service.providers.chat_completions.provider": [{"server", "openai"}],
    "service.providers.chat_completions.failures": [{"server", "openai"}],
    "service.providers.http_failures": [{"server", "genai"}, {"server", "openai"}],
    "gateway_ui": [{"ui"}],
    "vertex_emulator": [set()],
    "vertex_emulator.http": [{"local"}],
    "vertex_emulator.answerers.smollm2": [{"local"}],
    "vertex_emulator.answerers.weights": [{"local"}],
    "bench": [{"server", "dev"}],
    "bench.edge": [{"server", "edge", "dev"}],
    "bench.page": [{"server", "ui", "dev"}],
    "bench.page.sessions": [{"ui", "dev"}],
    "bench.page.stamped": [{"server", "dev"}],
    "tests": [{"server", "genai", "openai", "ui", "local", "redis", "otel", "edge", "dev"}],
}


@cache
def owners() -> dict[str, str]:
    """By module: the distribution that brings it."""
    found = {}
    for distribution in distributions():
        owner = normal(distribution.name)  # reads a file each time
        # Not `distribution.files`, which makes objects of a hundred thousand lines.
        for line in (distribution.read_text("RECORD") or "").splitlines():
            path = line.partition(",")[0]
            if path.endswith((".py", ".so", ".pyd")) and not path.startswith(".."):
                folder, _, file = path.rpartition("/")
                name = f"{folder}/{file.partition('.')[0]}".strip("/").replace("/", ".")
                found[name.removesuffix(".__init__")] = owner
    return found


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def owner_of(name: str) -> str:
    """The distribution that brings what is imported by this name."""
    while name:
        if name in owners():
            return owners()[name]
        name = name.rpartition(".")[0]
    raise LookupError


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:  # else it is our own
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.List | ast.Tuple):  # a command: [sys.executable, "-m", "MODULE", ...]
            match node.elts:
                case [ast.Attribute(attr="executable"), ast.Constant("-m"), ast.Constant(str(name)), *_]:
                    yield name
                case _:
                    pass


def outside(source: str) -> set[str]:
    """The distributions that a file imports from."""
    names = {name for name in imported(source) if name.partition(".")[0] not in OURS | sys.stdlib_module_names}
    return {owner_of(name) for name in names}


@cache
def declared() -> dict[str, set[str]]:
    """By extra, and "dev": the distributions that it names; "" for what every caller has."""
    told: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = {
        "": told["project"]["dependencies"],
        **told["project"]["optional-dependencies"],
        "dev": told["dependency-groups"]["dev"],
    }
    return {
        extra: {normal(re.split(r"[\s<>=!~;\[]", line, maxsplit=1)[0]) for line in lines}
        for extra, lines in lists.items()
    }


def undeclared(module: str, source: str) -> set[str]:
    """The distributions that a module imports from, and that what it needs doesn't name."""
    room = max((room for room in NEEDS if module == room or module.startswith(room + ".")), key=len)
    found = set()
    for extras in NEEDS[room]:
        found |= outside(source) - set().union(*(declared()[extra] for extra in {"", *extras}))
    return found


FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for package in sorted(OURS)
    for path in sorted((ROOT / package).rglob("*.py"))
}


@pytest.mark.parametrize("package", sorted(OURS))
def test_what_is_imported_is_declared(package: str) -> None:
    modules = {module: path for module, path in FILES.items() if module.partition(".")[0] == package}
    missing = {module: undeclared(module, path.read_text()) for module, path in modules.items()}
    assert {module: names for module, names in missing.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "source", "names"),
    [
        ("tokenwire.x", "import grpc_health.v1\n", {"grpcio-health-checking"}),
        ("tokenwire.x", "from google.rpc import status_pb2\n", set()),
        ("service.x", "from google.genai import types\n", {"google-genai"}),
        ("service.x", "def f():\n    import pydantic\n", {"pydantic"}),
        ("service.providers.http_failures", "import openai\n", {"openai"}),
        ("vertex_emulator.x", "run([sys.executable, '-m', 'pip', 'download'])\n", {"pip"}),
        ("gateway_ui.x", "from PIL import Image\n", set()),
    ],
)
def test_what_is_not_declared_is_noticed(module: str, source: str, names: set[str]) -> None:
    assert undeclared(module, source) == names
