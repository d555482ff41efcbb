"""The SQL of `FastRDB` for one model. `bindings` and `writes` execute the statements."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    Update,
    false,
    func,
    literal,
    literal_column,
    select,
    tuple_,
    update,
)
from sqlalchemy.exc import MultipleResultsFound, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, RelationshipProperty, lazyload, undefer
from sqlalchemy.sql.base import ExecutableOption

from fastrdb.errors import OptionError
from fastrdb.orm import Columns

T = TypeVar("T")
_PLAIN = (str, int, float, bool, type(None))
_PARAMETERS = 10_000  # values in one IN: PostgreSQL and SQLite take 32,766 parameters
_EAGER = (False, "joined", "selectin", "subquery", "immediate")
_DEFERRED_TRIGGERS = "EXISTS (SELECT 1 FROM pg_catalog.pg_trigger WHERE tgdeferrable AND NOT tgisinternal)"
"""PostgreSQL: a deferred trigger may change any row during the COMMIT. Other databases have no deferred triggers."""


class Statements:
    """The statements of one model. `options` are SQLAlchemy's loader options, for every read."""

    def __init__(self, columns: Columns, options: Sequence[ExecutableOption] = ()) -> None:
        self.columns = columns
        self.options = tuple(options)
        self._loaded = self.options
        self.model: Any = columns.model
        self.key = [columns.attribute(name) for name in columns.primary_key]

    def show(self, names: Collection[str]) -> None:
        """Load these columns in every read from now on, even if the model defers them."""
        wanted = [name for name in self.columns.deferred() if name in names]
        self._loaded = (*(undefer(self.columns.attribute(name)) for name in wanted), *self.options)

    def check(self, schema: Any) -> None:
        """Raise OptionError for a field of the answers that no row has, or that a row would load lazily.

        A schema with a validator of its own for the whole row is not checked.
        """
        decorators: Any = getattr(schema, "__pydantic_decorators__", None)
        if decorators is None or any(each.info.mode != "after" for each in decorators.model_validators.values()):
            return
        model, name = self.model, self.model.__name__
        for field, info in schema.model_fields.items():
            alias = info.validation_alias or field
            if not isinstance(alias, str):
                continue
            source = next((each for each in (alias, field) if hasattr(model, each)), None)
            if source is None and info.is_required() and not hasattr(model, "__getattr__"):
                known = ", ".join(self.columns.fields)
                raise OptionError(f"{schema.__name__}.{field}: {name} has no attribute '{alias}'; its columns: {known}")
            prop = getattr(getattr(model, source or "", None), "prop", None)
            if isinstance(prop, RelationshipProperty) and prop.lazy not in _EAGER and not self.options:
                raise OptionError(
                    f"{schema.__name__}.{field} is a relationship of {name}: options=[selectinload({name}.{source})]"
                )

    # --- reads

    def one(self, asked: Mapping[str, Any]) -> Select[Any]:
        """Select at most two rows: enough to check that there is exactly one."""
        return select(self.model).where(*self.where(asked)).options(*self._loaded).limit(2)

    def page(
        self, asked: Mapping[str, Any], *, limit: int, page: int, order_by: str | None, ascending: bool
    ) -> Select[Any]:
        """Select one page, in an order in which no two rows are equal."""
        order = self.order(order_by, ascending=ascending)
        rows = select(self.model).where(*self.where(asked)).options(*self._loaded)
        return rows.order_by(*order).limit(limit).offset((page - 1) * limit)

    def several(self, asked: Mapping[str, Any], name: str, values: Sequence[Any]) -> Iterator[Select[Any]]:
        """Select all rows that have one of `values` in the column `name`."""
        attribute = self.columns.attribute(name)
        for part in chunks([value for value in values if value is not None]):
            yield select(self.model).where(*self.where(asked), attribute.in_(part)).options(*self._loaded)
        if any(value is None for value in values):
            yield select(self.model).where(*self.where(asked), attribute.is_(None)).options(*self._loaded)

    def count(self, asked: Mapping[str, Any]) -> Select[Any]:
        """Count the rows."""
        return select(func.count()).select_from(self.model).where(*self.where(asked))

    def exists(self, asked: Mapping[str, Any]) -> Select[Any]:
        """Select 1 if there is such a row."""
        return select(literal(1)).select_from(self.model).where(*self.where(asked)).limit(1)

    # --- writes

    def write_lock(self) -> Update | None:
        """Return a statement that changes nothing and takes SQLite's one write lock; None for what is not a table.

        SQLite has no FOR UPDATE. Without the lock, a transaction that reads first and writes later may fail, or
        overwrite what another one wrote in between.
        """
        table = self.columns.mapper.local_table
        if not isinstance(table, Table):
            return None
        column = next(iter(table.primary_key))
        return update(table).values({column: column}).where(false())

    def locked(
        self, asked: Mapping[str, Any], changed: Collection[str] | None, *, limit: int | None = None
    ) -> Select[Any]:
        """Select and lock the rows, in one order for all transactions, so that two of these never deadlock.

        `changed` are the columns that change, None for a DELETE: PostgreSQL has a lock that rows with foreign keys
        pass, for a change of no key.
        """
        rows = select(self.model).where(*self.where(asked)).order_by(*self.key).limit(limit)
        return self._for_update(rows, key_share=changed is not None and not self.columns.in_key(changed))

    def again(self, rows: Sequence[object], dialect: str) -> Iterator[Select[Any]]:
        """Select the rows as the database has them now, each with True if the COMMIT may still change it.

        Locked again: in REPEATABLE READ a plain SELECT would give what another transaction has overwritten.
        """
        pending: ColumnElement[Any] = literal_column(_DEFERRED_TRIGGERS if dialect == "postgresql" else "0")
        for part in self._identities(rows):
            yield self._for_update(select(self.model).add_columns(pending).where(part), key_share=True)

    def related(self, rows: Sequence[object]) -> Iterator[Select[Any]]:
        """Select the rows with what the options and the model's eager relationships load, which `again` leaves out."""
        if self.options or any(found.lazy in _EAGER for found in self.columns.mapper.relationships):
            for part in self._identities(rows):
                yield select(self.model).where(part).options(*self._loaded)

    # --- parts

    def where(self, asked: Mapping[str, Any]) -> list[ColumnElement[bool]]:
        """Return one condition for each filter; None is NULL."""
        return [
            attribute.is_(None) if value is None else attribute == value
            for attribute, value in ((self.columns.attribute(name), value) for name, value in asked.items())
        ]

    def order(self, order_by: str | None, *, ascending: bool) -> list[ColumnElement[Any]]:
        """Order by that column, then by primary key: pages neither overlap nor leave anything out."""
        keys: list[InstrumentedAttribute[Any]] = list(self.key)
        if order_by is not None:
            first = self.columns.attribute(order_by)
            keys = [first, *(key for key in keys if key.key != first.key)]
        return [key.asc() if ascending else key.desc() for key in keys]

    def _for_update(self, rows: Select[Any], *, key_share: bool) -> Select[Any]:
        # The row alone: `related` loads what the model always joins, after the change. The tables are named, because
        # PostgreSQL refuses to lock the outer side of a join, which `with_polymorphic` makes.
        options = [lazyload("*"), undefer("*")]
        return (
            rows.options(*options)
            .with_for_update(of=list(self.columns.mapper.tables), key_share=key_share)
            .execution_options(populate_existing=True)
        )

    def _identities(self, rows: Sequence[object]) -> Iterator[ColumnElement[bool]]:
        identify = self.columns.mapper.primary_key_from_instance
        for part in chunks([identify(row) for row in rows], len(self.key)):
            if len(self.key) == 1:
                yield self.key[0].in_([identity[0] for identity in part])
            else:
                yield tuple_(*self.key).in_([tuple(identity) for identity in part])


