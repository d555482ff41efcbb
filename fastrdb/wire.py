"""What all callers of an event loop send to one server: in batches, over one connection, one batch at a time.

With nothing in flight a command goes out at once, in its caller's own task: a lone caller pays nothing. While one is in
flight, the others queue, and go out together when it returns, their GETs as one MGET. Nobody joins what has been sent:
a reply that was on its way already may be older than a commit that the caller knows of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import islice
from typing import Any, Protocol

from .connections import Source
from .deadlines import Deadlines
from .line import Greeting, Line
from .scripts import Command

_MOST_GETS = 1024
_MOST_COMMANDS = 256
"""So much goes out in one batch; what is more waits for the next, so that nobody waits long for a huge reply."""

_Gets = dict[bytes, list[asyncio.Future[Any]]]  # who waits for a key
_Send = tuple[Sequence[Command], asyncio.Future[list[Any]]]


class Boundary(Protocol):
    """Who is told how each batch went, and says what callers are told."""

    def answered(self) -> Exception | None:
        """The server has answered a batch. Gives why what was read may not be used all the same."""
        ...

    def failed(self, operation: str, error: Exception) -> Exception:
        """A batch, or one command of it, has failed. Gives what is raised instead."""
        ...


class Wire:
    """The shared connection to one server. For one event loop.

    All methods raise what `boundary` makes of redis-py's errors, and of the TimeoutError of who waits longer than the
    deadline, in the queue or for the reply. If a batch fails, so does what had queued behind it: it would have waited
    as long again.
    """

    def __init__(
        self, source: Source, deadlines: Deadlines, greeting: Greeting, boundary: Boundary, *, in_slots: bool = False
    ) -> None:
        self._in_slots = in_slots  # it is a master of a cluster, which refuses an MGET of keys in several slots
        self._line, self._deadlines, self._boundary = Line(source, greeting), deadlines, boundary
        self._loop = asyncio.get_running_loop()  # once: it is felt on a hit
        self._busy = False
        self._crowded = False
        self._gets: _Gets = {}
        self._sends: list[_Send] = []
        self._since = 0.0  # when the first of those who queue has come
        self._next_drain: asyncio.Task[None] | None = None  # that has not begun
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, name: bytes) -> Awaitable[bytes | None]:
        """Give the value of a key."""
        if not self._busy:
            if not self._crowded:
                return self._get_at_once(name)
            # Lately there were several at a time: those who are about to ask in this turn of the loop come along.
            self._busy = True
            self._spawn()
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        if not self._gets and not self._sends:
            self._since = self._loop.time()
        if name in self._gets:
            self._gets[name].append(future)
        else:
            self._gets[name] = [future]
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
            future: asyncio.Future[list[Any]] = self._loop.create_future()
            if not self._gets and not self._sends:
                self._since = self._loop.time()
            self._sends.append((commands, future))
            return await future
        replies = await self._at_once(commands)
        self._boundary.answered()
        return replies

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
            with self._deadlines.start(self._loop):
                return await self._line.exchange(commands)
        except Exception as error:
            await self._line.hang_up()  # what is late may come yet
            refusal = self._boundary.failed(str(commands[0][0]), error)
            self._fail(refusal)
            raise refusal from error
        finally:
            self._next()

    def _next(self) -> None:
        """Go on with what has queued, or be idle."""
        if self._gets or self._sends:
            self._spawn()
        else:
            self._busy = False

    async def _drain(self) -> None:
        """Send what has queued, batch by batch."""
        self._next_drain = None
        gets: _Gets = {}
        sends: list[_Send] = []
        try:
            while self._gets or self._sends:
                gets, sends = self._batch()
                self._crowded = len(gets) > 1
                commands = [command for each, _ in sends for command in each]
                if gets:
                    commands[:0] = [("GET", name) for name in gets] if self._in_slots else [("MGET", *gets)]
                try:
                    async with asyncio.timeout_at(self._since + self._deadlines.seconds):
                        replies = await self._line.exchange(commands) if commands else []
                except Exception as error:  # noqa: BLE001  # handed to those who asked
                    await self._line.hang_up()
                    refusal = self._boundary.failed(str(commands[0][0]), error)
                    _refuse(gets, sends, refusal)
                    self._fail(refusal)
                else:
                    self._distribute(gets, sends, replies)
        except asyncio.CancelledError:
            self._cancelled(gets, sends)
            raise
        finally:
            self._busy = False

    def _batch(self) -> tuple[_Gets, list[_Send]]:
        """Take the next batch off the queue. What its caller does not wait for any more is sent all the same if it
        changes something: a release, say, must follow."""
        gets, sends = self._gets, self._sends
        if len(gets) <= _MOST_GETS:
            self._gets = {}
        else:
            gets = dict(islice(self._gets.items(), _MOST_GETS))
            self._gets = dict(islice(self._gets.items(), _MOST_GETS, None))
        count = taken = 0
        for commands, _ in sends:
            if taken and count + len(commands) > _MOST_COMMANDS:
                break
            count, taken = count + len(commands), taken + 1
        self._sends = sends[taken:]
        return gets, sends[:taken]

    def _distribute(self, gets: _Gets, sends: Sequence[Any], replies: list[Any]) -> None:
        at, refused = 0, self._boundary.answered()
        if gets:
            at, found = (len(gets), replies[: len(gets)]) if self._in_slots else (1, replies[0])
            if isinstance(found, Exception):
                refused = self._boundary.failed("MGET", found)
            if refused is not None:
                _refuse(gets, (), refused)
            elif isinstance(found, list):
                for futures, value in zip(gets.values(), found, strict=True):
                    _settle(futures, self._boundary.failed("GET", value) if isinstance(value, Exception) else value)
        for commands, future in sends:
            if not future.done():
                future.set_result(replies[at : at + len(commands)])
            at += len(commands)

    def _fail(self, error: Exception) -> None:
        """Refuse what has queued."""
        gets, self._gets = self._gets, {}
        sends, self._sends = self._sends, []
        _refuse(gets, sends, error)

    def _spawn(self) -> None:
        # In a context of its own: that of a request must not live on in it.
        task = self._next_drain = self._loop.create_task(self._drain(), context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._drained)

    def _drained(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task is self._next_drain:  # cancelled before it began
            self._next_drain, self._busy = None, False
            self._cancelled({}, [])

    def _cancelled(self, gets: _Gets, sends: Sequence[_Send]) -> None:
        """Somebody has cancelled all tasks: the loop is ending, most likely. Nobody may wait for ever."""
        refusal = self._boundary.failed("batch", RuntimeError("the event loop is ending"))
        _refuse(gets, sends, refusal)
        self._fail(refusal)


def _settle(futures: Sequence[asyncio.Future[Any]], value: Any) -> None:
    for future in futures:
        if future.done():
            continue
        if isinstance(value, Exception):
            future.set_exception(value)
        else:
            future.set_result(value)


def _refuse(gets: _Gets, sends: Sequence[_Send], error: Exception) -> None:
    for future in [*(future for futures in gets.values() for future in futures), *(future for _, future in sends)]:
        if not future.done():
            future.set_exception(error)
