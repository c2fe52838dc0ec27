"""A TCP relay in front of the gRPC port, which can do what networks do: cut a connection, or swallow all it carries.

gRPC gives no hold on its sockets, so these two faults need somebody in between.
"""

import asyncio
import socket
import struct
from collections.abc import Callable

# What may wait in memory for a peer that doesn't read: little, so that backpressure reaches the emulator.
BUFFER_BYTES = 64 * 1024


class Relay:
    """Listens on `port` (0: a free one) and connects each caller to `target_port` on the same host."""

    def __init__(self, host: str, port: int, target_port: int) -> None:
        self._host = host
        self._port = port
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._links: dict[int, _Link] = {}
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        return self._port

    async def start(self) -> None:
        """Listen; raises OSError if the port can't be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self._accept, self._host, self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        for link in list(self._links.values()):
            link.close()

    def cut(self, port: int) -> None:
        """Reset the connection that the gRPC server sees coming from `port`."""
        self._links[port].reset()

    def blackhole(self, port: int) -> None:
        """Drop, from now on, whatever either side of that connection sends."""
        self._links[port].dark = True

    def _accept(self) -> "_End":
        link = _Link()
        link.caller.on_made = lambda: self._connect(link)
        return link.caller

    def _connect(self, link: "_Link") -> None:
        task = asyncio.create_task(self._link(link))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _link(self, link: "_Link") -> None:
        loop = asyncio.get_running_loop()
        try:
            transport, _ = await loop.create_connection(lambda: link.server, self._host, self._target_port)
        except BaseException:
            link.close()
            raise
        port = transport.get_extra_info("sockname")[1]
        self._links[port] = link
        link.on_close = lambda: self._links.pop(port, None)
        link.open()


class _Link:
    """The two ends of one relayed connection."""

    def __init__(self) -> None:
        self.caller = _End(self)
        self.server = _End(self)
        self.dark = False
        self.early = b""
        """What the caller sent before the server's end was there."""
        self.on_close: Callable[[], object] | None = None

    def open(self) -> None:
        if self.caller.transport is None or self.caller.transport.is_closing():
            self.close()
            return
        if self.server.transport is not None:
            self.server.transport.write(self.early)
        self.caller.transport.resume_reading()

    def other(self, end: "_End") -> "_End":
        return self.server if end is self.caller else self.caller

    def reset(self) -> None:
        if self.caller.transport is not None:
            # A linger time of 0 makes the kernel send RST instead of FIN.
            self.caller.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            self.caller.transport.abort()
        self.close()

    def close(self) -> None:
        for end in (self.caller, self.server):
            if end.transport is not None:
                # What is still buffered for a peer that doesn't read must not keep the connection alive.
                end.transport.abort() if self.dark else end.transport.close()
        if self.on_close is not None:
            self.on_close()
            self.on_close = None


class _End(asyncio.Protocol):
    def __init__(self, link: _Link) -> None:
        self._link = link
        self.transport: asyncio.Transport | None = None
        self.on_made: Callable[[], object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=BUFFER_BYTES)
        if self.on_made is not None:
            # Python 3.11.2's asyncio reads all the same: a pause in `connection_made` comes too early for it.
            transport.pause_reading()
            self.on_made()

    def data_received(self, data: bytes) -> None:
        other = self._link.other(self).transport
        if other is None:
            self._link.early += data
        elif not self._link.dark:
            other.write(data)

    def pause_writing(self) -> None:
        other = self._link.other(self).transport
        if other is not None:
            other.pause_reading()

    def resume_writing(self) -> None:
        other = self._link.other(self).transport
        if other is not None:
            other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc  # the other side is closed either way
        self._link.close()
