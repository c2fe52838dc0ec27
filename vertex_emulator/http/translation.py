"""OpenAI's chat completions in Vertex's words, and Vertex's answers in OpenAI's; pure.

https://platform.openai.com/docs/api-reference/chat. What OpenAI's protocol has no words for (thoughts, grounding,
citations, safety ratings) isn't told; thoughts are counted as reasoning tokens, as OpenAI does.
"""

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf import any_pb2, json_format
from google.rpc import error_details_pb2

from ..answerers.base import VertexError
from ..protos import prediction_pb2 as pb
from .server import status_of

# Of a request; others are refused. `data_sources` is Azure's.
_FIELDS = """
audio data_sources frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
messages metadata modalities model moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key
prompt_cache_options prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop
store stream stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
"""
FIELDS = frozenset(_FIELDS.split())

SAMPLING = {
    "temperature": "temperature",
    "top_p": "topP",
    "max_tokens": "maxOutputTokens",
    "max_completion_tokens": "maxOutputTokens",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
    "n": "candidateCount",
    "logprobs": "responseLogprobs",
    "top_logprobs": "logprobs",
}

# https://platform.openai.com/docs/api-reference/chat/create
RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "n": (1, 128),
    "max_tokens": (1, 2**31 - 1),
    "max_completion_tokens": (1, 2**31 - 1),
    "top_logprobs": (0, 20),
}

CHOICES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}

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

# Of an error: its type, and its code unless ErrorInfo names another.
ERRORS: Mapping[int, tuple[str, str | None]] = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "unsupported_country_region_territory"),
    404: ("invalid_request_error", "model_not_found"),
    409: ("invalid_request_error", None),
    429: ("requests", "rate_limit_exceeded"),
}
SERVER_ERROR = ("server_error", None)

DATA_URL = re.compile(r"data:(?P<type>[^;,]*);base64,(?P<data>.*)", re.DOTALL)

Json = dict[str, Any]


# ---- requests ----------------------------------------------------------------------------------------------------


def read(body: bytes) -> Json:
    """The request's JSON, without what is null; raises VertexError in OpenAI's words."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid("We could not parse the JSON body of your request.") from error
    if not isinstance(request, dict):
        raise invalid("We could not parse the JSON body of your request: it is no object.")
    return {name: value for name, value in request.items() if value is not None}


def check_names(body: Json) -> None:
    """Raises VertexError, in OpenAI's words, for a field that it doesn't know."""
    for name in body:
        if name not in FIELDS:
            raise invalid(f"Unrecognized request argument supplied: {name}", name)


def check(body: Json) -> None:
    """Raises VertexError, in OpenAI's words, for a conversation that is none and numbers out of range."""
    if "messages" not in body:
        raise invalid("Missing required parameter: 'messages'.", "messages")
    if body["messages"] == []:
        message = (
            "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead."
        )
        raise invalid(message, "messages", code="empty_array")
    for name, (least, most) in RANGES.items():
        value = body.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        kind = "integer" if isinstance(least, int) else "decimal"
        if value < least:
            told = f"{kind} below minimum value. Expected a value >= {least:g}, but got {value} instead."
            raise invalid(f"Invalid '{name}': {told}", name, code=f"{kind}_below_min_value")
        if value > most:
            told = f"{kind} above maximum value. Expected a value <= {most:g}, but got {value} instead."
            raise invalid(f"Invalid '{name}': {told}", name, code=f"{kind}_above_max_value")


def refuse_beyond(body: Json) -> None:
    """Raises VertexError for what SmolLM2 can't do, and llama.cpp would leave out without a word."""
    for name in ("tools", "functions"):
        if body.get(name):
            raise invalid(f"'{name}' is not supported by this model: it calls no tools.", name)
    if body.get("n", 1) != 1:
        raise invalid("'n' is not supported by this model: it gives one answer.", "n")


