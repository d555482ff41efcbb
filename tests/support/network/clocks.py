"""A clock that a test moves: nothing sleeps, and what waits for a time is woken when the test says that it has come."""

from __future__ import annotations

import asyncio


class ManualClock:
    """Call it for the time in seconds; `sleep` returns when `advance` has gone far enough."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._asleep = asyncio.Event()

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved so far."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, future))
        self._asleep.set()
        await future

    async def asleep(self) -> None:
        """Wait until a task waits for the clock."""
        while not any(not future.done() for _, future in self._sleepers):
            self._asleep.clear()
            await self._asleep.wait()

    def advance(self, seconds: float) -> None:
        """Move the clock, and wake those whose time has come."""
        self.now += seconds
        for when, future in self._sleepers:
            if when <= self.now and not future.done():
                future.set_result(None)
        self._sleepers = [each for each in self._sleepers if not each[1].done()]
