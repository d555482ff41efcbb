"""A cache with `auto=True`, as the transactions of this process see it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final
from weakref import ref

from fastrdb.errors import OptionError
from fastrdb.keys import Inspected
from fastrdb.orm import Table, table_names
from fastrdb.protocol import Intent, Store
from fastrdb.runtime import Runtime, is_disabled
from fastrdb.transactions import add_follower, lost

PRECISIONS: Final = ("rows", "tables")
_log = logging.getLogger("fastrdb")


class Following:
    """The settings of a cache that invalidates what the writes of this process change.

    The cache holds it; it holds the cache weakly.
    """

    def __init__(
        self,
        cache: Runtime,
        *,
        reads_rows: bool,
        effects: Mapping[str, frozenset[str]],
        quiet: Mapping[str, frozenset[str]],
        views: Mapping[str, frozenset[str]],
    ) -> None:
        self._cache = ref(cache)
        self.reads_rows, self.effects, self.quiet, self.views = reads_rows, effects, quiet, views
        self._logged = False

    def is_untracked(self) -> bool:
        """Return True inside of `Cache.untracked`."""
        cache = self._cache()
        return cache is None or cache.redis is None or is_disabled(self)

    def tag_columns(self, table: str) -> Collection[str]:
        """Return the columns of a table that entries are tagged by, as far as this process has seen."""
        store = self._store()
        return () if store is None else store.columns(table.lower())

    def intent(self) -> tuple[Hashable, Callable[[], Intent]] | None:
        """Return the store and how its intent is made; None, with a line in the log, where no event loop can end it."""
        cache, store = self._cache(), self._store()
        if cache is None:  # it has ended since the statement
            return None
        if store is None:
            if not self._logged:
                self._logged = True
                _log.warning(
                    "fastrdb: a commit in a thread without an event loop could not be followed, because the cache has "
                    "not been used in any event loop yet: invalidate by hand"
                )
            return None
        return store, partial(store.intent, cache.redis, cache.own_counters)

    def _store(self) -> Store | None:
        """Return the store of the running event loop; without one, that of any loop that runs in another thread."""
        cache = self._cache()
        if cache is None or cache.redis is None:
            return None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return _store_elsewhere(cache)
        return cache.store(cache.redis)


def _store_elsewhere(cache: Runtime) -> Store | None:
    """Return the cache's own store in an event loop of another thread, for code that runs without one."""
    for known in cache._states.keyrefs():
        loop = known()
        state = None if loop is None or loop.is_closed() else cache._states.get(loop)
        if state is not None and (store := state.by_pool.get(cache.redis.connection_pool)) is not None:
            return store
    return None


def follows(follower: Following | None, function: Inspected, decorator: str, auto: object) -> bool:
    """Return True if the statements of a cached function show what it depends on. Raise OptionError for its `auto`."""
    owner = f"@{decorator} on {function.name}"
    if auto is not None and not isinstance(auto, bool):
        raise OptionError(f"{owner}: auto={auto!r} must be True, False or None")
    if follower is None:
        if auto:
            raise OptionError(f"{owner}: auto=True needs a Cache(redis, auto=True)")
        return False
    if auto is None and any(each.role == "redis" for each in function.parameters):
        raise OptionError(
            f"{owner}: a cache with auto=True reaches its own client only: take the function's Redis parameter away, "
            "or give it auto=True (results of another client are not stored) or auto=False"
        )
    return auto is not False


def follow_with(
    cache: Runtime,
    owner: str,
    auto: bool,
    precision: str,
    effects: Mapping[Any, Sequence[Any]],
    quiet: Mapping[Any, Sequence[str]],
    views: Mapping[str, Sequence[Any]],
) -> Following | None:
    """Make a cache follow, and return how; None without `auto`. Raise OptionError, naming the option."""
    if not auto:
        if precision != "rows" or effects or quiet or views:
            raise OptionError(f"{owner}: precision, effects, quiet and views are for auto=True")
        return None
    if cache.redis is None:
        raise OptionError(f"{owner}: auto=True needs redis=..., since each commit invalidates there")
    if precision not in PRECISIONS:
        raise OptionError(f"{owner}: precision={precision!r} must be 'rows' or 'tables'")
    for name, given in (("effects", effects), ("quiet", quiet), ("views", views)):
        if not isinstance(given, Mapping):
            raise OptionError(f"{owner}: {name} must be a mapping; it is a {type(given).__name__}")
    made = Following(
        cache,
        reads_rows=precision == "rows",
        effects=_by_table(owner, "effects", effects),
        quiet={
            name: frozenset(_column(owner, entity, each) for each in columns)
            for entity, columns in quiet.items()
            for name in _names(owner, "quiet", entity)
        },
        views={name.lower(): _all_names(owner, "views", given) for name, given in views.items()},
    )
    add_follower(made)
    cache.report_loss(lost.append)
    return made


def _by_table(owner: str, option: str, given: Mapping[Any, Sequence[Any]]) -> dict[str, frozenset[str]]:
    return {
        name: _all_names(owner, option, also)
        for entity, also in given.items()
        for name in _names(owner, option, entity)
    }


def _names(owner: str, option: str, entity: Any) -> list[str]:
    return [name.lower() for name in table_names(entity, f"{owner}: {option}")]


def _all_names(owner: str, option: str, entities: Iterable[Any]) -> frozenset[str]:
    return frozenset(name for entity in entities for name in _names(owner, option, entity))


def _column(owner: str, entity: Any, name: str) -> str:
    """Return the name in the database of a column, which may be given as the attribute of a class."""
    found = entity.c.get(name) if isinstance(entity, Table) else getattr(entity, name, None)
    column = getattr(found, "name", None) if isinstance(entity, Table) else getattr(found, "expression", None)
    column = getattr(column, "name", column)
    if not isinstance(column, str):
        raise OptionError(f"{owner}: quiet: {getattr(entity, '__name__', entity)} has no column '{name}'")
    return column
