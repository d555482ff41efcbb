"""Many calls of one cached function at once, and functions that take many ids: each id has an entry of its own."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from typing import TYPE_CHECKING, Any

from fastrdb.errors import OptionError, SchemaError
from fastrdb.keys import FIXED, BoundCall, BoundMany, CallPlan, ResultShape, cannot_change
from fastrdb.runtime import Runtime, as_coroutine_of
from fastrdb.transactions import is_expired, no_store, one_schema_map, session_of
from fastrdb.values import Codec

from .function import CachedFunction, with_argument, with_variant
from .load import Loader, Loading
from .policy import Policy
from .stored import Stored
from .tagging import arguments_of, declared_tags

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

EQUAL_IDS = "two ids are equal and of two types, and a mapping has one value for both"


async def get_many(function: CachedFunction, arguments: Sequence[BoundCall], load: Loader) -> list[Any]:
    """Return the values of many calls of one function, in their order; None for what is not there.

    Args:
        function: the cached function.
        arguments: of each call, as bound by its plan; all with the same Redis and session.
        load: gets the positions of the calls that are not in Redis.
    """
    call = function.call(arguments[0], arguments) if arguments else None
    if call is None:
        return list(await load(list(range(len(arguments)))))
    keys = [function.key(values, call.session) for values in arguments]
    reason = function.bypass_reason(call.store, call.client, call.session)
    return await Loading(function, call, keys, load).resolve(reason)


class CachedMany(CachedFunction):
    """One function that takes a list of ids. Its plan, codec and extras are about one of them."""

    __slots__ = ("mapping", "parameter", "_named_answer")
    stores_absent = True
    parameter: str
    mapping: bool
    _named_answer: Callable[..., Coroutine[Any, Any, Any]]

    @classmethod
    def of(
        cls,
        cache: Runtime,
        fn: Any,
        pattern: str,
        policy: Policy,
        *,
        schema: Any,
        ignore: Sequence[str],
        near: bool,
    ) -> CachedMany:
        """Return the cached function, everything checked. Raises PatternError, OptionError, SchemaError."""
        decorator = "cached_many"
        plan = CallPlan.of(fn, pattern=pattern, ignore=ignore, decorator=decorator, seal=cache.seal, many=True)
        owner = f"@{decorator} on {plan.function}"
        if policy.early:
            raise OptionError(f"{owner}: early={policy.early:g}: {decorator} reloads nothing early")
        if policy.verify:
            raise OptionError(f"{owner}: verify={policy.verify:g}: {decorator} verifies nothing")
        shape = ResultShape.of(plan.return_type, owner)
        made = cls(cache, plan, Codec(shape.value, schema=schema, owner=plan.function), policy, near=near)
        made.parameter, made.mapping = plan.ids.parameter if plan.ids else "", shape.mapping
        made._named_answer = as_coroutine_of(made._answer, plan.function)
        if made.codec.converts:
            made.returns = shape.of_values(made.codec.type)
        return made

    # --- what the decorated function does

    def answer(self, function: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the coroutine of one call. Raises at once what is wrong with its arguments."""
        return self._ask(partial(function, *args, **kwargs), self.plan.bind_many(instance, args, kwargs))

    def answering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands for the function itself, where no instance is bound to it."""
        return lambda *args, **kwargs: self.answer(function, getattr(function, "__self__", None), args, kwargs)

    def bind(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, several: bool) -> Any:
        """Return a call of one id, or of *several*."""
        bind = self.plan.bind_many if several else self.plan.bind
        return bind(instance, args, kwargs, partial=True)

    async def peek(self, instance: Any, args: Any, kwargs: Any, function: Any = None) -> Stored | None:
        """Raise OptionError: there is an entry for each id."""
        raise OptionError(f"{self.plan.function}: peek is for functions with one entry for each call, not for many ids")

    async def refresh(self, run: Any, values: BoundMany) -> Any:
        """Load all now, whatever is in Redis, and store."""
        return await self._ask(run, values, refresh=True)

    def _ask(self, run: Any, values: BoundMany, *, refresh: bool = False) -> Coroutine[Any, Any, Any]:
        ids = list(values.ids)
        session = session_of(values.session)
        self.refuse_session(session)
        if not one_schema_map(session, self.plan.other_sessions(run.keywords), partial(arguments_of, run)):
            values = values._replace(client=None)
        return self._named_answer(values, ids, self.keys(values, session), run, refresh)

    async def _answer(
        self, values: BoundMany, ids: list[Any], keys: list[str], run: partial[Any], refresh: bool
    ) -> Any:
        given = run, ids, type(values.ids)
        call, load = self.call(values, keys), partial(self._load, *given)
        if not keys:
            found = []
        elif call is None:
            at = {key: at for at, key in enumerate(keys)}
            loaded = dict(zip(at, await load([*at.values()]), strict=True))
            found = [None if loaded[key] is None else self.codec.convert(loaded[key]) for key in keys]
        else:
            reason = self.bypass_reason(call.store, call.client, call.session)
            call.run, call.keys_now = run, partial(self._keys_of, ids, type(values.ids))
            call.copied = int(FIXED.issuperset(map(type, ids)) or all(map(cannot_change, ids)))
            if self.depends_on is not None:
                call.tags_now = partial(self._tags_of, *given)
            found = await Loading(self, call, keys, load, refresh=refresh).resolve(reason, look=not refresh)
            if refresh:
                await self._refreshed(call, keys)
        if not self.mapping:
            return found
        # Where None is a value, every id is in the mapping.
        return {one: value for one, value in zip(ids, found, strict=True) if value is not None or self.codec.optional}

    async def _load(
        self, run: partial[Any], ids: list[Any], kind: type, positions: list[int], session: Any = None, /
    ) -> Sequence[Any]:
        """Return what the function gives for these ids alone, which it gets as it was given all of them."""
        asked = kind(ids[at] for at in positions)
        order = list(asked)  # the function may empty what it is given
        run = with_argument(run, self.parameter, asked)
        if session is not None:
            run = with_argument(run, str(self.plan.session_name), session)
        found = await run()
        if self.mapping:
            if not isinstance(found, Mapping):
                raise SchemaError(f"{self.plan.function} gave {type(found).__qualname__} where a mapping is declared")
            if len({*order}) < len(order):
                no_store(EQUAL_IDS)
            return [found.get(ids[at]) for at in positions]
        values = list(found) if isinstance(found, Iterable) else []
        if len(values) != len(order):
            raise SchemaError(f"{self.plan.function} gave {len(values)} values for {len(order)} ids")
        if not isinstance(asked, AbstractSet):
            return values
        by_id = dict(zip(order, values, strict=True))
        return [by_id[ids[at]] for at in positions]

    def _keys_of(self, ids: list[Any], kind: type, run: partial[Any], session: Any) -> Any:
        """Return the keys, made from the present arguments but for the ids, of which the load has a copy."""
        if any(map(is_expired, (*run.args, *run.keywords.values()))):
            return None
        run = with_argument(run, self.parameter, kind(ids))
        bound = self.plan.bind_many(getattr(run.func, "__self__", None), run.args, run.keywords)
        return self.keys(bound, session or session_of(bound.session))

    def _tags_of(self, run: partial[Any], ids: list[Any], kind: type, session: Session | None) -> list[Any]:
        """Return the tags that the function declares for each id: the parameter stands for one of them."""
        run = with_argument(run, self.parameter, kind(ids))
        arguments = arguments_of(run)
        return [declared_tags(self.depends_on, {**arguments, self.parameter: one}, session) for one in ids]

    # --- what it carries

    def keys(self, values: BoundMany, session: Session | None) -> list[str]:
        """Return the keys of these ids."""
        return [with_variant(key, session) for key in values.keys]
