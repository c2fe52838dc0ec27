"""Why an answer ended: in words for a person, and as an error where it wasn't simply done."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from tokenwire.errors import (
    BlocklistError,
    EmptyAnswerError,
    MalformedFunctionCallError,
    ModelArmorError,
    OtherFinishError,
    PersonalDataError,
    ProhibitedContentError,
    PromptBlockedError,
    RecitationError,
    SafetyError,
    TokenLimitError,
    UnfinishedError,
)
from tokenwire.v1 import generation_service_pb2 as pb


class Ending(NamedTuple):
    """A finish reason's error and what a person is told."""

    error: type[UnfinishedError]
    text: str


# Every reason but STOP, which needs no words.
ENDINGS: Mapping[pb.FinishReason.ValueType, Ending] = MappingProxyType(
    {
        pb.FINISH_REASON_UNSPECIFIED: Ending(OtherFinishError, "The service did not say why the answer ended."),
        pb.FINISH_REASON_MAX_TOKENS: Ending(TokenLimitError, "The answer was cut: it reached the token limit."),
        pb.FINISH_REASON_SAFETY: Ending(SafetyError, "The answer was stopped by a safety filter."),
        pb.FINISH_REASON_RECITATION: Ending(
            RecitationError, "The answer was stopped: it came too close to its training data."
        ),
        pb.FINISH_REASON_BLOCKLIST: Ending(BlocklistError, "The answer was stopped: it contained a forbidden term."),
        pb.FINISH_REASON_PROHIBITED_CONTENT: Ending(
            ProhibitedContentError, "The answer was stopped: it may contain prohibited content."
        ),
        pb.FINISH_REASON_SPII: Ending(PersonalDataError, "The answer was stopped: it may contain personal data."),
        pb.FINISH_REASON_MALFORMED_FUNCTION_CALL: Ending(
            MalformedFunctionCallError, "The model asked for a function in a form that can't be read."
        ),
        pb.FINISH_REASON_PROMPT_BLOCKED: Ending(PromptBlockedError, "The question was blocked: there is no answer."),
        pb.FINISH_REASON_OTHER: Ending(OtherFinishError, "The answer ended for another reason."),
        pb.FINISH_REASON_MODEL_ARMOR: Ending(ModelArmorError, "The question or the answer was blocked by Model Armor."),
        pb.FINISH_REASON_EMPTY: Ending(EmptyAnswerError, "The answer is empty: the model was done and said nothing."),
    }
)

ONLY_THOUGHTS = "The answer is empty: the model thought and said nothing."


def ending(completed: pb.Completed) -> str:
    """Say why it ended where it wasn't simply done; empty where it was."""
    if completed.finish_reason == pb.FINISH_REASON_STOP:
        return ""
    words = ENDINGS[_known(completed)].text
    upstream = completed.upstream_finish_reason
    return f"{words} ({upstream})" if upstream else words


def shortfall(completed: pb.Completed, *, said: bool, called: bool, thought: bool) -> str:
    """Say why an answer isn't all that was asked for: how it ended, or that there is nothing in it; else empty.

    `said`: it has text; `called`: it calls a tool; `thought`: thoughts came. Whether it is empty is told by these, not
    by its finish reason: a tool call is an answer, and thoughts are none.
    """
    if completed.finish_reason not in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_EMPTY):
        return ending(completed)
    if said or called:
        return ""
    if thought or completed.usage.reasoning_tokens:
        return ONLY_THOUGHTS
    return ENDINGS[pb.FINISH_REASON_EMPTY].text


def unfinished(completed: pb.Completed, *, pieces: int, text: str) -> UnfinishedError | None:
    """Make the error for an answer that wasn't simply done; None where it was.

    `pieces` of text had come, `text` in all.
    """
    if completed.finish_reason == pb.FINISH_REASON_STOP:
        return None
    reason = _known(completed)
    return ENDINGS[reason].error(
        ending(completed),
        completed=completed,
        reason=pb.FinishReason.Name(reason).removeprefix("FINISH_REASON_"),
        pieces=pieces,
        text=text,
    )


def finish(completed: pb.Completed) -> str:
    """Name the finish reason as people read it: "stop", "max tokens"."""
    return pb.FinishReason.Name(_known(completed)).removeprefix("FINISH_REASON_").replace("_", " ").lower()


def _known(completed: pb.Completed) -> pb.FinishReason.ValueType:
    """Give the finish reason; OTHER where a newer service knows one that this version doesn't."""
    reason = completed.finish_reason
    return reason if reason in pb.FinishReason.values() else pb.FINISH_REASON_OTHER
