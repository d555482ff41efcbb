"""One name for both ways to get at a session or a client: `Depends(async_get_db)` and `async with async_get_db()`."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Opened(AsyncGenerator[T, None]):
    """An async generator of one value, which is also an async context manager."""

    def __init__(self, generator: AsyncGenerator[T, None]) -> None:
        self._generator = generator
        self._manager = asynccontextmanager(lambda: generator)()

    def asend(self, value: None, /) -> Any:
        """Pass a value to the generator: FastAPI goes this way."""
        return self._generator.asend(value)

    def athrow(self, *error: Any) -> Any:
        """Raise an error in the generator."""
        return self._generator.athrow(*error)

    async def __aenter__(self) -> T:
        return await self._manager.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, trace)


class resource(Generic[T]):  # noqa: N801  # a decorator
    """Make of an async generator function what `Depends(...)` takes, and `async with ...()` too."""

    def __init__(self, function: Callable[[], AsyncGenerator[T, None]]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        # By these `inspect`, and so FastAPI, sees an async generator function.
        self.__code__ = getattr(function, "__code__")  # noqa: B009
        self.__defaults__ = self.__kwdefaults__ = None

    def __call__(self) -> Opened[T]:
        """Return a value that is not opened yet."""
        return Opened(self._function())
