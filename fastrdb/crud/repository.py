"""`FastRDB`: create, read, update and delete one mapped class, with its reads cached and its writes followed.

Each method checks what it is given, before any I/O, and then is a few lines of SQL under the decorated functions in
`bindings`. There is no other condition about caching here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, Unpack

from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.sql.base import ExecutableOption

from fastrdb.cache import Cache, default_cache
from fastrdb.options import Seconds
from fastrdb.orm import Columns

from .bindings import Bindings, Settings
from .input import given
from .pagination import PaginatedResponse, check_page, paginate
from .statements import Statements
from .units import session_of
from .writes import Write, write

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

    Client: TypeAlias = Redis | RedisCluster | None
    Database: TypeAlias = AsyncSession | async_scoped_session[AsyncSession]

Model = TypeVar("Model")
Create = TypeVar("Create")
Update = TypeVar("Update")
Response = TypeVar("Response")
Item = TypeVar("Item")

OWN: Any = object()  # `redis` left out: the cache's own client
_REQUIRED: Any = object()  # an argument after `redis`, which may be left out


class FastRDB(Generic[Model, Create, Update, Response]):
    """The rows of one mapped class, answered as `response_schema`.

    A method commits, unless the caller has opened the transaction (`db.begin()`, a savepoint): then it flushes, and the
    cache follows the caller's commit. After an error in a transaction that the method began, that is rolled back.
    `redis=None` goes past the cache; left out, it is the client of the `Cache`. Filters are columns by name; None
    finds NULL. Database errors pass through unchanged.

    Raises, from every method and before any I/O: UnknownFieldError for a filter that is not a column; ValueError for
    a value that the column cannot have.
    """

    def __init__(
        self,
        model: type[Model],
        response_schema: type[Response],
        pattern: str,
        list_pattern: str,
        exp: Seconds = 3600,
        invalidate_pattern_prefix: str | Sequence[str] = "",
        *,
        cache: Cache | None = None,
        options: Sequence[ExecutableOption] = (),
        **settings: Unpack[Settings],
    ) -> None:
        """Bind a model to its keys.

        Args:
            model: any mapped class.
            response_schema: what its rows are answered as; read from the row's attributes.
            pattern: the key of one row, such as `"user:email:{email}"`; placeholders are columns.
            list_pattern: the keys of lists; placeholders are columns, page, limit, order_by and ascending.
            exp: how long entries live, in seconds.
            invalidate_pattern_prefix: what each write invalidates besides the model's own keys: one prefix or several.
                Placeholders take the values of the row; one that is not a column cuts the prefix there.
            cache: the `Cache` to use, the default one if left out.
            options: loader options of SQLAlchemy, such as `selectinload(User.posts)`, for every read.
            settings: the decorators' options.

        Raises:
            PatternError: a placeholder that is none of these.
            OptionError: not a mapped class, or an option that cannot be.
            SchemaError: answers that would not come back from JSON as they were.
        """
        self.model = model
        self.response_schema = response_schema
        self.pattern = pattern
        self.list_pattern = list_pattern
        self.cache = default_cache if cache is None else cache
        prefixes = invalidate_pattern_prefix
        self._columns = Columns(model)
        self._sql = Statements(self._columns, options)
        self._bound: Bindings[Response] = Bindings(
            self._sql,
            response_schema,
            self.cache,
            pattern=pattern,
            list_pattern=list_pattern,
            exp=exp,
            prefixes=[prefixes] if isinstance(prefixes, str) else prefixes,
            settings=settings,
        )

    # --- one row

    async def create(
        self, db: Database, redis: Client = OWN, obj_in: Create | Mapping[str, Any] = _REQUIRED, **kwargs: Any
    ) -> Response:
        """Insert a row with the values in `obj_in` and `kwargs`, and store it under `pattern`.

        Raises UnknownFieldError for a value that is no column's.
        """
        [answer] = await self.create_multi(db, redis, [_given("create", obj_in)], **kwargs)
        return answer

    async def get(self, db: Database, redis: Client = OWN, **filters: Any) -> Response:
        """The one row with these values. Raises MissingKeyFieldError, NoResultFound, MultipleResultsFound."""
        asked = self._key_filters(filters)
        return await self._bound.item(db=session_of(db), redis=self._client(redis), **asked)

    async def get_or_none(self, db: Database, redis: Client = OWN, **filters: Any) -> Response | None:
        """The one row with these values, or None. Raises MissingKeyFieldError, MultipleResultsFound."""
        try:
            return await self.get(db, redis, **filters)
        except NoResultFound:
            return None

    async def update(
        self, db: Database, redis: Client = OWN, obj_in: Update | Mapping[str, Any] = _REQUIRED, **filters: Any
    ) -> Response:
        """Change the one row with these values: the fields that are set in `obj_in`, and no others.

        Raises NoResultFound, MultipleResultsFound (and then nothing is changed), UnknownFieldError.
        """
        asked = self._columns.filters(filters, some=True)
        changes = given(self._columns, _given("update", obj_in), only_set=True)
        async with self._write(db, redis) as transaction:
            [answer] = await transaction.update([await transaction.one(asked)], changes)
        return answer

    async def delete(self, db: Database, redis: Client = OWN, **filters: Any) -> None:
        """Delete the one row with these values. Raises NoResultFound, MultipleResultsFound; then nothing is deleted."""
        asked = self._columns.filters(filters, some=True)
        async with self._write(db, redis) as transaction:
            await transaction.delete([await transaction.one(asked)])

    async def upsert(
        self, db: Database, redis: Client = OWN, obj_in: Create | Mapping[str, Any] = _REQUIRED, **kwargs: Any
    ) -> Response:
        """Change the row with the values that `obj_in` and `kwargs` have for `pattern`; insert it if there is none.

        Only fields that are set in `obj_in` or `kwargs` change. Raises MissingKeyFieldError, MultipleResultsFound.
        """
        obj_in = _given("upsert", obj_in)
        extra = given(self._columns, kwargs)
        new = {**given(self._columns, obj_in), **extra}
        changes = {**given(self._columns, obj_in, only_set=True), **extra}
        key = self._key_filters({name: new[name] for name in self._bound.item_fields if name in new})
        async with self._write(db, redis) as transaction:
            [answer] = await transaction.upsert(key, new, changes)
        return answer

    # --- many rows

    async def create_multi(
        self,
        db: Database,
        redis: Client = OWN,
        instances: Sequence[Create | Mapping[str, Any]] = _REQUIRED,
        **kwargs: Any,
    ) -> list[Response]:
        """Insert a row for each of `instances`, `kwargs` in each; all or none. Answers in the same order."""
        extra = given(self._columns, kwargs)
        several = [{**given(self._columns, one), **extra} for one in _given("create_multi", instances, "instances")]
        if not several:
            return []
        async with self._write(db, redis) as transaction:
            return await transaction.insert(several)

    async def get_many(self, db: Database, redis: Client = OWN, **filters: Any) -> list[Response | None]:
        """One answer for each value of the filter that is a list, in its order; None where there is no such row.

        One round trip to Redis, and one SELECT for what it does not have. Raises MissingKeyFieldError,
        MultipleResultsFound; ValueError unless one filter is a list.
        """
        name, values = self._columns.listed(filters)
        others = self._columns.filters({other: value for other, value in filters.items() if other != name})
        self._columns.filters({**others, name: None}, required=self._bound.item_fields, pattern=self.pattern)
        if not values:
            return []
        return await self._bound.many(session_of(db), self._client(redis), name, values, others)

    async def get_multi(
        self,
        db: Database,
        redis: Client = OWN,
        limit: int = 10,
        page: int = 1,
        order_by: str | None = None,
        ascending: bool = True,
        **filters: Any,
    ) -> list[Response]:
        """One page of the rows with these values, ordered by a column, then by primary key.

        Raises UnknownFieldError for `order_by`; ValueError for `limit` or `page` < 1; MissingKeyFieldError for a
        column of `list_pattern`.
        """
        asked = self._list_filters(filters, limit, page, order_by, ascending)
        return await self._bound.page(
            db=session_of(db),
            redis=self._client(redis),
            limit=limit,
            page=page,
            order_by=order_by,
            ascending=ascending,
            **asked,
        )

    async def get_page(
        self,
        db: Database,
        redis: Client = OWN,
        limit: int = 10,
        page: int = 1,
        order_by: str | None = None,
        ascending: bool = True,
        **filters: Any,
    ) -> PaginatedResponse[Response]:
        """What `get_multi` gives, with the true total around it. Past the end there is no data, and that total."""
        data = await self.get_multi(db, redis, limit, page, order_by, ascending, **filters)
        total = await self.count(db, redis, **filters)
        return PaginatedResponse[self.response_schema](  # type: ignore[name-defined]
            data=data, total=total, page=page, limit=limit
        )

    async def update_multi(
        self, db: Database, redis: Client = OWN, obj_in: Update | Mapping[str, Any] = _REQUIRED, **filters: Any
    ) -> list[Response]:
        """Change all rows with these values (at least one filter), in one transaction; in order of primary key."""
        asked = self._columns.filters(filters, some=True)
        changes = given(self._columns, _given("update_multi", obj_in), only_set=True)
        async with self._write(db, redis) as transaction:
            return await transaction.update(await transaction.all(asked), changes)

    async def delete_multi(self, db: Database, redis: Client = OWN, **filters: Any) -> int:
        """Delete all rows with these values (at least one filter), in one transaction; gives their number."""
        asked = self._columns.filters(filters, some=True)
        async with self._write(db, redis) as transaction:
            rows = await transaction.all(asked)
            await transaction.delete(rows)
        return len(rows)

    # --- numbers

    async def count(self, db: Database, redis: Client = OWN, **filters: Any) -> int:
        """How many rows have these values."""
        asked = {**self._columns.filters(filters), **self._bound.what()["count"]}
        return await self._bound.count(db=session_of(db), redis=self._client(redis), **asked)

    async def exists(self, db: Database, redis: Client = OWN, **filters: Any) -> bool:
        """Whether a row has these values."""
        asked = {**self._columns.filters(filters), **self._bound.what()["exists"]}
        return await self._bound.exists(db=session_of(db), redis=self._client(redis), **asked)

    @staticmethod
    def paginate(data: Sequence[Item], limit: int, page: int, total: int | None = None) -> PaginatedResponse[Item]:
        """One page as a response: see `pagination.paginate`. Raises PageOutOfRange, ValueError."""
        return paginate(data, limit, page, total)

    # --- parts

    def _write(self, db: Database, redis: Client) -> AbstractAsyncContextManager[Write[Response]]:
        return write(session_of(db), self._client(redis), self._sql, self._bound)

    def _client(self, redis: Client) -> Any:
        return self.cache.redis if redis is OWN else redis

    def _key_filters(self, filters: Mapping[str, Any]) -> dict[str, Any]:
        return self._columns.filters(filters, required=self._bound.item_fields, pattern=self.pattern)

    def _list_filters(
        self, filters: Mapping[str, Any], limit: int, page: int, order_by: str | None, ascending: bool
    ) -> dict[str, Any]:
        check_page(limit, page)
        if not isinstance(ascending, bool):
            raise ValueError(f"ascending={ascending!r} must be True or False")  # noqa: TRY004  # as for limit and page
        if order_by is not None:
            self._columns.field(order_by)
        return self._columns.filters(filters, required=self._bound.list_fields, pattern=self.list_pattern)


def _given(method: str, value: Any, name: str = "obj_in") -> Any:
    if value is _REQUIRED:
        raise TypeError(f"{method}() is missing its argument '{name}'")
    return value
