"""What a decorated function is to a type checker, and the options it may be given. Nothing here runs.

A wrapper of wrapt loses its typed extras when it is bound. So the types are published as Protocols, with `__get__`
saying what binding makes of them, and `decorators` casts to them once.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, overload

from .events import Stats
from .loading import Explanation, Stored
from .options import Seconds
from .orm import Dependency

P = ParamSpec("P")
Q = ParamSpec("Q")
K = TypeVar("K")
S = TypeVar("S")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_Self = TypeVar("_Self")
_Owner = TypeVar("_Owner")
MYPY = False  # true for mypy alone, whose convention this name is


class Cached(Protocol[P, T_co]):
    """A cached function. Its extras take the function's own arguments; what no key needs may be left out."""

    __name__: str
    __qualname__: str

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, Any]]:
        """The function itself, without the cache."""
        ...

    @property
    def stats(self) -> Stats:
        """The counts of this function in this process."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]:
        """Return the function's result, from Redis if Redis has it."""
        ...

    def key(self, *args: Any, **kwargs: Any) -> str:
        """Return the key in Redis."""
        ...

    async def invalidate(self, *args: Any, **kwargs: Any) -> int | None:
        """Delete this entry; with a session that has a transaction open, when that commits.

        Return the number of entries deleted; None while the deletion waits for a commit, or for Redis.
        """
        ...

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Load now, and store."""
        ...

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store `value`, just written in the session's open transaction, when that commits."""
        ...

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> Stored | None:
        """Return the JSON in Redis that a call would be answered with now; None if the call would load.

        Nothing is loaded, stored or counted, and this process's own entries are left aside.
        """
        ...

    async def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """Return what a call would find, and why its result may not be stored."""
        ...

    # A protocol cannot see whether it sits on a class or static method: its first parameter decides. mypy finds
    # that parameter only in a Callable, pyright only in this protocol, so each rule stands here twice.
    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[type[_Owner], Q], Coroutine[Any, Any, T]],
        instance: _Owner | None,
        owner: type[_Owner],
        /,
    ) -> Cached[Q, T]: ...

    if not MYPY:

        @overload
        def __get__(
            self: Cached[Concatenate[type[_Owner], Q], T], instance: _Owner | None, owner: type[_Owner], /
        ) -> Cached[Q, T]: ...

    @overload
    def __get__(self, instance: None, owner: type, /) -> Cached[P, T_co]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[_Self, Q], Coroutine[Any, Any, T]], instance: _Self, owner: type | None = None, /
    ) -> Cached[Q, T]: ...

    if not MYPY:

        @overload
        def __get__(
            self: Cached[Concatenate[_Self, Q], T], instance: _Self, owner: type | None = None, /
        ) -> Cached[Q, T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> Cached[P, T_co]: ...


class _Mapped(Protocol):
    """An ORM class: what `schema=` turns into the schema."""

    __mapper__: ClassVar[Any]


_Row = TypeVar("_Row", bound=_Mapped)


class WithSchema(Protocol[S]):
    """The decorator with `schema=`: rows of a mapped class become the schema, in the same shape."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, _Row]], /) -> Cached[P, S]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, _Row | None]], /
    ) -> Cached[P, S | None]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Sequence[_Row]]], /
    ) -> Cached[P, list[S]]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Sequence[_Row] | None]], /
    ) -> Cached[P, list[S] | None]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, Any]], /) -> Cached[P, S]: ...


class WithoutSchema(Protocol):
    """The decorator without `schema=`."""

    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Cached[P, T]:
        """Return what the function declares."""
        ...


class ListWithSchema(Protocol[S]):
    """`cached_list` with `schema=`."""

    def __call__(self, function: Callable[P, Coroutine[Any, Any, Any]], /) -> Cached[P, list[S]]:
        """Return a list of the schema, whatever rows the function gives."""
        ...


class ManyWithSchema(Protocol[S]):
    """`cached_many` with `schema=`: rows by id, or in a list, come out as the schema."""

    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Mapping[K, _Row]]], /
    ) -> Cached[P, dict[K, S]]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Mapping[K, _Row | None]]], /
    ) -> Cached[P, dict[K, S | None]]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Sequence[_Row]]], /
    ) -> Cached[P, list[S]]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Sequence[_Row | None]]], /
    ) -> Cached[P, list[S | None]]: ...


class Options(TypedDict, total=False):
    """The options of a cached function. All durations are seconds, `float | timedelta`."""

    exp: Seconds
    """How long an entry lives; an hour by default."""
    jitter: float
    """A fraction of `exp`, 0 <= jitter < 1: each entry lives up to that much shorter, so that not all end at once."""
    negative_exp: Seconds | None
    """Cache None, and SQLAlchemy's NoResultFound, this long. Without it None lives like any value, no error is kept."""
    wait: Seconds
    """The longest wait for another caller's load; then the function runs, unstored. 5 by default."""
    cache_if: Callable[[Any], bool] | None
    """Is asked with each result whether to store it."""
    ignore: Sequence[str]
    """Parameters that are no part of the key, because the result does not depend on them."""
    stale: Seconds
    """This long past `exp` the old value is answered at once, while one caller has it reloaded in the background."""
    fail_safe: Seconds
    """This long past `exp` the old value is answered if the database cannot be reached."""
    early: float
    """XFetch's beta, usually 1: entries are reloaded before `exp` ends, the sooner the longer a load takes."""
    session_factory: Callable[[], Any]
    """Gives an AsyncSession, or an async context manager of one, for reloads in the background."""
    verify: float
    """This share of hits (0.001, say) has the entry compared with the database, in the background."""
    version: str | int | None
    """A part of each key, behind `?%v=`: another version reads and writes other entries; "auto": by the schema."""
    shared: bool
    """Another function, or another class that inherits this method, may use the same keys: each gives the same."""
    never_invalidated: bool
    """Say that no write needs to invalidate the entries, for `Cache.check`."""
    depends_on: Dependency | Sequence[Dependency]
    """The rows that the result depends on: mapped classes, tables, or `rows(User, email="{email}")`."""
    auto: bool | None
    """Whether statements show what the result depends on; None as the `Cache` says. False: prefixes and TTL only."""
    near: bool | None
    """Keep entries in this process as well; None as the `Cache` says, whose `near=` has the bounds."""
