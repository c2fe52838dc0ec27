"""What Gemini says, in the JSON form of Google's API, whichever client carries it. No I/O.

Nothing of that form is taken for granted: it may have come through a server that has its own ways. What is missing or
null is read past. So is what has another type, where nothing of the answer is lost by it, such as a count or a source;
where something would be lost, it is UPSTREAM_FAULT, naming its place.

LangChain drops much of it: signatures of thoughts, ids of calls, why a prompt was blocked, whether there was a finish
reason at all. So what isn't plain text is read here.
Source: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1beta1/GenerateContentResponse
"""

import base64
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ... import errors
from ...generation import json_values
from ...generation.events import (
    Event,
    Finished,
    FinishReason,
    Logprobs,
    SafetyRating,
    Text,
    TokenLogprob,
    Usage,
)
from ...generation.prompt import Reasoning, ToolCall
from ..foreign_json import fault, is_object, json_list, json_object, list_or_empty, object_or_empty, plain, text_of
from ..half_characters import Words
from .grounding import Said, Sources, citations
from .prompts import OWN_ID, Json

LONGEST_PIECE_CHARACTERS = 512 * 1024
"""Callers take messages of up to 4 MB."""

_COUNTS = {
    "input_tokens": "promptTokenCount",
    "output_tokens": "candidatesTokenCount",
    "reasoning_tokens": "thoughtsTokenCount",
    "cached_tokens": "cachedContentTokenCount",
    "total_tokens": "totalTokenCount",
}

ABOUT_PARTS = frozenset({"thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"})
"""What a part may hold beside what it says."""

_KINDS = frozenset(
    {"text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult"}
)
"""Google's names of what a part says, one of them in each. Beside it a name of tomorrow harms nobody."""

_PARTS = "candidates.content.parts"

_STANDARD = str.maketrans("-_", "+/")
"""From the alphabet for addresses: Google's JSON may have either."""

_LONGEST_COUNT = 10  # digits

_WHOLE = frozenset({FinishReason.STOP, FinishReason.OTHER})
"""Behind any other finish reason, a character may lack its end."""


def pieces(text: str) -> Iterator[Text]:
    """Text in pieces that callers can take, of up to 4 MB. Nearly always one."""
    for start in range(0, len(text), LONGEST_PIECE_CHARACTERS):
        yield Text(text[start : start + LONGEST_PIECE_CHARACTERS])


def _call(told: Any, signature: bytes) -> ToolCall:
    place = f"{_PARTS}.functionCall"
    call = json_object(told, place)
    for name in ("partialArgs", "willContinue"):
        if call.get(name):
            text = f"The model asked for a function in pieces ({name}), which can't be relayed"
            raise errors.UpstreamFault(text, metadata={"field": f"{place}.{name}"})
    if not (name := text_of(call.get("name"), f"{place}.name")):
        raise errors.UpstreamFault("The model asked for a function without saying which")
    arguments = call.get("args")
    return ToolCall(
        id=text_of(call.get("id"), f"{place}.id") or OWN_ID + uuid.uuid4().hex,
        name=name,
        arguments={} if arguments is None else json_object(arguments, f"{place}.args"),
        signature=signature,
    )


def _signature(part: Json) -> bytes:
    """Raises UpstreamFault for one that can't be read: without it, its part can't be sent back."""
    place = f"{_PARTS}.thoughtSignature"
    told = text_of(part.get("thoughtSignature"), place).translate(_STANDARD)
    try:
        return base64.b64decode(told + "=" * (-len(told) % 4), validate=True)
    except ValueError:
        raise fault(place) from None


def _is_thought(part: Json) -> bool:
    told = part.get("thought")
    if told is not None and not isinstance(told, bool):
        raise fault(f"{_PARTS}.thought")
    return bool(told)


def unknown_part(kind: str) -> errors.UpstreamFault:
    """For a piece of the answer that we have no word for; `kind` is Google's name of it, or its field's number."""
    text = f"The model answered with a part of type {kind}, which can't be relayed"
    return errors.UpstreamFault(text, metadata={"part": kind})


