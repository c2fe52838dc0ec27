"""Transport: the port, health, reflection, and going away in good order."""

import asyncio
import os
from collections.abc import Collection, Coroutine
from typing import Any, NoReturn

import grpc.aio
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tokenwire.v1 import generation_service_pb2
from tokenwire.v1.generation_service_pb2_grpc import add_GenerationServiceServicer_to_server

from ..admission.counts import Counts
from ..admission.quotas import Quotas
from ..admission.redis_counts import RedisCounts
from ..admission.shared import Shared
from ..calls.guard import LONGEST_HOLD_SECONDS, Guard
from ..calls.health import NAME as HEALTH
from ..calls.health import Health
from ..calls.receive import Receiver
from ..calls.servicer import Servicer
from ..calls.stopping.connections import opened
from ..errors import reasons
from ..generation.provider import Provider
from ..settings import Settings
from ..telemetry import call_log
from ..telemetry.metrics import Metrics
from ..telemetry.watch import Watch
from .address import clear, refusal
from .readings import Readings
from .secured import Secured

SERVICE = generation_service_pb2.DESCRIPTOR.services_by_name["GenerationService"].full_name

# A caller that is slow to read, or doesn't for a moment, still hears how its call ended when the server goes.
_FAREWELL_SECONDS = 5.0
_LEAVE_SECONDS = 0.1

_REDIS_SECONDS = 1.0
"""For so long a server waits for Redis before it serves, and before it ends, if need be."""

# Workers stop together, and not in the same moment: a caller that the first refuses asks again at once, and must not
# meet the others as they close.
_TOGETHER_SECONDS = LONGEST_HOLD_SECONDS + 0.3
_ROOM_AROUND_PROMPT_BYTES = 1024 * 1024

_LOOK_SECONDS = 0.25
_LOOKS_PER_COUNT = 8
"""Connections are counted every two seconds."""

_NOBODY_ELSE = 0o177
"""What a Unix domain socket must not allow: only this user may read and write it."""

# Of the memory for requests that are still arriving: some of any size can be read at once.
_HEALTH_PART = 1 / 4

# On one connection: calls beside those that slots and queue have room for, such as those that are being refused. And
# calls that have ended, but not yet for us, beside those in the queue, which may all be refused in one moment; their
# caller already opens others in their place.
_STREAMS_BESIDE = 16
_STREAMS_ENDING = 32


