"""The mind that plays a script."""

import asyncio
import itertools
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import grpc

from ..call_records import Call, Request
from ..protos import prediction_pb2 as pb
from ..protos.script_pb2 import Answer, Script, Step
from .base import Mind, Reply, VertexError
from .script import ScriptError, answer, check, needs_relay
from .script_chunks import CHUNKS, chunk_of, voice_of, words_of

# Google's rule of thumb for Gemini: https://ai.google.dev/gemini-api/docs/tokens
CHARACTERS_PER_TOKEN = 4

# What was said before a cut must have left this machine; gRPC doesn't tell when it has.
SETTLE_SECONDS = 0.02

CODES = {code.value[0]: code for code in grpc.StatusCode}

DEFAULT_ANSWER = answer(
    "This answer ", "comes from ", "the Vertex emulator; ", "give it a script ", "to change it.", uses=0
)


class Scripted:
    """Plays `answers` to the calls as they come; then `default`, or a built-in text."""

    models = ("scripted",)

    def __init__(self, script: Script | None = None) -> None:
        self._relay: bool | None = None
        self._queue: list[_Played] = []
        self._default = _Played(DEFAULT_ANSWER)
        self._gates: dict[str, asyncio.Event] = {}
        if script is not None:
            self.load(script)

    # ---- the script ----------------------------------------------------------------------------------------------

    def play(self, *answers: Answer, default: Answer | None = None) -> None:
        """Add answers behind those still unplayed; `default` replaces the default answer. Raises ScriptError."""
        self.load(Script(answers=answers, default_answer=default), append=True)

    def load(self, script: Script, *, append: bool = False) -> None:
        """Take a whole script, instead of or behind what is still unplayed. ScriptError: nothing changes."""
        check(script)
        self._check_relay(script)
        if not append:
            self._queue.clear()
            self._default = _Played(DEFAULT_ANSWER)
        self._queue.extend(_Played(one) for one in script.answers)
        if script.HasField("default_answer"):
            self._default = _Played(script.default_answer)

    def reset(self) -> None:
        """Forget the script and close the gates; answers being played go on."""
        self.load(Script())
        for gate in self._gates.values():
            gate.clear()

    @property
    def unplayed(self) -> int:
        """Answers of the script that still have uses left."""
        return len(self._queue)

    def open_gate(self, name: str) -> None:
        """Let every answer pass that waits, or will wait, for this gate."""
        self._gate(name).set()

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def _check_relay(self, script: Script) -> None:
        if self._relay is not False:
            return  # not started yet, or all is well
        places = [(f"answers[{index}]", one) for index, one in enumerate(script.answers)]
        for place, one in [*places, ("default_answer", script.default_answer)]:
            if needs_relay(one):
                raise ScriptError(f"{place} cuts connections, which needs the relay: Emulator(relay=True), or --relay")

    # ---- the mind ------------------------------------------------------------------------------------------------

    @property
    def active_generations(self) -> int:
        return 0

    @property
    def generated_tokens(self) -> int:
        return 0

    async def start(self, *, relay: bool) -> None:
        self._relay = relay
        self._check_relay(Script(answers=[played.answer for played in (*self._queue, self._default)]))

    async def stop(self) -> None:
        pass  # it holds nothing

    async def generate(self, call: Call, reply: Reply) -> None:
        played = self._take(call) or self._default
        await _Performance(self, played, call, reply).run()

    async def count_tokens(self, call: Call, reply: Reply) -> pb.CountTokensResponse:
        played = self._take(call)
        if played is not None:
            await _Performance(self, played, call, reply).run()
            last = played.answer.steps[-1] if played.answer.steps else Step()
            if last.WhichOneof("step") == "tokens":
                return last.tokens
        assert call.request is not None
        characters = count_characters(call.request)
        return pb.CountTokensResponse(total_tokens=estimate_tokens(characters), total_billable_characters=characters)

    def _take(self, call: Call) -> "_Played | None":
        for played in self._queue:
            if played.fits(call):
                if played.used_up():
                    self._queue.remove(played)
                return played
        return None

    async def wait_for(self, gate: str, reply: Reply) -> None:
        event = self._gate(gate)
        if not event.is_set():
            reply.waits_for(gate)
            await event.wait()
            reply.waits_for("")


