"""The cached reads of one model, and what its writes invalidate and store.

The reads are decorated functions with the model's columns as typed keyword parameters. So a key names its columns, and
a filter that is no column is never part of one.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Collection, Coroutine, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypedDict, TypeVar

from pydantic import BaseModel
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb.cache import Cache, Cached
from fastrdb.errors import PatternError
from fastrdb.invalidation import Put, enlist
from fastrdb.keys import CallPlan, Pattern, PrefixTemplates, fingerprint, quote
from fastrdb.loading import CachedFunction, get_many, no_store, with_variant
from fastrdb.options import Seconds
from fastrdb.registry import Registered
from fastrdb.transactions import schema_map
from fastrdb.values import Codec

from .statements import Statements, dialect_of, only, rows_of

Response = TypeVar("Response")
_PAGING: dict[str, Any] = {"limit": 10, "page": 1, "order_by": None, "ascending": True}  # no key has the defaults
_TAKEN = ("db", "redis")


class Settings(TypedDict, total=False):
    """Options of the decorators for all reads of a `FastRDB`; `negative_exp` and `cache_if` are for single rows."""

    jitter: float
    negative_exp: Seconds | None
    wait: Seconds
    cache_if: Callable[[Any], bool] | None
    stale: Seconds
    fail_safe: Seconds
    early: float
    session_factory: Callable[[], Any]
    near: bool | None
    shared: bool
    version: str | int | None
    verify: float
    auto: bool


class _Unset(enum.Enum):
    """The default of a filter that is not given: None is a filter, for NULL."""

    UNSET = "UNSET"


class Bindings(Generic[Response]):
    """The cached functions of one model.

    Attributes:
        item, page, count, exists: the reads; all take the session as `db`, the client as `redis`, and filters.
        convert: turns a row into an answer.
        item_fields, list_fields: the columns in the two patterns.
    """

    item: Cached[..., Response]
    page: Cached[..., list[Response]]
    count: Cached[..., int]
    exists: Cached[..., bool]

    def __init__(
        self,
        sql: Statements,
        schema: Any,
        cache: Cache,
        *,
        pattern: str,
        list_pattern: str,
        exp: Seconds,
        prefixes: Sequence[str],
        settings: Settings,
    ) -> None:
        self.sql = sql
        self.columns = sql.columns
        self.cache = cache
        self.typed = {n: f.python_type for n, f in self.columns.fields.items() if n not in _TAKEN}
        self.owner = f"FastRDB[{self.columns.name}]"
        self.follows = settings.get("auto", cache.runtime.follower is not None)
        self.convert = Codec(Any, schema=schema, owner=self.owner).convert
        self._pattern = self._template("pattern", pattern)
        self._list_pattern = self._template("list_pattern", list_pattern, _PAGING)
        self.item_fields = self._pattern.fields
        self.list_fields = tuple(field for field in self._list_pattern.fields if field not in _PAGING)
        self._writes_through = self.columns.unique(self.item_fields) and self._is_own(schema)
        # No value holds a bare ":", and no pattern a "%": so no other key begins with this.
        table = quote(str(getattr(self.columns.mapper.local_table, "fullname", self.columns.name)))
        self._numbers = f"{_literal(self._list_pattern.head)}%:{table}:"
        sql.check(schema)
        sql.show({*getattr(schema, "model_fields", ()), *self.item_fields})
        followed = {"auto": True} if self.follows else {}
        self._bind_reads(schema, {"exp": exp, **settings, **followed})
        self._bind_writes(prefixes)

    # --- reads

    def _bind_reads(self, schema: Any, options: dict[str, Any]) -> None:
        several = {name: value for name, value in options.items() if name not in {"negative_exp", "cache_if"}}
        self.item = self.cache.cached(self._pattern.text, schema=schema, **options)(
            self._function("get", self._load_item, self.typed, Any)
        )
        self._item: CachedFunction = getattr(self.item, "query")  # noqa: B009  # not public: not in the Protocol
        paging = {"limit": int, "page": int, "order_by": str | None, "ascending": bool}
        parameters = {**{name: kind for name, kind in self.typed.items() if name not in _PAGING}, **paging}
        self.page = self.cache.cached_list(self._list_pattern.text, schema=schema, **several)(
            self._function("get_multi", self._load_page, parameters, list[Any])
        )
        for name, load, result in (("count", self._load_count, int), ("exists", self._load_exists, bool)):
            # A parsed template: as text it would be refused for its "%".
            part = f"{quote(self.columns.name)}:" if self.columns.mapper.single else ""  # of a table with other classes
            pattern: Any = Pattern.parse(f"{self._numbers}{part}{name}", owner=self.owner, kind="prefix")
            setattr(self, name, self.cache.cached(pattern, **several)(self._function(name, load, self.typed, result)))

    async def _load_item(self, db: AsyncSession, asked: dict[str, Any]) -> Any:
        rows = await rows_of(db, self.sql.one(asked))
        if not rows and not self.columns.exact_in(dialect_of(db, self.columns.model), self.item_fields):
            no_store("a row whose values only this database takes for equal would not invalidate it")
        row = only(rows, self.columns.name, asked)
        if self._key_of(row, asked) != self.item.key(**asked):
            no_store("the row's own key is another: only under that one is it invalidated")
        return row

    async def _load_page(self, db: AsyncSession, asked: dict[str, Any]) -> Any:
        paging = {name: asked.pop(name) for name in _PAGING}
        return await rows_of(db, self.sql.page(asked, **paging))

    async def _load_count(self, db: AsyncSession, asked: dict[str, Any]) -> int:
        return int((await db.scalars(self.sql.count(asked))).one())

    async def _load_exists(self, db: AsyncSession, asked: dict[str, Any]) -> bool:
        return (await db.scalars(self.sql.exists(asked))).first() is not None

    # --- many at once

    async def many(
        self, db: AsyncSession, redis: Any, name: str, values: Sequence[Any], asked: Mapping[str, Any]
    ) -> list[Response | None]:
        """Return one answer for each of `values` in the column `name`, None where there is no row."""
        keys = [self.item.key(**asked, **{name: value}) for value in values]
        calls = {key: {**asked, name: value} for key, value in zip(keys, values, strict=True)}
        wanted = [call[name] for call in calls.values()]

        async def load(positions: Sequence[int], session: AsyncSession | None = None) -> list[Any]:
            missing = [wanted[at] for at in positions]
            parts = self.sql.several(asked, name, missing)
            rows = [row for part in parts for row in await rows_of(session or db, part)]
            by_key = self._by_key(rows, name, asked)
            answers = [by_key.get(self.item.key(**asked, **{name: value})) for value in missing]
            return [None if row is None else self.convert(row) for row in answers]

        arguments = [self._item.plan.bind(None, (), {**call, "db": db, "redis": redis}) for call in calls.values()]
        found = dict(zip(calls, await get_many(self._item, arguments, load), strict=True))
        await self._find_alike(db, name, {key: calls[key] for key, answer in found.items() if answer is None}, found)
        return [found[key] for key in keys]

    async def _find_alike(
        self, db: AsyncSession, name: str, missing: Mapping[str, dict[str, Any]], found: dict[str, Any]
    ) -> None:
        """Select missing rows again one by one, as `get` does, if the database may take different values for equal."""
        if not missing or self.columns.exact_in(dialect_of(db, self.columns.model), {name}):
            return
        first = next(iter(missing.values()))
        asked = {other: value for other, value in first.items() if other != name}
        parts = self.sql.several(asked, name, [call[name] for call in missing.values()])
        if any([await rows_of(db, part) for part in parts]):
            for key, call in missing.items():
                rows = await rows_of(db, self.sql.one(call))
                found[key] = self.convert(only(rows, self.columns.name, call)) if rows else None

    def _by_key(self, rows: Iterable[Any], name: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        by_key: dict[str, Any] = {}
        for row in rows:
            key = self._key_of(row, {**asked, name: getattr(row, name)})
            if key in by_key:
                raise MultipleResultsFound("Multiple rows were found when exactly one was required")
            by_key[key] = row
        return by_key

    def _key_of(self, row: Any, asked: Mapping[str, Any]) -> str:
        return self.item.key(**{**asked, **self.columns.values(row, self.item_fields)})

    # --- writes

    def _bind_writes(self, prefixes: Sequence[str]) -> None:
        exact = {name for name in self.typed if self.columns.fields[name].exactness == "everywhere"}
        own = [
            as_prefix(self._pattern, self.typed),
            as_prefix(self._list_pattern, exact - set(_PAGING)),
            f"{self._numbers}*",
        ]
        texts = [] if self.follows else own  # followed writes: their statements show which entries to delete
        templates = [Pattern.parse(text, owner=self.owner, kind="prefix") for text in prefixes if text]
        always, by_row = self._narrowed([*texts, *(as_prefix(template, self.typed) for template in templates)])
        self._used = tuple(sorted({field for template in by_row for field in template.fields}))
        write = self._function("write", self._load_exists, {name: self.typed[name] for name in self._used}, None)

        def templates_of(found: Sequence[Pattern]) -> PrefixTemplates:
            texts = [template.text for template in found]
            plan = CallPlan.of(
                write, pattern=None, prefixes=texts, decorator="invalidates", seal=self.cache.runtime.seal
            )
            self.cache.runtime.owned |= plan.templates.heads
            return plan.templates

        self._by_row = templates_of(by_row)
        self._always = templates_of(always).before([{}]).prefixes
        self._counters = self.cache.runtime.counters(f"{self.owner}.write")
        wide = [text for each, text in zip(templates, filter(None, prefixes), strict=True) if self._covers(each)]
        reached, model = [*always, *by_row, *templates], self.columns.model
        self._registered = self.cache.runtime.registry.add(
            Registered(
                self._counters.function,
                model.__module__,
                "FastRDB",
                self._counters,
                {"prefix": prefixes},
                prefixes=reached,
                wide=wide,
            )
        )

    def _narrowed(self, texts: Sequence[str]) -> tuple[list[Pattern], list[Pattern]]:
        """Return the prefixes without placeholders, then those of each row; leave out what another prefix covers."""
        found = [Pattern.parse(text, owner=self.owner, kind="prefix") for text in dict.fromkeys(texts)]
        heads = {each: each.tail.rstrip("*") for each in found if not each.fields}
        wide = {each: head for each, head in heads.items() if not {*head} & {*"*?"}}

        def needed(template: Pattern) -> bool:
            # A key that would begin with "fastrdb:" is written otherwise, and lies under no shorter literal.
            return ("fastrdb:".startswith(template.head) and template.head != "") or not any(
                each is not template and template.head.startswith(head) and (head != heads.get(template))
                for each, head in wide.items()
            )

        kept = [each for each in found if needed(each)]
        return [each for each in kept if not each.fields], [each for each in kept if each.fields]

    async def invalidate(self, db: AsyncSession, redis: Any, rows: Iterable[Any], done: set[Hashable]) -> None:
        """Invalidate at the commit the entries that show these rows in their present state.

        Args:
            db: the session whose transaction writes the rows.
            redis: the client; None: nothing is invalidated.
            rows: rows that will be replaced, or that are new.
            done: the prefixes that this transaction has invalidated already. New ones are added.
        """
        if redis is not None:
            await self.invalidate_values(db, redis, [self.columns.values(row, self._used) for row in rows], done)

    async def invalidate_values(
        self, db: AsyncSession, redis: Any, several: Iterable[Mapping[str, Any]], done: set[Hashable]
    ) -> None:
        """Do so for rows of which these values are known: without some, all that may show the row."""
        if redis is None:
            return
        if not self._registered.written:
            self.cache.runtime.registry.first_write(self._registered)
        found = ({name: each[name] for name in self._used if name in each} for each in several)
        known = {fingerprint(each.items()): each for each in found}
        new = [values for one, values in known.items() if one not in done]
        if not new:
            return
        prefixes = [*(() if done else self._always), *self._by_row.before(new).prefixes]
        done.update(known)
        if prefixes:
            self._counters.count("invalidation", ", ".join(prefix.head for prefix in prefixes))
        await enlist(self.cache.runtime, redis, db.sync_session, prefixes, writes=True, counters=self._counters)

    async def store(self, db: AsyncSession, redis: Any, answers: Iterable[tuple[Any, Response]]) -> None:
        """Store at the commit the answers of these rows, which `get` would then return.

        Nothing is stored if several rows may have one key, or if an answer shows more than its own, locked row.
        Nothing is stored with `auto` either: only a load shows which rows an answer depends on.
        """
        if redis is None or not self._writes_through or self.follows:  # mechanism: followed-unput
            return
        keys, puts, item = [], [], self._item
        own_tables = schema_map(db.sync_session) is not None
        for row, answer in answers:
            values = self.columns.values(row, self.item_fields)
            if not any(value is None for value in values.values()):
                key = item.plan.locate(None, (), {"db": db, "redis": redis, **values})[2]
                if own_tables:
                    key = with_variant(key, db.sync_session)
                raw, reason = item.encoded(answer)
                if raw is None or reason is not None:
                    keys.append(key)
                else:
                    puts.append(Put(key, raw, item.ttl_ms(answer)))
        await enlist(self.cache.runtime, redis, db.sync_session, keys=keys, puts=puts)

    # --- parts

    def _covers(self, prefix: Pattern) -> bool:
        """Return True if the prefix reaches every key of a row: it has no placeholder before these begin."""
        return not prefix.fields and self._pattern.head.startswith(prefix.tail.rstrip("*"))

    def _is_own(self, schema: Any) -> bool:
        """Return True if an answer shows nothing but the row's own columns."""
        if self.sql.options or not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            return False
        return all(
            self._is_column(name) if field.validation_alias is None else self._is_column(field.validation_alias, name)
            for name, field in schema.model_fields.items()
        )

    def _is_column(self, *names: Any) -> bool:
        """Return True if the first of these attributes that the model has is a column."""
        found = [name for name in names if not isinstance(name, str) or hasattr(self.columns.model, name)]
        return bool(found) and isinstance(found[0], str) and found[0] in self.columns.fields

    def _template(self, kind: str, text: str, besides: Collection[str] = ()) -> Pattern:
        """Return a pattern whose placeholders are columns. Raises PatternError."""
        template = Pattern.parse(text, owner=self.owner, kind="pattern")
        for field in template.fields:
            if field not in self.typed and field not in besides:
                more = f", nor one of {', '.join(besides)}" if besides else ""
                raise PatternError(
                    f"{self.owner}: {kind} {text!r}: placeholder '{{{field}}}' is not a column of "
                    f"{self.columns.name}{more}; it has: {', '.join(self.typed)}"
                )
        return template

    def _function(
        self, name: str, run: Callable[[AsyncSession, dict[str, Any]], Any], typed: Mapping[str, Any], result: Any
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Return an async function that calls `run`, with these optional keyword parameters."""

        async def bound(*, db: AsyncSession, redis: Any = None, **asked: Any) -> Any:
            return await run(db, asked)

        kinds = {"db": AsyncSession, "redis": Any, **typed}
        keyword = inspect.Parameter.KEYWORD_ONLY
        defaults = {"redis": None, **(_PAGING if name == "get_multi" else {})}
        required = {"db", *self.item_fields} if name == "get" else {"db"}
        bound.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    parameter,
                    keyword,
                    default=inspect.Parameter.empty if parameter in required else defaults.get(parameter, _Unset.UNSET),
                    annotation=kind,
                )
                for parameter, kind in kinds.items()
            ],
            return_annotation=result,
        )
        bound.__annotations__ = {**kinds, "return": result}
        bound.__module__ = self.columns.model.__module__
        bound.__name__ = name
        bound.__qualname__ = f"{self.owner}.{name}"
        return bound


def as_prefix(template: Pattern, fillable: Collection[str]) -> str:
    """Return a pattern as a prefix, which ends in `*` before the first placeholder that is not `fillable`."""
    made = ""
    for part in template.parts:
        made += _literal(part.literal)
        if part.field not in fillable:
            return f"{made}*"
        made += f"{{{part.field}}}"
    return made + _literal(template.tail)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
