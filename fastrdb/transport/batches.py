"""What goes to a server together: who waits for which key, and what else is sent. No I/O."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

from .scripts import Command

MOST_GETS = 1024
_MOST_COMMANDS = 256
"""So much goes out in one batch; what is more waits for the next, so that nobody waits long for a huge reply."""


class Batch:
    """The GETs and the other commands of one round trip.

    `since` is when the first of its callers has come, by the event loop's clock; of a `crowd` that fills several, each
    begins to wait for the server when its turn has come. In `gets` who wants a key puts the future that waits for it,
    unless there is one already (then it joins), or there are `MOST_GETS`.
    """

    __slots__ = ("_count", "_joined", "_sends", "crowd", "gets", "since")

    def __init__(self, since: float, *, crowd: bool) -> None:
        self.since, self.crowd = since, crowd
        self.gets: dict[bytes, Future[bytes | None]] = {}
        self._joined: list[tuple[bytes, Future[bytes | None]]] = []  # further callers of the same keys
        self._sends: list[tuple[Sequence[Command], Future[list[Any]]]] = []
        self._count = 0

    def has_room_for(self, commands: Sequence[Command]) -> bool:
        """Whether these are not too many; there is always room for the first."""
        return not self._count or self._count + len(commands) <= _MOST_COMMANDS

    def join(self, name: bytes, future: Future[bytes | None]) -> None:
        """Have `future` wait for the value of a key that is in `gets` already."""
        self._joined.append((name, future))

    def send(self, commands: Sequence[Command], future: Future[list[Any]]) -> None:
        """Have `future` wait for the replies to these."""
        self._sends.append((commands, future))
        self._count += len(commands)

    def commands(self) -> list[Command]:
        """All but the GETs. What its caller does not wait for any more is sent all the same: a release must follow."""
        return [command for commands, _ in self._sends for command in commands]  # mechanism: cancelled-commands-sent

    def found(self, values: Sequence[bytes | Exception | None]) -> None:
        """Hand out the values of the keys, in the order of `gets`; or why one of them cannot be read."""
        for future, value in zip(self.gets.values(), values, strict=True):
            if isinstance(value, Exception):
                _settle(future, value)
            # Here, since the call would be felt on a hit.
            elif not future.done():  # mechanism: cancelled-get-skipped
                future.set_result(value)
        if self._joined:
            by_name = dict(zip(self.gets, values, strict=True))
            for name, future in self._joined:
                _settle(future, by_name[name])

    def refuse_gets(self, error: Exception) -> None:
        """Tell who waits for a key that there is none to be had."""
        for future in chain(self.gets.values(), (future for _, future in self._joined)):
            _settle(future, error)

    def replied(self, replies: Iterator[Any]) -> None:
        """Hand out the replies to `commands`."""
        for commands, future in self._sends:
            _settle(future, [next(replies) for _ in commands])

    def refuse(self, error: Exception) -> None:
        """Tell all who wait."""
        self.refuse_gets(error)
        for _, future in self._sends:
            _settle(future, error)


def _settle(future: Future[Any], value: Any) -> None:
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
        future.exception()  # who is cancelled in this very moment does not look, and that is no error either
    else:
        future.set_result(value)