@dataclass(frozen=True, slots=True)
class _Line:
    """A step, made ready to be said any number of times."""

    kind: str
    step: Step

    voice: str
    """Text or thought, of whose usage its chunk is a share; empty: it is neither."""

    chunk: bytes
    """The serialized response, as far as it is the same each time; empty: this step says nothing."""

    last_chunk: bytes
    """The same with the finish reason, for when it is the answer's last word."""

    lines: tuple["_Line", ...]
    """The lines of a repeat."""


class _Played:
    """An answer of the script, with what can be prepared before any call."""

    def __init__(self, one: Answer) -> None:
        self.answer = one
        self.finish = pb.Candidate(
            finish_reason=one.finish_reason if one.HasField("finish_reason") else pb.Candidate.STOP,
            safety_ratings=one.safety_ratings,
        )
        if one.finish_message:
            self.finish.finish_message = one.finish_message
        self.lines = tuple(self._line(step) for step in one.steps)
        self.texts = _count(self.lines, "text")
        self.thoughts = _count(self.lines, "thought")
        self.characters = _characters(self.lines, "text")
        self.thought_characters = _characters(self.lines, "thought")
        self._uses_left = one.uses if one.HasField("uses") else 1
        self._endless = self._uses_left == 0

    def fits(self, call: Call) -> bool:
        when = self.answer.when
        methods = {when.method} if when.method else {"StreamGenerateContent", "GenerateContent"}
        if call.method not in methods or call.request is None:
            return False
        if when.model and when.model not in {call.model, call.request.model}:
            return False
        return not when.user_text or when.user_text in last_user_text(call.request)

    def used_up(self) -> bool:
        """Count one use; True if it was the last."""
        if self._endless:
            return False
        self._uses_left -= 1
        return self._uses_left == 0

    def _line(self, step: Step) -> _Line:
        kind = step.WhichOneof("step")
        assert kind is not None, "checked"
        return _Line(
            kind=kind,
            step=step,
            voice=voice_of(step, kind),
            chunk=chunk_of(step, kind, pb.Candidate()),
            last_chunk=chunk_of(step, kind, self.finish),
            lines=tuple(self._line(inner) for inner in step.repeat.steps),
        )


class _Performance:
    """One call being answered with one answer."""

    def __init__(self, mind: Scripted, played: _Played, call: Call, reply: Reply) -> None:
        self._mind = mind
        self._played = played
        self._reply = reply
        assert call.request is not None, "refused before"
        self._usage = _Usage(played, call.request)
        # Protobuf merges what is appended, so the part that differs from call to call is made once a call.
        self._common = pb.GenerateContentResponse(
            model_version=played.answer.model_version or call.model, response_id=uuid.uuid4().hex
        )
        self._common.create_time.GetCurrentTime()
        self._suffix = self._common.SerializeToString()
        self._finished = played.finish.finish_reason == 0

    async def run(self) -> None:
        await self._play(self._played.lines, last=True)
        if not self._finished:
            content = pb.Content(role="model", parts=[pb.Part(text="")])
            finish = pb.Candidate(content=content)
            finish.MergeFrom(self._played.finish)
            message = pb.GenerateContentResponse(candidates=[finish]).SerializeToString()
            await self._reply.write(message + self._usage.final() + self._suffix)

    async def _play(self, lines: Sequence[_Line], *, last: bool) -> None:
        for index, line in enumerate(lines):
            await self._say(line, last=last and index == len(lines) - 1)

    async def _say(self, line: _Line, *, last: bool) -> None:
        match line.kind:
            case kind if kind in CHUNKS:
                ends = last and not self._finished
                usage = self._usage.final() if last else self._usage.after(line.voice)
                self._finished = self._finished or last
                await self._reply.write((line.last_chunk if ends else line.chunk) + usage + self._suffix)
            case "response":
                response = line.step.response
                if response.prompt_feedback.block_reason or any(one.finish_reason for one in response.candidates):
                    self._finished = True
                await self._reply.write(line.chunk)
            case "message_bytes":
                await self._reply.write(line.chunk)
            case "delay":
                await asyncio.sleep(line.step.delay.ToNanoseconds() / 1e9)
            case "wait_for":
                await self._mind.wait_for(line.step.wait_for, self._reply)
            case "headers":
                await self._reply.headers(line.step.headers.metadata)
            case "repeat":
                await self._repeat(line, last=last)
            case _:
                await self._end(line)

    async def _repeat(self, line: _Line, *, last: bool) -> None:
        count = line.step.repeat.count
        interval = line.step.repeat.interval.ToNanoseconds() / 1e9
        begun = time.monotonic()
        for turn in range(count) if count else itertools.count():
            if interval:
                await asyncio.sleep(begun + turn * interval - time.monotonic())
            await self._play(line.lines, last=last and turn == count - 1)

    async def _end(self, line: _Line) -> None:
        self._finished = True
        match line.kind:
            case "status":
                status = line.step.status
                raise VertexError(
                    CODES[status.code], status.message, status.details, status.trailing_metadata, status.http_status
                )
            case "blocked":
                await self._reply.write(line.chunk + self._usage.prompt() + self._suffix)
            case "cut":
                await asyncio.sleep(SETTLE_SECONDS)
                self._reply.cut()
                await asyncio.Event().wait()  # until the server notices that the caller is gone
            case "blackhole":
                await asyncio.sleep(SETTLE_SECONDS)
                self._reply.blackhole()
                await asyncio.Event().wait()
            case "silence":
                await asyncio.Event().wait()
            case "end" | "tokens":
                pass
            case kind:
                raise AssertionError(kind)


