"""A local Vertex AI: Google's PredictionService over gRPC, answered by a script or by SmolLM2.

For tests in Python: `Emulator` and the builders in `vertex_emulator.script`. From a shell: `python -m vertex_emulator`.
"""

from vertex_emulator.calls import Call
from vertex_emulator.control import ControlClient
from vertex_emulator.emulator import Emulator
from vertex_emulator.mind import Mind, VertexError
from vertex_emulator.script import ScriptError, answer
from vertex_emulator.scripted import Scripted

__all__ = ["Call", "ControlClient", "Emulator", "Mind", "ScriptError", "Scripted", "VertexError", "answer"]