def chunks(values: Sequence[T], parameters: int = 1) -> Iterable[Sequence[T]]:
    """Return `values` in parts that one statement can take, each value being so many parameters."""
    size = _PARAMETERS // parameters
    return (values[start : start + size] for start in range(0, len(values), size))


def dialect_of(db: AsyncSession, model: Any) -> str:
    """Return the name of the database behind the session, for this model."""
    return db.sync_session.get_bind(model).dialect.name


async def rows_of(db: AsyncSession, statement: Select[Any]) -> list[Any]:
    """Return the rows with the database's present values, not those that the session loaded before.

    A session with changes that are not flushed keeps these.
    """
    if not (db.new or db.dirty or db.deleted):
        statement = statement.execution_options(populate_existing=True)
    return list((await db.scalars(statement)).unique().all())


def only(rows: Sequence[Any], model: str, asked: Mapping[str, Any]) -> Any:
    """Return the one row.

    Raises:
        NoResultFound: with the attributes `model`, a name, and `filters`, a dict.
        MultipleResultsFound: the same.
    """
    if len(rows) == 1:
        return rows[0]
    given = " and ".join(f"{name}={value!r}" for name, value in asked.items()) or "any values"
    text = f"several {model} with {given}" if rows else f"no {model} with {given}"
    error = MultipleResultsFound(text) if rows else NoResultFound(text)
    plain = {name: value if isinstance(value, _PLAIN) else str(value) for name, value in asked.items()}
    vars(error).update(model=model, filters=plain)  # of plain values, so that `negative_exp` may store the error
    raise error
