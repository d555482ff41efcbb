"""The decorated functions behind a `FastRDB`: what of a model is cached under which key, and what a write invalidates.

They are made for each model, with its columns as typed keyword parameters, so that a key says what it is made of and
no filter that is no column gets into one. All that crud knows of caching is here; how it is done, the decorators know.
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
from fastrdb.invalidation import Invalidation
from fastrdb.keys import CallPlan, Template, mark
from fastrdb.loading import CachedFunction, get_many, no_store, nothing
from fastrdb.options import Seconds
from fastrdb.values import Codec

from .statements import Statements, dialect_of, only, rows_of

Response = TypeVar("Response")
_PAGING: dict[str, Any] = {"limit": 10, "page": 1, "order_by": None, "ascending": True}  # the defaults are in no key
_TAKEN = ("db", "redis")


class Settings(TypedDict, total=False):
    """The decorators' options, for all reads of a `FastRDB`; `negative_exp` and `cache_if` are for single rows."""

    jitter: float
    negative_exp: Seconds | None
    wait: Seconds
    cache_if: Callable[[Any], bool] | None
    stale: Seconds
    fail_safe: Seconds
    early: float
    session_factory: Callable[[], Any]
    near: bool | None


class _Unset(enum.Enum):
    """The default of a filter that is not given; None is a filter, too."""

    UNSET = "UNSET"


