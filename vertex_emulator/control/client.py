"""Steers an emulator from another process. Synchronous."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from google.protobuf import any_pb2

from ..protos import control_pb2 as control
from ..protos import control_pb2_grpc
from ..protos import prediction_pb2 as pb
from ..protos.script_pb2 import Answer, Script


class ControlClient:
    """Steers the emulator at `address` (host:port). Synchronous; a context manager.

    Its methods raise grpc.RpcError when the emulator can't be reached or refuses.
    """

    def __init__(self, address: str, *, timeout: float = 10) -> None:
        self._timeout = timeout
        # What it has recorded may be much: whole requests, with images in them.
        options = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")]
        self._channel = grpc.insecure_channel(address, options=options)
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
