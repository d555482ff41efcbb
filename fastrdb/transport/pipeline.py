"""One node's pipeline: all callers of an event loop share one connection, one batch at a time.

With nothing in flight a command goes out at once, in its caller's own task: a lone caller pays nothing. While a batch
is in flight, callers queue, and their commands go out together when it returns, GETs as one MGET. No caller joins a
batch that was sent: its replies may be older than a commit that the caller has seen.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import islice
from typing import Any

from redis.exceptions import AskError

from fastrdb.errors import CacheUnavailableError

from .commands import Command
from .connection import Connection, Greeting
from .health import OTHER_DATA, Breaker, Health
from .timeouts import Budget, used_up

_MOST_GETS = 1024
_MOST_COMMANDS = 256
"""Bounds of one batch: more waits for the next, so that no caller waits long for a huge reply."""


class Batch:
    """The GETs and the other commands of one round trip, and the futures that wait for them.

    Attributes:
        gets: futures by key.
        since: when the first of its callers came, by the event loop's clock.
        crowd: it is one of several batches: its callers wait for each other, and that time does not count.
    """

    __slots__ = ("_count", "_joined", "_sends", "crowd", "gets", "since")

    def __init__(self, since: float, *, crowd: bool) -> None:
        self.since, self.crowd = since, crowd
        self.gets: dict[bytes, Future[bytes | None]] = {}
        self._joined: list[tuple[bytes, Future[bytes | None]]] = []  # further callers of the same keys
        self._sends: list[tuple[Sequence[Command], Future[list[Any]], Budget]] = []
        self._count = 0

    def has_room_for(self, commands: Sequence[Command]) -> bool:
        """Return True if these are not too many; the first always have room."""
        return not self._count or self._count + len(commands) <= _MOST_COMMANDS

    def join(self, name: bytes, future: Future[bytes | None]) -> None:
        """Add one more caller of a key that is in `gets`."""
        self._joined.append((name, future))

    def send(self, commands: Sequence[Command], future: Future[list[Any]], budget: Budget) -> None:
        """Add commands, for a caller that waits as long as its budget allows."""
        self._sends.append((commands, future, budget))
        self._count += len(commands)

    def commands(self) -> list[Command]:
        """Return all but the GETs. Those of a cancelled caller are sent too: a release must follow its acquire."""
        return [command for commands, _, _ in self._sends for command in commands]  # mechanism: cancelled-commands-sent

    def found(self, values: Sequence[Any], *, errors: bool = False) -> None:
        """Settle the GETs with values in the order of `gets`; with `errors` some of them are errors."""
        for future, value in zip(self.gets.values(), values, strict=True):
            if errors and isinstance(value, Exception):
                _settle(future, value)
            # Inlined: a call would be felt on a hit.
            elif not future.done():  # mechanism: cancelled-get-skipped
                future.set_result(value)
        if self._joined:
            by_name = dict(zip(self.gets, values, strict=True))
            for name, future in self._joined:
                _settle(future, by_name[name])

    def replied(self, replies: Iterator[Any]) -> None:
        """Settle the other commands."""
        for commands, future, _ in self._sends:
            _settle(future, [next(replies) for _ in commands])

    def expire(self, now: float, blocked: float, timeout: float, *, crowded: bool) -> None:
        """Fail callers that have waited for long enough. Their commands are executed, without a caller."""
        if crowded:  # mechanism: crowd-waits-its-turn
            self.since = now
            for *_, budget in self._sends:
                budget.start(now)
            return
        self.since += blocked
        if now - self.since >= timeout:  # mechanism: queue-counts
            self.refuse_gets(used_up())
        for _, future, budget in self._sends:
            budget.until += blocked
            if now >= budget.until:  # mechanism: budget-counts-queue
                _settle(future, used_up())

    def refuse_gets(self, error: Exception) -> None:
        """Fail the GETs."""
        for future in (*self.gets.values(), *(future for _, future in self._joined)):
            _settle(future, error)

    def refuse(self, error: Exception) -> None:
        """Fail all."""
        self.refuse_gets(error)
        for _, future, _ in self._sends:
            _settle(future, error)


def _settle(future: Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
        future.exception()  # a caller that is cancelled in this moment does not retrieve it, and that is no error
    else:
        future.set_result(value)


class Pipeline:
    """The commands to one server. For one event loop.

    Commands may be sent twice. All methods raise CacheUnavailableError: if the breaker is open, if there is no reply,
    and if a call has waited for as long as it may. If a batch fails, so does what has queued behind it.

    Args:
        settings: returns the pool or node by whose settings to connect; None if it is gone.
        in_slots: the server is a master of a cluster. It refuses an MGET of several slots, and redirections are
            returned as values.
        crowded: returns True while callers wait for each other, here or at another master.

    Attributes:
        answered: when the latest answered exchange began, by the event loop's clock.
    """

    def __init__(
        self,
        settings: Callable[[], Any],
        timeout: float,
        greeting: Greeting,
        health: Health,
        breaker: Breaker,
        *,
        in_slots: bool = False,
        crowded: Callable[[], bool] | None = None,
    ) -> None:
        self._is_crowded = crowded or self.crowded
        self._greeting, self._health, self.breaker, self._in_slots = greeting, health, breaker, in_slots
        self.connection = Connection(settings, greeting, timeout, self._on_look)
        self._loop = asyncio.get_running_loop()
        self._busy = False
        self._crowded = False  # the latest batch had several GETs
        self._in_flight: Batch | None = None
        self.answered = 0.0
        self._waiting: deque[Batch] = deque()
        self._next_drain: asyncio.Task[None] | None = None  # that has not begun
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, name: bytes) -> Awaitable[bytes | None]:
        """Return the value of a key. Not a coroutine: in a crowd each level of them is felt."""
        if self.breaker.opened:
            raise self.breaker.refusal("GET", self.ping)
        if self._busy or self._crowded:  # mechanism: crowd-goes-together
            return self._queued(name)
        return self._get_at_once(name)

    async def send(
        self, commands: Sequence[Command], *, insist: bool = False, budget: Budget | None = None
    ) -> list[Any]:
        """Send commands in their order, and return their replies: the server's errors as values.

        With `insist` the node is asked whatever the breaker says. Without a `budget` the caller waits for the timeout.
        """
        if self.breaker.opened and not insist:
            raise self.breaker.refusal(str(commands[0][0]), self.ping)
        if not self._busy:
            return await self._at_once(commands, budget)
        future: Future[list[Any]] = Future(loop=self._loop)
        waiting = self._waiting
        batch = waiting[-1] if waiting and waiting[-1].has_room_for(commands) else self._open()
        budget = budget or Budget(self.connection.timeout)
        budget.start(self._loop.time())
        batch.send(commands, future, budget)
        replies = await future
        budget.stop(self._loop.time())
        return replies

    async def ping(self) -> None:
        """Ask for a sign of life, whatever the breaker says."""
        await self.send((("PING",),), insist=True)

    def due(self, _: object = None) -> float:
        """Return when the time of the latest answered caller is over, by the event loop's clock."""
        return self.answered + self.connection.timeout

    def crowded(self) -> bool:
        """Return True while callers wait for each other: there is more than one batch of them."""
        in_flight = self._in_flight
        return (in_flight is not None and in_flight.crowd) or len(self._waiting) > 1  # mechanism: crowd-in-flight

    async def aclose(self) -> None:
        """Wait until what was asked by now is done, and close the connection; the next caller opens another one."""
        await self.breaker.aclose()
        if self._busy:
            with suppress(Exception):
                await self.send((), insist=True)
        if not self._busy:  # else it is closed when it is idle
            await self.connection.aclose()

    def close(self) -> None:
        """Close the connection soon, from any thread: its client is gone."""
        with suppress(RuntimeError):  # so is its event loop
            self._loop.call_soon_threadsafe(self.connection.close)

    def forget(self) -> None:
        """Drop the connection: the event loop has ended."""
        self.connection.forget()

    # --- batches

    async def _get_at_once(self, name: bytes) -> bytes | None:
        if self._busy:  # another caller came between the call and its await
            return await self._queued(name)
        (reply,) = await self._at_once((("GET", name),))
        if self._health and self._greeting.other_data:
            raise CacheUnavailableError("GET", OTHER_DATA)
        if isinstance(reply, Exception):
            raise self._translated("GET", reply)
        raw: bytes | None = reply
        return raw

    def _queued(self, name: bytes) -> Future[bytes | None]:
        if not self._busy:
            # Lately there were several at a time: callers of this turn of the event loop come along.
            self._busy = True
            self._spawn()
        future: Future[bytes | None] = Future(loop=self._loop)
        batch = self._waiting[-1] if self._waiting else self._open()
        if name in batch.gets:  # mechanism: get-joins-batch
            batch.join(name, future)
        elif len(batch.gets) < _MOST_GETS:
            batch.gets[name] = future
        else:
            self._open().gets[name] = future
        return future

    async def _at_once(self, commands: Sequence[Command], budget: Budget | None = None) -> list[Any]:
        """Send commands in their caller's own task."""
        self._busy = True
        if budget is not None:
            budget.start(self._loop.time())
        try:
            replies = await self.connection.exchange(commands, budget)
        except CacheUnavailableError:
            raise  # the caller has waited for long enough, and the server may answer the next one
        except Exception as error:
            refusal = self.breaker.on_error(str(commands[0][0]), error)
            self._refuse_waiting(refusal)
            raise refusal from error
        else:
            self.answered = self.connection.began
            if self.breaker.failures:
                self.breaker.on_reply()
            return replies
        finally:
            if budget is not None:
                budget.stop(self._loop.time())
            if self._waiting:
                self._spawn()
            else:
                self._busy = False

    def _open(self) -> Batch:
        waiting = self._waiting
        if waiting:
            waiting[-1].crowd = True  # mechanism: crowd-noticed
        waiting.append(Batch(self._loop.time(), crowd=bool(waiting)))
        return waiting[-1]

    async def _drain(self) -> None:
        """Send what has queued, batch by batch."""
        self._next_drain = None
        try:
            while self._waiting:
                self._in_flight = self._waiting.popleft()  # mechanism: batch-sent-once
                await self._carry(self._in_flight)
        except asyncio.CancelledError:
            self._cancelled()
            raise
        finally:
            self._busy, self._in_flight = False, None

    async def _carry(self, batch: Batch) -> None:
        gets, commands = batch.gets, batch.commands()
        self._crowded = len(gets) > 1  # mechanism: crowd-remembered
        if gets:
            commands[:0] = [("GET", name) for name in gets] if self._in_slots else [("MGET", *gets)]
        try:
            replies = iter(await self.connection.exchange(commands) if commands else [])
        except Exception as error:  # noqa: BLE001  # given to the callers
            refusal = self.breaker.on_error(str(commands[0][0]), error)
            batch.refuse(refusal)
            self._refuse_waiting(refusal)
            return
        self.answered = self.connection.began
        if not batch.crowd:
            self.answered = min(self.answered, batch.since)
        if self.breaker.failures:
            self.breaker.on_reply()
        if gets:
            self._found(batch, replies)
        batch.replied(replies)

    def _found(self, batch: Batch, replies: Iterator[Any]) -> None:
        found: Any = [*islice(replies, len(batch.gets))] if self._in_slots else next(replies)
        if self._health and self._greeting.other_data:
            batch.refuse_gets(CacheUnavailableError("GET", OTHER_DATA))
        elif isinstance(found, Exception):
            batch.refuse_gets(self._translated("MGET", found))
        elif self._in_slots:
            each = [self._translated("GET", raw) if isinstance(raw, Exception) else raw for raw in found]
            batch.found(each, errors=True)
        else:
            batch.found(found)

    def _translated(self, operation: str, error: Exception) -> Exception:
        return error if isinstance(error, AskError) and self._in_slots else self.breaker.on_error(operation, error)

    def _on_look(self, now: float, blocked: float) -> bool:
        crowded = self._is_crowded()
        for batch in (self._in_flight, *self._waiting):
            if batch is not None:
                batch.expire(now, blocked, self.connection.timeout, crowded=crowded)
        return crowded

    def _refuse_waiting(self, error: Exception) -> None:
        while self._waiting:
            self._waiting.popleft().refuse(error)

    def _spawn(self) -> None:
        # Not by the loop's task factory: an eager one would begin the batch before anything has queued.
        task = self._next_drain = asyncio.Task(self._drain(), loop=self._loop, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._drained)

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._next_drain:  # cancelled before it began
            self._next_drain, self._busy = None, False
            self._cancelled()

    def _cancelled(self) -> None:
        """Fail all callers: all tasks were cancelled, most likely since the event loop is ending."""
        refusal = self.breaker.on_error("batch", RuntimeError("the event loop is ending"))
        if self._in_flight is not None:
            self._in_flight.refuse(refusal)
        self._refuse_waiting(refusal)
