"""An answer that came in pieces, as one message."""

from collections.abc import Sequence

from vertex_emulator import prediction_pb2 as pb


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
