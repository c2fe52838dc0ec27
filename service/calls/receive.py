"""Receives requests: bounds the time that each may take, and the memory of all that have not arrived yet.

gRPC's core keeps a window's worth (32 KB, see `server.py`) of a request that nobody reads. Once it is read, the core
takes in all of it, megabytes, and a read can't be taken back. So only so many are read at once; the next ones wait,
and each connection has its turn.
"""

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import grpc.aio
from google.protobuf.message import DecodeError

from ..errors import CallError, DeadlineExceeded, InvalidRequest, ServerBusy, Violation
from ..telemetry import call_log
from . import memory

# Enough for the largest request on a slow line, as long as no other request has to wait for it.
RECEIVE_SECONDS = 10.0

# What a request may take while others wait. A small one has arrived as a whole by the time it is read.
_SHARE_SECONDS = 0.1

_LATE_SECONDS = 0.005

# A call whose request nobody reads yet: a window (64 KB for callers who ignore our settings), and the call itself.
_UNREAD_BYTES = 128 * 1024

# Of the budget: half is for requests that are being read, a quarter for those that wait, and the rest for those that
# the event loop has not come to yet.
_READ_PART = 0.5
_UNREAD_PART = 0.25

# Of the requests that are read at once: kept for connections of which none is being read, so that a small call has not
# to wait until another caller's uploads have had their share.
_NEWCOMERS_PART = 0.25

# Hundreds of calls may be opened at once. Those that are refused can wait until all have been taken in: else a small
# call among the last would stand behind all that it takes to refuse the others. And then they go one by one, so that
# the loop has time for others between them.
_REFUSAL_SECONDS = 0.2
_BETWEEN_REFUSALS_SECONDS = 0.0005
_LATEST_REFUSAL_SECONDS = 3.0

# What becomes of a request of this size takes the loop a millisecond or more, and of the largest tens of them.
_TURN_BYTES = 64 * 1024

# Of a request that is worth giving memory back for.
_LARGE_BYTES = 256 * 1024

_MOMENT_SECONDS = 0.05

# Of requests that ended before they had arrived there may be thousands, so the log has one line for many.
_BETWEEN_LINES_SECONDS = 10.0

Context = grpc.aio.ServicerContext[Any, Any]
Parse = Callable[[bytes], Any]


