"""Rule 5: what a session reads depends on its schema_translate_map, wherever SQLAlchemy lets it be set."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import Connection, delete, event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, ORMExecuteState, Session, mapped_column

from fastrdb import FastRDB, cached, cached_many, default_cache, invalidates
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.servers.databases import Database

TENANTS = ("red", "blue")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[str]


class NoteOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    body: str


Opened = Callable[[AsyncExitStack, AsyncEngine, str], Awaitable[AsyncSession]]


async def by_engine(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Set the map on the engine."""
    return AsyncSession(engine.execution_options(schema_translate_map={None: tenant}))


async def by_session(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Set the map on the session."""
    try:
        return AsyncSession(engine, execution_options={"schema_translate_map": {None: tenant}})
    except TypeError:
        pytest.skip("a session has options of its own since SQLAlchemy 2.1")


async def by_connection(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Set the map on the connection of the session's transaction, as many applications do in each request."""
    db = AsyncSession(engine)
    await db.connection(execution_options={"schema_translate_map": {None: tenant}})
    return db


async def by_own_connection(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Bind the session to a connection that has the map."""
    connection = await stack.enter_async_context(engine.connect())
    return AsyncSession(await connection.execution_options(schema_translate_map={None: tenant}))


async def by_model(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Bind the model to an engine of its own."""
    return AsyncSession(engine, binds={Note: engine.execution_options(schema_translate_map={None: tenant})})


async def by_table(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Bind the table to an engine of its own, and the session to no other."""
    return AsyncSession(binds={Note.__table__: engine.execution_options(schema_translate_map={None: tenant})})  # type: ignore[dict-item]


async def by_get_bind(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Choose the engine in the session's own method."""
    mapped = engine.sync_engine.execution_options(schema_translate_map={None: tenant})

    class Routed(Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return mapped

    return AsyncSession(sync_session_class=Routed)


async def by_update(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Set the map on an engine that exists already."""
    own = engine.execution_options(logging_token=tenant)
    own.update_execution_options(schema_translate_map={None: tenant})
    return AsyncSession(own)


async def by_sub_engine(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Derive an engine with another option from one that has the map."""
    mapped = engine.execution_options(schema_translate_map={None: tenant})
    return AsyncSession(mapped.execution_options(isolation_level="AUTOCOMMIT"))


async def by_later_binding(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Bind the model to an engine when the session is made already."""
    db = AsyncSession(engine)
    db.sync_session.bind_mapper(Note, engine.sync_engine.execution_options(schema_translate_map={None: tenant}))
    return db


async def by_base(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Bind the base of all models to an engine."""
    return AsyncSession(engine, binds={Base: engine.execution_options(schema_translate_map={None: tenant})})


WAYS = [by_engine, by_session, by_connection, by_own_connection, by_model, by_table, by_get_bind]
WAYS += [by_update, by_sub_engine, by_later_binding, by_base]


async def by_session_event(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Set the map for each statement of the session."""
    db = AsyncSession(engine)

    @event.listens_for(db.sync_session, "do_orm_execute")
    def mapped(execution: ORMExecuteState) -> None:
        execution.update_execution_options(schema_translate_map={None: tenant})

    return db


async def by_transaction_event(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Set the map when the session's transaction begins."""
    db = AsyncSession(engine)

    @event.listens_for(db.sync_session, "after_begin")
    def mapped(session: Session, transaction: Any, connection: Connection) -> None:
        connection.execution_options(schema_translate_map={None: tenant})

    return db


async def by_get_bind_of_a_mapper(stack: AsyncExitStack, engine: AsyncEngine, tenant: str) -> AsyncSession:
    """Choose the engine by the model."""
    plain, mapped = engine.sync_engine, engine.sync_engine.execution_options(schema_translate_map={None: tenant})

    class Routed(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Any:
            return plain if mapper is None else mapped

    return AsyncSession(sync_session_class=Routed)


UNSEEN = [by_session_event, by_transaction_event, by_get_bind_of_a_mapper]
"""Ways in which the map is not known when the key is made."""


@pytest.fixture
async def engine(postgresql: Database) -> AsyncIterator[AsyncEngine]:
    """Yield an engine of a database with the same table in two schemas, with other rows."""
    async with postgresql.engine.begin() as connection:
        for tenant in TENANTS:
            await connection.execute(text(f"DROP SCHEMA IF EXISTS {tenant} CASCADE"))
            await connection.execute(text(f"CREATE SCHEMA {tenant}"))
            await connection.execute(text(f"CREATE TABLE {tenant}.note (id int PRIMARY KEY, body text)"))
            await connection.execute(text(f"INSERT INTO {tenant}.note VALUES (1, '{tenant}')"))
    yield postgresql.engine
    async with postgresql.engine.begin() as connection:
        for tenant in TENANTS:
            await connection.execute(text(f"DROP SCHEMA {tenant} CASCADE"))


@cached("note:{number}")
async def body_of(db: AsyncSession, redis: Redis, number: int) -> str:
    """Return the body of a note."""
    return (await db.scalars(select(Note.body).where(Note.id == number))).one()


async def in_each(engine: AsyncEngine, way: Opened, read: Callable[[AsyncSession], Awaitable[Any]]) -> list[Any]:
    """Return what each tenant reads, one after the other."""
    found = []
    for tenant in TENANTS:
        async with AsyncExitStack() as stack, await way(stack, engine, tenant) as db:
            found.append(await read(db))
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_tenants_do_not_share_entries(engine: AsyncEngine, client: Redis, way: Opened) -> None:
    """Each is answered with its own row, and has its own entry: the second time nothing is loaded."""
    loads = body_of.stats.loads
    for _ in range(2):
        assert await in_each(engine, way, lambda db: body_of(db, client, 1)) == [*TENANTS]
    assert body_of.stats.loads - loads == 2


@pytest.mark.parametrize("way", UNSEEN)
async def test_map_that_is_unknown_when_the_key_is_made_keeps_the_result_out(
    engine: AsyncEngine, client: Redis, way: Opened
) -> None:
    """Each tenant is answered with its own row, and nothing is stored."""
    for _ in range(2):
        assert await in_each(engine, way, lambda db: body_of(db, client, 1)) == [*TENANTS]
    assert await client.keys("note:*") == []


async def test_map_that_the_function_gives_its_statement_is_the_functions_own(
    engine: AsyncEngine, client: Redis
) -> None:
    """The tenant is an argument, and so in the key: the result is stored, with an event or without."""

    @cached("given:{tenant}")
    async def load(db: AsyncSession, redis: Redis, tenant: str) -> str:
        query = select(Note.body).where(Note.id == 1)
        options = {"schema_translate_map": {None: tenant}}
        return (await db.scalars(query, execution_options=options)).one()

    for db in (AsyncSession(engine), await by_engine(AsyncExitStack(), engine, "red")):
        async with db:
            assert [await load(db, client, tenant) for tenant in TENANTS] == [*TENANTS]
    assert load.stats.fills == 4


async def test_each_session_of_a_call_counts(engine: AsyncEngine, client: Redis) -> None:
    """Only the first one is in the key. So a call is answered without the cache where another one has another map."""

    @cached("second:{number}")
    async def second(db: AsyncSession, tenant: AsyncSession, redis: Redis, number: int) -> str:
        return (await tenant.scalars(select(Note.body).where(Note.id == number))).one()

    @cached_many("second:many:{ids}")
    async def several(db: AsyncSession, redis: Redis, ids: list[int], *, tenant: AsyncSession) -> dict[int, str]:
        rows = await tenant.execute(select(Note.id, Note.body).where(Note.id.in_(ids)))
        return {row.id: row.body for row in rows}

    async def read(db: AsyncSession) -> list[str]:
        mapped = engine.execution_options(schema_translate_map={None: "red"})
        async with AsyncSession(mapped) as red, AsyncSession(engine) as plain:
            found = [await second(first, db, client, 1) for first in (red, plain)]
            found += [await second.refresh(db=red, tenant=db, redis=client, number=1)]
            return [*found, (await several(red, client, [1], tenant=db))[1]]

    for _ in range(2):
        assert await in_each(engine, by_engine, read) == [[tenant] * 4 for tenant in TENANTS]
    assert (second.stats.hits, several.stats.hits) == (1, 1), "of the calls whose two sessions have one map"


async def test_put_counts_each_session_too(engine: AsyncEngine, client: Redis) -> None:
    """A value that was made under two maps is stored under the key of neither, and `explain` says why."""

    @cached("put:{number}")
    async def both(db: AsyncSession, tenant: AsyncSession, redis: Redis, number: int) -> list[str]:
        query = select(Note.body).where(Note.id == number)
        return [(await each.scalars(query)).one() for each in (db, tenant)]

    first, second = (engine.execution_options(schema_translate_map={None: tenant}) for tenant in TENANTS[:2])
    async with AsyncSession(first) as one, AsyncSession(second) as two:
        one.add(Note(id=7, body="new"))
        await one.flush()
        await both.put(["a", "b"], db=one, tenant=two, redis=client, number=7)
        await one.commit()
        assert not await client.keys("put:*")
        found = await both.explain(db=one, tenant=two, redis=client, number=7)
        assert (found.state, found.reasons) == ("bypass", ("its sessions have several schema maps",))
        await one.execute(delete(Note).where(Note.id == 7))
        await one.commit()


class Repository:
    """A class that keeps its session under one of the usual names."""

    def __init__(self, name: str, db: AsyncSession, redis: Redis) -> None:
        setattr(self, name, db)
        self.redis, self._found = redis, db

    @default_cache.cached("kept:{number}")
    async def body_of(self, number: int) -> str:
        """Return the body of a note."""
        return (await self._found.scalars(select(Note.body).where(Note.id == number))).one()


@pytest.mark.parametrize("name", ["db", "session", "_db", "_session"])
async def test_session_of_an_instance_is_found(engine: AsyncEngine, client: Redis, name: str) -> None:
    """Each tenant has an entry of its own."""
    hits = Repository.body_of.stats.hits
    for _ in range(2):
        read = await in_each(engine, by_engine, lambda db: Repository(name, db, client).body_of(1))
        assert read == [*TENANTS]
    assert Repository.body_of.stats.hits == hits + 2


async def test_tenant_that_only_the_function_finds_keeps_the_result_out(engine: AsyncEngine, client: Redis) -> None:
    """A session that the call does not name, in an attribute or a variable: nothing is stored, and the log says why."""
    current = ""

    @cached("unnamed:{number}")
    async def unnamed(redis: Redis, number: int) -> str:
        async with AsyncSession(engine.execution_options(schema_translate_map={None: current})) as db:
            return (await db.scalars(select(Note.body).where(Note.id == number))).one()

    @cached("around:{number}")
    async def around(redis: Redis, number: int) -> str:
        async with AsyncSession(engine.execution_options(schema_translate_map={None: current})) as db:
            return await body_of(db, redis, number)

    for _ in range(2):
        for current in TENANTS:
            assert await unnamed(client, 1) == current
            assert await around(client, 1) == current, "also where the inner call is a hit"
        read = await in_each(engine, by_engine, lambda db: Repository("elsewhere", db, client).body_of(1))
        assert read == [*TENANTS]
    assert await client.keys("unnamed:*") == await client.keys("around:*") == await client.keys("kept:*") == []


@pytest.mark.parametrize("change", [without("unnamed-schemas-unstored"), without("nested-schemas-unstored")], ids=label)
async def test_tenants_are_mixed_up(
    engine: AsyncEngine, client: Redis, monkeypatch: pytest.MonkeyPatch, change: Change
) -> None:
    """With one mechanism taken out, one tenant gets the answer of another."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_tenant_that_only_the_function_finds_keeps_the_result_out(engine, client)


@pytest.mark.parametrize("way", WAYS)
async def test_crud_of_tenants_is_apart(engine: AsyncEngine, client: Redis, way: Opened) -> None:
    """A tenant's writes, invalidations and entries are its own; the other's rows and answers stay."""
    notes: FastRDB[Note, Any, Any, NoteOut] = FastRDB(Note, NoteOut, "crud:{id}", "cruds:{page}:{limit}")

    async def read(db: AsyncSession) -> tuple[str, int]:
        return (await notes.get(db, client, id=1)).body, await notes.count(db, client)

    assert await in_each(engine, way, read) == [("red", 1), ("blue", 1)]
    async with AsyncExitStack() as stack, await way(stack, engine, "red") as db:
        await notes.update(db, client, {"body": "new"}, id=1)
        await db.commit()
    async with AsyncExitStack() as stack, await way(stack, engine, "red") as db:
        await notes.create(db, client, {"id": 2, "body": "second"})
        await db.commit()
    assert await in_each(engine, way, read) == [("new", 2), ("blue", 1)]


async def test_map_of_several_schemas_has_one_key(engine: AsyncEngine, client: Redis) -> None:
    """Whatever its order; None and the text "null" are two schemas."""

    def key(schemas: dict[str | None, str | None]) -> str:
        return body_of.key(AsyncSession(engine.execution_options(schema_translate_map=schemas)), client, 1)

    assert key({None: "red", "x": "blue"}) == key({"x": "blue", None: "red"}) != key({None: "blue", "x": "red"})
    assert key({None: "red"}) != key({"null": "red"})
    assert key({None: None}) != key({None: "None"})
    assert key({}) == "note:1"


async def test_model_with_an_engine_of_its_own_is_not_that_engine(engine: AsyncEngine, client: Redis) -> None:
    """A function may read other tables by the session's other engine: the key names both."""
    mapped = engine.execution_options(schema_translate_map={None: "red"})
    whole, partly = AsyncSession(mapped), AsyncSession(engine, binds={Note: mapped})
    assert len({body_of.key(db, client, 1) for db in (whole, partly, AsyncSession(engine))}) == 3


async def test_two_maps_the_other_way_round_are_another_key(engine: AsyncEngine, client: Redis) -> None:
    """Which model reads which schema is in the key, whether it is bound or chosen by a method."""
    red = engine.execution_options(schema_translate_map={None: "red"})
    blue = engine.execution_options(schema_translate_map={None: "blue"})
    chosen = red

    class Routed(Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return chosen.sync_engine

    read = dict[str, str]()
    for bind, model in ((engine, red), (red, engine), (red, blue), (blue, red)):
        async with AsyncSession(bind, binds={Note: model}) as db:
            key = body_of.key(db, client, 1)
            assert key not in read
            read[key] = await body_of(db, client, 1) if model is not engine else ""
            assert body_of.key(db, client, 1) == key
    assert [*read.values()] == ["red", "", "blue", "red"]
    for first, second, body in ((red, blue, "blue"), (blue, red, "red")):
        chosen = first
        async with AsyncSession(sync_session_class=Routed) as db:
            await db.connection()
            chosen = second
            assert await body_of(db, client, 1) == body


async def test_load_that_changes_its_own_map_is_not_stored(engine: AsyncEngine, client: Redis) -> None:
    """Its key was made without that map."""

    @cached("tenant:{number}")
    async def load(db: AsyncSession, redis: Redis, number: int) -> str:
        await db.connection(execution_options={"schema_translate_map": {None: "red"}})
        return (await db.scalars(select(Note.body).where(Note.id == number))).one()

    async with AsyncSession(engine) as db:
        assert await load(db, client, 1) == "red"
    assert (load.stats.fills, await client.exists("tenant:1")) == (0, 0)


async def test_map_that_is_set_before_the_load_begins_is_not_stored(engine: AsyncEngine, client: Redis) -> None:
    """The key is made when the function is called."""
    async with AsyncSession(engine) as db:
        call = body_of(db, client, 1)
        await db.connection(execution_options={"schema_translate_map": {None: "red"}})
        assert await call == "red"
    assert await client.keys("note:*") == []


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_scoped_session_of_another_tenant_by_then_is_not_stored(
    engine: AsyncEngine, client: Redis, many: bool
) -> None:
    """The call has the session of its scope, and the load that of another one."""
    tenant = "red"

    @cached("scoped:{number}", shared=True)
    async def one(db: async_scoped_session[AsyncSession], redis: Redis, number: int) -> str:
        return (await db.scalars(select(Note.body).where(Note.id == number))).one()

    @cached_many("scoped:{numbers}", shared=True)
    async def several(db: async_scoped_session[AsyncSession], redis: Redis, numbers: list[int]) -> dict[int, str]:
        return {number: (await db.scalars(select(Note.body).where(Note.id == number))).one() for number in numbers}

    def opened() -> AsyncSession:
        return AsyncSession(engine.execution_options(schema_translate_map={None: tenant}))

    scoped = async_scoped_session[AsyncSession](opened, lambda: tenant)  # type: ignore[arg-type]
    call: Any = several(scoped, client, [1]) if many else one(scoped, client, 1)
    tenant = "blue"
    assert await call == ({1: "blue"} if many else "blue")
    assert await client.keys("scoped:*") == []
    for tenant in TENANTS:
        for _ in range(2):
            assert await one(scoped, client, 1) == tenant
        await scoped.remove()
    assert one.stats.hits == 2


# --- invalidating single keys


async def by_decorator(db: AsyncSession, client: Redis) -> None:
    """Name the key in `keys`."""

    @invalidates(keys=["note:{number}"])
    async def write(redis: Redis, number: int) -> None: ...

    await write(client, 1)


async def by_decorator_in_a_transaction(db: AsyncSession, client: Redis) -> None:
    """Name it for a transaction that commits."""

    @invalidates(keys=["note:{number}"])
    async def write(db: AsyncSession, redis: Redis, number: int) -> None:
        await db.execute(text("SELECT 1"))
        await db.commit()

    await write(db, client, 1)


async def by_result(db: AsyncSession, client: Redis) -> None:
    """Name it by the result."""

    @invalidates(keys=["note:{result}"])
    async def write(redis: Redis) -> int:
        return 1

    await write(client)


async def by_function(db: AsyncSession, client: Redis) -> None:
    """Call the cached function's own method, without a session."""
    await body_of.invalidate(redis=client, number=1)


async def by_cache(db: AsyncSession, client: Redis) -> None:
    """Call the cache's method."""
    await default_cache.invalidate(keys=["note:1"], redis=client)


@pytest.mark.parametrize("invalidate", [by_decorator, by_decorator_in_a_transaction, by_result, by_function, by_cache])
async def test_single_key_reaches_the_entries_of_all_tenants(
    engine: AsyncEngine, client: Redis, invalidate: Callable[[AsyncSession, Redis], Awaitable[None]]
) -> None:
    """The key stands for every variant of it, and for no other key."""
    await in_each(engine, by_engine, lambda db: body_of(db, client, 1))
    await client.set("note:10", "another")
    assert len(await client.keys("note:1[?]*")) == 2
    async with AsyncSession(engine) as db:
        await invalidate(db, client)
    assert await client.keys("note:1[?]*") == []
    assert await client.exists("note:10") == 1


async def test_tenants_do_not_share_entries_of_an_engine(engine: AsyncEngine, client: Redis) -> None:
    """The parameter is called like a session, and the function opens a connection by itself."""

    @default_cache.cached("note-by-engine:{number}")
    async def body(db: AsyncEngine, redis: Redis, number: int) -> str:
        async with db.connect() as connection:
            return (await connection.scalars(select(Note.body).where(Note.id == number))).one()

    for _ in range(2):
        for tenant in TENANTS:
            mapped = engine.execution_options(schema_translate_map={None: tenant})
            assert await body(mapped, client, 1) == tenant
    assert body.stats.hits == len(TENANTS)


def reading_second(many: bool) -> Any:
    """Return a cached function that reads by the second of its sessions, which are keyword arguments."""

    @cached("second:{number}")
    async def body(redis: Redis, number: int, **given: Any) -> str:
        db: AsyncSession = given["session"]
        return (await db.scalars(select(Note.body).where(Note.id == number))).one()

    @cached_many("seconds:{numbers}")
    async def bodies(redis: Redis, numbers: list[int], **given: Any) -> list[str]:
        db: AsyncSession = given["session"]
        return [*(await db.scalars(select(Note.body).where(Note.id.in_(numbers))))]

    return bodies if many else body


@pytest.mark.parametrize("many", [False, True])
async def test_second_session_among_keyword_arguments_counts(engine: AsyncEngine, client: Redis, many: bool) -> None:
    """Its map is not that of the first one: the call is answered without the cache."""
    read, ids = reading_second(many), [1] if many else 1
    found = []
    for tenant in ("red", "red", "blue"):
        mapped = {each: engine.execution_options(schema_translate_map={None: each}) for each in ("red", tenant)}
        async with AsyncSession(mapped["red"]) as first, AsyncSession(mapped[tenant]) as second:
            found.append(await read(client, ids, db=first, session=second))
            if not many:
                assert await read.refresh(client, ids, db=first, session=second) == tenant
    assert found == ([["red"], ["red"], ["blue"]] if many else ["red", "red", "blue"])
    assert read.stats.hits == 1
