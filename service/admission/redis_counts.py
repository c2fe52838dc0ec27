"""What each caller has used, counted over all replicas in Redis.

Each worker counts in memory, as without Redis, and tells Redis what it has counted of a caller by now: not what has
come to it. So whatever is told twice counts once, what can't be told is kept where it is counted, and a worker that
takes another's place tells what that one had counted.
"""

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from itertools import islice
from time import monotonic, monotonic_ns, time
from typing import Any, NamedTuple, NoReturn, Protocol, Self

from ..errors import QuotasUnavailable
from .counts import DAY_SECONDS, MINUTE_SECONDS, Counts, More, Used

WAIT_SECONDS = 0.05
"""For how long a call waits for Redis."""
LEASE_SECONDS = 10.0
"""So long after a server has died, its streams count no more."""

_RENEW_SECONDS = 3.0
_GATHER_SECONDS = 0.1
_MOST_AT_ONCE = 200
"""Callers of which is told at once, and calls that are answered at once: more would take too long."""
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.05, 1.0
"""Between two attempts to reach Redis."""
_STEADY_SECONDS = 10.0
"""Once it has been there for so long, the first pause is the shortest again."""
_LATE_SECONDS = 0.01
"""By how much a timer of this process may be late; else it is the process that is slow, and not Redis."""
_CLOCKS_SECONDS = 0.02
"""By how much Redis's clock may differ from what was thought; answers take their time."""
_SLOW = f"no answer within {WAIT_SECONDS * 1000:g} ms"
_KEPT_SECONDS = 2 * DAY_SECONDS

# KEYS: what all have counted of a caller, by "", and what each worker has, by its name; streams, by worker.
# ARGV: the worker; when it told this, on a clock of its own that only goes forward; the fields of `_Told`; how long its
# streams count, and all is kept, in milliseconds.
# Gives the streams, the fields of `_Told` of all, and Redis's clock in milliseconds.
SCRIPT = """
local function numbers(text)
  local found = {}
  for number in string.gmatch(text or '0 0 0 0 0 0 0 0', '%d+') do found[#found + 1] = tonumber(number) end
  return found
end
local SEEN, MINUTE, DAY, LAST = 1, 2, 5, 8
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local saved = redis.call('HMGET', KEYS[1], '', ARGV[1])
local all, last, told = numbers(saved[1]), numbers(saved[2]), numbers(ARGV[2])
local early = all[MINUTE] * 60000 > now + 60000  -- this clock was wrong, and isn't any more
if told[SEEN] > last[SEEN] then
  if told[DAY] > all[DAY] or early then
    redis.call('DEL', KEYS[1])
    all, last = numbers(), numbers()
    all[DAY] = told[DAY]
  end
  if told[MINUTE] > all[MINUTE] then
    for field = MINUTE, DAY - 1 do all[field] = 0 end
    all[MINUTE] = told[MINUTE]
  end
  for _, part in ipairs({{MINUTE, DAY - 1}, {DAY, LAST}}) do
    local from, to = part[1], part[2]
    if told[from] == all[from] then
      for field = from + 1, to do
        all[field] = math.max(0, all[field] + told[field] - (last[from] == told[from] and last[field] or 0))
      end
    end
  end
  local text = {}
  for field = 1, LAST do text[field] = string.format('%.0f', all[field]) end
  redis.call('HSET', KEYS[1], '', table.concat(text, ' '), ARGV[1], ARGV[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  if ARGV[3] == '0' then
    redis.call('HDEL', KEYS[2], ARGV[1])
  else
    redis.call('HSET', KEYS[2], ARGV[1], ARGV[3] .. ' ' .. string.format('%.0f', now + ARGV[4]))
    redis.call('PEXPIRE', KEYS[2], ARGV[5])
  end
end
local streams, found = 0, redis.call('HGETALL', KEYS[2])
for index = 1, #found, 2 do
  local open = numbers(found[index + 1])
  if open[2] > now then streams = streams + open[1] else redis.call('HDEL', KEYS[2], found[index]) end
end
return {streams, all[2], all[3], all[4], all[5], all[6], all[7], all[8], now}
"""