def _tokens(result: Any) -> Iterator[TokenLogprob]:
    """Those whose probability is told; 0 would be certainty."""
    place = "candidates.logprobsResult"
    told = {} if result is None else json_object(result, place)
    others = json_list(told.get("topCandidates"), f"{place}.topCandidates")
    for number, chosen in enumerate(json_list(told.get("chosenCandidates"), f"{place}.chosenCandidates")):
        beside = others[number] if number < len(others) else None
        alternatives = () if beside is None else json_object(beside, f"{place}.topCandidates").get("candidates")
        if _has_probability(chosen):
            yield TokenLogprob(
                *_token(chosen),
                alternatives=tuple(
                    TokenLogprob(*_token(one)) for one in json_list(alternatives, place) if _has_probability(one)
                ),
            )


def _has_probability(one: Any) -> bool:
    return one is not None and json_object(one, "candidates.logprobsResult").get("logProbability") is not None


def _token(one: Json) -> tuple[str, float]:
    # A token may be half a character; the text says the whole one.
    token = text_of(one.get("token"), "candidates.logprobsResult.token").encode(errors="replace").decode()
    try:
        return token, float(one["logProbability"])  # which may be "-Infinity"
    except (TypeError, ValueError, OverflowError):
        raise errors.UpstreamFault("The model told a log probability that is no number") from None


class Answer:
    """One answer as it comes, message by message; refuses an end that nobody told."""

    def __init__(self, usage_seen: Callable[[int], object] | None = None) -> None:
        """`usage_seen` as in Prompt."""
        self.usage_seen = usage_seen
        self.messages = 0
        """How many have come."""
        self.reason = ""
        """Google's name of the finish reason, or its number where this version of Google's client doesn't know it."""
        self.blocked = False
        """Whether that is why the prompt was blocked."""
        self.usage: Usage | None = None
        self.model_version = ""
        self._ratings: Any = None
        self._sources = Sources()
        self._text = Said()
        self._ids: set[str] = set()
        self._words, self._thoughts = Words(f"{_PARTS}.text"), Words(f"{_PARTS}.text")

    def said(self, text: str) -> None:
        """A piece of text has been said, in a message that is nothing else and that `read` isn't given."""
        self._text.add(text)

    def read(self, response: Json) -> list[Event]:
        """What the next message says, in the order of its parts. Raises UpstreamFault for what we can't relay.

        What it tells of the end is remembered; of each figure, the last word counts.
        """
        candidate = _first(response)
        self._look_at_end(response, candidate)
        said: list[Event] = []
        content = candidate.get("content")
        parts = None if content is None else json_object(content, "candidates.content").get("parts")
        for part in json_list(parts, _PARTS):
            if part is not None:
                said += map(self._of_its_own, self._said(json_object(part, _PARTS)))
        for event in said:
            if isinstance(event, Text):
                self._text.add(event.text)
        if (grounding := self._sources.grounding(candidate, self._text, last=bool(self.reason))) is not None:
            said.append(grounding)
        said += citations(candidate)
        if tokens := tuple(_tokens(candidate.get("logprobsResult"))):
            said.append(Logprobs(tokens))
        return said

    def _said(self, part: Json) -> Iterator[Event]:
        signature = _signature(part)
        said = sorted(name for name, value in part.items() if value is not None and name not in ABOUT_PARTS)
        match [name for name in said if name in _KINDS] or said:
            case ["text"] if _is_thought(part):
                text = self._thoughts.take(text_of(part["text"], f"{_PARTS}.text"))
                if text or signature:
                    yield Reasoning(text, signature)
            case ["text"] | []:
                yield from pieces(self._words.take(text_of(part.get("text"), f"{_PARTS}.text")))
                if signature:
                    yield Reasoning("", signature)
            case ["functionCall"]:
                yield _call(part["functionCall"], signature)
            case others:
                raise unknown_part(others[0])

    def _of_its_own(self, event: Event) -> Event:
        """A call of a function under an id that no other has: its result is sent back under it."""
        if isinstance(event, ToolCall):
            if event.id in self._ids:
                event = replace(event, id=OWN_ID + uuid.uuid4().hex)
            self._ids.add(event.id)
        return event

    def _look_at_end(self, response: Json, candidate: Json) -> None:
        self.model_version = plain(response.get("modelVersion")) or self.model_version
        usage = object_or_empty(response.get("usageMetadata"))
        if any(map(usage.get, _COUNTS.values())):  # else it counts nothing
            self.usage = latest(_usage(usage), self.usage)
        feedback = object_or_empty(response.get("promptFeedback"))
        if blocked := _told(feedback, "blockReason"):
            self.reason, self.blocked = blocked, True
            self._ratings = feedback.get("safetyRatings")
        self._ratings = candidate.get("safetyRatings") or self._ratings
        self.ended_by(_told(candidate, "finishReason"))
        if self.usage is not None:
            self.used(self.usage.total_tokens)

    def used(self, tokens: int) -> None:
        """Upstream tells what the request has taken so far. Of an answer that has ended its `Finished` tells it."""
        if self.usage_seen is not None and tokens and not self.reason:
            self.usage_seen(tokens)

    def ended_by(self, reason: str) -> None:
        """Remember why it ended, by Google's name; empty: not told. STOP takes the place of no other reason.

        A server between us and Google may put it on every message that holds no text.
        """
        if reason and not (reason == "STOP" and self.reason):
            self.reason = reason

    def ended(self) -> None:
        """Upstream has ended the stream. Raises UpstreamCut if nothing has come at all, which LangChain can't bear."""
        if not self.messages:
            raise errors.UpstreamCut("The model ended the call without an answer; ask again")

    def finished(self) -> Finished:
        """How it ended. Raises UpstreamCut if upstream didn't say."""
        if not self.reason:
            raise errors.UpstreamCut("The model's answer broke off without a finish reason; what came is incomplete")
        known = FinishReason.__members__.get(self.reason, FinishReason.OTHER)
        if known in _WHOLE and not self.blocked:
            self._words.end()
            self._thoughts.end()
        return Finished(
            reason=FinishReason.PROMPT_BLOCKED if self.blocked else known,
            upstream_reason=self.reason,
            usage=self.usage,
            model_version=self.model_version,
            safety_ratings=tuple(map(_rating, filter(is_object, list_or_empty(self._ratings)))),
        )