class _Usage:
    """What each chunk tells of the tokens used so far."""

    def __init__(self, played: _Played, request: Request) -> None:
        given = played.answer.usage
        self._untold = given.untold
        self._texts = _Share(played.texts)
        self._thoughts = _Share(played.thoughts)
        if played.answer.HasField("usage"):
            self._prompt = given.prompt
            self._cached = given.cached
            self._texts.total = given.candidates
            self._thoughts.total = given.thoughts
        else:
            self._prompt = estimate_tokens(count_characters(request))
            self._cached = 0
            self._texts.total = estimate_tokens(played.characters)
            self._thoughts.total = estimate_tokens(played.thought_characters)

    def prompt(self) -> bytes:
        return self._told(0, 0)

    def after(self, voice: str) -> bytes:
        """After one more piece."""
        if voice:
            (self._thoughts if voice == "thought" else self._texts).said += 1
        return self._told(self._texts.reached(), self._thoughts.reached())

    def final(self) -> bytes:
        return self._told(self._texts.total, self._thoughts.total)

    def _told(self, candidates: int, thoughts: int) -> bytes:
        if self._untold:
            return b""
        usage = pb.GenerateContentResponse.UsageMetadata(
            prompt_token_count=self._prompt,
            candidates_token_count=candidates,
            thoughts_token_count=thoughts,
            total_token_count=self._prompt + candidates + thoughts,
            cached_content_token_count=self._cached,
        )
        return pb.GenerateContentResponse(usage_metadata=usage).SerializeToString()


class _Share:
    """Divides a total evenly among pieces."""

    def __init__(self, pieces: int | None) -> None:
        self._pieces = pieces
        self.total = 0
        self.said = 0

    def reached(self) -> int:
        if self._pieces is None:  # of an endless answer each piece is a token
            return self.said
        if self._pieces == 0:  # told, though the script doesn't say them
            return self.total
        return self.total * self.said // self._pieces


# ---- what can be known of a request or a script beforehand ---------------------------------------------------------


def script_of(mind: Mind) -> Scripted:
    """The script that answers; raises TypeError if a model does."""
    if not isinstance(mind, Scripted):
        raise TypeError(f"this emulator is answered by {type(mind).__name__}, not by a script")
    return mind


def last_user_text(request: Request) -> str:
    """The text of the last user message; empty if there is none."""
    for content in reversed(request.contents):
        if content.role in {"user", ""}:
            return "".join(part.text for part in content.parts)
    return ""


def count_characters(request: Request) -> int:
    """Characters of text in the conversation and the system instruction."""
    contents = [request.system_instruction, *request.contents]
    return sum(len(part.text) for content in contents for part in content.parts)


def estimate_tokens(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)


def _count(lines: Sequence[_Line], voice: str) -> int | None:
    """How many pieces of this voice are said; None: without end."""
    total = 0
    for line in lines:
        if line.kind == "repeat":
            inner = _count(line.lines, voice)
            if inner is None or (inner and not line.step.repeat.count):
                return None
            total += inner * line.step.repeat.count
        else:
            total += line.voice == voice
    return total


def _characters(lines: Sequence[_Line], voice: str) -> int:
    total = 0
    for line in lines:
        if line.kind == "repeat":
            total += _characters(line.lines, voice) * line.step.repeat.count
        elif line.voice == voice:
            total += len(words_of(line.step, line.kind))
    return total
