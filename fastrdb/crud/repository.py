"""`FastRDB`: create, read, update and delete the rows of one mapped class; reads are cached, writes invalidate.

Each method checks its arguments before any I/O. `bindings` has the cached functions, `writes` the transactions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, Unpack

from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.sql.base import ExecutableOption

from fastrdb.cache import Cache, default_cache
from fastrdb.errors import OptionError
from fastrdb.options import Seconds
from fastrdb.orm import Columns

from .bindings import Bindings, Settings
from .input import given
from .pagination import PaginatedResponse, check_page, paginate
from .statements import Statements
from .writes import RowWrite, write

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

    All methods take a session as `db` and a client as `redis`. `redis=None` goes past the cache; without the argument
    the client of the `Cache` is used. Filters are columns by name, with one value each; None finds NULL.

    A write commits, unless the caller has opened the transaction by `db.begin()` or a savepoint. Then the write only
    flushes, and the cache changes with the caller's commit. After an error, a transaction that the method began is
    rolled back. So is a cancelled write, unless its COMMIT has been sent: then the outcome is that of the database.

    Every method raises, before any I/O, UnknownFieldError for a filter that is not a column, and ValueError for a value
    that the column cannot have. Errors of the database pass through unchanged.

    Args:
        model: any mapped class.
        response_schema: the type of the answers, made from the attributes of a row.
        pattern: the key of one row, such as `"user:email:{email}"`; placeholders are columns.
        list_pattern: the keys of lists; placeholders are columns, page, limit, order_by and ascending.
        exp: the TTL of an entry, in seconds or as a timedelta.
        invalidate_pattern_prefix: one prefix or several that each write invalidates besides the model's own keys.
            Placeholders take the values of the row; the prefix ends before one that is not a column.
        cache: the `Cache` to use, by default that of the module-level decorators.
        options: loader options of SQLAlchemy, such as `selectinload(User.posts)`, for every read.
        settings: the decorators' options.

    Raises:
        PatternError: a placeholder that is none of these.
        OptionError: not a mapped class, or an option with an impossible value.
        SchemaError: answers would not come back from JSON unchanged.
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
        self.model = model
        self.response_schema = response_schema
        self.pattern = pattern
        self.list_pattern = list_pattern
        self.exp = exp
        self.invalidate_pattern_prefix = invalidate_pattern_prefix
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
        """Insert a row with the values in `obj_in` and `kwargs`; return it, and store it under `pattern`.

        Raises:
            UnknownFieldError: a value that the model cannot set.
            TypeError: `obj_in` is neither a pydantic model nor a mapping.
        """
        [answer] = await self.create_multi(db, redis, [_given("create", obj_in)], **kwargs)
        return answer

    async def get(self, db: Database, redis: Client = OWN, **filters: Any) -> Response:
        """Return the one row with these values.

        Raises:
            MissingKeyFieldError: a column of `pattern` is not among the filters.
            NoResultFound, MultipleResultsFound: there is no such row, or there are several.
        """
        asked = self._key_filters(filters)
        return await self._bound.item(db=_session_of(db), redis=self._client(redis), **asked)

    async def get_or_none(self, db: Database, redis: Client = OWN, **filters: Any) -> Response | None:
        """Return the one row with these values, or None. Raises MissingKeyFieldError, MultipleResultsFound."""
        try:
            return await self.get(db, redis, **filters)
        except NoResultFound:
            return None

    async def update(
        self, db: Database, redis: Client = OWN, obj_in: Update | Mapping[str, Any] = _REQUIRED, **filters: Any
    ) -> Response:
        """Change the fields that are set in `obj_in`, and no others, in the one row with these values; return the row.

        Raises:
            NoResultFound, MultipleResultsFound: there is no such row, or there are several; nothing is changed.
            UnknownFieldError: a value that the model cannot set.
            ValueError: no filter at all.
        """
        asked = self._columns.filters(filters, some=True)
        changes = given(self._columns, _given("update", obj_in), only_set=True)
        async with self._write(db, redis) as transaction:
            [answer] = await transaction.update([await transaction.one(asked, changes)], changes)
        return answer

    async def delete(self, db: Database, redis: Client = OWN, **filters: Any) -> None:
        """Delete the one row with these values.

        Raises:
            NoResultFound, MultipleResultsFound: there is no such row, or there are several; nothing is deleted.
            ValueError: no filter at all.
        """
        asked = self._columns.filters(filters, some=True)
        async with self._write(db, redis) as transaction:
            await transaction.delete([await transaction.one(asked)])

    async def upsert(
        self, db: Database, redis: Client = OWN, obj_in: Create | Mapping[str, Any] = _REQUIRED, **kwargs: Any
    ) -> Response:
        """Change the row with the values that `obj_in` and `kwargs` have for `pattern`, or insert it; return the row.

        Only fields that are set in `obj_in` or `kwargs` change. Raises what `create` raises, MissingKeyFieldError and
        MultipleResultsFound.
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
        """Insert a row for each of `instances`, with `kwargs` in each; return them in this order. All or none.

        Raises what `create` raises.
        """
        extra = given(self._columns, kwargs)
        several = [{**given(self._columns, one), **extra} for one in _given("create_multi", instances, "instances")]
        if not several:
            return []
        async with self._write(db, redis) as transaction:
            return await transaction.insert(several)

    async def get_many(self, db: Database, redis: Client = OWN, **filters: Any) -> list[Response | None]:
        """Return one answer for each value of the filter that is a list, in its order; None where there is no row.

        One round trip to Redis, and one SELECT for what is missing there.

        Raises:
            MissingKeyFieldError: a column of `pattern` is not among the filters.
            MultipleResultsFound: several rows have one of the values.
            ValueError: not exactly one filter is a list.
        """
        name, values = self._columns.listed(filters)
        others = self._columns.filters({other: value for other, value in filters.items() if other != name})
        self._columns.filters({**others, name: None}, required=self._bound.item_fields, pattern=self.pattern)
        if not values:
            return []
        return await self._bound.many(_session_of(db), self._client(redis), name, values, others)

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
        """Return one page of the rows with these values, ordered by a column, then by primary key.

        Raises:
            UnknownFieldError: `order_by` is no column.
            ValueError: `limit` or `page` is less than 1.
            MissingKeyFieldError: a column of `list_pattern` is not among the filters.
        """
        asked = self._list_filters(filters, limit, page, order_by, ascending)
        return await self._bound.page(
            db=_session_of(db),
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
        """Return what `get_multi` returns, with the true total. Raises what `get_multi` raises.

        A page past the end has no data.
        """
        data = await self.get_multi(db, redis, limit, page, order_by, ascending, **filters)
        total = await self.count(db, redis, **filters)
        return PaginatedResponse[self.response_schema](  # type: ignore[name-defined]
            data=data, total=total, page=page, limit=limit
        )

    async def update_multi(
        self, db: Database, redis: Client = OWN, obj_in: Update | Mapping[str, Any] = _REQUIRED, **filters: Any
    ) -> list[Response]:
        """Change all rows with these values, in one transaction; return them in order of primary key.

        Raises UnknownFieldError for a value that the model cannot set, ValueError without any filter.
        """
        asked = self._columns.filters(filters, some=True)
        changes = given(self._columns, _given("update_multi", obj_in), only_set=True)
        async with self._write(db, redis) as transaction:
            return await transaction.update(await transaction.all(asked, changes), changes)

    async def delete_multi(self, db: Database, redis: Client = OWN, **filters: Any) -> int:
        """Delete all rows with these values, in one transaction; return their number.

        Raises ValueError without any filter.
        """
        asked = self._columns.filters(filters, some=True)
        async with self._write(db, redis) as transaction:
            rows = await transaction.all(asked)
            await transaction.delete(rows)
        return len(rows)

    # --- numbers

    async def count(self, db: Database, redis: Client = OWN, **filters: Any) -> int:
        """Return the number of rows with these values."""
        asked = self._columns.filters(filters)
        return await self._bound.count(db=_session_of(db), redis=self._client(redis), **asked)

    async def exists(self, db: Database, redis: Client = OWN, **filters: Any) -> bool:
        """Return True if a row has these values."""
        asked = self._columns.filters(filters)
        return await self._bound.exists(db=_session_of(db), redis=self._client(redis), **asked)

    @staticmethod
    def paginate(data: Sequence[Item], limit: int, page: int, total: int | None = None) -> PaginatedResponse[Item]:
        """Return one page as a response, with the totals.

        Without `total`, more than `limit` items count as the whole list, of which the page is taken. At most `limit`
        items with a `page` after the first count as that page itself: `total` is then a lower bound, with a warning.
        Give the true one as `total`, or use `get_page`.

        Raises:
            PageOutOfRange: the list ends before that page.
            ValueError: an argument that is not a count.
        """
        return paginate(data, limit, page, total)

    # --- parts

    def _write(self, db: Database, redis: Client) -> AbstractAsyncContextManager[RowWrite[Response]]:
        return write(_session_of(db), self._client(redis), self._sql, self._bound)

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


def _session_of(db: Database) -> AsyncSession:
    found = db() if isinstance(db, async_scoped_session) else db
    if getattr(found, "sync_session", None) is None:
        raise OptionError(f"FastRDB: parameter 'db' must be an AsyncSession, not {type(db).__name__}")
    return found


def _given(method: str, value: Any, name: str = "obj_in") -> Any:
    if value is _REQUIRED:
        raise TypeError(f"{method}() is missing its argument '{name}'")
    return value
