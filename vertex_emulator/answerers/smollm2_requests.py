"""A request to Vertex in llama.cpp's words, as far as SmolLM2 can do it, and refusals in Vertex's; pure."""

import http.client
from collections.abc import Mapping, Sequence
from typing import Any

import grpc

from ..call_records import Request
from ..protos import prediction_pb2 as pb
from .base import VertexError

MODEL_VERSION = "smollm2-135m-instruct"

# Unset by the caller: what the model's card recommends.
DEFAULT_TEMPERATURE = 0.2
DEFAULT_TOP_P = 0.9

# Without these so small a model says one sentence over and over, up to the token limit. Both are llama.cpp's: the mild
# penalty for single tokens leaves names of the conversation sayable, DRY is for repeated sequences of more than four.
AGAINST_REPETITION: Mapping[str, Any] = {
    "repeat_penalty": 1.05,
    "dry_multiplier": 0.8,
    "dry_allowed_length": 4,
    "dry_penalty_last_n": 256,
}

# Fields of GenerationConfig, and what llama.cpp calls them.
SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "max_output_tokens": "max_tokens",
    "stop_sequences": "stop",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}

# Vertex's own ranges: https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/inference
RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (1, 1_000),
    "max_output_tokens": (1, 65_536),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
MAX_STOP_SEQUENCES = 5

# Set to this they ask for nothing that this model can't do.
NEUTRAL: Mapping[str, Sequence[Any]] = {
    "candidate_count": (0, 1),
    "response_mime_type": ("text/plain",),
    "response_logprobs": (False,),
    "logprobs": (0,),
    "audio_timestamp": (False,),
    "response_modalities": ([], [pb.GenerationConfig.TEXT]),
    "thinking_config": [
        pb.GenerationConfig.ThinkingConfig(thinking_budget=budget, include_thoughts=included)
        for budget in (None, 0)
        for included in (None, False)
    ],
}

# Fields of a request that ask for what this model can't do, whatever they hold.
BEYOND = ("tools", "tool_config", "cached_content", "model_armor_config")

# What a field, or what begins its MIME type, asks for.
ABILITIES: Mapping[str, str] = {
    "tools": "it calls no tools",
    "tool_config": "it calls no tools",
    "function_call": "it calls no tools",
    "function_response": "it calls no tools",
    "executable_code": "it runs no code",
    "code_execution_result": "it runs no code",
    "image": "it sees no images",
    "video": "it sees no videos",
    "audio": "it hears no audio",
    "inline_data": "it reads no files",
    "file_data": "it reads no files",
    "response_mime_type": "it writes plain text only",
    "response_schema": "it writes plain text only",
    "response_json_schema": "it writes plain text only",
    "response_modalities": "it writes plain text only",
    "response_logprobs": "it tells no log probabilities",
    "logprobs": "it tells no log probabilities",
    "thinking_config": "it doesn't think",
    "candidate_count": "it gives one candidate",
}

ROLES = {"": "user", "user": "user", "model": "assistant"}


def chat(request: pb.GenerateContentRequest) -> dict[str, Any]:
    """The chat completion that answers `request`; raises VertexError for what this model can't do."""
    refuse_beyond(request)
    return {
        "messages": conversation(request),
        **sampling(request.generation_config),
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
        # Calls back during the prompt's evaluation too, so that it can be aborted there.
        "return_progress": True,
        # A cached prefix changes the last bits of the arithmetic, and with them what a seed yields.
        "cache_prompt": not request.generation_config.HasField("seed"),
    }


def refuse_beyond(request: Request) -> None:
    """Raise VertexError if a field of `request` asks for what this model can't do."""
    for descriptor, _ in request.ListFields():
        if descriptor.name in BEYOND:
            raise unsupported(descriptor.name)


def conversation(request: Request) -> list[dict[str, str]]:
    """The messages, the system instruction first; raises VertexError."""
    messages = []
    if request.HasField("system_instruction"):
        messages.append({"role": "system", "content": text(request.system_instruction, "system_instruction")})
    for index, content in enumerate(request.contents):
        place = f"contents[{index}]"
        if content.role not in ROLES:
            raise invalid(f"{place}.role: {content.role!r} is none of 'user' and 'model'")
        messages.append({"role": ROLES[content.role], "content": text(content, place)})
    if not request.contents:
        raise invalid("contents: at least one is required")
    if messages[-1]["role"] != "user":
        raise invalid(f"contents[{len(request.contents) - 1}].role: the last message must be the user's")
    return messages


def text(content: pb.Content, place: str) -> str:
    """The text of a message; raises VertexError if it holds anything else."""
    if not content.parts:
        raise invalid(f"{place}.parts: at least one is required")
    for index, part in enumerate(content.parts):
        here = f"{place}.parts[{index}]"
        kind = part.WhichOneof("data")
        if kind is None:
            raise invalid(f"{here}: is empty")
        if kind != "text":
            raise unsupported(f"{here}.{kind}", getattr(getattr(part, kind), "mime_type", ""))
    # A thought is the model's, not part of the conversation.
    return "".join(part.text for part in content.parts if not part.thought)


def sampling(config: pb.GenerationConfig) -> dict[str, Any]:
    """The sampling parameters; raises VertexError."""
    found: dict[str, Any] = {
        "temperature": DEFAULT_TEMPERATURE,
        "top_p": DEFAULT_TOP_P,
        **AGAINST_REPETITION,
    }
    for descriptor, value in config.ListFields():
        name = descriptor.name
        if name not in SAMPLING:
            if value not in NEUTRAL.get(name, ()):
                raise unsupported(f"generation_config.{name}")
            continue
        low, high = RANGES.get(name, (None, None))
        if low is not None and high is not None and not low <= value <= high:
            raise invalid(f"generation_config.{name}: {value:g} is not within {low} and {high}")
        found[SAMPLING[name]] = value
    if len(config.stop_sequences) > MAX_STOP_SEQUENCES:
        raise invalid(
            f"generation_config.stop_sequences: {len(config.stop_sequences)} are more than {MAX_STOP_SEQUENCES}"
        )
    found["stop"] = list(config.stop_sequences)
    if "top_k" in found:
        found["top_k"] = int(found["top_k"])
    return found


def invalid(message: str) -> VertexError:
    return VertexError(grpc.StatusCode.INVALID_ARGUMENT, message)


def unsupported(field: str, mime_type: str = "") -> VertexError:
    """Vertex's form of words for what a model can't do."""
    ability = ABILITIES.get(mime_type.partition("/")[0]) or ABILITIES.get(field.rpartition(".")[2])
    because = f": {ability}" if ability else ""
    return invalid(
        f"Unable to submit request because {field} is not supported by this model ({MODEL_VERSION}, the emulator's own)"
        f"{because}. Remove it and try again."
    )


def refusal(error: Mapping[str, Any]) -> VertexError:
    """Vertex's words for an error of llama.cpp's."""
    if error.get("type") == "exceed_context_size_error":
        return invalid(
            f"The input token count ({error['n_prompt_tokens']}) exceeds the maximum number of tokens allowed "
            f"({error['n_ctx']})."
        )
    if error.get("code") == http.client.BAD_REQUEST:
        return invalid(error["message"])
    return VertexError(grpc.StatusCode.INTERNAL, f"the model failed: {error.get('message')}")
