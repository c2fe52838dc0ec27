"""Finds the programs: in the wheel they stand below `tokenwire`, in the source tree beside it."""

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import tokenwire


def program(name: str) -> ModuleType:
    """Import a module of theirs, such as "service.__main__". Raises ModuleNotFoundError.

    Only ours: anybody may have a folder of the same name, and it may come first on the path.
    """
    package = name.partition(".")[0]
    if importlib.util.find_spec(f"tokenwire.{package}") is not None:
        return importlib.import_module(f"tokenwire.{name}")
    _import_beside(package)
    return importlib.import_module(name)


def _import_beside(package: str) -> None:
    """Import this package of the source tree, wherever it comes on the path.

    Raises ModuleNotFoundError where there is none, and ImportError if another of its name has been imported already.
    """
    tree = str(Path(tokenwire.__file__).parents[1])
    spec = PathFinder.find_spec(package, [tree])
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"there is no {package!r} in {tree}", name=package)
    sys.path.insert(0, tree)
    try:
        found = importlib.import_module(package).__file__
    finally:
        sys.path.remove(tree)
    if found is None or not Path(found).samefile(spec.origin):
        raise ImportError(f"{package!r} has been imported from {found}; {spec.origin} is wanted")
