"""A generic repository: `class Authors(Repo[Author, AuthorOut])` has typed, cached reads of one tenant's rows.

The reads are decorated once. Each subclass fills in the type variables, and has functions of its own: `Authors.get`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar, get_args

from sqlalchemy import Select, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm.interfaces import ORMOption

from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Owned
from fastrdb.demo.blog.schemas import Answer

Row = TypeVar("Row", bound=Owned)
Out = TypeVar("Out", bound=Answer)
PAGE = 20
"""The number of rows on a page."""


class Repo(Generic[Row, Out]):
    """One tenant's rows of a model, and what is answered of them. Each subclass has entries of its own.

    Args:
        db: the session of the request.
        tenant: a part of every key, by `{self.tenant}`.
    """

    model: ClassVar[type[Any]]
    schema: ClassVar[type[Any]]
    table: ClassVar[str]
    """A part of every key, as the tenant is."""
    options: ClassVar[Sequence[ORMOption]] = ()
    """What the answers show of other rows, such as `selectinload(Post.author)`."""

    def __init__(self, db: AsyncSession, tenant: int) -> None:
        self.db, self.tenant = db, tenant

    def __init_subclass__(cls) -> None:
        """Take the model and its answer from `Repo[...]`."""
        cls.model, cls.schema = get_args(cls.__orig_bases__[0])  # type: ignore[attr-defined]
        cls.table = cls.model.__tablename__

    @cache.cached("{self.tenant}:{self.table}:{key}", exp=600, negative_exp=30, shared=True)
    async def get(self, key: int) -> Out:
        """Return what is answered of a row. Raises NoResultFound; that there is none is cached for 30 seconds."""
        return self._answer(await self.row(key, *self.options))

    @cache.cached_many("{self.tenant}:{self.table}:{keys}", exp=600, negative_exp=30, shared=True)
    async def get_many(self, keys: list[int]) -> dict[int, Out]:
        """Return what is there, by key. One round trip reads what is cached, one query loads the rest."""
        found = await self.db.scalars(self._mine().where(self.model.id.in_(keys)).options(*self.options))
        return {row.id: self._answer(row) for row in found}

    @cache.cached_list("{self.tenant}:{self.table}:page:{page}", exp=600)
    async def page(self, page: int = 1) -> list[Out]:
        """Return one page of the rows, the newest first."""
        query = self._mine().order_by(self.model.id.desc()).limit(PAGE).offset(PAGE * (page - 1))
        return [self._answer(row) for row in await self.db.scalars(query.options(*self.options))]

    @cache.cached("{self.tenant}:{self.table}:count", exp=600)
    async def count(self) -> int:
        """Return the number of rows."""
        query = select(func.count()).select_from(self.model).where(self.model.tenant_id == self.tenant)
        return (await self.db.scalars(query)).one()

    async def row(self, key: int, *options: ORMOption) -> Row:
        """Return a row for a write, from the database. Raises NoResultFound."""
        found: Row = (await self.db.scalars(self._mine().where(self.model.id == key).options(*options))).one()
        return found

    def _mine(self) -> Select[Any]:
        return select(self.model).where(self.model.tenant_id == self.tenant)

    def _answer(self, row: Row) -> Out:
        answer: Out = self.schema.model_validate(row)
        return answer
