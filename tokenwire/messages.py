"""What messages are made of: parts, whole turns, and an answer as the turn that it becomes."""

import mimetypes
import os
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from tokenwire.v1.config_pb2 import FunctionDeclaration
from tokenwire.v1.content_pb2 import (
    ROLE_MODEL,
    ROLE_TOOL,
    ROLE_USER,
    Blob,
    FileData,
    Message,
    Part,
    ToolCall,
    ToolResult,
)
from tokenwire.v1.generation_service_pb2 import GenerateResponse


def user(*said: str | Part) -> Message:
    """Make a turn of the user's: text, and parts such as images."""
    return Message(role=ROLE_USER, parts=map(_part, said))


def model(*said: str | Part) -> Message:
    """Make a turn of the model's: an earlier answer. `Answer.message` makes it of a real one, signatures and all."""
    return Message(role=ROLE_MODEL, parts=map(_part, said))


def tool(*results: Part) -> Message:
    """Make the turn that answers the model's tool calls, one result for each."""
    return Message(role=ROLE_TOOL, parts=results)


def inline(data: bytes, mime_type: str) -> Part:
    """Make a part of bytes and their IANA media type, such as "image/png"."""
    return Part(inline_data=Blob(mime_type=mime_type, data=data))


def file(path: str | os.PathLike[str]) -> Part:
    """Make a part of a file's bytes; its type is told by its name.

    Raises OSError where it can't be read, ValueError where the name tells no type.
    """
    mime_type, encoding = mimetypes.guess_type(Path(path).name)
    if mime_type is None or encoding is not None:
        raise ValueError(f"{os.fspath(path)}: its name does not tell its type; one such as photo.png is wanted")
    return inline(Path(path).read_bytes(), mime_type)


def file_uri(uri: str, mime_type: str) -> Part:
    """Make a part of a reference such as "gs://bucket/report.pdf": the model's provider reads it, tokenwire doesn't."""
    return Part(file_data=FileData(mime_type=mime_type, file_uri=uri))


def tool_result(call: ToolCall, response: Mapping[str, object]) -> Part:
    """Make a part of what a called function returned; a failure is told as {"error": "..."}.

    Raises ValueError where it isn't JSON.
    """
    return Part(tool_result=ToolResult(tool_call_id=call.id, name=call.name, response=struct(response)))


def function(name: str, description: str, parameters: Mapping[str, object] | None = None) -> FunctionDeclaration:
    """Declare a function for `Tool.function_declarations`; `parameters` is the JSON schema of an object.

    Raises ValueError where the schema isn't JSON.
    """
    schema = None if parameters is None else struct(parameters)
    return FunctionDeclaration(name=name, description=description, parameters=schema)


def struct(value: Mapping[str, object]) -> Struct:
    """Give a JSON object as protobuf has it, for example a response schema. Raises ValueError where it isn't JSON."""
    try:
        return ParseDict(dict(value), Struct())
    except (ParseError, TypeError) as error:
        raise ValueError(f"This is no JSON object: {error}") from error


def _part(said: str | Part) -> Part:
    return Part(text=said) if isinstance(said, str) else said


class Turn:
    """Collects an answer's events into the message that a later request sends back.

    Pieces that belong together become one part; a signature stays with the part that it came with, and ends it.
    """

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._kind = ""
        # "text" or "reasoning" while pieces of it may still follow.
        self._pieces: list[str] = []

    def saw(self, message: GenerateResponse) -> None:
        """Add an event; one that is no part of a message changes nothing."""
        match message.WhichOneof("event"):
            case "text":
                self._add("text", message.text)
            case "reasoning":
                self._add("reasoning", message.reasoning.text)
                if message.reasoning.signature:
                    self._close(message.reasoning.signature)
            case "tool_call":
                self._close()
                event = message.tool_call
                self._parts.append(Part(tool_call=event.tool_call, reasoning_signature=event.reasoning_signature))
            case "started" | "grounding" | "logprobs" | "completed" | "failed" | None:
                pass

    @property
    def text(self) -> str:
        """The answer's text so far, thoughts not included."""
        return "".join(part.text for part in self.message.parts)

    @property
    def message(self) -> Message:
        """The turn so far. Without parts while nothing has come: no request may hold it then."""
        return Message(role=ROLE_MODEL, parts=[*self._parts, *self._open()])

    def _add(self, kind: str, piece: str) -> None:
        if kind != self._kind:
            self._close()
            self._kind = kind
        self._pieces.append(piece)

    def _close(self, signature: bytes = b"") -> None:
        self._parts += self._open(signature)
        self._pieces.clear()
        self._kind = ""

    def _open(self, signature: bytes = b"") -> list[Part]:
        whole = "".join(self._pieces)
        if self._kind == "reasoning":
            # Where only a signature came, it goes back with no words of its own.
            return [Part(reasoning=whole, reasoning_signature=signature)] if whole or signature else []
        return [Part(text=whole)] if whole else []
