"""What a server that speaks Chat Completions says, in the protocol's JSON, as our events. No I/O.

The protocol has one definition and many speakers, and each of them has its own ways: counts beside or inside others,
calls of tools in pieces or whole, thoughts under three names. So nothing here is taken for granted. What is missing or
null is read past; what has another type is read past too where nothing of the answer is lost by it, such as a count,
and is UPSTREAM_FAULT, naming its place, where something would be.
Source: https://platform.openai.com/docs/api-reference/chat-streaming
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ... import errors
from ...generation import json_values
from ...generation.events import (
    Event,
    Finished,
    FinishReason,
    Grounding,
    Logprobs,
    TokenLogprob,
    Usage,
)
from ...generation.prompt import Reasoning
from ..foreign_json import Json, fault, index_of, json_list, json_object, plain, text_of
from ..gemini import answers
from ..half_characters import Words
from . import citations, thought_details
from .tool_call_pieces import Calls

_FINISH = {
    "stop": FinishReason.STOP,
    "tool_calls": FinishReason.STOP,
    "tool_call": FinishReason.STOP,
    "function_call": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "tool_use": FinishReason.STOP,
    "tool_use_failed": FinishReason.MALFORMED_FUNCTION_CALL,
    "length": FinishReason.MAX_TOKENS,
    "model_length": FinishReason.MAX_TOKENS,
    "max_tokens": FinishReason.MAX_TOKENS,
    "model_context_window_exceeded": FinishReason.MAX_TOKENS,
    "content_filter": FinishReason.SAFETY,
    "sensitive": FinishReason.SAFETY,
}

_CALLS = frozenset({"tool_calls", "tool_call", "function_call", "tool_use"})
"""Words by which an answer ends with calls."""

# The server gave up, by its own words (Mistral, DeepSeek, vLLM, Zhipu).
_GIVEN_UP = frozenset({"error", "insufficient_system_resource", "abort", "network_error"})

# Behind these an answer is whole; behind any other, a call of a tool may lack its end.
_WHOLE = frozenset({FinishReason.STOP, FinishReason.OTHER})

# Answers of kinds that nobody asked for, and that can't be relayed.
_OTHER_KINDS = ("audio", "images")


_SAYS = {
    "content": "text",
    "refusal": "refusal",
    "reasoning_content": "thought",
    "reasoning": "thought",
    "thinking": "thought",
    "reasoning_details": "thought",
    "tool_calls": "call",
    "function_call": "call",
}
"""Which of a message's fields say what."""


