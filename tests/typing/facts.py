"""What must be so: each line is checked by mypy and by pyright, both strict."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Explanation, Heartbeat, PaginatedResponse, Stats
from tests.typing.shop import (
    Item,
    ItemChange,
    Items,
    Labels,
    NewItem,
    Point,
    Shop,
    count,
    crud,
    fresh,
    item,
    items,
    labels,
    many,
    many_in_order,
    many_maybe_rows,
    many_row_list,
    many_row_sequence,
    many_rows,
    maybe,
    maybe_row,
    maybe_rows,
    point,
    rename,
    row,
    row_list,
    row_sequence,
    rows,
)


async def a_call_gives_what_the_function_declares(db: AsyncSession, redis: Redis) -> None:
    """Check calls by position and by name."""
    assert_type(await item(db, redis, 1), Item)
    assert_type(await item(db=db, redis=redis, no=1, deep=True), Item)
    assert_type(await maybe(redis, 1), Item | None)
    assert_type(await count(db, redis), int)
    assert_type(await labels(redis), Labels)
    assert_type(await point(redis), Point)
    assert_type(await items(db, redis), list[Item])
    assert_type(await items(db, redis, page=2, order_by="name"), list[Item])
    pending: Coroutine[Any, Any, Item] = item(db, redis, 1)
    assert_type(await pending, Item)


async def a_schema_takes_the_place_of_the_row(db: AsyncSession, redis: Redis) -> None:
    """Check that the shape is that of the function."""
    assert_type(await row(db, redis, 1), Item)
    assert_type(await maybe_row(db, redis, 1), Item | None)
    assert_type(await rows(db, redis), list[Item])
    assert_type(await row_sequence(db, redis), list[Item])
    assert_type(await maybe_rows(db, redis), list[Item] | None)
    assert_type(await row_list(db, redis, 1), list[Item])


async def many_at_once_come_as_the_function_declares(db: AsyncSession, redis: Redis, shop: Shop) -> None:
    """Check mappings and lists, with and without `schema=`."""
    assert_type(await many(redis, [1, 2]), dict[int, Item])
    assert_type(await many(redis, nos=[1, 2], deep=True), dict[int, Item])
    assert_type(await many_in_order(redis, (1, 2)), list[Item | None])
    assert_type(await many_rows(db, redis, [1]), dict[int, Item])
    assert_type(await many_maybe_rows(db, redis, ["a"]), dict[str, Item | None])
    assert_type(await many_row_list(db, redis, [1]), list[Item])
    assert_type(await many_row_sequence(db, redis, {1}), list[Item | None])
    assert_type(await shop.many([1]), dict[int, Item])
    assert_type(many.key(nos=1), str)
    assert_type(await many.refresh(redis, [1]), dict[int, Item])
    assert_type(await many.explain(redis=redis, nos=1), Explanation)
    await many.invalidate(redis=redis, nos=[1, 2])


async def the_extras_are_typed(db: AsyncSession, redis: Redis) -> None:
    """Check that extras take the function's own arguments, or the key's where nothing is loaded."""
    assert_type(item.key(no=1), str)
    assert_type(item.stats, Stats)
    assert_type(item.stats.hits, int)
    assert_type(await item.refresh(db, redis, 1), Item)
    assert_type(await row.refresh(db, redis, no=1), Item)
    assert_type(await item.explain(db, redis, 1), Explanation)
    assert_type((await item.explain(redis=redis, no=1)).ttl, float | None)
    assert_type((await item.explain(redis=redis, no=1)).watched, Heartbeat | None)
    await item.invalidate(redis=redis, no=1)
    await item.put(Item(id=1, name="a"), db, redis, 1)


def the_function_itself_is_there() -> Callable[[AsyncSession, Redis], Coroutine[Any, Any, Any]]:
    """Check that the function has its own parameters."""
    return count.__wrapped__


async def methods_lose_their_first_parameter(redis: Redis, shop: Shop) -> None:
    """Check that an instance is bound, and a class is not."""
    assert_type(await shop.item(1, deep=True), Item)
    assert_type(await shop.row(no=1), Item | None)
    assert_type(await shop.rows(), list[Item])
    assert_type(await Shop.item(shop, 1), Item)
    assert_type(shop.item.key(1), str)
    assert_type(await shop.item.refresh(1), Item)
    assert_type(await shop.item.explain(1), Explanation)
    assert_type(shop.row.stats, Stats)


async def a_generic_method_returns_what_the_subclass_says(found: Items) -> None:
    """Check each shape, and the extras."""
    assert_type(await found.get(1), Item)
    assert_type(await found.maybe(no=1), Item | None)
    assert_type(await found.all(), list[Item])
    assert_type(await found.many([1]), dict[int, Item])
    assert_type(await found.get.refresh(1), Item)
    assert_type(found.get.key(1), str)


async def static_and_class_methods_keep_theirs(redis: Redis, shop: Shop) -> None:
    """Check both orders of the decorators, on the class and on an instance."""
    assert_type(await Shop.static_outside(redis, 1), Item)
    assert_type(await shop.static_outside(redis, no=1), Item)
    assert_type(await Shop.static_inside(redis, 1), Item)
    assert_type(await shop.static_inside(redis, no=1), Item)
    assert_type(Shop.static_inside.key(no=1), str)
    assert_type(await Shop.static_outside.refresh(redis, 1), Item)
    assert_type(await Shop.class_outside(redis, 1), Item)
    assert_type(await shop.class_outside(redis, no=1), Item)
    assert_type(await Shop.class_inside(redis, 1), Item)
    assert_type(await shop.class_inside(redis, no=1), Item)
    assert_type(Shop.class_inside.key(no=1), str)
    assert_type(await Shop.class_outside.refresh(redis, 1), Item)


async def a_function_that_invalidates_keeps_its_type(db: AsyncSession, redis: Redis, shop: Shop) -> None:
    """Check that the function keeps its attributes."""
    assert_type(await rename(db, redis, 1, name="b"), Item)
    assert_type(await shop.rename(1, name="b"), Item)
    assert_type(await fresh(redis, 1), Item)
    assert_type(fresh.key(no=1), str)


async def crud_speaks_the_parameters_of_its_class(db: AsyncSession, redis: Redis) -> None:
    """Model, Create, Update, Response."""
    assert_type(await crud.create(db, redis, NewItem(name="a")), Item)
    assert_type(await crud.create(db=db, redis=redis, obj_in=NewItem(name="a"), id=1), Item)
    assert_type(await crud.get(db=db, redis=redis, id=1), Item)
    assert_type(await crud.get_or_none(db, redis, id=1), Item | None)
    assert_type(await crud.update(db, redis, ItemChange(name="b"), id=1), Item)
    assert_type(await crud.upsert(db, redis, NewItem(name="a"), id=1), Item)
    assert_type(await crud.get_multi(db, redis, limit=5, page=2, order_by="name", ascending=False), list[Item])
    assert_type(await crud.create_multi(db, redis, [NewItem(name="a")]), list[Item])
    assert_type(await crud.get_many(db, redis, id=[1, 2]), list[Item | None])
    assert_type(await crud.update_multi(db, redis, ItemChange(name="b"), name="a"), list[Item])
    assert_type(await crud.delete_multi(db, redis, name="a"), int)
    assert_type(await crud.count(db=db, name="a"), int)
    assert_type(await crud.exists(db, redis, name="a"), bool)
    assert_type(await crud.get_page(db, redis, limit=5), PaginatedResponse[Item])
    listed = await crud.get_multi(db, redis)
    assert_type(crud.paginate(listed, limit=5, page=1), PaginatedResponse[Item])
    assert_type(crud.paginate(data=listed, limit=5, page=1, total=7).data, list[Item])
    await crud.delete(db, redis, id=1)
