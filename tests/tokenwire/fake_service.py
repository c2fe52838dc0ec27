"""Plays tokenwire's service on a real socket, by scripts; knows nothing of the real one."""

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.struct_pb2 import Struct
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from tokenwire import errors
from tokenwire.v1 import generation_service_pb2 as pb
from tokenwire.v1.content_pb2 import ToolCall
from tokenwire.v1.generation_service_pb2_grpc import (
    GenerationServiceServicer,
    add_GenerationServiceServicer_to_server,
)

# What a client raises for each finish reason but STOP.
UNFINISHED: dict[pb.FinishReason.ValueType, type[errors.UnfinishedError]] = {
    pb.FINISH_REASON_UNSPECIFIED: errors.OtherFinishError,
    pb.FINISH_REASON_MAX_TOKENS: errors.TokenLimitError,
    pb.FINISH_REASON_SAFETY: errors.SafetyError,
    pb.FINISH_REASON_RECITATION: errors.RecitationError,
    pb.FINISH_REASON_BLOCKLIST: errors.BlocklistError,
    pb.FINISH_REASON_PROHIBITED_CONTENT: errors.ProhibitedContentError,
    pb.FINISH_REASON_SPII: errors.PersonalDataError,
    pb.FINISH_REASON_MALFORMED_FUNCTION_CALL: errors.MalformedFunctionCallError,
    pb.FINISH_REASON_PROMPT_BLOCKED: errors.PromptBlockedError,
    pb.FINISH_REASON_OTHER: errors.OtherFinishError,
    pb.FINISH_REASON_MODEL_ARMOR: errors.ModelArmorError,
    pb.FINISH_REASON_EMPTY: errors.EmptyAnswerError,
}


@dataclass(frozen=True)
class Refusal:
    """A status other than OK, with an ErrorInfo of ours where there is a reason, and further details."""

    code: grpc.StatusCode
    reason: str = ""
    message: str = "words of the service"
    details: tuple[ProtoMessage, ...] = ()
    domain: str = "tokenwire"

    def status(self) -> Any:
        info = (ErrorInfo(reason=self.reason, domain=self.domain),) if self.reason else ()
        packed = []
        for detail in (*info, *self.details):
            packed.append(AnyMessage())
            packed[-1].Pack(detail)
        return rpc_status.to_status(Status(code=self.code.value[0], message=self.message, details=packed))


def completed(reason: pb.FinishReason.ValueType = pb.FINISH_REASON_STOP, output_tokens: int = 7) -> pb.Completed:
    usage = pb.Usage(exact=True, input_tokens=5, output_tokens=output_tokens, total_tokens=5 + output_tokens)
    return pb.Completed(finish_reason=reason, usage=usage, model="fake-1")


def thought(text: str = "", signature: bytes = b"") -> pb.Reasoning:
    return pb.Reasoning(text=text, signature=signature)


def tool_call(name: str, arguments: Mapping[str, object], signature: bytes = b"", id_: str = "c-1") -> pb.ToolCallEvent:
    call = ToolCall(id=id_, name=name, arguments=ParseDict(dict(arguments), Struct()))
    return pb.ToolCallEvent(tool_call=call, reasoning_signature=signature)


# A piece of text, another event, a gate that the answer waits at, a refusal, or a message to be sent as it stands.
Said = str | pb.Reasoning | pb.ToolCallEvent | pb.Grounding | pb.Logprobs | pb.Completed
Step = Said | threading.Event | Refusal | pb.GenerateResponse


def messages(*steps: Step) -> Iterator[pb.GenerateResponse | threading.Event | Refusal]:
    """What the steps are on the wire, numbered: `started` first, unless the call is refused."""
    if not (steps and isinstance(steps[0], Refusal)):
        yield pb.GenerateResponse(sequence=0, started=pb.Started(generation_id="g-1", model="fake-1"))
    sequence = 1
    for step in steps:
        match step:
            case str():
                yield pb.GenerateResponse(sequence=sequence, text=step)
            case pb.Reasoning():
                yield pb.GenerateResponse(sequence=sequence, reasoning=step)
            case pb.ToolCallEvent():
                yield pb.GenerateResponse(sequence=sequence, tool_call=step)
            case pb.Grounding():
                yield pb.GenerateResponse(sequence=sequence, grounding=step)
            case pb.Logprobs():
                yield pb.GenerateResponse(sequence=sequence, logprobs=step)
            case pb.Completed():
                yield pb.GenerateResponse(sequence=sequence, completed=step)
            case _:
                yield step
                continue
        sequence += 1


