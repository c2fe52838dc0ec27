"""The messages of an answer: put together into one, or opened for those who don't speak protobuf."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from google.protobuf import empty_pb2
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from .protos import prediction_pb2 as pb

# The fields on the way to the first text of a response: candidates, content, parts, text.
TEXT_PATH = (2, 2, 2, 1)

# Stands in a response for text that protobuf can't hold.
PLACE = "the place of text that is no UTF-8"


def merge(pieces: Sequence[bytes]) -> bytes:
    """One response that says what all these say: texts joined, of everything else the last word."""
    if len(pieces) == 1:
        return pieces[0]
    whole = pb.GenerateContentResponse()
    candidates: dict[int, pb.Candidate] = {}
    for piece in map(pb.GenerateContentResponse.FromString, pieces):
        for candidate in piece.candidates:
            if candidate.index not in candidates:
                candidates[candidate.index] = pb.Candidate(content=pb.Content(role=candidate.content.role))
            target = candidates[candidate.index]
            for part in candidate.content.parts:
                _add_part(target.content, part)
            candidate.ClearField("content")
            target.MergeFrom(candidate)
        piece.ClearField("candidates")
        if piece.HasField("usage_metadata"):
            whole.ClearField("usage_metadata")
        whole.MergeFrom(piece)
    whole.candidates.extend(candidates.values())
    return whole.SerializeToString()


def _add_part(content: pb.Content, part: pb.Part) -> None:
    last = content.parts[-1] if content.parts else None
    plain = part.WhichOneof("data") == "text" and not part.thought_signature
    if last is not None and plain and last.WhichOneof("data") == "text" and last.thought == part.thought:
        last.text += part.text
    elif last is None or not plain or part.text:  # a finish reason that came by itself had an empty text beside it
        content.parts.append(part)


@dataclass(frozen=True, slots=True)
class Opened:
    """A response on its way into JSON."""

    response: pb.GenerateContentResponse

    raw: bytes | None = None
    # its text between the quotes of JSON, where it is no valid UTF-8; the response holds PLACE instead

    @classmethod
    def of(cls, message: bytes) -> Self | None:
        """Open a serialized response; None: it is none."""
        try:
            return cls(pb.GenerateContentResponse.FromString(message))
        except DecodeError:
            pass
        try:
            text = _text(message)
            response = pb.GenerateContentResponse.FromString(message.replace(text, b"?" * len(text)))
        except (DecodeError, StopIteration):
            return None
        response.candidates[0].content.parts[0].text = PLACE
        return cls(response, _quoted(text))

    def put_back(self, data: bytes) -> bytes:
        """JSON that was made of the response, with the text that it really has."""
        return data if self.raw is None else data.replace(json.dumps(PLACE).encode(), b'"' + self.raw + b'"')


def _text(message: bytes) -> bytes:
    # Unknown fields aren't checked for UTF-8, so the text can be had through an empty message.
    for number in TEXT_PATH:
        fields = UnknownFieldSet(empty_pb2.Empty.FromString(message))
        message = next(fields[at].data for at in range(len(fields)) if fields[at].field_number == number)
    return message


def _quoted(text: bytes) -> bytes:
    try:
        # What JSON can say with escapes it says so: a lone surrogate.
        return json.dumps(text.decode("utf-8", "surrogatepass"))[1:-1].encode()
    except UnicodeDecodeError:
        return text.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