def _first(response: Json) -> Json:
    """The first candidate, empty if there is none: no further one was asked for."""
    candidates = json_list(response.get("candidates"), "candidates")
    return {} if not candidates or candidates[0] is None else json_object(candidates[0], "candidates")


def _told(holder: Json, field: str) -> str:
    """The value's name, or the number of one whose name isn't known; empty: not told."""
    value = holder.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value else ""
    name = text_of(value, field)
    return "" if name.endswith("_UNSPECIFIED") else name


def _usage(told: Json) -> Usage | None:
    """Vertex tells cumulative figures, so the last ones are those of the whole answer."""
    counts = {ours: _count(told.get(theirs)) for ours, theirs in _COUNTS.items()}
    if None in counts.values():
        return None
    known = {ours: count or 0 for ours, count in counts.items()}
    spoken = known["input_tokens"] + known["output_tokens"] + known["reasoning_tokens"]
    known["total_tokens"] = known["total_tokens"] or spoken
    return None if json_values.count(known["total_tokens"]) is None else Usage(**known)


def _count(value: Any) -> int | None:
    """0 where it isn't told, None where it can't be read. Google's JSON may have numbers as text."""
    if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) <= _LONGEST_COUNT:
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return 0 if value is None else json_values.count(value)


def latest(usage: Usage | None, before: Usage | None) -> Usage | None:
    """The later figures, None where they can't be read; or those `before`, where the later lack one of them."""
    if usage is None or before is None or (usage.input_tokens and usage.output_tokens):
        return usage
    lacks = any(getattr(before, name) and not getattr(usage, name) for name in _COUNTS)
    return before if lacks else usage


def total(tokens: int | None) -> int:
    """What counting gave. Raises UpstreamFault for what no count can be."""
    if tokens is None or json_values.count(tokens) is None:
        raise errors.UpstreamFault("The model counted a number of tokens that can't be")
    return tokens


def _rating(told: Json) -> SafetyRating:
    return SafetyRating(
        category=plain(told.get("category")),
        probability=plain(told.get("probability")),
        blocked=told.get("blocked") is True,
    )