class _Told(NamedTuple):
    """What a worker tells of a caller, or what all have."""

    streams: int
    minute: int
    requests: int
    minute_tokens: int
    day: int
    tokens: int
    day_requests: int
    estimated: int

    @classmethod
    def of(cls, row: Sequence[int]) -> Self:
        """A row of `Counts`, which has the same order."""
        return cls(*row)

    def used(self, now: float) -> Used:
        """Of this minute and day; of the next ones where another server is a moment ahead."""
        this_minute, today = self.minute >= int(now) // MINUTE_SECONDS, self.day >= int(now) // DAY_SECONDS
        return Used(
            self.streams,
            self.requests * this_minute,
            self.minute_tokens * this_minute,
            self.day_requests * today,
            self.tokens * today,
            self.estimated * today,
        )


class _Ask(NamedTuple):
    """Something to be told to Redis."""

    cell: int
    arguments: tuple[Any, ...]
    """Of the script."""
    answer: "asyncio.Future[_Told | None] | None"
    """For a call that waits for it; None is given if it isn't to be had in time."""


class Redis(Protocol):
    """As `redis_link.Redis`."""

    async def clock(self) -> float:
        """The time by its clock, as `time.time` has it."""
        ...

    async def load(self, script: str) -> bytes:
        """Keep a script."""
        ...

    async def run(self, script: bytes, calls: Sequence[tuple[Any, ...]], *, keys: int) -> list[Any]:
        """Run it, once for each of `calls`. Raises LinkError, as all of these."""
        ...


class Link(Protocol):
    """As `redis_link.Link`."""

    def connected(self) -> AbstractAsyncContextManager[Redis]:
        """A new connection."""
        ...


@dataclass(slots=True)
class RedisState:
    """How it stands with Redis, as this worker sees it; for a metric."""

    up: bool = False
    """Whether calls are counted there."""
    losses: int = 0
    """How often it has become slow or gone away."""
    undecided: int = 0
    """How many calls were let in, or refused, without it."""


class LinkError(Exception):
    """Redis can't be reached, or doesn't do what it is asked; the message holds nothing that came from it."""


