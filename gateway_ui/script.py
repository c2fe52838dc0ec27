"""What Streamlit runs again and again: it wants a script, which is in no package, so this one only calls the page."""

import importlib
from pathlib import Path

_HERE = Path(__file__).parent
_ABOVE = f"{_HERE.parent.name}." if (_HERE.parent / "__init__.py").exists() else ""  # in the wheel: tokenwire

importlib.import_module(f"{_ABOVE}{_HERE.name}.app").page()