def asked(body: Json, model: str) -> pb.GenerateContentRequest:
    """What a request amounts to; raises VertexError in OpenAI's words."""
    try:
        request = json_format.ParseDict(_request(body), pb.GenerateContentRequest())
    except (KeyError, TypeError, AttributeError, ValueError, json_format.ParseError) as error:
        raise invalid(f"Invalid request: {' '.join(str(error).split())}") from error
    request.model = model
    return request


def _request(body: Json) -> Json:
    instructions: list[Json] = []
    contents: list[Json] = []
    names: dict[str, str] = {}
    for index, message in enumerate(body["messages"]):
        match message["role"]:
            case "system" | "developer":
                instructions += _parts(message["content"])
            case "user":
                contents.append({"role": "user", "parts": _parts(message["content"])})
            case "assistant":
                calls = message.get("tool_calls") or []
                names |= {call["id"]: call["function"]["name"] for call in calls}
                parts = [*_parts(message.get("content") or []), *map(_called, calls)]
                contents.append({"role": "model", "parts": parts})
            case "tool":
                contents.append({"role": "user", "parts": [_result(message, names)]})
            case role:
                raise invalid(f"Invalid value: '{role}'.", f"messages[{index}].role")
    request: Json = {"contents": contents, "generationConfig": _config(body), "tools": _tools(body)}
    if instructions:
        request["systemInstruction"] = {"parts": instructions}
    if "tool_choice" in body:
        request["toolConfig"] = {"functionCallingConfig": _choice(body["tool_choice"])}
    if "metadata" in body:
        request["labels"] = body["metadata"]
    return request


def _parts(content: str | Sequence[Json]) -> list[Json]:
    return [{"text": content}] if isinstance(content, str) else list(map(_part, content))


def _part(part: Json) -> Json:
    match part["type"]:
        case "text":
            return {"text": part["text"]}
        case "image_url":
            url = part["image_url"]["url"]
            found = DATA_URL.fullmatch(url)
            if found is None:
                return {"fileData": {"fileUri": url}}
            return {"inlineData": {"mimeType": found["type"], "data": found["data"]}}
        case "input_audio":
            audio = part["input_audio"]
            return {"inlineData": {"mimeType": f"audio/{audio['format']}", "data": audio["data"]}}
        case "file":
            file = part["file"]
            found = DATA_URL.fullmatch(file.get("file_data", ""))
            if found is None:
                return {"fileData": {"fileUri": file["file_id"]}}
            return {"inlineData": {"mimeType": found["type"], "data": found["data"]}}
        case kind:
            raise ValueError(f"unknown content type {kind!r}")


def _called(call: Json) -> Json:
    function = call["function"]
    return {
        "functionCall": {"id": call["id"], "name": function["name"], "args": json.loads(function["arguments"] or "{}")}
    }


def _result(message: Json, names: Mapping[str, str]) -> Json:
    name = names.get(message["tool_call_id"])
    if name is None:
        raise invalid(
            "Invalid parameter: messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
        )
    text = "".join(part["text"] for part in _parts(message["content"]))
    return {"functionResponse": {"id": message["tool_call_id"], "name": name, "response": {"output": text}}}


