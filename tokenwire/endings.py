"""Why an answer ended, in words for a person."""

from collections.abc import Mapping
from types import MappingProxyType

from tokenwire.v1 import generation_service_pb2 as pb

# Every reason but STOP, which needs no words.
ENDINGS: Mapping[pb.FinishReason.ValueType, str] = MappingProxyType(
    {
        pb.FINISH_REASON_UNSPECIFIED: "The service did not say why the answer ended.",
        pb.FINISH_REASON_MAX_TOKENS: "The answer was cut: it reached the token limit.",
        pb.FINISH_REASON_SAFETY: "The answer was stopped by a safety filter.",
        pb.FINISH_REASON_RECITATION: "The answer was stopped: it came too close to its training data.",
        pb.FINISH_REASON_BLOCKLIST: "The answer was stopped: it contained a forbidden term.",
        pb.FINISH_REASON_PROHIBITED_CONTENT: "The answer was stopped: it may contain prohibited content.",
        pb.FINISH_REASON_SPII: "The answer was stopped: it may contain personal data.",
        pb.FINISH_REASON_MALFORMED_FUNCTION_CALL: "The model asked for a function in a form that can't be read.",
        pb.FINISH_REASON_PROMPT_BLOCKED: "The question was blocked: there is no answer.",
        pb.FINISH_REASON_OTHER: "The answer ended for another reason.",
        pb.FINISH_REASON_MODEL_ARMOR: "The question or the answer was blocked by Model Armor.",
    }
)


def ending(completed: pb.Completed) -> str:
    """Say why it ended where it wasn't simply done; empty where it was."""
    if completed.finish_reason == pb.FINISH_REASON_STOP:
        return ""
    # A newer service may know reasons that this version doesn't.
    words = ENDINGS.get(completed.finish_reason, ENDINGS[pb.FINISH_REASON_OTHER])
    upstream = completed.upstream_finish_reason
    return f"{words} ({upstream})" if upstream else words


def finish(completed: pb.Completed) -> str:
    """Name the finish reason as people read it: "stop", "max tokens"."""
    known = completed.finish_reason in pb.FinishReason.values()
    reason = completed.finish_reason if known else pb.FINISH_REASON_OTHER
    return pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_").replace("_", " ").lower()
