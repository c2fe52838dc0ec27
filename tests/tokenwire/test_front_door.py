"""`from tokenwire import ...`: every name, loaded when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import tokenwire


def declared() -> dict[str, str]:
    """What type checkers are told: name -> module."""
    tree = ast.parse(Path(tokenwire.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module or "" for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }


@pytest.mark.parametrize("name", tokenwire.__all__)
def test_every_name_is_that_of_its_module(name: str) -> None:
    assert getattr(tokenwire, name) is getattr(sys.modules[declared()[name]], name)


def test_type_checkers_are_told_of_every_name() -> None:
    assert set(declared()) == set(tokenwire.__all__)
    assert set(tokenwire.__all__) <= set(dir(tokenwire))


def test_every_error_is_there() -> None:
    from tokenwire import errors  # noqa: PLC0415 - the package alone is what the others ask

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and kind.__module__ == errors.__name__]
    assert {kind.__name__ for kind in kinds if issubclass(kind, Exception)} <= set(tokenwire.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tokenwire' has no attribute 'Clients'"):
        _ = tokenwire.Clients  # type: ignore[attr-defined]
    with pytest.raises(ImportError):
        from tokenwire import Clients  # type: ignore[attr-defined]  # noqa: F401, PLC0415


@pytest.mark.parametrize(
    ("statement", "not_loaded"),
    [
        ("import tokenwire", {"grpc", "google.protobuf", "asyncio"}),
        ("from tokenwire.v1 import generation_service_pb2", {"grpc", "tokenwire.client", "tokenwire.errors"}),
        ("from tokenwire import Client", {"tokenwire.aio"}),
        ("from tokenwire import user", {"tokenwire.client", "grpc"}),
    ],
)
def test_nothing_else_is_loaded(statement: str, not_loaded: set[str]) -> None:
    loaded = subprocess.check_output(
        [sys.executable, "-c", f"import sys; {statement}; print(*sys.modules)"], text=True
    ).split()
    assert not not_loaded & set(loaded)
