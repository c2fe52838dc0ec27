"""The standard health service, grpc.health.v1.

Not that of grpcio-health-checking: it writes to each watcher under a lock that all of them share, so one that doesn't
read would keep every other from hearing of a change, and the server from draining.
"""

import asyncio
from typing import Any

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from ..errors import ServiceUnknown
from .call import Call

NAME = pb.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # grpc_health has no types
    """Answers grpc.health.v1.Health."""

    def __init__(self, *services: str) -> None:
        """`services` have one state in common, NOT_SERVING at first; "" is the server as a whole."""
        self._services = frozenset(services)
        self._state: Any = pb.HealthCheckResponse.NOT_SERVING
        self._changed = asyncio.Event()
        self._final = False

    def say(self, *, serving: bool, final: bool = False) -> None:
        """From now on, answer so, and tell all who watch; nothing changes behind a `final` word."""
        if not self._final:
            self._final = final
            self._state = pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING
            self._changed.set()
            self._changed = asyncio.Event()

    async def Check(self, request: pb.HealthCheckRequest, call: Call) -> pb.HealthCheckResponse:  # noqa: ARG002 - as every handler
        """The state of one service. Raises ServiceUnknown."""
        if request.service not in self._services:
            raise ServiceUnknown("This server has no such service; leave the name empty to ask for the whole server")
        return pb.HealthCheckResponse(status=self._state)

    async def Watch(self, request: pb.HealthCheckRequest, call: Call) -> None:
        """The state now, and each time it changes. A slow reader may miss one that has changed again."""
        if request.service not in self._services:
            await call.write(pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN))
            await asyncio.Event().wait()  # as the protocol wants it: the service might be added
        told = None
        while True:
            changed = self._changed
            if told != self._state:
                told = self._state
                await call.write(pb.HealthCheckResponse(status=told))
            await changed.wait()
