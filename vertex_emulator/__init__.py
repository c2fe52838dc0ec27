"""A local Vertex AI: Google's PredictionService over gRPC, answered by a script or by SmolLM2.

For tests in Python: `Emulator` and the builders in `vertex_emulator.script`. From a shell: `python -m
vertex_emulator`.
"""

from vertex_emulator.answerers.base import Mind, VertexError
from vertex_emulator.answerers.script import ScriptError, answer
from vertex_emulator.answerers.scripted import Scripted
from vertex_emulator.call_records import Call
from vertex_emulator.control.client import ControlClient
from vertex_emulator.emulator import Emulator

__all__ = ["Call", "ControlClient", "Emulator", "Mind", "ScriptError", "Scripted", "VertexError", "answer"]
