"""The Control service: steering from another process."""

# ruff: noqa: ARG002  # the RPCs have the parameters that the stubs give them

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from ..answerers.base import Mind
from ..answerers.script import ScriptError
from ..answerers.scripted import Scripted, script_of
from ..call_records import Call, CallLog
from ..protos import control_pb2 as control
from ..protos import control_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ControlServicer(control_pb2_grpc.ControlServicer):
    """Steers what answers, and tells of the calls."""

    def __init__(self, mind: Mind, log: CallLog, *, reset: Callable[[], None]) -> None:
        """`reset` is `Emulator.reset`."""
        self._mind = mind
        self._log = log
        self._reset = reset

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
        return control.ListCallsResponse(calls=map(told, self._log.calls))

    async def WatchCalls(
        self, request: control.WatchCallsRequest, context: Context
    ) -> AsyncIterator[control.WatchCallsResponse]:
        with self._log.watch() as watcher:
            while True:
                yield control.WatchCallsResponse(calls=map(told, await watcher.next()))

    async def GetStats(self, request: control.GetStatsRequest, context: Context) -> control.GetStatsResponse:
        return control.GetStatsResponse(
            calls=self._log.count,
            open_calls=len(self._log.open_calls),
            active_generations=self._mind.active_generations,
            generated_tokens=self._mind.generated_tokens,
        )

    async def Reset(self, request: control.ResetRequest, context: Context) -> control.ResetResponse:
        self._reset()
        return control.ResetResponse()

    async def _script(self, context: Context) -> Scripted:
        try:
            return script_of(self._mind)
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
