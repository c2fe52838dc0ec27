"""Who may import whom: the walls of the house."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("tokenwire", "service", "gateway_ui", "vertex_emulator", "tokenwire_cli", "tests", "bench")

# package -> those of ours that it may import
PACKAGES = {
    "protos/tokenwire": {"tokenwire"},
    "service": {"service", "tokenwire"},
    "gateway_ui": {"gateway_ui", "tokenwire"},
    "vertex_emulator": {"vertex_emulator"},
    "tokenwire_cli": {"tokenwire_cli", "gateway_ui", "vertex_emulator"},
}

# module of the service -> the modules of ours that it may import
SERVICE = {
    "config": {"service.offers"},
    "log": set(),
    "errors": set(),
    "model": set(),
    "values": set(),
    "memory": set(),
    "offers": {"service.model"},
    "catalogue": {"service.model"},
    "providers": {"service.catalogue", "service.config", "service.model", "service.offers"},
    "admission": {"service.errors", "service.slots"},
    "slots": set(),
    "address": {"service.config"},
    "stop": set(),
    "workers": {"service.address", "service.log", "service.stop"},
    "handover": set(),
    "process": {
        "service.config",
        "service.handover",
        "service.log",
        "service.model",
        "service.server",
        "service.slots",
        "service.stop",
    },
    "cleanup": set(),
    "coalesce": {"service.cleanup", "service.model"},
    "patience": {"service.errors"},
    "retry": {"service.errors", "service.model"},
    "langchain": {"service.model", "service.offers"},
    "gemini": {"service.errors", "service.model", "service.schema", "service.values"},
    "credentials": {"service.errors"},
    "http": {"service.errors"},
    "chat": {"service.gemini", "service.langchain", "service.model"},
    "vertex": {
        "service.chat",
        "service.credentials",
        "service.errors",
        "service.gemini",
        "service.langchain",
        "service.model",
        "service.offers",
    },
    "genai": {
        "service.cleanup",
        "service.credentials",
        "service.errors",
        "service.gemini",
        "service.http",
        "service.langchain",
        "service.model",
        "service.offers",
    },
    "openai": {
        "service.cleanup",
        "service.errors",
        "service.gemini",
        "service.http",
        "service.langchain",
        "service.model",
        "service.offers",
        "service.values",
    },
    "schema": {"service.errors", "service.values"},
    "mistakes": {
        "service.coalesce",
        "service.errors",
        "service.model",
        "service.schema",
        "service.values",
        "tokenwire.v1",
    },
    "wire": {
        "service.coalesce",
        "service.errors",
        "service.mistakes",
        "service.model",
        "service.schema",
        "service.values",
        "tokenwire.v1",
    },
    "receive": {"service.errors", "service.memory"},
    "call": {"service.patience"},
    "health": {"service.call", "service.errors"},
    "guard": {
        "service.call",
        "service.config",
        "service.errors",
        "service.log",
        "service.memory",
        "service.patience",
        "service.receive",
    },
    "servicer": {
        "service.admission",
        "service.call",
        "service.coalesce",
        "service.config",
        "service.errors",
        "service.log",
        "service.mistakes",
        "service.model",
        "service.slots",
        "service.wire",
        "tokenwire.v1",
    },
    "server": {
        "service.address",
        "service.config",
        "service.guard",
        "service.health",
        "service.log",
        "service.model",
        "service.receive",
        "service.servicer",
        "service.slots",
        "tokenwire.v1",
    },
}

# outside library -> the only modules that may know it
ONLY = {
    "langchain_google_vertexai": {"service/chat.py", "service/vertex.py"},
    "langchain_google_genai": {"service/genai.py"},
    "langchain_openai": {"service/openai.py"},
    "langchain_core": {"service/chat.py", "service/vertex.py", "service/openai.py", "service/langchain.py"},
    "google.cloud": {"service/chat.py", "service/vertex.py"},
    "google.auth": {"service/credentials.py", "service/app.py"},
    "google.genai": {"service/genai.py"},
    "openai": {"service/openai.py"},
    "uvicorn": {"vertex_emulator/door.py"},
    # The page is three rooms: the story of a run, the drawer with the settings, and what an exchange looks like.
    "streamlit": {
        "gateway_ui/app.py",
        "gateway_ui/settings.py",
        "gateway_ui/drawing.py",
        "gateway_ui/__main__.py",
    },
    "PIL": {"gateway_ui/attachments.py"},
    "xllamacpp": {"vertex_emulator/smollm2.py"},
}


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(package: str) -> list[Path]:
    found = [path for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name]
    assert found or package == "protos/tokenwire"
    return found


def inside(module: str, allowed: set[str]) -> bool:
    return any(module == one or module.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_the_packages_it_may(package: str) -> None:
    for path in sources(package):
        for module in imports(path):
            if module.split(".")[0] in OURS:
                assert inside(module, PACKAGES[package]), f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("path", sources("service"), ids=lambda path: path.stem)
def test_a_module_of_the_service_imports_only_its_neighbours(path: Path) -> None:
    if path.stem in ("__init__", "__main__", "app"):  # the composition root may know everyone
        return
    for module in imports(path):
        if module.split(".")[0] in OURS and module != "service":
            assert inside(module, SERVICE[path.stem]), f"service/{path.name} imports {module}"


def test_only_one_place_knows_each_outside_library() -> None:
    for package in PACKAGES:
        for path in sources(package):
            name = str(path.relative_to(ROOT))
            for module in imports(path):
                for library, places in ONLY.items():
                    if inside(module, {library}):
                        assert name in places, f"{name} imports {module}"


def test_only_the_composition_roots_read_the_environment() -> None:
    for path in sources("service"):
        # The last need `os` to fork, for pipes and for signals.
        if path.stem in ("config", "__main__", "app", "workers", "handover", "slots", "stop"):
            continue
        assert "os" not in set(imports(path)), f"{path.relative_to(ROOT)} imports os"


def test_a_rule_that_is_broken_is_noticed(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f():\n    from service.vertex import VertexModel\n")
    assert "service.vertex" in set(imports(broken))
    assert not inside("service.vertex", PACKAGES["gateway_ui"])
