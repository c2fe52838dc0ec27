"""Vertex's answers in the words of OpenAI's chat completions; pure.

https://platform.openai.com/docs/api-reference/chat-streaming. What that protocol has no words for (thoughts, grounding,
citations, safety ratings) isn't told; thoughts are counted as reasoning tokens, as OpenAI does.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence

from google.protobuf import json_format

from ..protos import prediction_pb2 as pb
from .translation import Json, blocked

FINISH = {
    pb.Candidate.STOP: "stop",
    pb.Candidate.MAX_TOKENS: "length",
    pb.Candidate.SAFETY: "content_filter",
    pb.Candidate.RECITATION: "content_filter",
    pb.Candidate.BLOCKLIST: "content_filter",
    pb.Candidate.PROHIBITED_CONTENT: "content_filter",
    pb.Candidate.SPII: "content_filter",
    pb.Candidate.MODEL_ARMOR: "content_filter",
}


class Answer:
    """Puts the responses of one answer into OpenAI's words."""

    def __init__(self, model: str, *, usage: bool, azure: bool, count: int = 1) -> None:
        """`count` answers are wanted: each is the same, unless the script tells several candidates apart."""
        self._model = model
        self._count = count
        self._with_usage = usage
        self._azure = azure
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._begun = False
        self._calls = 0
        self._usage = pb.GenerateContentResponse.UsageMetadata()

    def chunks(self, response: pb.GenerateContentResponse) -> Iterator[Json]:
        """The chunks that say what `response` says; raises VertexError if the prompt was blocked."""
        self._note(response)
        if not self._begun:
            self._begun = True
            if self._azure:
                yield {**self._chunk([]), "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
            for index in range(self._count):
                yield self._choice(index, {"role": "assistant", "content": "", "refusal": None})
        for candidate in response.candidates:
            logprobs = told_logprobs(candidate.logprobs_result)
            for part in candidate.content.parts:
                for delta in self._deltas(part):
                    for index in self._indices(candidate):
                        yield self._choice(index, delta, logprobs)
                    logprobs = None
            if candidate.finish_reason:
                for index in self._indices(candidate):
                    yield self._choice(index, {}, finish=self._finish(candidate))

    def last(self) -> Iterator[Json]:
        """The chunks after the answer."""
        if self._with_usage:
            yield {**self._chunk([]), "usage": self._told_usage()}

    def whole(self, response: pb.GenerateContentResponse) -> Json:
        """The answer in one piece."""
        self._note(response)
        return {
            **self._head("chat.completion"),
            "choices": [
                self._message(candidate) | {"index": index}
                for candidate in response.candidates
                for index in self._indices(candidate)
            ],
            "usage": self._told_usage(),
        }

    def _note(self, response: pb.GenerateContentResponse) -> None:
        if response.prompt_feedback.block_reason:
            raise blocked(response.prompt_feedback, azure=self._azure)
        self._model = response.model_version or self._model
        if any(candidate.index for candidate in response.candidates):
            self._count = 1
        if response.HasField("usage_metadata"):
            self._usage = response.usage_metadata

    def _indices(self, candidate: pb.Candidate) -> Sequence[int]:
        """Whose answer a candidate is."""
        return range(self._count) if self._count > 1 else [candidate.index]

    def _message(self, candidate: pb.Candidate) -> Json:
        parts = candidate.content.parts
        text = "".join(part.text for part in parts if not part.thought)
        message: Json = {"role": "assistant", "content": text or None, "refusal": None}
        calls = [self._called(part.function_call) for part in parts if part.HasField("function_call")]
        if calls:
            message["tool_calls"] = [
                {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
                for ident, name, arguments in calls
            ]
        return {
            "index": candidate.index,
            "message": message,
            "logprobs": told_logprobs(candidate.logprobs_result),
            "finish_reason": self._finish(candidate),
        }

    def _deltas(self, part: pb.Part) -> Iterator[Json]:
        if part.HasField("function_call"):
            index = self._calls
            ident, name, arguments = self._called(part.function_call)
            begin = {"index": index, "id": ident, "type": "function", "function": {"name": name, "arguments": ""}}
            yield {"tool_calls": [begin]}
            # As there: the arguments come bit by bit, cut anywhere.
            middle = len(arguments) // 2
            for piece in (arguments[:middle], arguments[middle:]):
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
        elif part.text and not part.thought:
            yield {"content": part.text}

    def _called(self, call: pb.FunctionCall) -> tuple[str, str, str]:
        self._calls += 1
        arguments = json.dumps(json_format.MessageToDict(call.args), ensure_ascii=False)
        return call.id or f"call_{uuid.uuid4().hex[:24]}", call.name, arguments

    def _finish(self, candidate: pb.Candidate) -> str | None:
        reason = candidate.finish_reason
        if not reason:
            return None
        if reason == pb.Candidate.STOP and self._calls:
            return "tool_calls"
        if reason in FINISH:
            return FINISH[reason]
        known = pb.Candidate.FinishReason.DESCRIPTOR.values_by_number.get(reason)
        return known.name.lower() if known is not None else str(reason)

    def _choice(self, index: int, delta: Json, logprobs: Json | None = None, *, finish: str | None = None) -> Json:
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}])

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {**self._head("chat.completion.chunk"), "choices": choices}
        return {**chunk, "usage": None} if self._with_usage else chunk

    def _head(self, kind: str) -> Json:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._model,
            "system_fingerprint": None,
        }

    def _told_usage(self) -> Json:
        usage = self._usage
        each = usage.candidates_token_count + usage.thoughts_token_count
        return {
            "prompt_tokens": usage.prompt_token_count,
            "completion_tokens": each * self._count,
            "total_tokens": usage.total_token_count + each * (self._count - 1),
            "prompt_tokens_details": {"cached_tokens": usage.cached_content_token_count, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": usage.thoughts_token_count * self._count,
                "audio_tokens": 0,
            },
        }


def told_logprobs(result: pb.LogprobsResult) -> Json | None:
    if not result.chosen_candidates:
        return None
    content = []
    for index, chosen in enumerate(result.chosen_candidates):
        tops = result.top_candidates[index].candidates if index < len(result.top_candidates) else []
        content.append({**_token(chosen), "top_logprobs": [_token(top) for top in tops]})
    return {"content": content, "refusal": None}


def _token(one: pb.LogprobsResult.Candidate) -> Json:
    return {"token": one.token, "logprob": one.log_probability, "bytes": list(one.token.encode())}
