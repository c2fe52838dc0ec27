"""Steering an emulator from another process: the servicer, and a synchronous client for it."""

# ruff: noqa: ARG002  # the RPCs have the parameters that the stubs give them

import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grpc
import grpc.aio
from google.protobuf import any_pb2

from vertex_emulator import control_pb2 as control
from vertex_emulator import control_pb2_grpc
from vertex_emulator import prediction_pb2 as pb
from vertex_emulator.calls import Call
from vertex_emulator.script import ScriptError
from vertex_emulator.script_pb2 import Answer, Script

if TYPE_CHECKING:
    from vertex_emulator.emulator import Emulator
    from vertex_emulator.scripted import Scripted


Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer(control_pb2_grpc.ControlServicer):
    def __init__(self, emulator: "Emulator") -> None:
        self._emulator = emulator

    async def Play(self, request: control.PlayRequest, context: Context) -> control.PlayResponse:
        script = await self._script(context)
        try:
            script.load(request.script, append=request.append)
        except ScriptError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return control.PlayResponse()

    async def OpenGate(self, request: control.OpenGateRequest, context: Context) -> control.OpenGateResponse:
        script = await self._script(context)
        script.open_gate(request.name)
        return control.OpenGateResponse()

    async def ListCalls(self, request: control.ListCallsRequest, context: Context) -> control.ListCallsResponse:
        return control.ListCallsResponse(calls=map(told, self._emulator.calls))

    async def WatchCalls(
        self, request: control.WatchCallsRequest, context: Context
    ) -> AsyncIterator[control.WatchCallsResponse]:
        with self._emulator.log.watch() as watcher:
            while True:
                yield control.WatchCallsResponse(calls=map(told, await watcher.next()))

    async def GetStats(self, request: control.GetStatsRequest, context: Context) -> control.GetStatsResponse:
        return control.GetStatsResponse(
            calls=self._emulator.log.count,
            open_calls=len(self._emulator.open_calls),
            active_generations=self._emulator.mind.active_generations,
            generated_tokens=self._emulator.mind.generated_tokens,
        )

    async def Reset(self, request: control.ResetRequest, context: Context) -> control.ResetResponse:
        self._emulator.reset()
        return control.ResetResponse()

    async def _script(self, context: Context) -> "Scripted":
        try:
            return self._emulator.script
        except TypeError as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))


def told(call: Call) -> control.Call:
    """What the Control service says of a call."""
    message = control.Call(
        number=call.number,
        method=call.method,
        api_version=call.api_version,
        metadata=[
            control.Metadata(key=key, value=value if isinstance(value, bytes) else value.encode())
            for key, value in call.metadata
        ],
        pieces_sent=call.pieces_sent,
        waiting_for=call.waiting_for,
        transport=call.transport,
    )
    if call.request is not None:
        message.request.Pack(call.request)
    if call.deadline is not None:
        message.deadline.FromNanoseconds(round(call.deadline * 1e9))
    if call.code is not None:
        message.ending.code = call.code.name
        message.ending.by_caller = call.by_caller
    message.age.FromNanoseconds(round(((call.ended or time.monotonic()) - call.started) * 1e9))
    return message


class ControlClient:
    """Steers the emulator at `address` (host:port). Synchronous; a context manager.

    Its methods raise grpc.RpcError when the emulator can't be reached or refuses.
    """

    def __init__(self, address: str, *, timeout: float = 10) -> None:
        self._timeout = timeout
        self._channel = grpc.insecure_channel(address)
        self._stub = control_pb2_grpc.ControlStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def play(self, *answers: Answer, default: Answer | None = None) -> None:
        """Add answers behind those still unplayed."""
        script = Script(answers=answers, default_answer=default)
        self._stub.Play(control.PlayRequest(script=script, append=True), timeout=self._timeout, wait_for_ready=True)

    def load(self, script: Script) -> None:
        """Replace the script."""
        self._stub.Play(control.PlayRequest(script=script), timeout=self._timeout, wait_for_ready=True)

    def open_gate(self, name: str) -> None:
        self._stub.OpenGate(control.OpenGateRequest(name=name), timeout=self._timeout)

    def reset(self) -> None:
        """Forget ended calls and the script, close the gates; open calls go on."""
        self._stub.Reset(control.ResetRequest(), timeout=self._timeout)

    def calls(self) -> list[control.Call]:
        """All calls, oldest first."""
        return list(self._stub.ListCalls(control.ListCallsRequest(), timeout=self._timeout).calls)

    def stats(self) -> control.GetStatsResponse:
        return self._stub.GetStats(control.GetStatsRequest(), timeout=self._timeout, wait_for_ready=True)

    def wait_until(self, predicate: Callable[[list[control.Call]], bool], *, timeout: float = 10) -> list[control.Call]:
        """Wait until something about the calls is true, and return them; TimeoutError after `timeout` seconds."""
        known: dict[int, control.Call] = {}
        watch = self._stub.WatchCalls(control.WatchCallsRequest(), timeout=timeout)
        try:
            for changed in watch:
                known.update((call.number, call) for call in changed.calls)
                calls = [known[number] for number in sorted(known)]
                if predicate(calls):
                    return calls
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                raise
        finally:
            watch.cancel()
        raise TimeoutError(f"not within {timeout} s; the calls are {list(known.values())}")


def request_of(call: control.Call) -> pb.GenerateContentRequest | pb.CountTokensRequest | None:
    """The request of a call as the Control service tells it; None if it was no valid message."""
    for kind in (pb.GenerateContentRequest, pb.CountTokensRequest):
        request = kind()
        if _unpack(call.request, request):
            return request
    return None


def _unpack(packed: any_pb2.Any, message: pb.GenerateContentRequest | pb.CountTokensRequest) -> bool:
    return packed.Unpack(message)
