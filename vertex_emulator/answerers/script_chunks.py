"""What a step of a script says, as bytes on the wire: whose voice, which words, which chunk; pure."""

from ..protos import prediction_pb2 as pb
from ..protos.script_pb2 import Step

# Steps whose chunk can tell the finish reason.
CHUNKS = frozenset({"text", "text_bytes", "thought", "part", "grounding", "citations", "logprobs"})


def voice_of(step: Step, kind: str) -> str:
    match kind:
        case "text" | "text_bytes" | "logprobs":
            return "text"
        case "thought":
            return "thought"
        case "part" if step.part.HasField("text"):
            return "thought" if step.part.thought else "text"
        case _:
            return ""


def words_of(step: Step, kind: str) -> str:
    match kind:
        case "logprobs":
            return "".join(one.token for one in step.logprobs.chosen_candidates)
        case "part":
            return step.part.text
        case "thought":
            return step.thought
        case "text_bytes":
            return step.text_bytes.decode("latin-1")  # one character for each byte
        case _:
            return step.text


def chunk_of(step: Step, kind: str, finish: pb.Candidate) -> bytes:
    match kind:
        case "text_bytes":
            return _with_text(step.text_bytes, finish)
        case "response":
            return step.response.SerializeToString()
        case "message_bytes":
            return step.message_bytes
        case "blocked":
            feedback = pb.GenerateContentResponse.PromptFeedback(
                block_reason=step.blocked.reason,
                block_reason_message=step.blocked.message,
                safety_ratings=step.blocked.safety_ratings,
            )
            return pb.GenerateContentResponse(prompt_feedback=feedback).SerializeToString()
        case _:
            if kind not in CHUNKS:
                return b""
    part = step.part if kind == "part" else pb.Part(text=words_of(step, kind), thought=kind == "thought")
    candidate = pb.Candidate(content=pb.Content(role="model", parts=[part]))
    if kind == "grounding":
        candidate.grounding_metadata.CopyFrom(step.grounding)
    if kind == "citations":
        candidate.citation_metadata.CopyFrom(step.citations)
    if kind == "logprobs":
        candidate.logprobs_result.CopyFrom(step.logprobs)
    candidate.MergeFrom(finish)
    return pb.GenerateContentResponse(candidates=[candidate]).SerializeToString()


def _with_text(text: bytes, finish: pb.Candidate) -> bytes:
    # Protobuf's own setters refuse invalid UTF-8, so the three levels around the text are written by hand:
    # Part.text = 1 in Content.parts = 2 in Candidate.content = 2 in GenerateContentResponse.candidates = 2.
    role = pb.Content(role="model").SerializeToString()
    content = role + _field(2, _field(1, text))
    return _field(2, _field(2, content) + finish.SerializeToString())


def _field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:  # seven bits a byte
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
