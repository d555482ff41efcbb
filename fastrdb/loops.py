"""What a cache has in each event loop: futures, tasks and connections belong to the loop that they were made in.

When a loop ends in an orderly way (as `asyncio.run` ends it), what runs in the background comes to its end first, and
connections are closed. What Redis has yet to be told is left to the next loop. A child process leaves everything to its
parent: it would speak on the parent's sockets.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Hashable
from contextlib import suppress
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet

from .protocol import Store
from .singleflight import Flights
from .transport import Target, connections_of

_LIMIT = 1.0
"""Seconds that the end of an event loop may take for it."""


class LoopState:
    """What a cache has in one event loop: a store for each server, found by the pool of a client, too."""

    def __init__(self) -> None:
        self.flights = Flights()
        self.stores: dict[Hashable, Store] = {}
        self.by_pool: WeakKeyDictionary[Any, Store] = WeakKeyDictionary()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.reloads: dict[tuple[Store, str], asyncio.Task[None]] = {}  # by key
        self.owed: dict[Hashable, dict[Target, bool]] = {}  # to servers, by loops that have ended
        # A loop that ends waits for the asynchronous generators in it to close: this one is there for that.
        self._open = self._until_the_end()
        with suppress(StopIteration):
            self._open.asend(None).send(None)

    async def aclose(self, limit: float, *, closing: bool = False) -> None:
        """Let what runs in the background end within `limit` seconds; give connections back, or close them before."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        if self.reloads:
            _, late = await asyncio.wait(set(self.reloads.values()), timeout=limit)
            for task in late:
                task.cancel()
            if late:  # each has a session to close, and a lease to give back
                await asyncio.wait(late)
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=limit)
        for store in list(self.stores.values()):
            await store.aclose(max(0.0, end - loop.time()), closing=closing)

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.aclose(_LIMIT, closing=True)

    def inherit(self, ended: LoopState) -> None:
        """Take over from a loop that has ended."""
        self.owed.update(ended.owed)
        for server, store in ended.stores.items():
            if owed := store.lose():
                self.owed[server] = owed


_Recent = tuple[Callable[[], Any], int, Callable[[], asyncio.AbstractEventLoop | None], Any]


class Loops:
    """The states of one cache, by event loop."""

    def __init__(self) -> None:
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = WeakKeyDictionary()
        # The loop and state of the latest call, since there is but one loop nearly always.
        self._latest: tuple[Callable[[], asyncio.AbstractEventLoop | None], LoopState | None] = (nobody, None)
        # The client of the latest call, its thread, its loop and its store. In one thread runs one loop: while that
        # runs, it is this one, and asking which one it is would cost more than all the rest of it.
        self.recent: _Recent = (nobody, 0, nobody, None)
        _all.add(self)

    def here(self) -> LoopState:
        """The state of the running event loop."""
        loop = asyncio.get_running_loop()
        latest, state = self._latest
        if latest() is not loop or state is None:
            state = self._states.get(loop) or self._begin(loop)
            self._latest = (ReferenceType(loop), state)
        return state

    def leave(self) -> None:
        """Forget everything, and the connections of the pools in use: they are the parent process's."""
        states = [*self._states.items()]
        for _, state in states:
            for pool in [pool for store in state.stores.values() for pool in store.pools()]:
                _parents.append(connections_of(pool))
                pool.reset()
        # Kept, and never closed: that would take their sockets off the selector, which the parent has, too.
        _parents.append((states, self._latest))
        self._states, self._latest, self.recent = WeakKeyDictionary(), (nobody, None), (nobody, 0, nobody, None)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> LoopState:
        state = LoopState()
        # Other threads begin loops of theirs meanwhile, and take over from those that have ended.
        for known in self._states.keyrefs():
            other = known()
            if other is not None and other.is_closed() and (ended := self._states.pop(other, None)) is not None:
                state.inherit(ended)
        self._states[loop] = state
        return state


def nobody() -> Any:
    """What a dead reference gives, and one that never was; it is no client."""


_all: WeakSet[Loops] = WeakSet()
_parents: list[Any] = []


def _in_child() -> None:
    for loops in list(_all):
        loops.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