class Answer:
    """One answer as it comes, chunk by chunk."""

    def __init__(
        self, functions: Collection[str] = (), *, thoughts: bool = True, back: str = "", logprobs: bool = False
    ) -> None:
        """`functions` are the names of those declared; `thoughts`: they are told; `back`: the option thoughts_back.

        `logprobs`: they have been asked for. Unasked, they are nothing that an answer could fail by.
        """
        self.chunks = 0
        """How many have come."""
        self.finish = ""
        """Upstream's word for how it ended; empty: it has not said."""
        self._native = ""
        """The model's own word for it, where somebody between us and it (OpenRouter) has told that too."""
        self.blocked = ""
        """Upstream's word for why it didn't take the prompt; empty: it did."""
        self.usage: Usage | None = None
        self.usage_seen: Callable[[int], object] | None = None
        """As in Prompt."""
        self.model_version = ""
        self._functions = functions
        self._calls = Calls(functions, signed=back == "google")
        self._tells_thoughts = thoughts
        self._tells_logprobs = logprobs
        self._details = thought_details.Details() if thoughts and back == thought_details.FIELD else None
        self._events: list[Event] = []
        self._kinds: set[str] = set()
        """What has been said: "text", "refusal", "thought", "call". A whole message behind it says it again."""
        self._text_pieces: list[str] = []
        """What has been told as text, without refusals."""
        content, refusal, reasoning = (f"choices.delta.{name}" for name in ("content", "refusal", "reasoning"))
        self._content, self._refusal, self._thoughts = Words(content), Words(refusal), Words(reasoning)
        self._refused = False
        self._prompt_filtered = False
        """Whether Azure has told that a filter took offence at the prompt itself."""
        self._grounded: set[Grounding] = set()
        """What has been told; some tell it again with each chunk, and at several places of one."""

    def look_at(self, chunk: Any) -> None:
        """Take what the next chunk says. Raises UpstreamFault where a part of the answer can't be read."""
        self.chunks += 1
        if chunk is None:
            return
        chunk = json_object(chunk, "chunk")
        self.model_version = plain(chunk.get("model")) or self.model_version
        before, said = self.usage, len(self._events)
        self._count(chunk.get("usage"))
        if isinstance(groq := chunk.get("x_groq"), Mapping):
            self._count(groq.get("usage"))
        chosen: list[int | None] = []
        for choice in json_list(chunk.get("choices"), "choices"):
            if not choice or (index := index_of(json_object(choice, "choices").get("index"))):
                continue  # a second answer, that nobody asked for
            if chosen and (chosen[-1], index) != (0, 0):
                break  # another, that isn't counted
            chosen.append(index)
            self._choose(choice)
        self._cite(chunk)
        if told := chunk.get("prompt_filter_results") or chunk.get("prompt_annotations"):
            self._prompt_filtered = self._prompt_filtered or _filtered(told)
        if len(self._events) > said and self.usage is before:
            self.usage = None  # what was counted before this was said
        if self.usage_seen is not None and self.usage is not None and not (self.finish or self.blocked):
            self.usage_seen(self.usage.total_tokens)

    def events(self) -> list[Event]:
        """What has been said since the last time; calls of tools come in pieces, and whole from `end`."""
        said, self._events = self._events, []
        return said

    def end(self) -> Iterator[Event]:
        """The calls, and how it ended. Raises UpstreamCut if upstream didn't say, UpstreamFault for half a call."""
        if self.blocked:
            reason = FinishReason.SAFETY if self._kinds else FinishReason.PROMPT_BLOCKED
            yield Finished(
                reason=reason, upstream_reason=self.blocked, usage=self.usage, model_version=self.model_version
            )
            return
        if self.finish in _GIVEN_UP:
            text = "The model gave its answer up; what came is incomplete"
            raise errors.UpstreamCut(text, metadata={"upstream_reason": self.finish.upper()})
        if not self.finish:
            raise errors.UpstreamCut("The model's answer broke off without a finish reason; what came is incomplete")
        reason, word = self._ending()
        if reason in _WHOLE:
            for words in (self._content, self._refusal, self._thoughts):
                words.end()
        if self._details and (signature := self._details.signature()):
            yield Reasoning("", signature)
        if reason in _WHOLE:
            yield from list(self._calls.whole())  # none where one of them is none
        yield Finished(
            reason=FinishReason.SAFETY if self._refused else reason,
            upstream_reason="refusal" if self._refused else word,
            usage=self.usage,
            model_version=self.model_version,
        )

    def _ending(self) -> tuple[FinishReason, str]:
        """How the answer ended, by ours and by upstream's word."""
        reason, word = _reason(self.finish), self.finish
        if reason is FinishReason.STOP and (native := FinishReason.__members__.get(self._native.upper())):
            reason, word = native, self._native
        if reason is FinishReason.SAFETY and self._prompt_filtered and not self._kinds:
            reason = FinishReason.PROMPT_BLOCKED
        if self.finish in _CALLS and self._functions and "call" not in self._kinds:
            reason = FinishReason.MALFORMED_FUNCTION_CALL
        return reason, word

    def _count(self, told: Any) -> None:
        """Figures are cumulative, so the last ones count; those that can't be read don't wipe out earlier ones."""
        self.usage = usage(told) or self.usage

    def _choose(self, choice: Json) -> None:
        self._count(choice.get("usage"))
        delta = choice.get("delta")
        if not delta or (isinstance(delta, Mapping) and not any(map(delta.get, _SAYS))):
            message = self._message(choice)
            delta = delta if message is None else message
        if not delta and choice.get("text"):  # of the protocol before
            delta = {"content": choice["text"]}
        if delta:
            self._say(json_object(delta, "choices.delta"))
        for holder in (choice.get("delta"), choice.get("message"), choice):
            if isinstance(holder, Mapping):
                self._cite(holder)
        if self._tells_logprobs and (logprobs := choice.get("logprobs")):
            tokens = json_list(json_object(logprobs, "choices.logprobs").get("content"), "choices.logprobs.content")
            if told := tuple(_token(one) for one in tokens if _has_logprob(one)):
                self._events.append(Logprobs(told))
        finish = choice.get("finish_reason")
        self.finish = _finish(self.finish, plain(text_of(finish, "choices.finish_reason")))
        self._native = _finish(self._native, plain(choice.get("native_finish_reason")))

    def _message(self, choice: Json) -> Any:
        """What stands where a delta should: a whole message, without what deltas have said already."""
        message = choice.get("message")
        if not isinstance(message, Mapping) or not self._kinds:
            return message
        told = [words for kind, words in _content(message.get("content")) if kind == "text"]
        if told and (before := len(self._whole_text())) and sum(map(len, told)) not in (0, before):
            raise fault("choices.message.content")
        return {name: value for name, value in message.items() if _SAYS.get(name) not in self._kinds}

    def _say(self, delta: Json) -> None:
        for kind in _OTHER_KINDS:
            if delta.get(kind):
                raise fault(f"choices.delta.{kind}")
        self._think(_thoughts(delta))
        if self._details and (details := delta.get(thought_details.FIELD)):
            self._details.add(details)
            self._kinds.add("thought")
        for kind, words in _content(delta.get("content")):
            if kind == "thought":
                self._think(words)
            else:
                self._text(words, self._refusal if kind == "refusal" else self._content)
        if refusal := text_of(delta.get("refusal"), "choices.delta.refusal"):  # the text where the model won't answer
            self._text(refusal, self._refusal)
        calls = [call for call in json_list(delta.get("tool_calls"), "choices.delta.tool_calls") if call]
        if not calls and delta.get("function_call"):  # the old form; some say both
            calls = [{"function": delta["function_call"]}]
        for call in calls:
            self._kinds.add("call")
            self._calls.add(json_object(call, "choices.delta.tool_calls"))

    def _text(self, text: str, words: Words) -> None:
        if not text:
            return
        if words is self._refusal:
            self._refused = True
            self._kinds.add("refusal")
        else:
            self._kinds.add("text")
        whole = words.take(text)
        if words is self._content:
            self._text_pieces.append(whole)
        self._events += answers.pieces(whole)

    def _cited_text(self) -> str:
        """What the places of citations are counted in; nothing where a refusal stands in the answer too."""
        return "" if self._refused else self._whole_text()

    def _whole_text(self) -> str:
        self._text_pieces = ["".join(self._text_pieces)]
        return self._text_pieces[0]

    def _think(self, text: str) -> None:
        whole = self._thoughts.take(text)
        if text:
            self._kinds.add("thought")
        for start in range(0, len(whole) if self._tells_thoughts else 0, answers.LONGEST_PIECE_CHARACTERS):
            self._events.append(Reasoning(whole[start : start + answers.LONGEST_PIECE_CHARACTERS]))

    def _cite(self, holder: Json) -> None:
        """Tell what this part of a chunk says of what the answer rests on."""
        if citations.FIELDS.isdisjoint(holder):
            return
        self._ground(citations.annotations(holder.get("annotations"), self._cited_text))
        for pages in citations.listed(holder):
            self._ground(citations.pages(pages))

    def _ground(self, grounding: Grounding | None) -> None:
        if grounding is not None and grounding not in self._grounded:
            self._grounded.add(grounding)
            self._events.append(grounding)


