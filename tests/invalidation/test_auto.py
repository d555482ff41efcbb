"""`Cache(auto=True)`: a write drops the entries that depend on its rows, and no others."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Mapped, mapped_column

from fastrdb import Cache, OptionError
from fastrdb.inference import catalog
from fastrdb.testing.server import EmbeddedServer
from fastrdb.transactions.follow import followers, lost
from tests.support.servers.databases import Database

from .tables import Base, Club, Person


class Audit(Base):
    __tablename__ = "audits"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def cache(following: Cache) -> Cache:
    """Return a cache that follows."""
    return following


@pytest.fixture
async def filled(database: Database) -> Database:
    """Prepare each database in turn, with six people in three clubs."""
    await database.create(Base)
    async with database.sessions() as db:
        db.add_all([Club(id=n, name=f"club{n}") for n in range(3)])
        await db.flush()
        db.add_all([Person(club_id=n % 3, number=100 + n, name=f"p{n}") for n in range(1, 7)])
        await db.commit()
    return database


class Functions:
    """Cached functions of one cache, and what each has loaded."""

    def __init__(self, cache: Cache) -> None:
        self.loads: list[str] = []

        @cache.cached("auto:person:{person_id}")
        async def person(db: AsyncSession, person_id: int) -> str | None:
            self.loads.append(f"person {person_id}")
            found = await db.get(Person, person_id)
            return None if found is None else found.name

        @cache.cached("auto:number:{number}")
        async def by_number(db: AsyncSession, number: int) -> str | None:
            self.loads.append(f"number {number}")
            return (await db.scalars(select(Person.name).where(Person.number == number))).one_or_none()

        @cache.cached("auto:people:{club_id}")
        async def people(db: AsyncSession, club_id: int) -> list[str]:
            self.loads.append(f"people {club_id}")
            found = await db.scalars(select(Person.name).where(Person.club_id == club_id).order_by(Person.id))
            return list(found)

        @cache.cached("auto:page:{page}")
        async def page(db: AsyncSession, page: int) -> list[str]:
            self.loads.append(f"page {page}")
            return list(await db.scalars(select(Person.name).order_by(Person.id).limit(3).offset(3 * page)))

        @cache.cached("auto:card:{person_id}")
        async def card(db: AsyncSession, person_id: int) -> str:
            self.loads.append(f"card {person_id}")
            return f"<{await person(db, person_id)}>"

        self.person, self.by_number, self.people, self.page, self.card = person, by_number, people, page, card

    async def warm(self, database: Database) -> None:
        """Load everything, twice: the second time from Redis."""
        await self.reloaded(database)
        assert not await self.reloaded(database)

    async def reloaded(self, database: Database) -> set[str]:
        """Return what is loaded anew when everything is asked for."""
        self.loads.clear()
        asked: list[tuple[Any, int]] = [
            (function, number) for number in range(1, 7) for function in (self.card, self.person)
        ]
        asked += [(self.by_number, number) for number in (*range(101, 107), 999)]
        asked += [(self.people, number) for number in range(3)]
        asked += [(self.page, number) for number in range(2)]
        for function, argument in asked:
            async with database.sessions() as db:  # each with a snapshot of its own
                await function(db, argument)
        return set(self.loads)


PAGES = {"page 0", "page 1"}
OF_ONE = {"person 1", "card 1", "number 101", "people 1", *PAGES}


@pytest.fixture
async def functions(cache: Cache, filled: Database) -> Functions:
    """Return functions with entries, in a process that has written before: it has met the columns in use."""
    made = Functions(cache)
    await made.warm(filled)
    async with filled.sessions() as db:
        (await db.get_one(Person, 6)).name = "first"
        await db.commit()
    await made.warm(filled)
    return made


async def test_a_flush_drops_what_shows_the_row(filled: Database, functions: Functions) -> None:
    """One row's update reaches its entries, its club's list and the pages of the whole table."""
    async with filled.sessions() as db:
        (await db.get_one(Person, 1)).name = "new"
        await db.commit()
    assert await functions.reloaded(filled) == OF_ONE
    async with filled.sessions() as db:
        assert await functions.card(db, 1) == "<new>"


async def test_a_moved_row_leaves_both_lists(filled: Database, functions: Functions) -> None:
    """The lists of the old club and of the new one, by a look: the session that moves it has old values."""
    async with filled.sessions() as old, filled.sessions() as other:
        person = await old.get_one(Person, 1)
        await old.commit()
        await other.execute(update(Person).where(Person.id == 1).values(club_id=2))
        await other.commit()
        await functions.warm(filled)
        person.name = "late"
        await old.commit()
    assert await functions.reloaded(filled) == {*OF_ONE, "people 2"} - {"people 1"}


async def test_an_insert_drops_answers_that_lacked_the_row(filled: Database, functions: Functions) -> None:
    """None, a list and the pages; no other row's entries, though the database makes the key."""
    async with filled.sessions() as db:
        db.add(Person(club_id=0, number=999, name="new"))
        await db.commit()
    assert await functions.reloaded(filled) == {"number 999", "people 0", *PAGES}