def _config(body: Json) -> Json:
    config = {SAMPLING[name]: value for name, value in body.items() if name in SAMPLING}
    if "stop" in body:
        config["stopSequences"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    wanted = body.get("response_format", {})
    if wanted.get("type") in {"json_object", "json_schema"}:
        config["responseMimeType"] = "application/json"
    if wanted.get("type") == "json_schema":
        config["responseJsonSchema"] = wanted["json_schema"].get("schema", {})
    return config


def _tools(body: Json) -> list[Json]:
    declared = []
    for tool in body.get("tools", []):
        function = tool["function"]
        declaration = {"name": function["name"], "description": function.get("description", "")}
        if "parameters" in function:
            declaration["parametersJsonSchema"] = function["parameters"]
        declared.append(declaration)
    tools: list[Json] = [{"functionDeclarations": declared}] if declared else []
    return [*tools, {"googleSearch": {}}] if "web_search_options" in body else tools


def _choice(choice: str | Json) -> Json:
    if isinstance(choice, str):
        return {"mode": CHOICES[choice]}
    return {"mode": "ANY", "allowedFunctionNames": [choice["function"]["name"]]}


# ---- answers -----------------------------------------------------------------------------------------------------


class Answer:
    """Puts the responses of one answer into OpenAI's words."""

    def __init__(self, model: str, *, usage: bool, azure: bool) -> None:
        self._model = model
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
            yield self._choice(0, {"role": "assistant", "content": "", "refusal": None})
        for candidate in response.candidates:
            logprobs = told_logprobs(candidate.logprobs_result)
            for part in candidate.content.parts:
                for delta in self._deltas(part):
                    yield self._choice(candidate.index, delta, logprobs)
                    logprobs = None
            if candidate.finish_reason:
                yield self._choice(candidate.index, {}, finish=self._finish(candidate))

    def last(self) -> Iterator[Json]:
        """The chunks after the answer."""
        if self._with_usage:
            yield {**self._chunk([]), "usage": self._told_usage()}

    def whole(self, response: pb.GenerateContentResponse) -> Json:
        """The answer in one piece."""
        self._note(response)
        return {
            **self._head("chat.completion"),
            "choices": [self._message(candidate) for candidate in response.candidates],
            "usage": self._told_usage(),
        }

    def _note(self, response: pb.GenerateContentResponse) -> None:
        if response.prompt_feedback.block_reason:
            raise blocked(response.prompt_feedback, azure=self._azure)
        self._model = response.model_version or self._model
        if response.HasField("usage_metadata"):
            self._usage = response.usage_metadata

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
        return {
            "prompt_tokens": usage.prompt_token_count,
            "completion_tokens": usage.candidates_token_count + usage.thoughts_token_count,
            "total_tokens": usage.total_token_count,
            "prompt_tokens_details": {"cached_tokens": usage.cached_content_token_count, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": usage.thoughts_token_count, "audio_tokens": 0},
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


# ---- errors ------------------------------------------------------------------------------------------------------


def invalid(message: str, param: str = "", *, code: str = "") -> VertexError:
    details = []
    if param:
        violation = error_details_pb2.BadRequest.FieldViolation(field=param, description=message)
        details.append(any_pb2.Any())
        details[-1].Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if code:
        details.append(any_pb2.Any())
        details[-1].Pack(error_details_pb2.ErrorInfo(reason=code))
    return VertexError(grpc.StatusCode.INVALID_ARGUMENT, message, details)


def blocked(feedback: pb.GenerateContentResponse.PromptFeedback, *, azure: bool) -> VertexError:
    """A blocked prompt, which over OpenAI's protocol is an error."""
    if azure:
        message = feedback.block_reason_message or (
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
        )
        return invalid(message, "prompt", code="content_filter")
    message = feedback.block_reason_message or (
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy."
    )
    return invalid(message, code="invalid_prompt")


def told(error: VertexError) -> Json:
    """The body of an error."""
    kind, code = ERRORS.get(status_of(error), SERVER_ERROR)
    bad, info = error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()
    param = None
    for detail in error.details:
        if detail.Unpack(bad) and bad.field_violations:
            param = bad.field_violations[0].field
        elif detail.Unpack(info):
            code = info.reason
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


def retry_headers(error: VertexError) -> list[tuple[str, str]]:
    """What a RetryInfo among the error's details says, as OpenAI says it."""
    retry = error_details_pb2.RetryInfo()
    for detail in error.details:
        if detail.Unpack(retry):
            milliseconds = retry.retry_delay.ToMilliseconds()
            return [("retry-after-ms", str(milliseconds)), ("retry-after", str(-(-milliseconds // 1000)))]
    return []
