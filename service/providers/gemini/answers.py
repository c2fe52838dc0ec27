"""What Gemini says, in the JSON form of Google's API, whichever client carries it. No I/O.

LangChain drops much of it: signatures of thoughts, ids of calls, why a prompt was blocked, whether there was a finish
reason at all. So what isn't plain text is read here.
Source: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1beta1/GenerateContentResponse
"""

import base64
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ... import errors
from ...generation import json_values
from ...generation.events import (
    Event,
    Finished,
    FinishReason,
    Grounding,
    Logprobs,
    SafetyRating,
    Source,
    Support,
    Text,
    TokenLogprob,
    Usage,
)
from ...generation.prompt import Reasoning, ToolCall
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

_LONGEST_CITED_CHARACTERS = 128 * 1024
_MOST_PLACED = 500
"""Of an answer whose text is looked at for the places of what rests on sources: each costs some 30 us then."""

ABOUT_PARTS = frozenset({"thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"})
"""What a part may hold beside what it says."""


def pieces(text: str) -> Iterator[Text]:
    """Text in pieces that callers can take, of up to 4 MB. Nearly always one."""
    for start in range(0, len(text), LONGEST_PIECE_CHARACTERS):
        yield Text(text[start : start + LONGEST_PIECE_CHARACTERS])


def _said(part: Json) -> Iterator[Event]:
    signature = base64.urlsafe_b64decode(part.get("thoughtSignature", ""))  # takes both alphabets
    said = sorted(part.keys() - ABOUT_PARTS)
    match said:
        case ["text"] if part.get("thought"):
            yield Reasoning(part["text"], signature)
        case ["text"] | []:
            yield from pieces(part.get("text", ""))
            if signature:
                yield Reasoning("", signature)
        case ["functionCall"]:
            call = part["functionCall"]
            if not call.get("name") or call.get("willContinue"):
                raise errors.UpstreamFault("The model asked for a function in pieces, or without saying which")
            yield ToolCall(
                id=call.get("id") or OWN_ID + uuid.uuid4().hex,
                name=call["name"],
                arguments=call.get("args", {}),
                signature=signature,
            )
        case _:
            raise unknown_part(said[0])


def unknown_part(kind: str) -> errors.UpstreamFault:
    """For a piece of the answer that we have no word for; `kind` is Google's name of it, or its field's number."""
    text = f"The model answered with a part of type {kind}, which can't be relayed"
    return errors.UpstreamFault(text, metadata={"part": kind})


class _Text:
    """The answer's text so far, in which Gemini tells the places of what rests on sources."""

    def __init__(self) -> None:
        self._pieces: list[str] | None = []
        """None: it is not looked at any more."""
        self._length = 0
        self._placed = 0
        """How many supports have been looked for."""

    def add(self, piece: str) -> None:
        self._length += len(piece)
        if self._length > _LONGEST_CITED_CHARACTERS:
            self._pieces = None
        if self._pieces is not None:
            self._pieces.append(piece)

    def placed(self, supports: Sequence[tuple[Support, int]]) -> tuple[Support, ...]:
        """Each at its place in the text; Gemini tells it in one of the answer's parts, of whichever message."""
        if not supports:
            return ()
        self._placed += len(supports)
        if self._placed > _MOST_PLACED:
            self._pieces = None
        whole = "".join(self._pieces or ()).encode(errors="surrogatepass")
        return tuple(_placed(support, part, whole) for support, part in supports)


def _placed(support: Support, part: int, whole: bytes) -> Support:
    """At the place where its own words stand in the text, if there is but one; else as told, or not told.

    Which part is which, where an answer comes in many messages, nobody says; a place in the first is one in the text.
    """
    words = support.text.encode(errors="surrogatepass")
    if words and not part and whole[support.start : support.end] == words:
        return support
    start = whole.find(words) if words else -1
    if start >= 0 and whole.find(words, start + 1) < 0:
        return replace(support, start=start, end=start + len(words))
    return replace(support, start=None, end=None) if part else support


