"""Requests of OpenAI's chat completions in Vertex's words, and Vertex's errors in OpenAI's; pure.

https://platform.openai.com/docs/api-reference/chat
"""

import json
import re
from collections.abc import Mapping, Sequence
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

MAX_STOP_SEQUENCES = 4
FORMATS = ("json_object", "json_schema", "text")

CHOICES = {"none": "NONE", "auto": "AUTO", "required": "ANY"}

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
    _check_together(body)
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


def _check_together(body: Json) -> None:
    stop, wanted = body.get("stop"), body.get("response_format")
    if isinstance(stop, list) and len(stop) > MAX_STOP_SEQUENCES:
        told = f"Expected an array with maximum length {MAX_STOP_SEQUENCES}, but got an array with length {len(stop)}"
        raise invalid(f"Invalid 'stop': array too long. {told} instead.", "stop", code="array_above_max_length")
    if "tool_choice" in body and not body.get("tools"):
        message = "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
        raise invalid(message, "tool_choice")
    if isinstance(wanted, dict) and wanted.get("type") not in FORMATS:
        told = f"Supported values are: {', '.join(map(repr, FORMATS[:-1]))}, and {FORMATS[-1]!r}."
        message = f"Invalid value: {wanted.get('type')!r}. {told}"
        raise invalid(message, "response_format.type", code="invalid_value")


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
