"""What must not pass: each line that ends in a remark is an error to mypy and to pyright, and no other line is."""

from __future__ import annotations

from datetime import timedelta

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, cached, cached_list, cached_many, invalidates
from tests.typing.shop import (
    Item,
    ItemChange,
    NewItem,
    Row,
    Shop,
    crud,
    item,
    items,
    many,
    many_rows,
    rename,
    row,
    row_list,
)


async def arguments_are_checked(db: AsyncSession, redis: Redis) -> None:
    """Check types, names and number of arguments."""
    await item(db, redis, "1")  # error
    await item(db, redis, 1, True)  # error
    await item(db, redis)  # error
    await item(db, redis, no=1, deeper=True)  # error
    await items(db, redis, order_by=3)  # error
    await row(db, redis, no="x")  # error
    await many(redis, 1)  # error
    await many(redis, ["1"])  # error
    await many.refresh(redis, "1")  # error
    await row_list(db, redis, "x")  # error
    await rename(db, redis, 1, name=2)  # error
    await item.refresh(db, redis, "1")  # error
    item.nothing()  # error


async def results_are_checked(db: AsyncSession, redis: Redis) -> None:
    """Check that a row becomes the schema."""
    wrong: str = await item(db, redis, 1)  # error
    still: Row = await row(db, redis, 1)  # error
    one: Item = await row_list(db, redis, 1)  # error
    key: bytes = item.key(no=1)  # error
    several: list[Item] = await many(redis, [1])  # error
    rows: dict[int, Row] = await many_rows(db, redis, [1])  # error
    print(several, rows)
    print(wrong, still, one, key, await item(db, redis, 1))
    print((await row(db, redis, 1)).metadata)  # error


async def methods_are_checked(redis: Redis, shop: Shop) -> None:
    """Check bound and unbound methods."""
    await shop.item("1")  # error
    await shop.item(1, True)  # error
    await Shop.item(1)  # error
    await shop.static_inside(redis, "1")  # error
    await Shop.static_outside(redis, "1")  # error
    await shop.class_inside(redis, "1")  # error
    await Shop.class_outside(redis, "1")  # error
    await shop.rename(1, name=2)  # error


async def crud_is_checked(db: AsyncSession, redis: Redis) -> None:
    """Check arguments against the types of the class."""
    await crud.create(db, redis, ItemChange(name="a"))  # error
    await crud.update(db, redis, NewItem(name="a"), id=1)  # error
    await crud.get_multi(db, redis, limit="5")  # error
    await crud.get(redis, db, id=1)  # error
    text: str = await crud.get(db, redis, id=1)  # error
    print(text)


def a_function_without_a_coroutine(no: int) -> Item:
    """Stand for an object that cannot be decorated."""
    raise LookupError(no)


cached(pattern="a:{no}")(a_function_without_a_coroutine)  # error
invalidates(prefix="a:*")(a_function_without_a_coroutine)  # error
cached(pattern="a", exp="60")  # error
cached(pattern="a", expiry=60)  # error
cached(pattern="a", exp=timedelta(minutes=1), jitter="much")  # error
cached(pattern="a", schema=3)  # error
cached(pattern="a", stale="1")  # error
cached(pattern="a", early="much")  # error
cached(pattern="a", session_factory=3)  # error
cached_many(pattern="a:{no}")(a_function_without_a_coroutine)  # error
cached_many("a", schema=3)  # error
cached_list(pattern="a")  # error
cached("a", 60)  # error
invalidates(prefix=3)  # error
Cache(on_error="ignore")  # error
Cache(namespace=3)  # error