class Server:
    """Listens from `start` on; answers from `announce_serving` on; `stop` lets running streams finish."""

    def __init__(
        self,
        settings: Settings,
        shared: Shared | None = None,
        secured: Secured | None = None,
        watch: Watch | None = None,
    ) -> None:
        """What is `shared` is so with other workers on the same port; None: this is the only process.

        `secured` is what the settings' files hold; None: they haven't been read yet. `watch`: None: nobody else tells
        of anything.
        """
        self._settings = settings
        self._secured = secured or Secured.of(settings)
        self._following: asyncio.Task[NoReturn] | None = None
        self._hurried = asyncio.Event()
        alone = shared is None
        self._pause = 0 if alone else _TOGETHER_SECONDS
        identity = self._secured.identity
        shared = shared or Shared.of(
            slots=settings.slots, per_caller=settings.slots_per_caller, counted=identity.is_asked
        )
        self._watch = watch or Watch(Metrics(settings.telemetry_names, reasons=reasons()))
        self._watching: asyncio.Task[NoReturn] | None = None
        self._health = Health("", SERVICE)
        self._in_redis: RedisCounts | None = None
        self._counting: asyncio.Task[NoReturn] | None = None
        if shared.counts is not None and settings.redis_url:
            self._in_redis = _in_redis(settings, shared.counts)
        counts = self._in_redis or shared.counts
        certificates = self._secured.certificates
        self.readings = Readings(
            shared.slots,
            identity,
            Quotas(counts) if counts is not None else None,
            None if certificates is None else certificates.expires,
        )
        self._servicer = Servicer(settings, shared.slots, identity, counts)
        budget = settings.max_unfinished_bytes // shared.slots.workers
        receiver, health_receiver = (
            Receiver(budget=int(budget * part), largest=_largest_request(settings))
            for part in (1 - _HEALTH_PART, _HEALTH_PART)
        )
        self._guard = Guard(settings, identity, receiver, health_receiver, self._watch)
        self._server = grpc.aio.server(interceptors=[self._guard], options=_options(settings, alone=alone))
        add_GenerationServiceServicer_to_server(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Listen, and say NOT_SERVING unless it serves already. Returns the port.

        Raises SettingError if the address can't be had.
        """
        path = self._settings.socket_path
        if path:
            clear(path)
        before = os.umask(_NOBODY_ELSE) if path else None
        try:
            port = self._listen(self._settings.address)
        except RuntimeError as error:
            raise refusal(self._settings) from error
        finally:
            if before is not None:
                os.umask(before)
        await self._server.start()
        if self._secured.is_followed:
            self._following = asyncio.create_task(self._secured.follow())
        if self._settings.metrics_port:
            self._watching = asyncio.create_task(self._look((port, self._settings.metrics_port)))
        return port

    async def _look(self, ports: Collection[int]) -> NoReturn:
        """Tell of what nothing happens to tell of. At these ports callers and Prometheus come in."""
        loop = asyncio.get_running_loop()
        looks = 0
        while True:
            begin = loop.time()
            await asyncio.sleep(_LOOK_SECONDS)
            self._watch.look(max(0.0, loop.time() - begin - _LOOK_SECONDS))
            if not looks % _LOOKS_PER_COUNT:
                # Beside the calls: of thousands of connections it takes a while.
                self._watch.metrics.connected(await asyncio.to_thread(opened, ports))
            if self._in_redis is not None:
                state = self._in_redis.state
                self._watch.metrics.redis(up=state.up, losses=state.losses, undecided=state.undecided)
            looks += 1

    def _listen(self, address: str) -> int:
        if self._secured.certificates is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._secured.certificates.credentials())

    def use(self, model: Provider) -> None:
        """From now on, answer with `model`. What health says stays as it is."""
        if self._in_redis is not None and self._counting is None:
            self._counting = asyncio.create_task(self._in_redis.run())
        self._servicer.use(model)

    async def announce_serving(self, model: Provider) -> None:
        """From now on, answer with `model` and say SERVING."""
        await self._secured.identity.looked()
        self.use(model)
        if self._in_redis is not None:
            await self._in_redis.tried(_REDIS_SECONDS)
        self._health.say(serving=True)

    async def stop(self, grace: float) -> None:
        """Refuse new calls, say NOT_SERVING, and return once running calls have ended.

        They have `grace` seconds, or until `hurry` is called; then they are ended, and callers have some seconds to
        read what became of their calls.
        """
        self._guard.drain()
        self._health.say(serving=False, final=True)
        call_log.say("draining: running streams have %g s", grace)
        if grace:
            await self._unless_hurried(asyncio.sleep(self._settings.drain_delay))
        # It would wait for those who watch health, too, and cut those who still read, so how long is not left to it.
        closing = await self._close(grace + 2 * _FAREWELL_SECONDS, pause=self._pause)
        await self._unless_hurried(self._guard.finish(grace))
        if unread := await self._guard.end(_FAREWELL_SECONDS):
            call_log.say("%d callers do not read how their calls ended; their connections are closed", unread)
        if self._in_redis is not None:
            await self._in_redis.told_all(_REDIS_SECONDS)
        await self._server.stop(0)
        await closing
        self._forget()

    def hurry(self) -> None:
        """Make `stop` end running calls now."""
        self._hurried.set()
        self._guard.interrupt()

    async def _unless_hurried(self, waiting: Coroutine[Any, Any, None]) -> None:
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self._hurried.wait())
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()

    async def leave(self) -> None:
        """Let go of the port; what is being answered has a moment to finish, and all others hear that it is left."""
        closing = await self._close(_FAREWELL_SECONDS)
        await asyncio.wait((closing,), timeout=_LEAVE_SECONDS)
        await self._guard.end(_LEAVE_SECONDS)
        await self._server.stop(0)
        await closing
        self._forget()

    def _forget(self) -> None:
        for task in (self._following, self._counting, self._watching):
            if task is not None:
                task.cancel()

    async def _close(self, seconds: float, *, pause: float = 0) -> "asyncio.Future[None]":
        """Close the port and tell callers to go elsewhere; the future is done once all calls have ended or been cut.

        Calls that have come meanwhile are answered once it has lasted for `pause` seconds, at the earliest.
        """
        released = asyncio.get_running_loop().time() + pause
        await self._guard.hold()
        closing = asyncio.ensure_future(self._server.stop(seconds))
        await asyncio.sleep(0)  # so that the task begins, and gRPC is told
        self._guard.let_end()
        await asyncio.sleep(released - asyncio.get_running_loop().time())
        self._guard.release()
        return closing


def _in_redis(settings: Settings, counts: Counts) -> RedisCounts:
    """Counts that replicas share."""
    from ..admission.redis_link import Link  # noqa: PLC0415 - of an extra, and only needed here

    link = Link(settings.redis_url, password_file=settings.redis_password_file)
    return RedisCounts(counts, link, closed=settings.redis_away == "closed", say=call_log.say, warn=call_log.warn)


def _options(settings: Settings, *, alone: bool) -> list[tuple[str, int]]:
    options = [
        # Workers share the port; two servers that don't know of each other would do so without a word.
        ("grpc.so_reuseport", int(not alone)),
        # A request of the largest allowed prompt is refused by us, with the reason; one far beyond it by gRPC.
        ("grpc.max_receive_message_length", _largest_request(settings)),
        ("grpc.max_metadata_size", 16 * 1024),
        # So much of a request is taken in before it is read. With gRPC's own probe it would be megabytes, and large
        # requests would take a third longer; so they would with 16 KB.
        ("grpc.http2.lookahead_bytes", 32 * 1024),
        ("grpc.http2.bdp_probe", 0),
        # What gRPC allows with the probe: in frames of 16 KB, metadata beyond our limit would break a connection.
        ("grpc.http2.max_frame_size", 4 * 1024 * 1024),
        # What one connection may have open: more than admission lets in, so that what is beyond hears a refusal at once
        # instead of waiting at its caller in silence. And little more: a call costs the loop 0.3 ms from the moment it
        # is opened, even if it is reset in the same moment, and calls that others make stand behind it.
        ("grpc.max_concurrent_streams", settings.slots + settings.queue + _STREAMS_BESIDE),
        ("grpc.http2.max_deallocating_streams", settings.queue + _STREAMS_ENDING),
        # Thousands of calls at once are for admission to refuse, with words; gRPC would say a bare CANCELLED.
        ("grpc.server.max_pending_requests", 100_000),
        ("grpc.server.max_pending_requests_hard_limit", 100_000),
        # A connection that never says a word is let go.
        ("grpc.server_handshake_timeout_ms", 3000),
        # A caller that is gone without a word is noticed after the sum of these two.
        ("grpc.keepalive_time_ms", _ms(settings.keepalive)),
        ("grpc.keepalive_timeout_ms", _ms(settings.keepalive_timeout)),
        ("grpc.http2.ping_timeout_ms", _ms(settings.keepalive_timeout)),
        ("grpc.http2.max_pings_without_data", 0),
        # Callers may ping us as well, each second if they like; gRPC would end the connection after three pings.
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    if settings.max_connection_age:
        # The age alone would cut streams: they get the longest time that any stream may take.
        options += [
            ("grpc.max_connection_age_ms", _ms(settings.max_connection_age)),
            ("grpc.max_connection_age_grace_ms", _ms(settings.max_deadline)),
        ]
    return options


def _largest_request(settings: Settings) -> int:
    return settings.max_prompt_bytes + settings.max_inline_bytes + _ROOM_AROUND_PROMPT_BYTES


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