class Receiver:
    """Reads requests, a limited number at once. One for each process, used on its event loop only.

    Reads are shared out by connection. While requests wait, the oldest read of the connection that has most of them is
    ended after 0.1 s, so that one caller's stalled uploads keep nobody else waiting.
    """

    def __init__(self, *, budget: int, largest: int) -> None:
        """`budget`: bytes that requests may take up before they have arrived; `largest`: bytes of a single one."""
        self._largest = largest
        self._missed = 0
        """Requests that didn't arrive, and of which the log doesn't know yet."""
        self._told = -math.inf
        """When the log was told of such last, on the loop's clock."""
        self._most_reads = max(1, int(budget * _READ_PART) // largest)
        self._for_newcomers = int(self._most_reads * _NEWCOMERS_PART)
        self._most_waiting = max(1, int(budget * _UNREAD_PART) // _UNREAD_BYTES)
        self._reads: dict[_Read, None] = {}
        """Those under way, the oldest first; one that has failed counts until its status has been sent."""
        self._lines: dict[str, deque[_Read]] = {}
        """Those that wait, by connection; the connection whose turn is next comes first."""
        self._waiting = 0
        self._crowd = 0
        """How many connections have waited at once, since last nobody did."""
        self._refusal = -math.inf
        """When the last one is refused, on the loop's clock."""
        self._timer: asyncio.TimerHandle | None = None
        self._large = asyncio.Lock()
        """Held by the large request that has arrived and goes on next."""

    async def receive(self, context: Context, parse: Parse) -> Any:
        """The one message of the request.

        Raises DeadlineExceeded for one that doesn't arrive in time, ServerBusy where too many arrive at once, and
        InvalidRequest if the caller sends none, or bytes that are no such message.
        """
        data = await self._read(context, RECEIVE_SECONDS)
        if data is None:
            # A caller that has left looks the same, until the cancellation gets here.
            try:
                await asyncio.sleep(_MOMENT_SECONDS)
            except asyncio.CancelledError:
                self._miss()
                raise
            text = "is missing: one message is wanted"
            raise InvalidRequest([Violation("request", text)], reason="MALFORMED_REQUEST")
        return parsed(data, parse)

    async def following(self, context: Context, parse: Parse) -> Any:
        """The next message of a request that is a stream, however long it takes; None at its end.

        Raises ServerBusy and InvalidRequest.
        """
        data = await self._read(context, math.inf)
        return None if data is None else parsed(data, parse)

    def _miss(self) -> None:
        """Tell the log that a request didn't arrive.

        gRPC refuses one beyond `largest` by itself, with RESOURCE_EXHAUSTED: here that looks as if its caller had left.
        """
        self._missed += 1
        now = asyncio.get_running_loop().time()
        if now - self._told >= _BETWEEN_LINES_SECONDS:
            text = "requests that never arrived: %d; their callers left, or they were larger than %d bytes, which gRPC "
            text += "refuses (TOKENWIRE_MAX_INLINE_BYTES and TOKENWIRE_MAX_PROMPT_BYTES)"
            call_log.say(text, self._missed, self._largest)
            self._told, self._missed = now, 0

    async def _read(self, context: Context, seconds: float) -> bytes | None:
        read = _Read(context)
        # By hand: `asyncio.timeout` takes four times as long, and thousands of calls may be opened at once and left.
        timer = read.loop.call_later(seconds, self._too_late, read) if seconds < math.inf else None
        data: Any = None
        try:
            if self._waiting or len(self._reads) >= self._most_reads - self._for_newcomers:
                await self._turn(read)
            else:
                self._reads[read] = None
            data = await context.read()
            if data is not grpc.aio.EOF and len(data) > _TURN_BYTES:
                await self._one_by_one(read)
        except asyncio.CancelledError:
            failure, read.failure = read.failure, None
            if failure is None or read.task.uncancel():
                raise
            try:
                raise failure from None
            finally:
                del failure  # its traceback holds this frame
        finally:
            read.ended = True  # from here on its call may be sending a status, and must not be cancelled here
            if timer is not None:
                timer.cancel()
            if data is None:
                # What has arrived so far is freed once the status is sent.
                read.task.add_done_callback(lambda _: self._done(read))
            else:
                self._done(read)
            # One that is far too large is not even given to us.
            if data is None or data is grpc.aio.EOF or len(data) > _LARGE_BYTES:
                read.task.add_done_callback(memory.give_back)
        return None if data is grpc.aio.EOF else bytes(data)

    async def _one_by_one(self, read: "_Read") -> None:
        """Have others run between two large requests that have arrived in one moment; meanwhile it counts as a read."""
        read.ended = True  # it has arrived, and must not be ended as too slow
        async with self._large:
            await asyncio.sleep(0)

    async def _turn(self, read: "_Read") -> None:
        """Wait until `read` may begin. Raises ServerBusy if too many wait already."""
        if self._waiting >= self._most_waiting and not self._crowd_out(read):
            now = read.loop.time()
            one_by_one = max(self._refusal + _BETWEEN_REFUSALS_SECONDS, now + _REFUSAL_SECONDS)
            self._refusal = min(one_by_one, now + _LATEST_REFUSAL_SECONDS)
            await asyncio.sleep(self._refusal - now)
            raise _busy()
        read.turn = read.loop.create_future()
        self._lines.setdefault(read.connection, deque()).append(read)
        self._waiting += 1
        if self._timer is None or self._next() is not None:
            self._look()
        try:
            await read.turn
        finally:
            if read not in self._reads:
                self._remove(read)

    def _crowd_out(self, read: "_Read") -> bool:
        """Make room for `read` to wait, unless its own connection has most: there, the last one has to go."""
        longest = max(self._lines.values(), key=len)
        if len(self._lines.get(read.connection, ())) + 1 >= len(longest):
            return False
        last = longest[-1]
        self._remove(last)
        last.end(_busy())
        return True

    def _remove(self, read: "_Read") -> None:
        line = self._lines.get(read.connection)
        if line is not None and read in line:
            line.remove(read)
            self._waiting -= 1
            if not line:
                del self._lines[read.connection]

    def _done(self, read: "_Read") -> None:
        self._reads.pop(read, None)
        if self._waiting:
            self._look()

    def _look(self) -> None:
        """Let those begin that may, and see to it that others follow."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while (connection := self._next()) is not None:
            self._begin(connection)
        if self._waiting:
            self._crowd = max(self._crowd, len(self._lines))
            self._hurry()
        else:
            self._crowd = 0

    def _next(self) -> str | None:
        """The connection of which a request may be read now; None if there is none, or no room."""
        room = self._most_reads - len(self._reads)
        if room > self._for_newcomers:
            return next(iter(self._lines), None)
        if room <= 0 or not self._waiting:
            return None
        being_read = {read.connection for read in self._reads}
        return next((connection for connection in self._lines if connection not in being_read), None)

    def _begin(self, connection: str) -> None:
        line = self._lines.pop(connection)
        read = line.popleft()
        self._waiting -= 1
        if line:
            self._lines[connection] = line  # behind all others
        if not read.turn.done():  # it may have been cancelled
            read.begin = read.loop.time()
            self._reads[read] = None
            read.turn.set_result(None)

    def _hurry(self) -> None:
        """End reads that have had their share, as many as there are requests waiting."""
        going = sum(read.ended for read in self._reads)
        # However many connections wait, each has its turn within about 0.1 s.
        share = _SHARE_SECONDS * min(1, self._most_reads / self._crowd)
        counts = Counter(read.connection for read in self._reads if not read.ended)
        while going < self._waiting and counts:
            most = max(counts.values())
            oldest = next(read for read in self._reads if not read.ended and counts[read.connection] == most)
            left = oldest.begin + share - oldest.loop.time()
            if left > 0:
                self._timer = oldest.loop.call_later(left, self._share_is_over, oldest.begin + share)
                return
            oldest.end(_busy())
            counts -= Counter((oldest.connection,))
            going += 1

    def _share_is_over(self, due: float) -> None:
        """`due` on the loop's clock. While the loop was late, requests may have arrived that nobody has looked at.

        Each read has that excuse once: on a loop that is always late, stalled ones have to end, too.
        """
        late = asyncio.get_running_loop().time() - due
        if late > _LATE_SECONDS:
            for read in self._reads:
                if not read.excused:
                    read.excused = True
                    read.begin += late + _LATE_SECONDS
        self._look()

    def _too_late(self, read: "_Read") -> None:
        # Who had to wait for others most of the time has not stalled.
        if read in self._reads and read.loop.time() - read.begin > RECEIVE_SECONDS / 2:
            text = f"The request has not arrived within {RECEIVE_SECONDS:g} s"
            read.end(DeadlineExceeded(text, reason="REQUEST_STALLED"))
        else:
            read.end(_busy())


class _Read:
    """One request on its way."""

    __slots__ = ("_connection", "_context", "begin", "ended", "excused", "failure", "loop", "task", "turn")

    def __init__(self, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.loop = asyncio.get_running_loop()
        self.begin = self.loop.time()
        self.turn: asyncio.Future[None]
        self.failure: CallError | None = None
        self.ended = False
        self.excused = False
        self._context = context
        self._connection: str | None = None

    @property
    def connection(self) -> str:
        """Address and port of the peer; asked for only when there is a choice to make."""
        if self._connection is None:
            self._connection = str(self._context.peer())
        return self._connection

    def end(self, failure: CallError) -> None:
        """Have its call fail by `failure`."""
        if not self.ended:
            self.ended = True
            self.failure = failure
            self.task.cancel()


def _busy() -> ServerBusy:
    return ServerBusy(
        "More requests are arriving than this server has memory for (TOKENWIRE_MAX_UNFINISHED_BYTES); "
        "ask again in a moment",
        retry_after=1.0,
    )


def parsed(data: bytes, parse: Parse) -> Any:
    """The message in `data`. Raises InvalidRequest, without the parser's text, where there is none."""
    try:
        return parse(data)
    except DecodeError:
        violation = Violation(
            "request", "is no valid protobuf of its type: well-formed fields and UTF-8 text are wanted"
        )
        raise InvalidRequest([violation], reason="MALFORMED_REQUEST") from None
