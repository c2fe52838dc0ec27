"""What Gemini says and is told, in the JSON form of Google's API, whichever client carries it. No I/O.

LangChain drops much of it on both ways: signatures of thoughts, the order of a turn's parts, ids of calls, why a prompt
was blocked, whether there was a finish reason at all. So what isn't plain text is read and written here.
Source: https://cloud.google.com/vertex-ai/generative-ai/docs/reference/rest/v1beta1/GenerateContentResponse
"""

import base64
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import grpc

from service import errors
from service.generation import json_schema, json_values
from service.generation.events import (
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
from service.generation.prompt import Blob, File, Part, Prompt, Reasoning, Role, Sampling, ToolCall, ToolResult, Tools

Json = Mapping[str, Any]

FILE_SCHEMES = frozenset({"gs", "https", "http"})
"""Of the URIs that Vertex AI follows."""

PLAIN_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
"""What may be relayed of a provider's reasons: a constant's name, never a sentence."""

LONGEST_PIECE_CHARACTERS = 512 * 1024
"""Callers take messages of up to 4 MB."""

# Vertex AI gives calls no ids, our callers need them. Those that we made up are not sent back.
_OWN_ID = "tokenwire-"

_ROLES = {Role.USER: "user", Role.MODEL: "model", Role.TOOL: "user"}

_COUNTS = {
    "input_tokens": "promptTokenCount",
    "output_tokens": "candidatesTokenCount",
    "reasoning_tokens": "thoughtsTokenCount",
    "cached_tokens": "cachedContentTokenCount",
    "total_tokens": "totalTokenCount",
}

# What a part may hold beside what it says.
_ABOUT_PARTS = frozenset({"thought", "thoughtSignature", "videoMetadata", "mediaResolution", "partMetadata"})


# ---- the request -----------------------------------------------------------------------------------------------------


def needs_exactness(prompt: Prompt) -> bool:
    """Whether it holds what LangChain's own conversion would lose: the model's thoughts, and its calls of tools."""
    return any(isinstance(part, Reasoning | ToolCall | ToolResult) for turn in prompt.turns for part in turn.parts)


def contents(prompt: Prompt) -> list[dict[str, Any]]:
    """The conversation, nothing lost. Bytes are in base64."""
    return [{"role": _ROLES[turn.role], "parts": list(_parts(turn.parts))} for turn in prompt.turns]


def _parts(parts: Sequence[Part]) -> Iterator[dict[str, Any]]:
    for place, part in enumerate(parts):
        following = parts[place + 1] if place + 1 < len(parts) else None
        if isinstance(part, str) and _only_signs(following):
            assert isinstance(following, Reasoning)
            yield {"text": part} | _signed(following.signature)
        elif not (_only_signs(part) and place and isinstance(parts[place - 1], str)):
            yield _part(part)


def _only_signs(part: Part | None) -> bool:
    """Whether it is but the signature of the text before it."""
    return isinstance(part, Reasoning) and not part.text


def _part(part: Part) -> dict[str, Any]:
    match part:
        case str():
            return {"text": part}
        case Reasoning():
            return {"text": part.text, "thought": bool(part.text)} | _signed(part.signature)
        case Blob():
            return {"inlineData": {"mimeType": part.mime_type, "data": _base64(part.data)}}
        case File():
            return {"fileData": {"mimeType": part.mime_type, "fileUri": part.uri}}
        case ToolCall():
            return {"functionCall": {"name": part.name, "args": part.arguments} | _id(part.id)} | _signed(
                part.signature
            )
        case ToolResult():
            return {"functionResponse": {"name": part.name, "response": part.response} | _id(part.id)}


def _signed(signature: bytes) -> dict[str, str]:
    return {"thoughtSignature": _base64(signature)} if signature else {}


def _id(id: str) -> dict[str, str]:  # noqa: A002 - that is what it is
    return {} if id.startswith(_OWN_ID) else {"id": id}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def media(part: Blob | File) -> dict[str, Any]:
    """A part as LangChain's libraries for Gemini take it. Not as its standard blocks: some of these are fetched."""
    if isinstance(part, File):
        return {"type": "media", "mime_type": part.mime_type, "file_uri": part.uri}
    return {"type": "media", "mime_type": part.mime_type, "data": part.data}


def options(prompt: Prompt) -> dict[str, Any]:
    """What LangChain's libraries for Gemini take by the same names, as far as it is set."""
    given: dict[str, Any] = {one.name: getattr(prompt.sampling, one.name) for one in fields(Sampling)}
    given["stop"] = list(given.pop("stop_sequences")) or None
    given["safety_settings"] = dict(prompt.safety) or None
    given["labels"] = dict(prompt.labels) or None
    return {name: value for name, value in given.items() if value is not None}


def tools(wanted: Tools) -> list[dict[str, Any]]:
    """What the model may make use of, as the request's `tools`."""
    made: list[dict[str, Any]] = []
    if wanted.functions:
        declared = [
            {"name": one.name, "description": one.description} | _parameters(one.parameters) for one in wanted.functions
        ]
        made.append({"functionDeclarations": declared})
    if wanted.google_search:
        made.append({"googleSearch": {}})
    return made


def _parameters(parameters: Json | None) -> dict[str, Any]:
    return {} if parameters is None else {"parameters": json_schema.typed(parameters, str.upper)}


def json_with_tools(model: str) -> bool | None:
    """Whether this Gemini answers in JSON where it may also call tools: those before 3 refuse it."""
    return False if re.match(r"gemini-[12][.-]", model) else None


# ---- the answer ------------------------------------------------------------------------------------------------------


def events(response: Json) -> Iterator[Event]:
    """What one message of the stream says, in the order of its parts. Raises UpstreamFault for what we can't relay."""
    for candidate in response.get("candidates", ())[:1]:
        for part in candidate.get("content", {}).get("parts", ()):
            yield from _said(part)
        yield from _grounding(candidate)
        if tokens := tuple(_tokens(candidate.get("logprobsResult", {}))):
            yield Logprobs(tokens)


def pieces(text: str) -> Iterator[Text]:
    """Text in pieces that callers can take, of up to 4 MB. Nearly always one."""
    for start in range(0, len(text), LONGEST_PIECE_CHARACTERS):
        yield Text(text[start : start + LONGEST_PIECE_CHARACTERS])


def _said(part: Json) -> Iterator[Event]:
    signature = base64.urlsafe_b64decode(part.get("thoughtSignature", ""))  # takes both alphabets
    said = sorted(part.keys() - _ABOUT_PARTS)
    match said:
        case ["text"] if part.get("thought"):
            yield Reasoning(part["text"], signature)
        case ["text"] | []:
            yield from pieces(part.get("text", ""))
            if signature:
                yield Reasoning("", signature)
        case ["functionCall"]:
            call = part["functionCall"]
            yield ToolCall(
                id=call.get("id") or _OWN_ID + uuid.uuid4().hex,
                name=call.get("name", ""),
                arguments=call.get("args", {}),
                signature=signature,
            )
        case _:
            text = f"The model answered with a part of type {said[0]}, which can't be relayed"
            raise errors.UpstreamFault(text, metadata={"part": said[0]})


def _grounding(candidate: Json) -> Iterator[Grounding]:
    found = candidate.get("groundingMetadata", {})
    grounding = Grounding(
        sources=tuple(map(_source, found.get("groundingChunks", ()))),
        supports=tuple(map(_support, found.get("groundingSupports", ()))),
        queries=(*found.get("webSearchQueries", ()), *found.get("retrievalQueries", ())),
    )
    if grounding != Grounding():
        yield grounding
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


def _support(support: Json) -> Support:
    segment = support.get("segment", {})
    return Support(
        text=segment.get("text", ""),
        sources=tuple(one for one in support.get("groundingChunkIndices", ()) if json_values.count(one) is not None),
        start=_index(segment, "startIndex", 0) if segment else None,
        end=_index(segment, "endIndex"),
    )


def _index(holder: Json, field: str, default: int | None = None) -> int | None:
    """One that upstream can't mean is as good as none."""
    return json_values.count(holder.get(field, default))


def _tokens(result: Json) -> Iterator[TokenLogprob]:
    others = result.get("topCandidates", ())
    for place, chosen in enumerate(result.get("chosenCandidates", ())):
        alternatives = others[place].get("candidates", ()) if place < len(others) else ()
        yield TokenLogprob(*_token(chosen), alternatives=tuple(TokenLogprob(*_token(one)) for one in alternatives))


def _token(one: Json) -> tuple[str, float]:
    try:
        return one.get("token", ""), float(one.get("logProbability", 0.0))  # which may be "-Infinity"
    except (TypeError, ValueError, OverflowError):
        raise errors.UpstreamFault("The model told a log probability that is no number") from None


class Ending:
    """Gathers from each message of the stream how the answer ended, and refuses an end that nobody told."""

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

    def look_at(self, response: Json) -> None:
        """Remember what this message tells of the end; of each figure, the last word counts."""
        self.model_version = response.get("modelVersion") or self.model_version
        if usage := response.get("usageMetadata"):
            self.usage = _usage(usage)
        feedback = response.get("promptFeedback", {})
        if blocked := _told(feedback, "blockReason"):
            self.reason, self.blocked = blocked, True
            self._ratings = feedback.get("safetyRatings", ())
        for candidate in response.get("candidates", ())[:1]:
            self._ratings = candidate.get("safetyRatings") or self._ratings
            self.reason = _told(candidate, "finishReason") or self.reason

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
    return None if None in map(json_values.count, counts.values()) else Usage(**counts)


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


# ---- errors ----------------------------------------------------------------------------------------------------------

# Upstream's code -> the error of ours, and what callers are told. Codes that aren't here are UpstreamFault.
_FAILURES: Mapping[grpc.StatusCode, tuple[type[errors.UpstreamError], str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.OUT_OF_RANGE: (errors.UpstreamRejected, "The model refused the request as invalid"),
    grpc.StatusCode.NOT_FOUND: (
        errors.UpstreamNotFound,
        (
            "Vertex AI doesn't know this model in the server's project and region; its owner has to check "
            "TOKENWIRE_MODEL and GOOGLE_CLOUD_LOCATION"
        ),
    ),
    grpc.StatusCode.UNAUTHENTICATED: (
        errors.UpstreamCredentials,
        "Vertex AI refused the server's credentials; its owner has to renew its application default credentials",
    ),
    grpc.StatusCode.PERMISSION_DENIED: (
        errors.UpstreamCredentials,
        (
            "The server's credentials may not use Vertex AI in its project; its owner has to grant them "
            "roles/aiplatform.user and check GOOGLE_CLOUD_PROJECT"
        ),
    ),
    grpc.StatusCode.FAILED_PRECONDITION: (
        errors.UpstreamPrecondition,
        (
            "Vertex AI can't be used like this from the server's project and region; its owner has to look at "
            "GOOGLE_CLOUD_PROJECT, GOOGLE_CLOUD_LOCATION and the project's billing"
        ),
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (errors.UpstreamQuota, "The server's quota on Vertex AI is used up for now"),
    grpc.StatusCode.UNAVAILABLE: (errors.UpstreamUnavailable, "Vertex AI is away or broke the connection"),
    grpc.StatusCode.ABORTED: (errors.UpstreamCut, "Vertex AI gave the request up; ask again"),
    grpc.StatusCode.CANCELLED: (errors.UpstreamCut, "Vertex AI gave the request up; ask again"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (errors.UpstreamDeadline, "Vertex AI didn't finish in time"),
}


def failure(code: grpc.StatusCode, *, told: str, reason: str, retry_after: float | None) -> errors.UpstreamError:
    """Ours for Vertex AI's: `code` is what it means, `told` the name it came under, `reason` that of its ErrorInfo."""
    kind, text = _FAILURES.get(code, (errors.UpstreamFault, "Vertex AI failed"))
    metadata = {"upstream_code": told}
    if PLAIN_REASON.fullmatch(reason):
        metadata["upstream_reason"] = reason
    return kind(text, metadata=metadata, retry_after=retry_after)