def _finish(before: str, word: str) -> str:
    """Upstream's word for the end. One that says no more than that it came takes the place of no other.

    Some servers add such a word to every chunk (https://github.com/1jehuang/jcode/issues/1326).
    """
    cut = before in _GIVEN_UP or _reason(before) not in {FinishReason.STOP, FinishReason.OTHER}
    clean = _reason(word) is FinishReason.STOP
    keeps = clean and (cut or (word.lower() == "stop" and _reason(before) is FinishReason.STOP))
    return before if not word or (before and keeps) else word


def _reason(finish: str) -> FinishReason:
    """Also of Google's words, which its own server of this protocol tells: "content_filter: RECITATION"."""
    google = FinishReason.__members__.get(finish.rpartition(": ")[2].upper())
    return _FINISH.get(finish) or google or _FINISH.get(finish.partition(":")[0], FinishReason.OTHER)


def _filtered(told: Any) -> bool:
    """Whether any filter of Azure's for prompts has struck.

    https://learn.microsoft.com/azure/ai-foundry/openai/concepts/content-filter-annotations
    """
    for one in told if isinstance(told, list | tuple) else [told]:
        results = one.get("content_filter_results") if isinstance(one, Mapping) else None
        for result in results.values() if isinstance(results, Mapping) else ():
            if isinstance(result, Mapping) and result.get("filtered") is True:
                return True
    return False