class _Sources:
    """What the answer rests on, as far as it has been told. Sources may come before or behind what rests on them."""

    def __init__(self) -> None:
        self._all: tuple[Source, ...] = ()
        self._early: tuple[tuple[Support, int], ...] = ()
        """Those whose sources have not come."""

    def grounding(self, candidate: Json, text: _Text, *, last: bool) -> Grounding | None:
        """What this message tells of it, with all the sources that its supports point to; None: nothing.

        `text` is the answer's so far; `last`: no more sources will come.
        """
        found = candidate.get("groundingMetadata", {})
        sources = tuple(map(_source, found.get("groundingChunks", ())))
        queries = (*found.get("webSearchQueries", ()), *found.get("retrievalQueries", ()))
        supports = tuple(map(_support, found.get("groundingSupports", ())))
        # All so far, told again, or some more.
        self._all = sources if sources[: len(self._all)] == self._all else self._all + sources
        again = set(supports)
        supports = (*(one for one in self._early if one not in again), *supports)
        early = () if last else (place for place, (one, _) in enumerate(supports) if _highest(one) >= len(self._all))
        ready = next(iter(early), len(supports))
        supports, self._early = supports[:ready], supports[ready:]
        told = text.placed(supports)
        if max(map(_highest, told), default=-1) >= len(sources):
            sources = self._all
        # What points beyond all sources points to nothing.
        told = tuple(
            replace(one, sources=tuple(place for place in one.sources if place < len(sources))) for one in told
        )
        grounding = Grounding(sources=sources, supports=told, queries=queries)
        return None if grounding == Grounding() else grounding


def _citations(candidate: Json) -> Iterator[Grounding]:
    if cited := candidate.get("citationMetadata", {}).get("citations"):
        yield Grounding(
            sources=tuple(
                Source(uri=one.get("uri", ""), title=one.get("title", ""), license=one.get("license", ""))
                for one in cited
            ),
            supports=tuple(
                Support(text="", sources=(place,), start=_index(one, "startIndex", 0), end=_index(one, "endIndex"))
                for place, one in enumerate(cited)
            ),
        )


def _source(chunk: Json) -> Source:
    kinds = [value for value in chunk.values() if isinstance(value, Mapping)]
    told = kinds[0] if kinds else {}
    return Source(uri=told.get("uri", ""), title=told.get("title", ""))


def _support(support: Json) -> tuple[Support, int]:
    """With its place in a part, and that part's number."""
    segment = support.get("segment", {})
    told = Support(
        text=segment.get("text", ""),
        sources=tuple(one for one in support.get("groundingChunkIndices", ()) if json_values.count(one) is not None),
        start=_index(segment, "startIndex", 0) if segment else None,
        end=_index(segment, "endIndex"),
    )
    return told, segment.get("partIndex", 0)


def _highest(support: Support) -> int:
    return max(support.sources, default=-1)


def _index(holder: Json, field: str, default: int | None = None) -> int | None:
    """One that upstream can't mean is as good as none."""
    return json_values.count(holder.get(field, default))


def _tokens(result: Json) -> Iterator[TokenLogprob]:
    """Those whose probability is told; 0 would be certainty."""
    others = result.get("topCandidates", ())
    for place, chosen in enumerate(result.get("chosenCandidates", ())):
        alternatives = others[place].get("candidates", ()) if place < len(others) else ()
        if chosen.get("logProbability") is not None:
            told = (TokenLogprob(*_token(one)) for one in alternatives if one.get("logProbability") is not None)
            yield TokenLogprob(*_token(chosen), alternatives=tuple(told))


def _token(one: Json) -> tuple[str, float]:
    try:
        return one.get("token", ""), float(one["logProbability"])  # which may be "-Infinity"
    except (TypeError, ValueError, OverflowError):
        raise errors.UpstreamFault("The model told a log probability that is no number") from None