async def test_a_bulk_update_drops_the_rows_of_its_where(filled: Database, functions: Functions) -> None:
    """The rows are looked at with the statement's own WHERE."""
    async with filled.sessions() as db:
        await db.execute(update(Person).where(Person.club_id == 1).values(name="bulk"))
        await db.commit()
    dropped = {f"{kind} {number}" for number in (1, 4) for kind in ("person", "card")} | {"number 101", "number 104"}
    assert await functions.reloaded(filled) == {*dropped, "people 1", *PAGES}


async def test_a_delete_drops_the_row(filled: Database, functions: Functions) -> None:
    """A row that goes is looked at, too."""
    async with filled.sessions() as db:
        await db.delete(await db.get_one(Person, 1))
        await db.commit()
    assert await functions.reloaded(filled) == OF_ONE


async def test_a_rollback_drops_nothing(filled: Database, functions: Functions) -> None:
    """A row that was never committed has changed no answer."""
    async with filled.sessions() as db:
        (await db.get_one(Person, 1)).name = "new"
        await db.flush()
        await db.rollback()
    assert await functions.reloaded(filled) == set()


async def test_text_without_a_reader_drops_its_table(filled: Database, functions: Functions) -> None:
    """The target of a plain statement is enough; rows are unknown."""
    async with filled.sessions() as db:
        await db.execute(text("UPDATE people SET name = 'x' WHERE id = 1"))
        await db.commit()
    assert len(await functions.reloaded(filled)) == 24


async def test_another_table_drops_nothing(filled: Database, functions: Functions) -> None:
    """No entry depends on clubs."""
    async with filled.sessions() as db:
        db.add(Audit(id=1))
        await db.commit()
    assert await functions.reloaded(filled) == set()


async def test_a_load_that_meets_a_commit_is_not_stored(filled: Database, cache: Cache) -> None:
    """The tags are known only when the load has run, so the fill is refused by what was written since its lease."""
    reached, go = asyncio.Event(), asyncio.Event()

    @cache.cached("auto:slow:{number}")
    async def slow(db: AsyncSession, number: int) -> str | None:
        found = (await db.scalars(select(Person.name).where(Person.number == number))).one_or_none()
        await db.rollback()  # a snapshot would forbid to store, too
        reached.set()
        await go.wait()
        return found

    async with filled.sessions() as db, filled.sessions() as other:
        loading = asyncio.create_task(slow(db, 101))
        await reached.wait()
        await other.execute(update(Person).where(Person.number == 101).values(name="new"))
        await other.commit()
        go.set()
        assert await loading == "p1"
        assert await slow(db, 101) == "new"


async def test_a_process_that_only_writes_drops(filled: Database, functions: Functions, client: Redis) -> None:
    """Another cache of the same namespace, without any function: a worker."""
    async with Cache(client, auto=True) as worker, filled.sessions() as db:
        assert not worker.functions()
        (await db.get_one(Person, 1)).name = "worked"
        await db.commit()
    async with filled.sessions() as db:
        assert await functions.person(db, 1) == "worked"


