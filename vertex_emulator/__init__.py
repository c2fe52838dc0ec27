"""A local Vertex AI: Google's PredictionService over gRPC, answered by a script or by SmolLM2.

For tests in Python: `Emulator` and the builders in `vertex_emulator.script`. From a shell: `python -m
vertex_emulator`.
"""

from .answerers.base import Mind, VertexError
from .answerers.script import ScriptError, answer
from .answerers.scripted import Scripted
from .call_records import Call
from .control.client import ControlClient
from .emulator import Emulator

__all__ = ["Call", "ControlClient", "Emulator", "Mind", "ScriptError", "Scripted", "VertexError", "answer"]