class Answer:
    """One answer as it comes, message by message; refuses an end that nobody told."""

    def __init__(self) -> None:
        self.messages = 0
        """How many have come."""
        self.reason = ""
        """Google's name of the finish reason, or its number where this version of Google's client doesn't know it."""
        self.blocked = False
        """Whether that is why the prompt was blocked."""
        self.usage: Usage | None = None
        self.model_version = ""
        self._ratings: Sequence[Json] = ()
        self._sources = _Sources()
        self._text = _Text()
        self._ids: set[str] = set()

    def said(self, text: str) -> None:
        """A piece of text has been said, in a message that is nothing else and that `read` isn't given."""
        self._text.add(text)

    def read(self, response: Json) -> list[Event]:
        """What the next message says, in the order of its parts. Raises UpstreamFault for what we can't relay.

        What it tells of the end is remembered; of each figure, the last word counts.
        """
        self._look_at_end(response)
        said: list[Event] = []
        for candidate in response.get("candidates", ())[:1]:
            for part in candidate.get("content", {}).get("parts", ()):
                said += map(self._of_its_own, _said(part))
            for event in said:
                if isinstance(event, Text):
                    self._text.add(event.text)
            if (grounding := self._sources.grounding(candidate, self._text, last=bool(self.reason))) is not None:
                said.append(grounding)
            said += _citations(candidate)
            if tokens := tuple(_tokens(candidate.get("logprobsResult", {}))):
                said.append(Logprobs(tokens))
        return said

    def _of_its_own(self, event: Event) -> Event:
        """A call of a function under an id that no other has: its result is sent back under it."""
        if isinstance(event, ToolCall):
            if event.id in self._ids:
                event = replace(event, id=OWN_ID + uuid.uuid4().hex)
            self._ids.add(event.id)
        return event

    def _look_at_end(self, response: Json) -> None:
        self.model_version = response.get("modelVersion") or self.model_version
        usage = response.get("usageMetadata", {})
        if any(map(usage.get, _COUNTS.values())):  # else it counts nothing
            self.usage = _usage(usage)
        feedback = response.get("promptFeedback", {})
        if blocked := _told(feedback, "blockReason"):
            self.reason, self.blocked = blocked, True
            self._ratings = feedback.get("safetyRatings", ())
        for candidate in response.get("candidates", ())[:1]:
            self._ratings = candidate.get("safetyRatings") or self._ratings
            self.ended_by(_told(candidate, "finishReason"))

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
        return Finished(
            reason=FinishReason.PROMPT_BLOCKED if self.blocked else known,
            upstream_reason=self.reason,
            usage=self.usage,
            model_version=self.model_version,
            safety_ratings=tuple(map(_rating, self._ratings)),
        )


def _told(holder: Json, field: str) -> str:
    """The value's name; empty: not told."""
    value = str(holder.get(field, ""))
    return "" if value.endswith("_UNSPECIFIED") else value


def _usage(told: Json) -> Usage | None:
    """Vertex tells cumulative figures, so the last ones are those of the whole answer."""
    counts = {ours: told.get(theirs) or 0 for ours, theirs in _COUNTS.items()}
    if None in map(json_values.count, counts.values()):
        return None
    spoken = counts["input_tokens"] + counts["output_tokens"] + counts["reasoning_tokens"]
    counts["total_tokens"] = counts["total_tokens"] or spoken
    return None if json_values.count(counts["total_tokens"]) is None else Usage(**counts)


def total(tokens: int) -> int:
    """What counting gave. Raises UpstreamFault for what no count can be."""
    if json_values.count(tokens) is None:
        raise errors.UpstreamFault("The model counted a number of tokens that can't be")
    return tokens


def _rating(told: Json) -> SafetyRating:
    return SafetyRating(
        category=str(told.get("category", "")),
        probability=str(told.get("probability", "")),
        blocked=bool(told.get("blocked")),
    )