@pytest.mark.parametrize("closes", [False, True])
def test_a_cache_that_is_lost_is_logged_at_the_next_write(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture, closes: bool
) -> None:
    """A process that only writes may refer to its cache nowhere. One that was closed may go."""
    gc.collect()
    of_modules = {*followers}
    followers.clear()
    lost.clear()

    async def job(cache: Cache) -> None:
        assert await cache.ready()
        if closes:
            await cache.aclose()
        assert isinstance(cache.redis, Redis)
        await cache.redis.aclose()

    async def write() -> None:
        engine = create_async_engine("sqlite+aiosqlite://")
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE t (id INTEGER)"))
        await engine.dispose()

    asyncio.run(job(Cache(Redis(port=server.port), auto=True)))
    gc.collect()
    assert not followers
    assert not caplog.records
    asyncio.run(write())
    followers.update(of_modules)
    assert [each.getMessage().partition(": the")[0] for each in caplog.records] == (
        [] if closes else ["Cache: a write is not followed"]
    )


async def test_autocommit_drops_at_each_statement(filled: Database, functions: Functions) -> None:
    """A statement that commits by itself is invalidated before it is sent, and its barrier ends with it.

    A look before it would hold no lock: the row may move before the statement, so its other values are unknown.
    """
    unknown = {f"number {number}" for number in (*range(101, 107), 999)} | {f"people {number}" for number in range(3)}
    async with filled.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        await connection.execute(update(Person).where(Person.id == 1).values(name="auto"))
        assert await functions.reloaded(filled) == {"person 1", "card 1", *unknown, *PAGES}
        assert await functions.reloaded(filled) == set()


async def test_untracked_writes_drop_nothing(filled: Database, cache: Cache, functions: Functions) -> None:
    """Seeds and migrations report by hand."""
    async with filled.sessions() as db:
        with cache.untracked():
            (await db.get_one(Person, 1)).name = "hidden"
            await db.flush()
        await db.commit()
    assert await functions.reloaded(filled) == set()


async def test_touches_and_reads_of_one_statement(filled: Database, cache: Cache, functions: Functions) -> None:
    """The execution options say what a text reads and writes."""

    @cache.cached("auto:count")
    async def count(db: AsyncSession) -> int:
        options = {"fastrdb_reads": [Club]}
        return int((await db.execute(text("SELECT count(*) FROM clubs"), execution_options=options)).scalar_one())

    async with filled.sessions() as db:
        assert await count(db) == 3
        await db.execute(text("DELETE FROM clubs WHERE id = 77"), execution_options={"fastrdb_touches": [Audit]})
        await db.commit()
        assert (await count.explain(db)).state == "hit"
        await db.execute(text("DELETE FROM clubs WHERE id = 77"), execution_options={"fastrdb_touches": [Club]})
        await db.commit()
        assert (await count.explain(db)).state == "miss"
    assert await functions.reloaded(filled) == set()


async def test_what_is_read_is_shown(filled: Database, cache: Cache, functions: Functions) -> None:
    """Both `explain` and `seen` show it."""
    async with filled.sessions() as db:
        explained = await functions.card.explain(db, 1)
        page = await functions.page.explain(db, 0)
    assert explained.depends_on == ("people where id = 1",)
    assert page.depends_on == ("people (any row)",)
    assert page.coarse == ("people: any row, because no value is asked for",)
    assert all(tables == ["people"] for tables in cache.seen().values())
    assert len(cache.seen()) == 5


async def test_a_function_without_auto_is_not_followed(filled: Database, cache: Cache) -> None:
    """Prefixes and the TTL are all there is."""

    @cache.cached("auto:never:{number}", auto=False)
    async def never(db: AsyncSession, number: int) -> str | None:
        return (await db.scalars(select(Person.name).where(Person.number == number))).one_or_none()

    async with filled.sessions() as db:
        await never(db, 101)
        (await db.get_one(Person, 1)).name = "new"
        await db.commit()
        assert await never(db, 101) == "p1"


