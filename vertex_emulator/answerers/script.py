"""Builds scripts in Python, and reads them from JSON. What each step means is told in script.proto."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc

# Imported so that JSON scripts can name these details by their type.
from google.protobuf import any_pb2, duration_pb2, json_format, wrappers_pb2  # noqa: F401
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2  # noqa: F401

from ..protos import prediction_pb2 as pb
from ..protos.script_pb2 import (
    Answer,
    Blackhole,
    Blocked,
    Cut,
    End,
    Headers,
    Repeat,
    Script,
    Silence,
    Status,
    Step,
    Usage,
    When,
)

__all__ = ["Answer", "Finish", "Script", "ScriptError", "Status", "Step", "Usage", "When"]
__all__ += ["answer", "function_call", "message_bytes", "part", "response", "text", "text_bytes", "thought", "usage"]
__all__ += ["citation", "citations", "grounding", "logprobs", "safety"]
__all__ += [
    "blackhole",
    "blocked",
    "cut",
    "delay",
    "end",
    "headers",
    "repeat",
    "silence",
    "status",
    "tokens",
    "wait_for",
]
__all__ += ["check", "load", "needs_relay", "parse"]

# What ends an answer.
ENDINGS = frozenset({"status", "blocked", "silence", "cut", "blackhole", "end", "tokens"})

# What sends a piece, and the headers with it.
SPOKEN = frozenset({"text", "thought", "part", "grounding", "citations", "logprobs", "response"}) | {
    "text_bytes",
    "message_bytes",
    "repeat",
    "headers",
}

Finish = int | str | None


class ScriptError(ValueError):
    """A script can't be played; the message names the place, what stands there and what is wanted."""


# ---- building ----------------------------------------------------------------------------------------------------


def answer(
    *steps: str | Step,
    finish: Finish = "STOP",
    finish_message: str = "",
    safety_ratings: Sequence[pb.SafetyRating] = (),
    usage: Usage | None = None,
    model_version: str = "",
    uses: int = 1,
    model: str = "",
    user_text: str = "",
    method: str = "",
) -> Answer:
    """One answer; a string is a piece of text.

    `finish` is a name of Candidate.FinishReason, any number, or None for an end without one. `uses` is how many
    calls it answers, 0 for any number; `model`, `user_text` and `method` say which.
    """
    built = Answer(
        steps=[Step(text=step) if isinstance(step, str) else step for step in steps],
        uses=uses,
        finish_message=finish_message,
        safety_ratings=safety_ratings,
        usage=usage,
        model_version=model_version,
    )
    built.finish_reason = pb.Candidate.FinishReason.Value(finish) if isinstance(finish, str) else finish or 0  # type: ignore[assignment]  # the enum is open
    if model or user_text or method:
        built.when.CopyFrom(When(model=model, user_text=user_text, method=method))
    return built


def usage(prompt: int = 0, candidates: int = 0, *, thoughts: int = 0, cached: int = 0) -> Usage:
    """The final figures, in tokens; `cached` is part of `prompt`."""
    return Usage(prompt=prompt, candidates=candidates, thoughts=thoughts, cached=cached)


def text(words: str, *, signature: bytes = b"") -> Step:
    """A piece of the answer; a plain string says the same where it has no signature."""
    return part(pb.Part(text=words, thought_signature=signature)) if signature else Step(text=words)


def thought(words: str, *, signature: bytes = b"") -> Step:
    """A piece of the model's thoughts; `signature` is what a later turn has to bring back."""
    if not signature:
        return Step(thought=words)
    return part(pb.Part(text=words, thought=True, thought_signature=signature))


def function_call(
    name: str, arguments: Mapping[str, Any] | None = None, *, call_id: str = "", signature: bytes = b""
) -> Step:
    """A chunk with one tool call."""
    call = pb.FunctionCall(name=name, id=call_id)
    call.args.update(arguments or {})
    return part(pb.Part(function_call=call, thought_signature=signature))


def part(message: pb.Part) -> Step:
    """A chunk with this part."""
    return Step(part=message)


def grounding(
    *sources: tuple[str, str],
    queries: Sequence[str] = (),
    supports: Sequence[tuple[str, Sequence[int]]] = (),
    answer_so_far: str = "",
) -> Step:
    """What the answer rests on: `sources` are (URI, title), `supports` (words of the answer, numbers of sources).

    The words' places, in bytes as Google counts them, are looked up in `answer_so_far`; without it they stay 0.
    """
    told = pb.GroundingMetadata(web_search_queries=queries)
    for uri, title in sources:
        told.grounding_chunks.add(web=pb.GroundingChunk.Web(uri=uri, title=title))
    for words, numbers in supports:
        segment = pb.Segment(text=words)
        if answer_so_far:
            segment.start_index = len(answer_so_far[: answer_so_far.index(words)].encode())
            segment.end_index = segment.start_index + len(words.encode())
        told.grounding_supports.add(segment=segment, grounding_chunk_indices=numbers)
    return Step(grounding=told)


