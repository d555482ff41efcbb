"""One run through all of the API, for tests of what it says to Redis: which commands, which keys, under which user."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import String, select, update
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, FastRDB
from fastrdb.protocol.keyspace import Keyspace
from tests.support.servers.databases import Database

HEADS = ("person:", "people:", "known:")
"""What all keys of this run begin with, and no others."""
EMAIL = "ada@private.example"
OTHER = "bob@private.example"
NAME = "Lovelace-the-private"
PRIVATE = ("private",)
"""What is in every value that is personal here, and nowhere else."""


class Base(DeclarativeBase):
    pass


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(100), unique=True)
    name: Mapped[str] = mapped_column(String(100))


class PersonIn(BaseModel):
    email: str
    name: str


class PersonOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int
    email: str
    name: str


People = FastRDB[Person, PersonIn, PersonIn, PersonOut]


class Whole:
    """All of the API on one cache and one client; `admin` is what may do in Redis what the cache need not."""

    def __init__(self, database: Database, client: Redis, admin: Redis, cache: Cache) -> None:
        self.database, self.client, self.admin, self.cache = database, client, admin, cache
        self.crud = People(
            Person,
            PersonOut,
            pattern="person:email:{email}",
            list_pattern="people:page:{page}:limit:{limit}",
            invalidate_pattern_prefix="known:{email}*",
            cache=cache,
        )
        self.loads = 0

        @cache.cached("known:{email}", schema=PersonOut, negative_exp=5)
        async def known(db: AsyncSession, redis: Redis, email: str, exact: bool = True) -> Person:
            self.loads += 1
            return (await db.scalars(select(Person).where(Person.email == email))).one()

        @cache.invalidates(["known:{email}", "known:*:{result}"], keys=["person:email:{email}"])
        async def rename(db: AsyncSession, redis: Redis, email: str, name: str) -> str:
            await db.execute(update(Person).where(Person.email == email).values(name=name))
            return email

        self.known, self.rename = known, rename

    async def run(self) -> None:
        """Everything, in an order in which each step finds something to do."""
        await self.database.create(Base)
        await self.crud_class()
        await self.decorators()
        await self.extras()
        await self.corrupted()
        await self.restarted()
        await self.evicted()
        await self.cache.aclose()

    async def unwell(self) -> None:
        """Pause Redis for so long that it is left alone, and then asked for a sign of life."""
        await self.read()
        store = self.cache.runtime.store(self.client)
        await self.admin.client_pause(int(4000 * self.cache.runtime.timeout))
        while not store.obstacles:
            await self.read()
        while store.obstacles:
            await self.read()
            await asyncio.sleep(0)
        await self.read()

    def session(self) -> Any:
        """Return a session of its own."""
        return self.database.sessions()

    async def read(self, email: str = EMAIL, **arguments: Any) -> PersonOut:
        """Read from the cache with a session of its own."""
        async with self.session() as db:
            found: PersonOut = await self.known(db, self.client, email, **arguments)
            return found

    async def crud_class(self) -> None:
        """Call each method of `FastRDB`, twice where the second is a hit."""
        crud, redis = self.crud, self.client
        async with self.session() as db:
            ada = await crud.create(db=db, redis=redis, obj_in=PersonIn(email=EMAIL, name=NAME))
            bob = PersonIn(email=OTHER, name=NAME)
            [made] = await crud.create_multi(db=db, redis=redis, instances=[bob])
            for _ in range(2):
                assert await crud.get(db=db, redis=redis, email=EMAIL) == ada
                assert await crud.get_many(db=db, redis=redis, email=[EMAIL, OTHER, "nobody"]) == [ada, made, None]
                assert await crud.get_or_none(db=db, redis=redis, email="nobody") is None
                assert len(await crud.get_multi(db=db, redis=redis, limit=5, order_by="email", name=NAME)) == 2
                assert (await crud.get_page(db=db, redis=redis, limit=1)).total == 2
                assert await crud.count(db=db, redis=redis, email=OTHER) == 1
                assert await crud.exists(db=db, redis=redis, email=OTHER)
            changed = await crud.update(db=db, redis=redis, obj_in={"name": f"{NAME}-2"}, email=EMAIL)
            assert await crud.get(db=db, redis=redis, email=EMAIL) == changed
            assert (await crud.upsert(db=db, redis=redis, obj_in=PersonIn(email=EMAIL, name=NAME))).name == NAME
            assert len(await crud.update_multi(db=db, redis=redis, obj_in={"name": NAME}, name=NAME)) == 2
            assert await crud.delete_multi(db=db, redis=redis, email=OTHER) == 1
            await crud.create(db=db, redis=redis, obj_in=bob)
            await crud.delete(db=db, redis=redis, email=OTHER)
            assert await crud.count(db=db, redis=redis) == 1

    async def decorators(self) -> None:
        """Make misses, hits and joined loads; writes that commit, that roll back, and that have no session."""
        first = await asyncio.gather(*(self.read() for _ in range(3)))
        assert {person.name for person in first} == {NAME}
        for name, publish in ((f"{NAME}-a", True), (f"{NAME}-b", False)):
            async with self.session() as db:
                await self.rename(db, self.client, EMAIL, name)
                await (db.commit() if publish else db.rollback())
            assert (await self.read()).name == f"{NAME}-a"
        loads = self.loads
        for _ in range(2):
            assert (await self.read(exact=False)).email == EMAIL
            with pytest.raises(NoResultFound):
                await self.read(OTHER)
        assert self.loads == loads + 2

    async def extras(self) -> None:
        """Use what a cached function carries, and what a cache does by hand."""
        known, redis = self.known, self.client
        async with self.session() as db:
            assert (await known.explain(db=db, redis=redis, email=EMAIL)).state == "hit"
            person = await known.refresh(db, redis, EMAIL)
            await known.put(person, db=db, redis=redis, email=EMAIL)
            await db.commit()
            await db.execute(update(Person).values(name=NAME))
            person = PersonOut(id=person.id, email=EMAIL, name=NAME)
            await known.put(person, db=db, redis=redis, email=EMAIL)
            await db.commit()
        assert await self.read() == person
        await known.invalidate(redis=redis, email=EMAIL)
        key = known.key(email=EMAIL)
        await self.cache.invalidate(["known:*", "person:*:*", ""], keys=[key], redis=redis)
        await self.read()

    async def corrupted(self) -> None:
        """Read an entry that is no JSON."""
        await self.admin.set(self.known.key(email=EMAIL), b"\x80\x04.")
        assert (await self.read()).email == EMAIL
        assert self.known.stats.corrupt == 1

    async def restarted(self) -> None:
        """Bring Redis back with other data: everything is deleted before it is used again."""
        names = Keyspace(self.cache.namespace)
        trusted = names.shards[0].trusted
        await self.admin.delete(trusted)
        await self.read(exact=False)
        async with self.session() as db:
            await self.known.refresh(db, self.client, EMAIL)
        while self.cache.runtime.store(self.client).obstacles:
            await self.read()
            await asyncio.sleep(0)
        assert await self.admin.zcard(trusted)
        await self.read()

    async def evicted(self) -> None:
        """Delete the index: the next write looks at all keys."""
        await self.admin.delete(Keyspace(self.cache.namespace).shards[0].index)
        await self.cache.invalidate(["known:*"], redis=self.client)
        loads = self.loads
        await self.read()
        assert self.loads == loads + 1
