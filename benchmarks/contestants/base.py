"""The face of a contestant: a cache on a function, and an invalidation by prefix.

Each one gets the same function and the same server; those that take a client get the same one. The peers come without
types, or may be missing, so they are imported by name when they take part.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from redis.asyncio import Redis

from benchmarks.catalogue import Query, Task

HOST = "127.0.0.1"
LIFE = 3600
POOL = 4_096
"""Connections a client may open: more than there are callers, so that none is refused one."""


class Contestant(ABC):
    """A cache, as its users use it. `head` is put before a key, with a colon."""

    package: ClassVar[str]
    about: ClassVar[str]
    """What it stores, and how it is set."""
    forgets: ClassVar[bool] = True
    """Whether it can invalidate by prefix."""

    def __init__(self, port: int, client: Redis) -> None:  # noqa: B027  # not each needs both
        """Use the server at `port`, through `client` if it takes one."""

    @abstractmethod
    def cached(self, head: str, task: Task) -> Query:
        """Put the cache on a function."""

    async def forget(self, head: str) -> None:  # noqa: B027  # not each can
        """Invalidate everything under `head`. Called only of a contestant that `forgets`."""

    async def aclose(self) -> None:  # noqa: B027  # not each has something open
        """Close what it has opened."""
