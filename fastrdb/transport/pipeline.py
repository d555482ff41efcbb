"""What all callers of an event loop send to one server: in batches, over one connection, one batch at a time.

With nothing in flight a command goes out at once, in its caller's own task: a lone caller pays nothing. While one is in
flight, the others queue, and go out together when it returns, their GETs as one MGET. Nobody joins what has been sent:
a reply that was on its way already may be older than a commit that the caller knows of.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Awaitable, Collection, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import islice
from typing import Any, Protocol

from .batches import MOST_GETS, Batch
from .connection import Greeting, Line
from .connections import Source
from .deadlines import Deadlines
from .scripts import Command

_MORE = 3
"""So often a batch of a crowd is given the time of its deadline once more, if replies to it have come meanwhile."""


class Boundary(Protocol):
    """Who is told how each batch went, and says what callers are told."""

    def answered(self) -> Exception | None:
        """The server has answered a batch. Gives why what was read may not be used all the same."""
        ...

    def failed(self, operation: str, error: Exception) -> Exception:
        """A batch, or one command of it, has failed. Gives what is raised instead."""
        ...


class Progress:
    """Whether replies have come since this was last asked: a few times, that a batch must end."""

    __slots__ = ("_left", "_line", "_times")

    def __init__(self, line: Line, sent: int) -> None:
        self._line, self._left, self._times = line, sent, _MORE

    def __call__(self) -> bool:
        """Ask."""
        before, self._left = self._left, self._line.unread
        self._times -= 1
        return self._times >= 0 and 0 < self._left < before  # mechanism: progress-is-replies


class Wire:
    """The shared connection to one server. For one event loop.

    All methods raise what `boundary` makes of redis-py's errors, and of the TimeoutError of who waits longer than the
    deadline, in the queue or for the reply. If a batch fails, so does what had queued behind it: it would have waited
    as long again. But a crowd that fills more than one batch makes its own queue: the time in it does not count, nor
    does a batch end as long as replies to it keep coming.
    """

    def __init__(
        self, source: Source, deadlines: Deadlines, greeting: Greeting, boundary: Boundary, *, in_slots: bool = False
    ) -> None:
        self._in_slots = in_slots  # it is a master of a cluster, which refuses an MGET of keys in several slots
        self._line, self._deadlines, self._boundary = Line(source, greeting), deadlines, boundary
        self._loop = asyncio.get_running_loop()  # once: it is felt on a hit
        self._busy = False
        self._crowded = False
        self._crowd = False  # a batch of one is in flight
        self.answer_due = 0.0  # by when the latest answer was due, by the loop's clock
        self._waiting: deque[Batch] = deque()
        self._next_drain: asyncio.Task[None] | None = None  # that has not begun
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, name: bytes) -> Awaitable[bytes | None]:
        """Give the value of a key."""
        if not self._busy:
            if not self._crowded:  # mechanism: crowd-goes-together
                return self._get_at_once(name)
            # Lately there were several at a time: those who are about to ask in this turn of the loop come along.
            self._busy = True
            self._spawn()
        future: Future[bytes | None] = Future(loop=self._loop)
        batch = self._waiting[-1] if self._waiting else self._open()
        if name in batch.gets:  # mechanism: get-joins-batch
            batch.join(name, future)
        elif len(batch.gets) < MOST_GETS:
            batch.gets[name] = future
        else:
            self._open().gets[name] = future
        return future

    async def _get_at_once(self, name: bytes) -> bytes | None:
        if self._busy:  # somebody has come between the call and its await
            return await self.get(name)
        (reply,) = await self._at_once((("GET", name),))
        refused = self._boundary.answered()
        if refused is not None:
            raise refused
        if isinstance(reply, Exception):
            raise self._boundary.failed("GET", reply)
        raw: bytes | None = reply
        return raw

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in their order, and give their replies: the server's errors as they are, not raised."""
        if self._busy:
            future: Future[list[Any]] = Future(loop=self._loop)
            waiting = self._waiting
            batch = waiting[-1] if waiting and waiting[-1].has_room_for(commands) else self._open()
            batch.send(commands, future)
            return await future
        replies = await self._at_once(commands)
        self._boundary.answered()
        return replies

    def due(self, _: Collection[bytes]) -> float:
        """By when the latest answer was due: for who has just been given it, and so before there is another."""
        return self.answer_due

    def crowded(self) -> bool:
        """Whether more is waiting here than one batch holds, or a part of it is in flight."""
        return self._crowd or len(self._waiting) > 1  # mechanism: crowd-in-flight

    async def aclose(self, *, closing: bool = False) -> None:
        """Wait until what was asked by now is done, and give the connection back; who asks next takes one again."""
        if self._busy:
            with suppress(Exception):
                await self.send(())
        if not self._busy:  # else it goes back when it is idle
            await self._line.give_back(closing=closing)

    def lose(self) -> None:
        """Forget the connection: the event loop has ended."""
        self._line.lose()

    # --- batches

    async def _at_once(self, commands: Sequence[Command]) -> list[Any]:
        """Send what nobody has to wait for, in the caller's own task."""
        self._busy = True
        try:
            with self._deadlines.start(self._loop) as deadline:
                replies = await self._line.exchange(commands)
        except Exception as error:
            await self._line.hang_up()  # what is late may come yet
            refusal = self._boundary.failed(str(commands[0][0]), error)
            self._fail(refusal)
            raise refusal from error
        else:
            self.answer_due = deadline.when
            return replies
        finally:
            self._next()

    def _next(self) -> None:
        """Go on with what has queued, or be idle."""
        if self._waiting:
            self._spawn()
        else:
            self._busy = False

    def _open(self) -> Batch:
        """Begin one more batch."""
        waiting = self._waiting
        batch = Batch(self._loop.time(), crowd=bool(waiting))
        if waiting:
            waiting[-1].crowd = True  # mechanism: crowd-noticed
        waiting.append(batch)
        return batch

    async def _drain(self) -> None:
        """Send what has queued, batch by batch."""
        self._next_drain, batch = None, None
        try:
            while self._waiting:
                batch = self._waiting.popleft()  # mechanism: batch-sent-once
                await self._carry(batch)
        except asyncio.CancelledError:
            self._cancelled(batch)
            raise
        finally:
            self._busy = self._crowd = False

    async def _carry(self, batch: Batch) -> None:
        gets, commands = batch.gets, batch.commands()
        self._crowded = len(gets) > 1  # mechanism: crowd-remembered
        if gets:
            commands[:0] = [("GET", name) for name in gets] if self._in_slots else [("MGET", *gets)]
        self._crowd = batch.crowd
        since, excused = (
            (self._loop.time(), Progress(self._line, len(commands)))
            if batch.crowd  # mechanism: crowd-waits-its-turn
            else (batch.since, bool)
        )
        try:
            with self._deadlines.since(since, self._loop, excused) as deadline:
                replies = await self._line.exchange(commands) if commands else []
        except Exception as error:  # noqa: BLE001  # handed to those who asked
            await self._line.hang_up()
            refusal = self._boundary.failed(str(commands[0][0]), error)
            batch.refuse(refusal)
            self._fail(refusal)
        else:
            self.answer_due = deadline.when
            self._distribute(batch, iter(replies))

    def _distribute(self, batch: Batch, replies: Iterator[Any]) -> None:
        refused = self._boundary.answered()
        if batch.gets:
            found: list[Any] | Exception = [*islice(replies, len(batch.gets))] if self._in_slots else next(replies)
            if isinstance(found, Exception):
                refused = self._boundary.failed("MGET", found)
                found = []
            if refused is None:
                batch.found([*map(self._judged, found)] if self._in_slots else found)
            else:
                batch.refuse_gets(refused)
        batch.replied(replies)

    def _judged(self, reply: Any) -> Any:
        return self._boundary.failed("GET", reply) if isinstance(reply, Exception) else reply

    def _fail(self, error: Exception) -> None:
        """Refuse what has queued."""
        while self._waiting:
            self._waiting.popleft().refuse(error)

    def _spawn(self) -> None:
        # In a context of its own: that of a request must not live on in it. And not by the loop's task factory: it has
        # to begin when what it sends has queued, and an eager one would begin it here and now.
        task = self._next_drain = asyncio.Task(self._drain(), loop=self._loop, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._drained)

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._next_drain:  # cancelled before it began
            self._next_drain, self._busy = None, False
            self._cancelled(None)

    def _cancelled(self, batch: Batch | None) -> None:
        """Somebody has cancelled all tasks: the loop is ending, most likely. Nobody may wait for ever."""
        refusal = self._boundary.failed("batch", RuntimeError("the event loop is ending"))
        if batch is not None:
            batch.refuse(refusal)
        self._fail(refusal)
