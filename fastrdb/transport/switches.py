"""A cache that is switched off: for one task and those that it starts, while others go on using it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol
from weakref import WeakSet

DISABLED = "the cache is disabled"

_off: ContextVar[tuple[object, ...]] = ContextVar("fastrdb_off", default=())


class Governed(Protocol):
    """What is asked on each hit whether there is anything in the way."""

    @property
    def obstacles(self) -> set[object]:
        """Who stands in the way."""
        ...


class Switch:
    """Of one cache. While anybody has it off, it is in the way of all stores: only then is it asked who has."""

    def __init__(self) -> None:
        self._holders = 0
        self._stores: WeakSet[Governed] = WeakSet()

    def govern(self, store: Governed) -> None:
        """Be in the way of a store, too."""
        self._stores.add(store)
        if self._holders:
            store.obstacles.add(self)

    @contextmanager
    def off(self) -> Iterator[None]:
        """While inside, it is off for this task and those that it starts."""
        self._holders += 1
        for store in self._stores:
            store.obstacles.add(self)
        token = _off.set((*_off.get(), self))
        try:
            yield
        finally:
            _off.reset(token)
            self._holders -= 1
            if not self._holders:
                for store in self._stores:
                    store.obstacles.discard(self)

    def is_off(self) -> bool:
        """Whether it is off for whoever asks."""
        return self._holders > 0 and self in _off.get()
