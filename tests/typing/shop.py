"""The functions and classes that `facts` and `errors` are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypedDict, TypeVar

from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, FastRDB, cached, cached_list, cached_many, invalidates

cache = Cache()
RowT = TypeVar("RowT")
OutT = TypeVar("OutT")


class Base(DeclarativeBase):
    """All mapped classes."""


class Row(Base):
    """A row of the database."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Item(BaseModel):
    """The item that a caller gets."""

    id: int
    name: str


class NewItem(BaseModel):
    """The input that makes an item."""

    name: str


class ItemChange(BaseModel):
    """The input that changes an item."""

    name: str | None = None


class Labels(TypedDict):
    """A TypedDict among the results."""

    de: str
    en: str


@dataclass
class Point:
    """A dataclass among the results."""

    x: int


# --- functions; the bodies do not matter here


@cached(pattern="item:{no}", exp=60)
async def item(db: AsyncSession, redis: Redis, no: int, *, deep: bool = False) -> Item:
    """Return one model."""
    raise NotFoundError


@cached(pattern="item:{no}:maybe", negative_exp=5.0, jitter=0.1, ignore=("redis",))
async def maybe(redis: Redis, no: int) -> Item | None:
    """Return a model or None."""
    raise NotFoundError


@cached("count", exp=1)
async def count(db: AsyncSession, redis: Redis) -> int:
    """Return a number."""
    raise NotFoundError


@cached("labels")
async def labels(redis: Redis) -> Labels:
    """Return a TypedDict."""
    raise NotFoundError


@cached("point")
async def point(redis: Redis) -> Point:
    """Return a dataclass."""
    raise NotFoundError


@cached_list(list_pattern="items:{page}", exp=60)
async def items(db: AsyncSession, redis: Redis, page: int = 1, order_by: str | None = None) -> list[Item]:
    """Return a list."""
    raise NotFoundError


# --- with schema=


@cached(pattern="row:{no}", schema=Item)
async def row(db: AsyncSession, redis: Redis, no: int) -> Row:
    """Return a row, which becomes the schema."""
    raise NotFoundError


@cached(pattern="row:{no}:maybe", schema=Item)
async def maybe_row(db: AsyncSession, redis: Redis, no: int) -> Row | None:
    """Return a row or None, as the schema or None."""
    raise NotFoundError


@cached(pattern="rows", schema=Item)
async def rows(db: AsyncSession, redis: Redis) -> list[Row]:
    """Return a list of rows, as a list of the schema."""
    raise NotFoundError


@cached(pattern="rows:sequence", schema=Item)
async def row_sequence(db: AsyncSession, redis: Redis) -> Sequence[Row]:
    """Return a sequence of rows, as a list of the schema."""
    raise NotFoundError


@cached(pattern="rows:maybe", schema=Item)
async def maybe_rows(db: AsyncSession, redis: Redis) -> Sequence[Row] | None:
    """Return no list at all, which stays None."""
    raise NotFoundError


@cached_list(list_pattern="rows:{page}", schema=Item)
async def row_list(db: AsyncSession, redis: Redis, page: int) -> Sequence[Row]:
    """Return rows: in `cached_list` the schema is that of one item."""
    raise NotFoundError


# --- many at once


@cached_many("item:{nos}", exp=60, negative_exp=5, stale=60, fail_safe=timedelta(hours=1))
async def many(redis: Redis, nos: list[int], *, deep: bool = False) -> dict[int, Item]:
    """Return models by id."""
    raise NotFoundError


@cached_many("item:{nos}")
async def many_in_order(redis: Redis, nos: Sequence[int]) -> list[Item | None]:
    """Return models in the order of the ids."""
    raise NotFoundError


@cached_many("row:{nos}", schema=Item)
async def many_rows(db: AsyncSession, redis: Redis, nos: list[int]) -> Mapping[int, Row]:
    """Return rows by id, as the schema by id."""
    raise NotFoundError


