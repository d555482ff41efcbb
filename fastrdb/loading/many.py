"""Many calls of one cached function at once, and functions that take many ids: each id has an entry of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, Any

from fastrdb.errors import OptionError, SchemaError
from fastrdb.keys import CallPlan, Elements, Inspected, elements_of, shape_of
from fastrdb.runtime import BaseCache
from fastrdb.transactions import sync_session
from fastrdb.values import Codec

from .batch import Batch, Loader
from .batch_timed import TimedBatch
from .entry import Call, Entries
from .function import CachedQuery, nothing, variant
from .near_loads import Keeping
from .policy import Policy
from .reloads import with_argument
from .timed import TimedQuery, check_session

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


def batch(query: Entries, call: Call, keys: Sequence[str], load: Loader, *, refresh: bool = False) -> Batch:
    """The way from many keys to their values, as the query's policy wants it."""
    kind = TimedBatch if query.policy.timed or query.near else Batch
    return kind(query, call, keys, load, refresh=refresh)


async def get_many(query: CachedQuery, arguments: Sequence[dict[str, Any]], load: Loader) -> list[Any]:
    """The values of many calls of one function, in their order; what has none is None.

    Args:
        query: the cached function.
        arguments: of each call, as bound by its plan; all with the same Redis and session.
        load: is given the positions of the calls that are not in Redis.
    """
    calls = [query.call(nothing, values) for values in arguments]
    known = [call for call in calls if call is not None]
    if len(known) < len(calls) or not known:
        return list(await load(list(range(len(calls)))))
    return await batch(query, known[0], [call.key for call in known], load).resolve()


class ManyQuery(TimedQuery):
    """One function that takes a list of ids. Its plan, codec and extras are about one of them."""

    __slots__ = ("elements", "mapping")
    stores_absent = True

    def __init__(
        self, cache: BaseCache, plan: CallPlan, codec: Codec, policy: Policy, elements: Elements, mapping: bool
    ) -> None:
        super().__init__(cache, plan, codec, policy)
        self.elements = elements
        self.mapping = mapping

    @classmethod
    def of(
        cls, cache: BaseCache, found: Inspected, pattern: str, policy: Policy, *, schema: Any, ignore: Sequence[str]
    ) -> ManyQuery:
        """The query of a function, everything checked. Raises PatternError, OptionError, SchemaError."""
        decorator = "cached_many"
        owner = f"@{decorator} on {found.name}"
        CallPlan.of(found, pattern=pattern, ignore=ignore, decorator=decorator)  # what is wrong is said of it as it is
        element, elements = elements_of(found, pattern, owner)
        plan = CallPlan.of(element, pattern=pattern, ignore=ignore, decorator=decorator, seal=cache.seal)
        if policy.early:
            raise OptionError(f"{owner}: early={policy.early:g}: {decorator} reloads nothing early")
        check_session(plan, policy)
        shape = shape_of(found.return_type, owner)
        return cls(cache, plan, Codec(shape.value, schema=schema, owner=found.name), policy, elements, shape.mapping)

    # --- what the decorated function does

    def answer(self, function: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The coroutine of one call. Raises at once what is wrong with its arguments; all else waits for the await."""
        return self._ask(partial(function, *args, **kwargs), self.plan.bind(instance, args, kwargs))

    def answering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for the function itself, where no instance is bound to it."""
        return lambda *args, **kwargs: self.answer(function, getattr(function, "__self__", None), args, kwargs)

    async def refresh(self, run: Any, values: dict[str, Any]) -> Any:
        """Load all now, whatever is in Redis, and store."""
        return await self._ask(run, values, refresh=True)

    def _ask(self, run: Any, values: dict[str, Any], *, refresh: bool = False) -> Coroutine[Any, Any, Any]:
        given = values[self.elements.parameter]
        ids = self.elements.of(given, self.plan.function)
        session = sync_session(self.plan.session(values))
        self.check_session_of_call(session)
        keys = self._keys(values, ids, session)
        load = partial(self._load, run, ids, _kind_of(given))
        client = self.cache.client(self.plan, values)
        if client is None:
            return self._uncached_many(ids, keys, load)
        store = self.cache.store(client)
        call = Call("", client, store, session, nothing, store.patience(client, keys))
        return self._answer(ids, keys, call, load, refresh)

    def _keys(self, values: dict[str, Any], ids: list[Any], session: Session | None) -> list[str]:
        each, extra, keys = dict(values), variant(session), list[str]()
        for one in ids:
            each[self.elements.parameter] = one
            keys.append(self.plan.key(each, extra))
        return keys

    async def _answer(self, ids: list[Any], keys: list[str], call: Call, load: Loader, refresh: bool) -> Any:
        values = await batch(self, call, keys, load, refresh=refresh).resolve() if keys else []
        return self._shaped(ids, values)

    async def _uncached_many(self, ids: list[Any], keys: list[str], load: Loader) -> Any:
        at = {key: at for at, key in enumerate(keys)}
        found = dict(zip(at, await load([*at.values()]) if keys else [], strict=True))
        return self._shaped(ids, [None if found[key] is None else self.codec.convert(found[key]) for key in keys])

    def _shaped(self, ids: list[Any], values: list[Any]) -> Any:
        """The answer as the function declares it. Where None is a value, every id is in the mapping."""
        if not self.mapping:
            return values
        return {one: value for one, value in zip(ids, values, strict=True) if value is not None or self.codec.optional}

    async def _load(
        self, run: partial[Any], ids: list[Any], kind: type, positions: list[int], session: Any = None, /
    ) -> Sequence[Any]:
        """What the function gives for these ids alone, which it gets as it was given all of them."""
        asked = kind(ids[at] for at in positions)
        run = with_argument(run, self.elements.parameter, asked)
        if session is not None:
            run = with_argument(run, str(self.plan.session_name), session)
        found = await run()
        if self.mapping:
            if not isinstance(found, Mapping):
                raise SchemaError(f"{self.plan.function} gave {type(found).__qualname__} where a mapping is declared")
            return [found.get(ids[at]) for at in positions]
        values = list(found) if isinstance(found, Iterable) else []
        if len(values) != len(asked):
            raise SchemaError(f"{self.plan.function} gave {len(values)} values for {len(asked)} ids")
        if not isinstance(asked, AbstractSet):
            return values
        by_id = dict(zip(asked, values, strict=True))
        return [by_id[ids[at]] for at in positions]

    # --- what it carries

    def key(self, values: dict[str, Any], session: Session | None = None) -> str:
        """The key of one id."""
        self.elements.one(values[self.elements.parameter], self.plan.function)
        return super().key(values, session)

    async def invalidate(self, values: dict[str, Any]) -> None:
        """Delete the entries of these ids, as `CachedQuery.invalidate` does."""
        ids = self.elements.of(values[self.elements.parameter], self.plan.function)
        session = sync_session(self.plan.session(values))
        client = self.cache.client(self.plan, values)
        if client is not None:
            store = self.cache.store(client)
            call = Call("", client, store, session, nothing, store.patience(client))
            await self.drop(call, self._keys(values, ids, session))


class NearManyQuery(Keeping, ManyQuery):
    """The same, with entries that are kept in this process as well."""

    __slots__ = ()


def _kind_of(given: Any) -> Any:
    """What the function is given its ids in: what the caller has given, if that is plain, else a list."""
    return type(given) if type(given) in (list, tuple, set, frozenset) else list