def usage(told: Any) -> Usage | None:
    """Tokens, without the thoughts in the output; None where a figure is missing or can't be, or nothing is counted.

    Most count the thoughts inside the output; xAI, and Google's own server of this protocol, beside it. The sum tells.
    """
    if not isinstance(told, Mapping):
        return None
    prompt, output = _count(told.get("prompt_tokens")), _count(told.get("completion_tokens"))
    if prompt is None or output is None or not (prompt or output or told.get("total_tokens")):
        return None
    thoughts = _detail(told, "completion_tokens_details", "reasoning_tokens", "reasoning_tokens")
    cached = _detail(told, "prompt_tokens_details", "cached_tokens", "prompt_cache_hit_tokens", "cached_tokens")
    if thoughts is None or cached is None or cached > prompt:
        return None
    total = told.get("total_tokens")
    whole = _count(prompt + output if total is None else total)
    if whole is None or whole < prompt + output:
        return None
    beside = whole == prompt + output + thoughts
    if not beside and thoughts > output:
        return None
    return Usage(
        input_tokens=prompt,
        output_tokens=output if beside else output - thoughts,
        reasoning_tokens=thoughts,
        cached_tokens=cached,
        total_tokens=whole,
    )


def _detail(told: Json, group: str, field: str, *alone: str) -> int | None:
    """A count that stands in a group of its own, or alone; 0 where nobody tells it, None where it can't be."""
    details = told.get(group)
    values = [details.get(field)] if isinstance(details, Mapping) else []
    values += map(told.get, alone)
    value = next((one for one in values if one is not None), None)
    return 0 if value is None else _count(value)


def _count(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json_values.count(value)


def _content(content: Any) -> Iterator[tuple[str, str]]:
    """The kind, text, refusal or thought, and the words of each part: the content is a string, or a list of parts."""
    place = "choices.delta.content"
    if content is None or isinstance(content, str):
        yield "text", content or ""
        return
    if isinstance(content, int | float):  # be it 0 or false, which may be the answer
        raise fault(place)
    for part in [content] if isinstance(content, Mapping) else json_list(content, place):
        if isinstance(part, str):
            yield "text", part
        elif part:
            yield _part(json_object(part, place), place)


def _part(part: Json, place: str) -> tuple[str, str]:
    match part.get("type", "text"):
        case "text" | "output_text":
            told = part.get("text")
            told = told.get("value") if isinstance(told, Mapping) else told
            if told is not None and not isinstance(told, str):  # be it 0 or false, which may be the answer
                raise fault(f"{place}.text")
            return "text", told or ""
        case "refusal":
            return "refusal", text_of(part.get("refusal"), f"{place}.refusal")
        case "thinking" | "reasoning" as kind:
            told = part.get(kind, part.get("text"))
            if isinstance(told, str):
                return "thought", told
            return "thought", "".join(
                text_of(json_object(one, place).get("text"), place) for one in json_list(told, place)
            )
        case other:
            kind = other if isinstance(other, str) and other.isidentifier() and other.isascii() else "unknown"
            text = f"The model answered with a part of type {kind[:40]}, which can't be relayed"
            raise errors.UpstreamFault(text, metadata={"part": kind[:40]})


def _thoughts(delta: Json) -> str:
    """Thoughts, by the names of DeepSeek and xAI, of vLLM, of others.

    Who says them by two names says the same twice, for clients of either (vLLM, LiteLLM); what differs is more of them.
    """
    named = [
        text_of(delta.get(name), f"choices.delta.{name}") for name in ("reasoning_content", "reasoning", "thinking")
    ]
    told = "".join(dict.fromkeys(named))
    return told or thought_details.words(delta.get(thought_details.FIELD))


def _token(told: Any) -> TokenLogprob:
    place = "choices.logprobs.content"
    others = json_list(json_object(told, place).get("top_logprobs"), f"{place}.top_logprobs")
    alternatives = tuple(TokenLogprob(*_probable(json_object(one, place))) for one in others if _has_logprob(one))
    return TokenLogprob(*_probable(told), alternatives)


def _has_logprob(told: Any) -> bool:
    """Some say null of a token; that is no reason to lose the answer.

    https://github.com/xorbitsai/inference/pull/5252
    """
    return told is not None and not (isinstance(told, Mapping) and told.get("logprob") is None)


def _probable(told: Json) -> tuple[str, float]:
    place = "choices.logprobs.content"
    token, logprob = told.get("token"), told.get("logprob")
    if not isinstance(token, str):
        raise fault(f"{place}.token")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float) or logprob != logprob:  # noqa: PLR0124 - NaN
        raise fault(f"{place}.logprob")
    try:
        # A token may be half a character; the text says the whole one.
        return token.encode(errors="replace").decode(), float(logprob)
    except OverflowError:
        raise fault(f"{place}.logprob") from None