class RedisCounts:
    """Counts that all replicas share.

    While Redis is slow or away, each server holds callers to their quotas by what it has counted itself, and by what it
    has heard of others last; or lets nobody in (`closed`). Nothing that is counted meanwhile is lost, while any worker
    of the server lives.
    """

    def __init__(
        self,
        local: Counts,
        link: Link,
        *,
        closed: bool = False,
        say: Callable[..., None] = lambda *_: None,
        warn: Callable[..., None] = lambda *_: None,
    ) -> None:
        """`local` is what this worker counts in. When Redis goes and comes back is told by `warn` and `say`."""
        self.state = RedisState()
        self._local = local
        self._link = link
        self._closed = closed
        self._say, self._warn = say, warn
        self._name = f"{local.server}:{local.worker}"
        self._asked: list[_Ask] = []
        self._changed: set[int] = set()
        """Cells of which Redis doesn't know all."""
        self._open: set[int] = set()
        """Cells that may have open streams."""
        self._heard: dict[int, tuple[float, _Told]] = {}
        """By cell: when Redis has told something, on the loop's clock, and what."""
        self._ahead = 0.0
        """How far Redis's clock is ahead of this one, in seconds: minutes and days are the same for all servers."""
        self._seen = 0
        self._gathering: asyncio.TimerHandle | None = None
        """Until what is counted in the middle of answers is told."""
        self._wanted = asyncio.Event()
        self._told_all = asyncio.Event()
        self._told_all.set()
        self._tried = asyncio.Event()
        """Set once Redis has been looked for."""
        self._pause = _FIRST_PAUSE_SECONDS
        self._since = 0.0
        """Since when it is there, or away, on the loop's clock."""
        self._reason: str | None = None
        """Why it is away, once that has been told."""

    # ---- what calls do, none of which ever touches the connection

    def add(self, caller: str, now: float, more: More, *, since: float | None = None) -> None:
        """As `Home` has it."""
        self._local.add(caller, now + self._ahead, more, since=None if since is None else since + self._ahead)
        cell = self._local.cell(caller)
        if more.streams > 0:
            self._open.add(cell)
        self._tell(cell)
        if more.streams:
            self._wanted.set()
        else:
            self._gather()

    def took(self, caller: str, now: float, tokens: int) -> int:
        """As `Home` has it; of all, what Redis told last."""
        now += self._ahead
        own = self._local.took(caller, now, tokens)
        cell = self._local.cell(caller)
        if tokens > 0:
            self._tell(cell)
            self._gather()
        _, told = self._heard.get(cell, (0.0, None))
        return own if told is None else max(own, told.used(now).tokens_today)

    def used(self, caller: str, now: float) -> Used:
        """As `Home` has it: what this server has counted, or all had when Redis told it last, whichever is more."""
        now += self._ahead
        own = self._local.used(caller, now)
        at, told = self._heard.get(self._local.cell(caller), (0.0, None))
        if told is None:
            return own
        if asyncio.get_running_loop().time() - at > LEASE_SECONDS:
            told = told._replace(streams=0)
        return Used(*map(max, own, told.used(now)))

    async def agreed(self, caller: str, now: float) -> Used:
        """As `Home` has it; after 50 ms at the latest, without Redis if need be. Raises QuotasUnavailable."""
        if self.state.up:
            loop = asyncio.get_running_loop()
            ask = self._ask(self._local.cell(caller), loop.create_future())
            assert ask.answer is not None
            self._asked.append(ask)
            self._changed.discard(ask.cell)  # this tells all of it
            self._wanted.set()
            timer = loop.call_at(loop.time() + WAIT_SECONDS, self._late, ask.answer, loop.time() + WAIT_SECONDS)
            try:
                told = await ask.answer
            finally:
                timer.cancel()
            if told is not None:
                return told.used(now + self._ahead)
        self.state.undecided += 1
        if self._closed:
            raise QuotasUnavailable("What this caller has used can't be found out; ask again in a moment")
        return self.used(caller, now)

    def _late(self, answer: "asyncio.Future[_Told | None]", due: float) -> None:
        loop = asyncio.get_running_loop()
        if answer.done():
            return
        if loop.time() - due > _LATE_SECONDS:  # the answer may be there, and this process hasn't looked
            loop.call_later(_LATE_SECONDS, self._late, answer, math.inf)
            return
        answer.set_result(None)
        self._away(_SLOW)

    def _tell(self, cell: int) -> None:
        self._changed.add(cell)
        self._told_all.clear()

    def _gather(self) -> None:
        """Tell Redis in a moment: figures in the middle of an answer may come with each chunk of each stream."""
        if self._gathering is None:
            self._gathering = asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._gathered)

    def _gathered(self) -> None:
        self._gathering = None
        self._wanted.set()

    def _ask(self, cell: int, answer: "asyncio.Future[_Told | None] | None" = None) -> _Ask:
        """What is to be told of this cell, as it is now."""
        row = _Told.of(self._local.row(cell))
        # By a clock that goes on when a worker takes this one's place; in microseconds, which Lua's numbers can hold.
        self._seen = max(self._seen + 1, monotonic_ns() // 1000)
        name = f"{self._local.name(cell):016x}"
        fields = " ".join(map(str, (self._seen, *row[1:])))
        arguments = (
            *(f"tokenwire:counts:{name}", f"tokenwire:streams:{name}"),
            *(self._name, fields, row.streams, int(LEASE_SECONDS * 1000), _KEPT_SECONDS * 1000),
        )
        return _Ask(cell, arguments, answer)

    # ---- what the one task does that talks to Redis

    async def run(self) -> NoReturn:
        """Talk to Redis, until cancelled."""
        renewing = asyncio.ensure_future(self._renew())
        try:
            while True:
                await self._connect()
                self._tried.set()
                await asyncio.sleep(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        finally:
            renewing.cancel()
            if self._gathering is not None:
                self._gathering.cancel()

    async def tried(self, seconds: float) -> None:
        """Wait until Redis has been looked for once, so long at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._tried.wait()

    async def told_all(self, seconds: float) -> None:
        """Wait until Redis knows everything, so long at most; not at all while it is away."""
        if self.state.up:
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._told_all.wait()

    async def _connect(self) -> None:
        """Talk to Redis while that works."""
        try:
            async with self._link.connected() as redis:
                script = await redis.load(SCRIPT)
                begin = monotonic()
                self._set_clock(await redis.clock())
                if monotonic() - begin > WAIT_SECONDS:
                    raise LinkError(_SLOW)  # noqa: TRY301 - it is left in the same way
                # All of this day: it may be another Redis, or one that has forgotten.
                self._changed.update(self._local.counted(time() + self._ahead))
                while len(self._changed) > _MOST_AT_ONCE:
                    await self._exchange(redis, script)
                await self._exchange(redis, script)
                self._back()
                while self.state.up:
                    await self._wanted.wait()
                    self._wanted.clear()
                    if self._asked or self._changed:
                        await self._exchange(redis, script)
                    else:
                        self._set_clock(await redis.clock())
        except LinkError as error:
            self._away(str(error))
        except Exception as error:  # noqa: BLE001 - calls are decided without Redis, and it is tried again
            self._away(type(error).__name__)

    async def _exchange(self, redis: Redis, script: bytes) -> None:
        """Tell Redis what it doesn't know, and hear what all have counted."""
        changed = list(islice(self._changed, _MOST_AT_ONCE))
        # The calls' own first: they tell what was counted before.
        asks = [*self._asked[:_MOST_AT_ONCE], *map(self._ask, changed)]
        del self._asked[:_MOST_AT_ONCE]
        self._changed.difference_update(changed)
        try:
            answers = await redis.run(script, [ask.arguments for ask in asks], keys=2)
        except BaseException:
            # The next connection begins with all that is counted.
            _give_up(asks)
            raise
        now = asyncio.get_running_loop().time()
        for ask, answer in zip(asks, answers, strict=True):
            told = _Told.of(answer[:-1])
            self._heard[ask.cell] = now, told
            if ask.answer is not None and not ask.answer.done():
                ask.answer.set_result(told)
        if answers:
            self._set_clock(answers[-1][-1] / 1000)
        if not self._changed and not self._asked:
            self._told_all.set()
        elif self._asked or len(changed) == _MOST_AT_ONCE:  # else what has changed since is told when it has gathered
            self._wanted.set()

    def _set_clock(self, redis: float) -> None:
        ahead = redis - time()
        if abs(ahead - self._ahead) > _CLOCKS_SECONDS:
            self._ahead = ahead

    async def _renew(self) -> NoReturn:
        """Have open streams count on, and notice a Redis that has gone while nobody calls."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            self._open = {cell for cell in self._open if self._local.row(cell)[0]}
            for cell in self._open:
                self._tell(cell)
            self._wanted.set()

    def _away(self, reason: str) -> None:
        """Decide calls without Redis from now on."""
        now = asyncio.get_running_loop().time()
        if self.state.up:
            self.state.up = False
            self.state.losses += 1
            if now - self._since > _STEADY_SECONDS:
                self._pause = _FIRST_PAUSE_SECONDS
            self._wanted.set()  # so that the connection is left
        if self._reason is None:
            self._reason, self._since = reason, now
            meanwhile = "calls are refused" if self._closed else "each server counts by itself"
            self._warn("Redis is away (%s): %s until it is back", reason, meanwhile)
        asked, self._asked = self._asked, []
        _give_up(asked)

    def _back(self) -> None:
        """Count in Redis from now on."""
        now = asyncio.get_running_loop().time()
        self.state.up = True
        if self._reason is not None:
            self._say("Redis is back after %.1f s", now - self._since)
        self._reason, self._since = None, now
        self._tried.set()


def _give_up(asks: Sequence[_Ask]) -> None:
    """Have the calls that wait for these go on without an answer."""
    for ask in asks:
        if ask.answer is not None and not ask.answer.done():
            ask.answer.set_result(None)