@cached_many("row:{nos}", schema=Item)
async def many_maybe_rows(db: AsyncSession, redis: Redis, nos: list[str]) -> dict[str, Row | None]:
    """Return a row or None for each id."""
    raise NotFoundError


@cached_many("row:{nos}", schema=Item)
async def many_row_list(db: AsyncSession, redis: Redis, nos: list[int]) -> list[Row]:
    """Return rows in the order of the ids."""
    raise NotFoundError


@cached_many("row:{nos}", schema=Item)
async def many_row_sequence(db: AsyncSession, redis: Redis, nos: set[int]) -> Sequence[Row | None]:
    """Return a row or None for each id."""
    raise NotFoundError


# --- writes


@invalidates(prefix=["item:*", "rows:*"], keys=["count"])
async def rename(db: AsyncSession, redis: Redis, no: int, *, name: str) -> Item:
    """Write a row."""
    raise NotFoundError


@invalidates(prefix="count")
@cached(pattern="fresh:{no}")
async def fresh(redis: Redis, no: int) -> Item:
    """Read and write, with both decorators."""
    raise NotFoundError


# --- in a class


class Shop:
    """A repository."""

    redis: Redis

    @cached(pattern="shop:item:{no}")
    async def item(self, no: int, *, deep: bool = False) -> Item:
        """Look one up."""
        raise NotFoundError

    @cache.cached(pattern="shop:row:{no}", schema=Item)
    async def row(self, no: int) -> Row | None:
        """Look a row up."""
        raise NotFoundError

    @cache.cached_list(list_pattern="shop:rows", schema=Item)
    async def rows(self) -> Sequence[Row]:
        """Look all rows up."""
        raise NotFoundError

    @cache.cached_many("shop:item:{nos}")
    async def many(self, nos: list[int]) -> dict[int, Item]:
        """Look several up."""
        raise NotFoundError

    @staticmethod
    @cached(pattern="shop:inner:{no}")
    async def static_outside(redis: Redis, no: int) -> Item:
        """Return an item, without an instance."""
        raise NotFoundError

    @cached(pattern="shop:outer:{no}")
    @staticmethod
    async def static_inside(redis: Redis, no: int) -> Item:
        """Return an item, without an instance."""
        raise NotFoundError

    @classmethod
    @cached(pattern="shop:class:{no}")
    async def class_outside(cls, redis: Redis, no: int) -> Item:
        """Return an item, with the class."""
        raise NotFoundError

    @cached(pattern="shop:class:{no}")
    @classmethod
    async def class_inside(cls, redis: Redis, no: int) -> Item:
        """Return an item, with the class."""
        raise NotFoundError

    @cache.invalidates(prefix="shop:*")
    async def rename(self, no: int, name: str) -> Item:
        """Write."""
        raise NotFoundError


class Repository(Generic[RowT, OutT]):
    """A generic repository, of which each subclass says what its methods return."""

    @cache.cached("generic:{no}")
    async def get(self, no: int) -> OutT:
        """Look one up."""
        raise NotFoundError

    @cache.cached("generic:maybe:{no}")
    async def maybe(self, no: int) -> OutT | None:
        """Look one up, or return None."""
        raise NotFoundError

    @cache.cached_list("generic:all")
    async def all(self) -> list[OutT]:
        """Look all up."""
        raise NotFoundError

    @cache.cached_many("generic:many:{nos}")
    async def many(self, nos: list[int]) -> dict[int, OutT]:
        """Look several up."""
        raise NotFoundError


class Items(Repository[Row, Item]):
    """The subclass for items."""


class NotFoundError(Exception):
    """The error of all bodies, so that no body has a type of its own."""


crud = FastRDB[Row, NewItem, ItemChange, Item](
    Row, Item, pattern="crud:{id}", list_pattern="crud:page:{page}:{limit}", exp=60, invalidate_pattern_prefix="crud:*"
)