class Bindings(Generic[Response]):
    """The cached reads of one model, and the function that a write calls."""

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
        self.convert = Codec(Any, schema=schema, owner=self.owner).convert
        self._pattern = self._template("pattern", pattern)
        self._list_pattern = self._template("list_pattern", list_pattern, _PAGING)
        self.item_fields = self._pattern.fields
        self.list_fields = tuple(field for field in self._list_pattern.fields if field not in _PAGING)
        self._writes_through = self.columns.unique(self.item_fields) and self._is_own(schema)
        sql.show({*getattr(schema, "model_fields", ()), *self.item_fields})
        self._bind_reads(schema, {"exp": exp, **settings})
        self._bind_writes(prefixes)

    # --- reads

    def _bind_reads(self, schema: Any, options: dict[str, Any]) -> None:
        several = {name: value for name, value in options.items() if name not in {"negative_exp", "cache_if"}}
        self._what = {name: self._free(name) for name in ("count", "exists")}
        self.item = self.cache.cached(self._pattern.text, schema=schema, **options)(
            self._function("get", self._load_item, self.typed, Any)
        )
        paging = {"limit": int, "page": int, "order_by": str | None, "ascending": bool}
        parameters = {**{name: kind for name, kind in self.typed.items() if name not in _PAGING}, **paging}
        self.page = self.cache.cached_list(self._list_pattern.text, schema=schema, **several)(
            self._function("get_multi", self._load_page, parameters, list[Any])
        )
        for name, load, result in (("count", self._load_count, int), ("exists", self._load_exists, bool)):
            parameters = {**self.typed, self._what[name]: tuple[str, str]}
            bound = self.cache.cached(self._counted(name), **several)(self._function(name, load, parameters, result))
            setattr(self, name, bound)

    def what(self) -> dict[str, dict[str, Any]]:
        """What stands in the keys of counts: a value that no column has. By name of the function."""
        table = getattr(self.columns.mapper.local_table, "fullname", self.columns.name)
        return {name: {parameter: (name, str(table))} for name, parameter in self._what.items()}

    async def _load_item(self, db: AsyncSession, asked: dict[str, Any]) -> Any:
        rows = await rows_of(db, self.sql.one(asked))
        if not rows and not self.columns.exact_in(dialect_of(db, self.columns.model), self.item_fields):
            no_store("a row whose values only this database takes for equal would not invalidate it")
        row = only(rows)
        if self._key_of(row, asked) != self.item.key(**asked):
            no_store("the row's own key is another: only under that one is it invalidated")
        return row

    async def _load_page(self, db: AsyncSession, asked: dict[str, Any]) -> Any:
        paging = {name: asked.pop(name) for name in _PAGING}
        return await rows_of(db, self.sql.page(asked, **paging))

    async def _load_count(self, db: AsyncSession, asked: dict[str, Any]) -> int:
        asked.pop(self._what["count"])
        return int((await db.scalars(self.sql.count(asked))).one())

    async def _load_exists(self, db: AsyncSession, asked: dict[str, Any]) -> bool:
        asked.pop(self._what["exists"])
        return (await db.scalars(self.sql.exists(asked))).first() is not None

    # --- many at once

    async def many(
        self, db: AsyncSession, redis: Any, name: str, values: Sequence[Any], asked: Mapping[str, Any]
    ) -> list[Response | None]:
        """One answer for each of `values` in the column `name`, None where there is no row."""
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

        query: CachedFunction = getattr(self.item, "query")  # noqa: B009  # not for everyone: not in the Protocol
        arguments = [query.plan.bind(None, (), {**call, "db": db, "redis": redis}) for call in calls.values()]
        found = dict(zip(calls, await get_many(query, arguments, load), strict=True))
        await self._find_alike(db, name, {key: calls[key] for key, answer in found.items() if answer is None}, found)
        return [found[key] for key in keys]

    async def _find_alike(
        self, db: AsyncSession, name: str, missing: Mapping[str, dict[str, Any]], found: dict[str, Any]
    ) -> None:
        """Where the database may take other values for equal, ask it again: `get` would find these rows, too."""
        if not missing or self.columns.exact_in(dialect_of(db, self.columns.model), {name}):
            return
        first = next(iter(missing.values()))
        asked = {other: value for other, value in first.items() if other != name}
        parts = self.sql.several(asked, name, [call[name] for call in missing.values()])
        if any([await rows_of(db, part) for part in parts]):
            for key, call in missing.items():
                rows = await rows_of(db, self.sql.one(call))
                found[key] = self.convert(only(rows)) if rows else None

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
        texts = [cut(self._pattern, self.typed), cut(self._list_pattern, exact - set(_PAGING))]
        texts += [self._counted(name) for name in self._what]
        templates = [Template.parse(text, owner=self.owner, kind="prefix") for text in prefixes if text]
        texts += [cut(template, self.typed) for template in templates]
        used = {field for template in templates for field in template.fields} | {*self.item_fields, *self.list_fields}
        self._used = tuple(sorted(used & self.typed.keys()))
        parameters = {**{name: self.typed[name] for name in self._used}, **dict.fromkeys(self._what.values(), Any)}
        write = self._function("write", nothing, parameters, None)
        plan = CallPlan.of(write, pattern=None, prefixes=texts, decorator="invalidates", seal=self.cache.seal)
        self._writing = Invalidation(self.cache, plan)

    async def touch(self, db: AsyncSession, redis: Any, rows: Iterable[Any], done: set[Hashable]) -> None:
        """These rows, as they are now, are to be replaced, or are new: what shows them goes at the commit.

        `done`: what this transaction has said already; this is added to it.
        """
        call = {name: value for part in self.what().values() for name, value in part.items()}
        call |= {"db": db, "redis": redis}
        values = {mark(each.values()): each for each in (self.columns.values(row, self._used) for row in rows)}
        if new := [
            self._writing.plan.bind(None, (), call | each) for known, each in values.items() if known not in done
        ]:
            done.update(values)
            await self._writing.run(nothing, *new)

    async def put(self, db: AsyncSession, redis: Any, row: Any, answer: Response) -> None:
        """Have the row's answer stored at the commit, if it is what `get` would give by then.

        Not if the key may have several rows, nor if the answer shows more than the row itself, which is locked.
        """
        values = self.columns.values(row, self.item_fields)
        if self._writes_through and None not in values.values():
            await self.item.put(answer, db=db, redis=redis, **values)

    # --- parts

    def _is_own(self, schema: Any) -> bool:
        """True if an answer shows nothing but the row's own columns."""
        if self.sql.options or not (isinstance(schema, type) and issubclass(schema, BaseModel)):
            return False
        return all(
            self._is_column(name) if field.validation_alias is None else self._is_column(field.validation_alias, name)
            for name, field in schema.model_fields.items()
        )

    def _is_column(self, *names: Any) -> bool:
        """True if the first of these attributes that the model has is a column."""
        found = [name for name in names if not isinstance(name, str) or hasattr(self.columns.model, name)]
        return bool(found) and isinstance(found[0], str) and found[0] in self.columns.fields

    def _template(self, kind: str, text: str, besides: Collection[str] = ()) -> Template:
        """A pattern whose placeholders are columns. PatternError."""
        template = Template.parse(text, owner=self.owner, kind="pattern")
        for field in template.fields:
            if field not in self.typed and field not in besides:
                more = f", nor one of {', '.join(besides)}" if besides else ""
                raise PatternError(
                    f"{self.owner}: {kind} {text!r}: placeholder '{{{field}}}' is not a column of "
                    f"{self.columns.name}{more}; it has: {', '.join(self.typed)}"
                )
        return template

    def _counted(self, name: str) -> str:
        return f"{_literal(self._list_pattern.head)}{{{self._what[name]}}}"

    def _free(self, name: str) -> str:
        while name in self.columns.fields:
            name += "_"
        return name

    def _function(
        self, name: str, run: Callable[[AsyncSession, dict[str, Any]], Any], typed: Mapping[str, Any], result: Any
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        """An async function over `run` with these keyword parameters, all of which may be left out."""

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
        bound.__name__ = name
        bound.__qualname__ = f"{self.owner}.{name}"
        return bound


def cut(template: Template, fillable: Collection[str]) -> str:
    """A pattern as a prefix: up to the first placeholder that is not `fillable`, from where on anything goes."""
    made = ""
    for part in template.parts:
        made += _literal(part.literal)
        if part.field not in fillable:
            return f"{made}*"
        made += f"{{{part.field}}}"
    return made + _literal(template.tail)


def _literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
