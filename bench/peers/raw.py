"""The floor: a pass-through on grpc.aio. Bytes come from upstream and are written on as they are; nothing is parsed.

python -m bench.peers.raw UPSTREAM_HOST:PORT [tuned]

`tuned`: on uvloop and under SCHED_BATCH, as tokenwire's workers run.
"""

import asyncio
import importlib
import os
import sys
from typing import Any

import grpc
import grpc.aio

from bench.script import METHOD

Context = grpc.aio.ServicerContext[Any, Any]


class Raw(grpc.GenericRpcHandler):
    """Serves Vertex's own method by asking upstream for the same."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._ask: Any = channel.unary_stream(METHOD)

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        del details
        return grpc.unary_stream_rpc_method_handler(self._relay)

    async def _relay(self, request: bytes, context: Context) -> None:
        call = self._ask(request)
        try:
            # Reading this way is a little cheaper than `async for`: it is the floor.
            while (data := await call.read()) is not grpc.aio.EOF:
                await context.write(data)
        finally:
            call.cancel()


async def main(upstream: str) -> None:
    """Serve until the process is ended."""
    async with grpc.aio.insecure_channel(upstream) as channel:
        server = grpc.aio.server(handlers=[Raw(channel)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        print(f"listening on 127.0.0.1:{port}, ready", file=sys.stderr, flush=True)
        await server.wait_for_termination()


if __name__ == "__main__":
    new_loop = None
    if sys.argv[2:] == ["tuned"]:
        new_loop = importlib.import_module("uvloop").new_event_loop
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(sys.argv[1]))
