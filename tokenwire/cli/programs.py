"""Finds the programs: in the wheel they stand below `tokenwire`, in the source tree beside it."""

import importlib
import importlib.util
from types import ModuleType


def program(name: str) -> ModuleType:
    """Import a module of theirs, such as "service.__main__". Raises ModuleNotFoundError.

    That of the wheel first: anybody may have a folder of the same name.
    """
    above = "tokenwire." if importlib.util.find_spec(f"tokenwire.{name.partition('.')[0]}") else ""
    return importlib.import_module(above + name)
