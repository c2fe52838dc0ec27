"""Requests of tokenwire.v1 as our own types. No I/O.

`parse` answers a request that can't be taken with the fields that are wrong: what each holds and what is wanted.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

from tokenwire.v1 import config_pb2, content_pb2
from tokenwire.v1 import generation_service_pb2 as pb

from ..errors import InvalidRequest, ModelNotFound, Violation
from ..generation import json_schema
from ..generation.capabilities import ModelCard
from ..generation.prompt import (
    Blob,
    File,
    Function,
    Part,
    Prompt,
    Reasoning,
    Role,
    Sampling,
    ToolCall,
    ToolChoice,
    ToolMode,
    ToolResult,
    Tools,
    Turn,
)
from . import rules
from .delivery import MAX_BYTES, Coalesce, Delivery
from .values import decimal, plain, quote, seconds

# Of a request's mistakes so many are told: they travel in trailers, of which callers take 8 KB.
MAX_VIOLATIONS = 10

_ROLES = {
    content_pb2.ROLE_USER: Role.USER,
    content_pb2.ROLE_MODEL: Role.MODEL,
    content_pb2.ROLE_TOOL: Role.TOOL,
}
_MODES = {
    config_pb2.ToolChoice.MODE_UNSPECIFIED: ToolMode.AUTO,
    config_pb2.ToolChoice.MODE_AUTO: ToolMode.AUTO,
    config_pb2.ToolChoice.MODE_ANY: ToolMode.ANY,
    config_pb2.ToolChoice.MODE_NONE: ToolMode.NONE,
}
_USUAL_OUTPUT_TOKENS = 512
_BYTES_OF_A_TOKEN = 4
_TOKENS_OF_A_FILE = 258

_THRESHOLDS = "HARM_BLOCK_THRESHOLD_"
_NO_SAMPLING = Sampling()
_NO_TOOLS = Tools()


def parse(request: pb.GenerateRequest, *, cards: Sequence[ModelCard], limits: rules.Limits) -> Prompt:
    """What the caller asks, validated. `cards` are those of the models on offer, the default first.

    Raises InvalidRequest or ModelNotFound.
    """
    if not request.prompt and not request.messages:
        wanted = "is empty: the text to answer is wanted, here or as the last of `messages`"
        raise InvalidRequest([Violation("prompt", wanted)], reason="EMPTY_PROMPT")
    if violations := list(rules.too_much(request, limits)):
        raise InvalidRequest(violations)  # before anything looks at each of its pieces
    card = _card(request.model, cards)
    if violations := list(itertools.islice(rules.of(request, card), MAX_VIOLATIONS)):
        raise InvalidRequest(violations)
    return Prompt(
        model=card.name,
        turns=tuple(_turns(request)),
        system_instruction=request.system_instruction,
        sampling=_sampling(request.config) if request.HasField("config") else _NO_SAMPLING,
        tools=_tools(request) if request.tools else _NO_TOOLS,
        safety={
            config_pb2.HarmCategory.Name(one.category): _threshold(one.threshold) for one in request.safety_settings
        },
        labels=dict(request.labels),
    )


def generate(
    request: pb.GenerateRequest, *, cards: Sequence[ModelCard], limits: rules.Limits
) -> tuple[Prompt, Delivery]:
    """What the caller asks, and how it wants the answer delivered; as `parse`."""
    return parse(request, cards=cards, limits=limits), delivery(request)


def delivery(request: pb.GenerateRequest) -> Delivery:
    """How the answer to this request is to be delivered; `parse` has found its fields valid."""
    merge = None
    if request.HasField("coalesce"):
        merge = Coalesce(
            max_delay=seconds(request.coalesce.max_delay) if request.coalesce.HasField("max_delay") else 0.0,
            max_bytes=request.coalesce.max_bytes if request.coalesce.HasField("max_bytes") else MAX_BYTES,
        )
    return Delivery(
        first_chunk_timeout=seconds(request.first_chunk_timeout) if request.HasField("first_chunk_timeout") else None,
        idle_timeout=seconds(request.idle_timeout) if request.HasField("idle_timeout") else None,
        coalesce=merge,
    )


def tokens(request: pb.GenerateRequest) -> tuple[int, int]:
    """About how many tokens a request may take: its input, and its output.

    What is said counts as four bytes a token, and each file as a picture. An output without a limit is a usual one.
    """
    size, files = request.ByteSize(), 0
    for message in request.messages:
        for part in message.parts:
            if part.HasField("inline_data"):
                size -= len(part.inline_data.data)
            files += part.WhichOneof("data") in ("inline_data", "file_data")
    config = request.config
    output = config.max_output_tokens if config.HasField("max_output_tokens") else _USUAL_OUTPUT_TOKENS
    return size // _BYTES_OF_A_TOKEN + files * _TOKENS_OF_A_FILE, output


def parse_count(request: pb.CountTokensRequest, *, cards: Sequence[ModelCard], limits: rules.Limits) -> Prompt:
    """What the caller wants counted; as `parse`, which would take the same fields."""
    same = pb.GenerateRequest(
        prompt=request.prompt,
        messages=request.messages,
        system_instruction=request.system_instruction,
        model=request.model,
        tools=request.tools,
    )
    return parse(same, cards=cards, limits=limits)


def _card(name: str, cards: Sequence[ModelCard]) -> ModelCard:
    if not name:
        return cards[0]
    for card in cards:
        if card.name == name:
            return card
    offered = [card.name for card in cards]
    short = name[: rules.MAX_REQUEST_ID_CHARACTERS]
    raise ModelNotFound(
        f"Model {quote(name)} is not on offer: one of {', '.join(offered)} is wanted",
        metadata={"model": short, "offered": ",".join(offered)},
    )


def _sampling(config: config_pb2.GenerationConfig) -> Sampling:
    return Sampling(
        temperature=decimal(config.temperature) if config.HasField("temperature") else None,
        top_p=decimal(config.top_p) if config.HasField("top_p") else None,
        top_k=config.top_k if config.HasField("top_k") else None,
        max_output_tokens=config.max_output_tokens if config.HasField("max_output_tokens") else None,
        stop_sequences=tuple(config.stop_sequences),
        seed=config.seed if config.HasField("seed") else None,
        presence_penalty=decimal(config.presence_penalty) if config.HasField("presence_penalty") else None,
        frequency_penalty=decimal(config.frequency_penalty) if config.HasField("frequency_penalty") else None,
        thinking_budget=config.thinking_budget if config.HasField("thinking_budget") else None,
        include_thoughts=config.include_thoughts if config.HasField("include_thoughts") else None,
        response_mime_type=config.response_mime_type if config.HasField("response_mime_type") else None,
        response_schema=json_schema.normal(plain(config.response_schema))
        if config.HasField("response_schema")
        else None,
        response_logprobs=config.response_logprobs if config.HasField("response_logprobs") else None,
        logprobs=config.logprobs if config.HasField("logprobs") else None,
    )


def _turns(request: pb.GenerateRequest) -> Iterable[Turn]:
    names: dict[str, str] = {}
    for message in request.messages:
        for part in message.parts:
            if part.HasField("tool_call"):
                names[part.tool_call.id] = part.tool_call.name
        yield Turn(_ROLES[message.role], tuple(_parts(message.parts, names)))
    if request.prompt:
        yield Turn(Role.USER, (request.prompt,))


def _parts(parts: Iterable[content_pb2.Part], names: Mapping[str, str]) -> Iterable[Part]:
    """`names` are those of the functions called so far, by the calls' ids."""
    for part in parts:
        match part.WhichOneof("data"):
            case "text":
                yield part.text
                if part.reasoning_signature:
                    yield Reasoning("", part.reasoning_signature)
            case "inline_data":
                yield Blob(part.inline_data.mime_type, part.inline_data.data)
            case "file_data":
                yield File(part.file_data.mime_type, part.file_data.file_uri)
            case "reasoning":
                yield Reasoning(part.reasoning, part.reasoning_signature)
            case "tool_call":
                call = part.tool_call
                yield ToolCall(
                    id=call.id,
                    name=call.name,
                    arguments=plain(call.arguments),
                    signature=part.reasoning_signature,
                )
            case "tool_result":
                result = part.tool_result
                yield ToolResult(
                    id=result.tool_call_id,
                    name=result.name or names[result.tool_call_id],
                    response=plain(result.response),
                )
            case None:
                raise AssertionError("an empty part, which the rules refuse")


def _tools(request: pb.GenerateRequest) -> Tools:
    functions = [function for tool in request.tools for function in tool.function_declarations]
    choice = request.tool_choice
    return Tools(
        functions=tuple(
            Function(
                name=function.name,
                description=function.description,
                parameters=json_schema.normal(plain(function.parameters)) if function.HasField("parameters") else None,
            )
            for function in functions
        ),
        google_search=any(tool.HasField("google_search") for tool in request.tools),
        choice=ToolChoice(_MODES[choice.mode], tuple(choice.allowed_function_names))
        if request.HasField("tool_choice")
        else None,
    )


def _threshold(number: "config_pb2.HarmBlockThreshold.ValueType") -> str:
    """Google's name for it: BLOCK_NONE of HARM_BLOCK_THRESHOLD_NONE, but OFF of HARM_BLOCK_THRESHOLD_OFF."""
    name = config_pb2.HarmBlockThreshold.Name(number).removeprefix(_THRESHOLDS)
    return name if name == "OFF" else f"BLOCK_{name}"
