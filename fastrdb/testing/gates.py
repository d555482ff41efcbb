"""Gates: a test holds one command of one caller, looks or acts, and releases it. Nothing sleeps."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio

from .faults import FaultyClient


class Gate:
    """A gate, closed until `open`. It holds one command, the first that arrives."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    async def reached(self) -> None:
        """Wait until a command is held."""
        await self._reached.wait()

    def open(self) -> None:
        """Release the command, or pass it later if none has arrived yet."""
        self._open.set()

    @property
    def was_reached(self) -> bool:
        """True if a command has arrived."""
        return self._reached.is_set()

    async def hold(self) -> None:
        """Wait at the gate until it is open. Code under test calls this."""
        self._reached.set()
        await self._open.wait()


@dataclass
class Gates:
    """The gates set for names, each used once, the oldest first.

    A name need not be a command: a function of the test may await `arrive("load")` before its work and `leave("load")`
    after it.
    """

    _made: list[Gate] = field(default_factory=list)
    _before: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))
    _after: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))

    def before(self, name: str) -> Gate:
        """Hold the next `name` before it is sent."""
        return self._add(self._before[name])

    def after(self, name: str) -> Gate:
        """Hold the next `name` when its reply has arrived, before its caller gets the reply."""
        return self._add(self._after[name])

    def open_all(self) -> None:
        """Open every gate: the test is over."""
        for gate in self._made:
            gate.open()

    def _add(self, waiting: deque[Gate]) -> Gate:
        gate = Gate()
        self._made.append(gate)
        waiting.append(gate)
        return gate

    async def arrive(self, name: str) -> None:
        """Wait at the gate before `name`, if one is set."""
        if waiting := self._before[name]:
            await waiting.popleft().hold()

    async def leave(self, name: str) -> None:
        """Wait at the gate after `name`, if one is set."""
        if waiting := self._after[name]:
            await waiting.popleft().hold()


class GatedClient(FaultyClient):
    """A `FaultyClient` whose commands also stop at gates.

    A cache gives up a command that is held for longer than its `timeout`, so give the cache a long one. The commands of
    a pipeline are held together: before the first is sent, and after the last reply.
    """

    def __init__(self, client: redis.asyncio.Redis, **options: Any) -> None:
        super().__init__(client, **options)
        self.gates = Gates()
        self.before = self.gates.before
        self.after = self.gates.after

    async def approach(self, names: list[str]) -> None:
        """Pass the gates before these commands, then apply faults."""
        for name in names:
            await self.gates.arrive(name)
        await super().approach(names)

    async def depart(self, names: list[str]) -> None:
        """Apply the faults that lose the replies, then pass the gates after these commands."""
        await super().depart(names)
        for name in names:
            await self.gates.leave(name)