def citation(start: int, end: int, uri: str, *, title: str = "", license: str = "") -> pb.Citation:  # noqa: A002  # Google's name
    """A quotation: where it stands in the answer, in bytes, and where it comes from."""
    return pb.Citation(start_index=start, end_index=end, uri=uri, title=title, license=license)


def citations(*quotations: pb.Citation) -> Step:
    """A chunk that tells whom the answer quotes."""
    return Step(citations=pb.CitationMetadata(citations=quotations))


def logprobs(*tokens: tuple[str, float] | tuple[str, float, Mapping[str, float]]) -> Step:
    """A piece of the answer as tokens: each with its log probability, and those of the likeliest at its place."""
    told = pb.LogprobsResult()
    for word, probability, *likeliest in tokens:
        told.chosen_candidates.add(token=word, log_probability=probability)
        if likeliest:
            top = told.top_candidates.add()
            for other, its in likeliest[0].items():
                top.candidates.add(token=other, log_probability=its)
    return Step(logprobs=told)


def safety(
    category: str, probability: str = "NEGLIGIBLE", *, score: float = 0, severity: str = "", blocked: bool = False
) -> pb.SafetyRating:
    """A rating; `safety("HARASSMENT", "HIGH", blocked=True)`, in the words of HarmCategory and SafetyRating."""
    rating = pb.SafetyRating(
        category=pb.HarmCategory.Value(f"HARM_CATEGORY_{category}"),
        probability=pb.SafetyRating.HarmProbability.Value(probability),
        probability_score=score,
        blocked=blocked,
    )
    if severity:
        rating.severity = pb.SafetyRating.HarmSeverity.Value(f"HARM_SEVERITY_{severity}")
    return rating


def response(message: pb.GenerateContentResponse) -> Step:
    """A chunk exactly as given."""
    return Step(response=message)


def text_bytes(data: bytes) -> Step:
    """A chunk whose text is these bytes, valid UTF-8 or not."""
    return Step(text_bytes=data)


def message_bytes(data: bytes) -> Step:
    """A message of these bytes, valid protobuf or not."""
    return Step(message_bytes=data)


def delay(seconds: float) -> Step:
    return Step(delay=_duration(seconds))


def wait_for(gate: str) -> Step:
    return Step(wait_for=gate)


def headers(metadata: Mapping[str, str] | None = None) -> Step:
    """Send the initial metadata now."""
    return Step(headers=Headers(metadata=metadata))


def repeat(count: int, *steps: str | Step, interval: float | None = None) -> Step:
    """Repeat steps `count` times (0: without end), one turn every `interval` seconds on a fixed clock."""
    turns = Repeat(count=count, steps=[Step(text=step) if isinstance(step, str) else step for step in steps])
    if interval is not None:
        turns.interval.CopyFrom(_duration(interval))
    return Step(repeat=turns)


def status(
    code: grpc.StatusCode | str,
    message: str = "",
    *details: Message,
    trailing_metadata: Mapping[str, str] | None = None,
    http_status: int = 0,
) -> Step:
    """End with this status; `details` are messages such as google.rpc.error_details_pb2.RetryInfo.

    `http_status`, 400 to 599, is for callers over HTTP; 0: the one that stands for the code.
    """
    name = code if isinstance(code, str) else code.name
    built = Status(
        code=code_pb2.Code.Value(name), message=message, trailing_metadata=trailing_metadata, http_status=http_status
    )
    for detail in details:
        built.details.add().Pack(detail)
    return Step(status=built)


def blocked(reason: int | str = "SAFETY", message: str = "", *, safety_ratings: Sequence[pb.SafetyRating] = ()) -> Step:
    """Block the prompt: no candidates."""
    number = (
        pb.GenerateContentResponse.PromptFeedback.BlockedReason.Value(reason) if isinstance(reason, str) else reason
    )
    return Step(blocked=Blocked(reason=number, message=message, safety_ratings=safety_ratings))  # type: ignore[arg-type]  # the enum is open


def silence() -> Step:
    """Say nothing more; the call stays open until the caller ends it."""
    return Step(silence=Silence())


def cut() -> Step:
    """Reset the caller's TCP connection (needs the relay)."""
    return Step(cut=Cut())


def blackhole() -> Step:
    """Swallow everything on the caller's TCP connection (needs the relay)."""
    return Step(blackhole=Blackhole())


def end() -> Step:
    """End OK at once, without a finish reason."""
    return Step(end=End())


