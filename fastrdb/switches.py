"""What can be switched off in a running program. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

DISABLED = "the cache is disabled"

_off: ContextVar[tuple[object, ...]] = ContextVar("fastrdb_off", default=())


class Switch:
    """Of one cache. `touched`: somebody, somewhere, has it off just now; asked first, because that costs nothing."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched = 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """While inside, it is off for this task and those that it starts."""
        self.touched += 1
        token = _off.set((*_off.get(), self))
        try:
            yield
        finally:
            _off.reset(token)
            self.touched -= 1

    def is_off(self) -> bool:
        """Whether it is off for whoever asks."""
        return self.touched > 0 and self in _off.get()
