"""The command finds its own programs, and no others of the same names."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

import service
from tokenwire.cli.running.programs import program

ROOT = Path(__file__).parents[4]


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `service` that comes first on the path."""
    found = tmp_path / "service" / "__init__.py"
    found.parent.mkdir()
    found.write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return found


def test_a_program_is_the_one_beside_the_command(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del foreign
    monkeypatch.delitem(sys.modules, "service")
    monkeypatch.delitem(sys.modules, "service.errors", raising=False)
    path = list(sys.path)
    assert program("service.errors").__file__ == str(ROOT / "service" / "errors.py")
    assert sys.path == path


def test_another_that_has_been_imported_already_is_named(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = ModuleType("service")
    other.__file__ = str(foreign)
    monkeypatch.setitem(sys.modules, "service", other)
    with pytest.raises(ImportError) as refused:
        program("service.errors")
    assert str(refused.value) == (
        f"'service' has been imported from {foreign}; {ROOT / 'service' / '__init__.py'} is wanted"
    )


def test_a_program_that_is_not_there(foreign: Path) -> None:
    del foreign
    with pytest.raises(ModuleNotFoundError, match=f"there is no 'bench2' in {ROOT}"):
        program("bench2.__main__")
    assert sys.modules["service"] is service