def tokens(total: int, *, billable_characters: int = 0) -> Step:
    """Answer CountTokens."""
    return Step(tokens=pb.CountTokensResponse(total_tokens=total, total_billable_characters=billable_characters))


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromNanoseconds(round(seconds * 1_000_000_000))
    return duration


# ---- reading and checking ----------------------------------------------------------------------------------------


def load(path: Path) -> Script:
    """Read a JSON script; raises ScriptError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScriptError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScriptError(f"{path}: {error}") from error
    try:
        return parse(text)
    except ScriptError as error:
        raise ScriptError(f"{path}: {error}") from error


def parse(text: str) -> Script:
    """Read a script from JSON; raises ScriptError."""
    try:
        script = json_format.Parse(text, Script())
    except json_format.ParseError as error:
        raise ScriptError(" ".join(str(error).split())) from error  # it lists the fields on a second line
    check(script)
    return script


def check(script: Script) -> None:
    """Raise ScriptError if the script can't be played."""
    for index, one in enumerate(script.answers):
        _check_answer(one, f"answers[{index}]")
    if script.HasField("default_answer"):
        _check_answer(script.default_answer, "default_answer")


def needs_relay(one: Answer) -> bool:
    """Whether this answer cuts connections."""
    return any(step.WhichOneof("step") in {"cut", "blackhole"} for step in one.steps)


def _check_answer(one: Answer, place: str) -> None:
    methods = ("", "StreamGenerateContent", "GenerateContent", "CountTokens")
    if one.when.method not in methods:
        raise ScriptError(f"{place}.when.method: {one.when.method!r} is none of {', '.join(methods[1:])}")
    _check_steps(one.steps, f"{place}.steps", repeated=False)
    counts = one.when.method == "CountTokens"
    for index, step in enumerate(one.steps):
        kind = step.WhichOneof("step")
        if kind == "tokens" and not counts:
            raise ScriptError(f'{place}.steps[{index}].tokens: only where "when" says {{"method": "CountTokens"}}')
        if counts and kind not in {"tokens", "delay", "wait_for", "headers", "status", "silence", "cut", "blackhole"}:
            raise ScriptError(f"{place}.steps[{index}].{kind}: is no answer to CountTokens; use tokens or status")


def _check_steps(steps: Sequence[Step], place: str, *, repeated: bool) -> None:
    for index, step in enumerate(steps):
        here = f"{place}[{index}]"
        kind = step.WhichOneof("step")
        if kind is None:
            raise ScriptError(f"{here}: says nothing; wanted is text, thought, part, delay, status, ...")
        last = index == len(steps) - 1
        if kind in ENDINGS and repeated:
            raise ScriptError(f"{here}.{kind}: ends the answer, so it can't be repeated; put it behind")
        if kind == "headers" and (repeated or any(one.WhichOneof("step") in SPOKEN for one in steps[:index])):
            raise ScriptError(f"{here}.headers: were sent with the first piece; put them before it")
        endless = kind == "repeat" and step.repeat.count == 0
        if (kind in ENDINGS or endless) and not last:
            raise ScriptError(
                f"{here}.{kind}: ends the answer, so nothing may follow; {len(steps) - 1 - index} step(s) do"
            )
        _check_step(step, kind, here)


def _check_step(step: Step, kind: str, here: str) -> None:
    if kind == "part" and step.part.WhichOneof("data") is None and not step.part.thought_signature:
        raise ScriptError(f"{here}.part: is empty; wanted is text, functionCall, inlineData, ...")
    if kind == "delay" and step.delay.ToNanoseconds() < 0:
        raise ScriptError(f"{here}.delay: {step.delay.ToJsonString()} is negative")
    if kind == "wait_for" and not step.wait_for:
        raise ScriptError(f"{here}.wait_for: wanted is the name of a gate")
    if kind == "status" and step.status.code not in {code.value[0] for code in grpc.StatusCode if code.value[0]}:
        raise ScriptError(
            f"{here}.status.code: {step.status.code} is no gRPC error; wanted is UNAVAILABLE, for example"
        )
    if kind == "status" and step.status.http_status and not 400 <= step.status.http_status <= 599:
        raise ScriptError(f"{here}.status.http_status: {step.status.http_status} is no error; wanted is 400 to 599")
    if kind == "repeat":
        if step.repeat.interval.ToNanoseconds() < 0:
            raise ScriptError(f"{here}.repeat.interval: {step.repeat.interval.ToJsonString()} is negative")
        if not step.repeat.steps:
            raise ScriptError(f"{here}.repeat.steps: is empty")
        _check_steps(step.repeat.steps, f"{here}.repeat.steps", repeated=True)