async def test_a_statement_that_cannot_be_read_is_said_once(
    filled: Database, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """Each commit drops its entries; depends_on narrows that."""

    @cache.cached("auto:opaque:{number}")
    async def opaque(db: AsyncSession, number: int) -> int:
        return int((await db.scalars(select(sa.literal_column("(SELECT count(*) FROM people)")))).one())

    @cache.cached("auto:declared", depends_on=[Person])
    async def declared(db: AsyncSession) -> int:
        return int((await db.scalars(select(sa.literal_column("(SELECT count(*) FROM people)")))).one())

    with caplog.at_level(logging.WARNING, "fastrdb"):
        for number in (1, 2):
            async with filled.sessions() as db:
                assert await opaque(db, number) == 6
        async with filled.sessions() as db:
            assert await declared(db) == 6
            await db.rollback()
            db.add(Audit(id=1))
            await db.commit()
            assert (await opaque.explain(db, 1)).state == "miss"
            assert (await declared.explain(db)).state == "hit"
    assert [each.message for each in caplog.records if "may read anything" in each.message] == [caplog.messages[0]]


async def test_a_search_path_makes_names_doubtful(postgresql: Database, cache: Cache) -> None:
    """After SET search_path a table without a schema may be another one: each commit drops the entry."""
    await postgresql.create(Base)

    @cache.cached("auto:clubs")
    async def clubs(db: AsyncSession) -> int:
        return len((await db.scalars(select(Club.id).where(Club.id == 1))).all())

    async with postgresql.engine.connect() as connection:
        await connection.execute(text("SET search_path TO public"))
        await connection.commit()
        async with AsyncSession(connection) as db:
            assert await clubs(db) == 0
            await db.commit()
            assert (await clubs.explain(db)).depends_on == ("anything",)


RENAMING = {
    "sqlite": ["CREATE TRIGGER renamed AFTER UPDATE ON people BEGIN UPDATE clubs SET name = 'by a trigger'; END"],
    "mariadb": ["CREATE TRIGGER renamed AFTER UPDATE ON people FOR EACH ROW UPDATE clubs SET name = 'by a trigger'"],
    "postgresql": [
        (
            "CREATE FUNCTION renaming() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN UPDATE clubs SET name = 'by a trigger'; RETURN NULL; END $$"
        ),
        "CREATE TRIGGER renamed AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION renaming()",
    ],
}


async def test_effects_add_to_the_triggers_that_can_be_read(filled: Database, client: Redis) -> None:
    """A table with declared effects has a plain trigger besides, which is followed."""
    async with filled.sessions() as db:
        for statement in RENAMING[filled.name]:
            await db.execute(text(statement))
        await db.commit()
    async with Cache(client, auto=True, effects={Person: [Audit]}) as cache:

        @cache.cached("effects:{club_id}")
        async def club(db: AsyncSession, club_id: int) -> str:
            return (await db.get_one(Club, club_id)).name

        async with filled.sessions() as db:
            assert await club(db, 1) == "club1"
        async with filled.sessions() as db:
            await db.execute(update(Person).where(Person.id == 1).values(name="new"))
            await db.commit()
        async with filled.sessions() as db:
            assert await club(db, 1) == "by a trigger"


def test_views_of_several_caches_all_count(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two databases may have a view of one name: a tag too many is never stale."""
    monkeypatch.setattr(catalog, "_views", {})
    kept = [Cache(client, auto=True, namespace=each.__name__, views={"Totals": [each]}) for each in (Person, Club)]
    assert catalog._views["totals"] == {Person.__tablename__, Club.__tablename__}
    assert len(kept) == 2


def test_auto_needs_a_client() -> None:
    """A commit invalidates there."""
    with pytest.raises(OptionError, match=r"Cache: auto=True needs redis=\.\.\."):
        Cache(auto=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "cells"}, "precision='cells' must be"),
        ({"effects": [Person]}, "effects must be a mapping"),
        ({"effects": {Person: ["people"]}}, "effects: 'people' must be a mapped class"),
        ({"quiet": {Person: ["nick"]}}, "quiet: Person has no column 'nick'"),
        ({"views": {"totals": [1]}}, "views: 1 must be a mapped class"),
    ],
)
def test_options_are_checked(client: Redis, options: Any, message: str) -> None:
    """Before any work, by name."""
    with pytest.raises(OptionError, match=message):
        Cache(client, auto=True, **options)


def test_options_of_auto_need_auto(client: Redis) -> None:
    """An option without effect is a mistake."""
    with pytest.raises(OptionError, match="are for auto=True"):
        Cache(client, quiet={Person: ["name"]})


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_cache_that_has_ended_is_not_missed(
    filled: Database, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """No line in the log speaks of a thread when its last user lets it go between a write and the commit."""
    ended = Cache(client, auto=True, namespace="ended")
    async with filled.sessions() as db:
        await db.execute(update(Person).where(Person.id == 1).values(name="new"))
        del ended
        gc.collect()
        await db.commit()
    assert not [each for each in caplog.messages if "could not be followed" in each]


async def test_a_function_with_another_client_is_refused(cache: Cache) -> None:
    """No commit would reach that client's server."""

    async def other(db: AsyncSession, redis: Redis) -> Sequence[str]:
        return []

    with pytest.raises(OptionError, match="a cache with auto=True reaches its own client only"):
        cache.cached("auto:other")(other)
    cache.cached("auto:other", auto=False)(other)
    with pytest.raises(OptionError, match=r"auto=True needs a Cache\(redis, auto=True\)"):
        Cache().cached("auto:other", auto=True)(other)


LABELLED = sa.Table(
    "labelled",
    Base.metadata,
    sa.Column("person_id", sa.ForeignKey("people.id"), primary_key=True),
    sa.Column("label_id", sa.Integer, primary_key=True, autoincrement=False),
)


async def test_a_pair_drops_the_lists_of_its_own_key(filled: Database, cache: Cache) -> None:
    """Not those of other labels. A row of the listed table drops the lists of all labels: its key is no constant."""

    @cache.cached("auto:labelled:{label_id}")
    async def labelled(db: AsyncSession, label_id: int) -> list[str]:
        chosen = select(Person.name).join(LABELLED, LABELLED.c.person_id == Person.id)
        return list(await db.scalars(chosen.where(LABELLED.c.label_id == label_id).order_by(Person.id)))

    async def states() -> list[str]:
        found = list[str]()
        for label_id in (1, 2):
            async with filled.sessions() as db:
                found.append((await labelled.explain(db, label_id)).state)
            async with filled.sessions() as db:
                await labelled(db, label_id)
        return found

    written: list[tuple[Any, list[str]]] = [
        (sa.insert(LABELLED).values(person_id=1, label_id=2), ["miss", "miss"]),  # nothing is stored yet
        (sa.insert(LABELLED).values(person_id=1, label_id=1), ["miss", "hit"]),
        (sa.delete(LABELLED).where(LABELLED.c.person_id == 1, LABELLED.c.label_id == 2), ["hit", "miss"]),
        (update(Person).where(Person.id == 6).values(name="new"), ["miss", "miss"]),
    ]
    for statement, expected in written:
        async with filled.sessions() as db:
            await db.execute(statement)
            await db.commit()
        assert await states() == expected


class Animal(Base):
    __tablename__ = "animals"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(sa.String(10))
    name: Mapped[str] = mapped_column(sa.String(40))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012


class Dog(Animal):
    __tablename__ = "dogs"
    id: Mapped[int] = mapped_column(sa.ForeignKey("animals.id"), primary_key=True)
    trick: Mapped[str] = mapped_column(sa.String(40))
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_both_tables_of_an_inheriting_class_are_followed(filled: Database, cache: Cache, client: Redis) -> None:
    """A write to either table drops the answer, also after the engine has made its connections anew."""
    async with Cache(client, auto=True, namespace="second") as second:

        @cache.cached("auto:dog:{dog_id}")
        async def dog(db: AsyncSession, dog_id: int) -> list[str]:
            found = await db.get_one(Dog, dog_id)
            return [found.name, found.trick]

        @second.cached("auto:animal:{animal_id}")
        async def animal(db: AsyncSession, animal_id: int) -> str:
            return (await db.get_one(Animal, animal_id)).name

        dogs: Any = Dog.__table__
        async with filled.sessions() as db:
            db.add(Dog(id=1, name="Rex", trick="sit"))
            await db.commit()
        for statement, expected in (
            (update(Animal).where(Animal.id == 1).values(name="Max"), ["Max", "sit"]),
            (sa.update(dogs).where(dogs.c.id == 1).values(trick="roll"), ["Max", "roll"]),
        ):
            async with filled.sessions() as db:
                await dog(db, 1)
                await animal(db, 1)
            await filled.engine.dispose()
            async with filled.sessions() as db:
                await db.execute(statement)
                await db.commit()
            async with filled.sessions() as db:
                assert await dog(db, 1) == expected
                assert await animal(db, 1) == expected[0]
