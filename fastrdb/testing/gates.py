"""Gates: a test holds one command of one caller still, looks or acts, and lets it go on. Nothing sleeps."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any

import redis.asyncio

from .faults import FaultyClient


class Gate:
    """Closed until opened; whoever comes to it waits. It holds one command, the first to come."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    async def reached(self) -> None:
        """Wait until a command stands at the gate."""
        await self._reached.wait()

    def open(self) -> None:
        """Let it go on, or let it pass if it has not come yet."""
        self._open.set()

    @property
    def was_reached(self) -> bool:
        """Whether a command has come to the gate."""
        return self._reached.is_set()

    async def hold(self) -> None:
        """Stand at the gate (called by what is gated)."""
        self._reached.set()
        await self._open.wait()


@dataclass
class Gates:
    """The gates set for names, each used once, in the order in which they were set.

    Also for what is no command: a test's own function awaits `arrive("load")` before its work and `leave("load")`
    after it, and can be held there.
    """

    _made: list[Gate] = field(default_factory=list)
    _before: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))
    _after: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))

    def before(self, name: str) -> Gate:
        """Hold the next `name` before it is sent."""
        gate = self._make()
        self._before[name].append(gate)
        return gate

    def after(self, name: str) -> Gate:
        """Hold the next `name` when its reply has arrived and its caller has not seen it yet."""
        gate = self._make()
        self._after[name].append(gate)
        return gate

    def open_all(self) -> None:
        """Let everybody go on: the test is over."""
        for gate in self._made:
            gate.open()

    def _make(self) -> Gate:
        self._made.append(Gate())
        return self._made[-1]

    async def arrive(self, name: str) -> None:
        """Stand at the gate before `name`, if one is set."""
        if waiting := self._before[name]:
            await waiting.popleft().hold()

    async def leave(self, name: str) -> None:
        """Stand at the gate after `name`, if one is set."""
        if waiting := self._after[name]:
            await waiting.popleft().hold()


class GatedClient(FaultyClient):
    """A `FaultyClient` whose commands also stop at gates.

    Mind the deadline: a cache gives up on what stands at a gate for longer than its `timeout`, so give it a long one.
    A pipeline's commands are held together: before the first is sent, and after the last reply.
    """

    def __init__(self, client: redis.asyncio.Redis, **options: Any) -> None:
        super().__init__(client, **options)
        self.gates = Gates()

    def before(self, name: str) -> Gate:
        """Hold the next `name` before it is sent."""
        return self.gates.before(name)

    def after(self, name: str) -> Gate:
        """Hold the next `name` when its reply has arrived and its caller has not seen it yet."""
        return self.gates.after(name)

    async def approach(self, names: list[str]) -> None:
        """Pass the gates before these commands, then what else keeps them from the server."""
        for name in names:
            await self.gates.arrive(name)
        await super().approach(names)

    async def depart(self, names: list[str]) -> None:
        """Pass what loses their replies, then the gates after these commands."""
        await super().depart(names)
        for name in names:
            await self.gates.leave(name)