def said(*steps: Said) -> list[pb.GenerateResponse]:
    """The messages of an answer that waits for nothing."""
    return [message for message in messages(*steps) if isinstance(message, pb.GenerateResponse)]


# The first says nothing about itself; the second can do everything; the third is of a provider that knows fewer fields.
MODELS = (
    pb.Model(name="fake-1", default=True),
    pb.Model(
        name="fake-2",
        provider="gcp.vertex_ai",
        max_input_tokens=1_048_576,
        max_output_tokens=65_535,
        input_kinds=["text", "image", "pdf", "audio"],
        thinking=True,
        tools=True,
        metadata=ParseDict({"region": "europe-north1"}, Struct()),
    ),
    pb.Model(
        name="fake-3",
        provider="openai",
        input_kinds=["text"],
        thinking=True,
        tools=False,
        unsupported_fields=["config.include_thoughts", "config.thinking_budget", "config.top_k"],
    ),
)


@dataclass
class FakeService(GenerationServiceServicer):
    """Answers each call by the next script; without one, by a short complete answer."""

    stop: Callable[[], None]
    # Ends it at once, calls and all.
    address: str = ""
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    counted: list[pb.CountTokensRequest] = field(default_factory=list)
    refuses_to_count: Refusal | None = None
    deadlines: list[float | None] = field(default_factory=list)
    # Seconds that each call brought along.
    scripts: list[tuple[Step, ...]] = field(default_factory=list)
    models: list[pb.Model] = field(default_factory=list)
    lists: threading.Event = field(default_factory=threading.Event)
    # Until it is set, nobody is told the models.
    arrived: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    running: int = 0
    usage: list[pb.CallerUsage] = field(default_factory=list)
    """What the caller has used."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> Self:
        self.requests.clear()
        self.counted.clear()
        self.refuses_to_count = None
        self.deadlines.clear()
        self.scripts.clear()
        self.models[:] = MODELS
        self.lists.set()
        self.arrived.clear()
        self.cancelled.clear()
        return self

    def will_answer(self, *steps: Step) -> None:
        self.scripts.append(steps)

    def Generate(self, request: pb.GenerateRequest, context: Any) -> Iterator[pb.GenerateResponse]:
        finished, gone = threading.Event(), threading.Event()

        def ended() -> None:
            with self._lock:
                self.running -= 1
            gone.set()
            if not finished.is_set():
                self.cancelled.set()

        with self._lock:
            self.running += 1
            script = self.scripts.pop(0) if self.scripts else ("Hello", " there.", completed())
        if not context.add_callback(ended):
            ended()  # its caller had gone before a thread was free
        self.requests.append(request)
        self.deadlines.append(context.time_remaining())
        self.arrived.set()
        for message in messages(*script):
            match message:
                case threading.Event():
                    while not message.wait(0.01):
                        if gone.is_set():
                            return
                case Refusal():
                    finished.set()
                    context.abort_with_status(message.status())
                case _:
                    # From here on the client may hang up without anything being wrong.
                    if message.HasField("completed"):
                        finished.set()
                    yield message
        finished.set()

    def CountTokens(self, request: pb.CountTokensRequest, context: Any) -> pb.CountTokensResponse:
        self.counted.append(request)
        if self.refuses_to_count is not None:
            context.abort_with_status(self.refuses_to_count.status())
        return pb.CountTokensResponse(total_tokens=42, model=request.model or "fake-1")

    def ListModels(self, _: pb.ListModelsRequest, context: Any) -> pb.ListModelsResponse:
        while not self.lists.wait(0.01) and context.is_active():
            pass
        if not self.models:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no list")
        return pb.ListModelsResponse(models=self.models)

    def GetUsage(self, _: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        """Count nobody, as a service that asks nobody who calls, unless a test says otherwise."""
        if self.usage:
            return pb.GetUsageResponse(callers=self.usage)
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "nobody is counted")
        raise AssertionError("abort raises")


class Running:
    """A FakeService on the loopback, for as long as the `with` block; on a free port unless one is given."""

    def __init__(self, address: str = "localhost:0") -> None:
        self._address = address
        self._server = grpc.server(ThreadPoolExecutor(16))

    def __enter__(self) -> FakeService:
        service = FakeService(stop=self._stop)
        add_GenerationServiceServicer_to_server(service, self._server)
        service.address = f"localhost:{self._server.add_insecure_port(self._address)}"
        self._server.start()
        return service

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._server.stop(None).wait()
