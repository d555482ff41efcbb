"""Every error that fastrdb raises: one base, few children, the facts as attributes."""

from __future__ import annotations

from collections.abc import Iterable


class FastRDBError(Exception):
    """The base of every error of this package."""


class PatternError(FastRDBError, ValueError):
    """A pattern, a prefix or a placeholder in one is wrong. Raised where it is written: at decoration."""


class OptionError(FastRDBError, TypeError, ValueError):
    """An option that cannot be, or a function that cannot be decorated (sync, no return type)."""


class SchemaError(FastRDBError, TypeError):
    """A type whose values would not come back from JSON unchanged."""


class KeyValueError(FastRDBError, TypeError):
    """A value without a canonical form in a key; `function`, `parameter` and `value_type` say which."""

    def __init__(self, function: str, parameter: str, value_type: str, hint: str = "") -> None:
        super().__init__(function, parameter, value_type, hint)
        self.function = function
        self.parameter = parameter
        self.value_type = value_type
        self.hint = hint

    def __str__(self) -> str:
        where = f"{self.function}: " if self.function else ""
        name = f"parameter '{self.parameter}'" if self.parameter else "a value"
        text = f"{where}{name} of type {self.value_type} cannot be part of a cache key"
        return f"{text}; {self.hint}" if self.hint else text


class UnknownFieldError(FastRDBError, ValueError):
    """A filter or an order that is not a column of `model`; `known` are its columns."""

    def __init__(self, field: str, model: str, known: Iterable[str]) -> None:
        names = tuple(known)
        super().__init__(field, model, names)
        self.field = field
        self.model = model
        self.known = names

    def __str__(self) -> str:
        return f"{self.model} has no column '{self.field}'; it has: {', '.join(self.known) or 'none'}"


class MissingKeyFieldError(FastRDBError, ValueError):
    """A `field` of `pattern` without which there is no key."""

    def __init__(self, field: str, pattern: str) -> None:
        super().__init__(field, pattern)
        self.field = field
        self.pattern = pattern

    def __str__(self) -> str:
        return f"'{self.field}' is missing: the pattern {self.pattern!r} needs it"


class PageOutOfRange(FastRDBError, ValueError):
    """There is no such `page`: there are `pages` of them, with `total` items."""

    def __init__(self, page: int, pages: int, total: int) -> None:
        super().__init__(page, pages, total)
        self.page = page
        self.pages = pages
        self.total = total

    def __str__(self) -> str:
        return (
            f"page {self.page} is past the end: there are {self.total} items on {self.pages} pages. "
            "If data holds one page only, give its total=, or use get_page(), which counts"
        )


class CacheUnavailableError(FastRDBError):
    """Redis did not do `operation`, because of `reason`. Reaches callers only with on_error="raise"."""

    def __init__(self, operation: str, reason: object) -> None:
        super().__init__(operation, reason)
        self.operation = operation
        self.reason = reason

    def __str__(self) -> str:
        return f"the cache is unavailable: {self.operation}: {self.reason}"


class NoEventLoopError(FastRDBError, RuntimeError):
    """No event loop of asyncio runs where `owner` was used: trio's is of another kind."""

    def __init__(self, owner: str) -> None:
        super().__init__(owner)
        self.owner = owner

    def __str__(self) -> str:
        return (
            f"{self.owner}: no event loop of asyncio is running here; fastrdb works under asyncio, and not under trio"
        )


class SessionInUseError(FastRDBError, RuntimeError):
    """Two tasks use one session at once: `function` was called with it (as `parameter`) while `other` was using it."""

    def __init__(self, function: str, parameter: str | None, other: str) -> None:
        super().__init__(function, parameter, other)
        self.function = function
        self.parameter = parameter
        self.other = other

    def __str__(self) -> str:
        name = f"parameter '{self.parameter}'" if self.parameter is not None else "its session"
        return (
            f"{self.function}: {name} is in use by a call of {self.other} in another task: an AsyncSession and its "
            "connection are for one task at a time. Give each task a session of its own, or await one call after the "
            "other"
        )
