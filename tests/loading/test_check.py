"""`Cache.check`, `Cache.functions` and the lines in the log: what is likely to be a mistake is said, and where."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, Event, FastRDB, Finding, OptionError, PatternError, Stats
from fastrdb.events import Counters
from tests.support.world.items import Item


class Base(DeclarativeBase):
    """The mapped classes of these tests."""


class User(Base):
    """A row of a `FastRDB`."""

    __tablename__ = "checked_users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class UserOut(BaseModel, from_attributes=True):
    """An answer that is cached."""

    id: int
    email: str


class Masked(BaseModel, from_attributes=True):
    """An answer with less."""

    id: int
    email: str


def crud(cache: Cache, prefix: str) -> Any:
    """Return the CRUD of the users."""
    return FastRDB[User, UserOut, UserOut, UserOut](
        User, UserOut, "user:email:{email}", "user:page:{page}:limit:{limit}", 600, prefix, cache=cache
    )


def reader(cache: Cache, pattern: str = "user:{number}", **options: Any) -> Any:
    """Return a cached function."""

    async def load(number: int) -> int:
        return number

    return cache.cached(pattern, **options)(load)


def writer(cache: Cache, *prefixes: str, **options: Any) -> Any:
    """Return a function that invalidates."""

    @cache.invalidates(prefixes, **options)
    async def rename() -> None:
        return None

    return rename


# --- prefixes that reach nothing


async def test_prefix_that_reaches_nothing_is_found(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A typo is listed, and logged at the first write only; a function that is defined later counts."""
    cache = Cache(client)
    rename, load = writer(cache, "usr:*"), reader(cache)
    post = reader(cache, "post:{number}:of", exp=30)
    what = "no cached function of this cache has keys under 'usr:*' (there are: user:, post:)"
    name = rename.__qualname__
    assert Finding(name, what, "correct the prefix, or the pattern") in cache.check()
    assert str(cache.check()[0]) == f"{name}: {what}; correct the prefix, or the pattern"
    for _ in range(2):
        await rename()
    assert [record.getMessage() for record in caplog.records] == [f"@invalidates on {name}: {what}"]
    assert await load(1) == 1
    del post  # only now: a function that is collected has no keys


@pytest.mark.parametrize(
    "reaching",
    [{"prefix": "user:*"}, {"prefix": "us*"}, {"prefix": "*"}, {"prefix": "user:1"}, {"keys": ["user:{number}"]}],
)
async def test_prefix_that_may_reach_keys_is_none(
    client: Redis, caplog: pytest.LogCaptureFixture, reaching: dict[str, Any]
) -> None:
    """A prefix may begin as a pattern does, and go on where the placeholder is."""
    cache = Cache(client)
    load = reader(cache)

    @cache.invalidates(**reaching)
    async def rename(number: int) -> None:
        return None

    await rename(1)
    assert (cache.check(), caplog.records) == ([], [])
    assert await load(1) == 1


async def test_prefix_in_a_program_that_only_writes_is_none(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A worker need not import the functions whose entries its writes delete: its log says nothing."""
    cache = Cache(client)
    await writer(cache, "user:*")()
    assert caplog.records == []


# --- functions that nothing invalidates


def test_function_that_nothing_invalidates_is_found() -> None:
    """Unless its entries end within a minute, or the function says that this is meant."""
    cache = Cache()
    functions = [
        reader(cache),
        reader(cache, "short:{number}", exp=60),
        reader(cache, "fixed:{number}", never_invalidated=True),
    ]
    (found,) = cache.check()
    assert found.function == functions[0].__qualname__
    assert found.what == "no @invalidates and no FastRDB of this cache reaches its keys, 'user:{number}'"
    assert "never_invalidated=True" in found.advice
    write = writer(cache, "user:*")
    assert cache.check() == []
    del write, functions


def test_options_that_only_say_something_are_flags() -> None:
    """A text would be true whatever it says."""
    for name in ("shared", "never_invalidated"):
        with pytest.raises(OptionError, match=rf"load: {name}='no' must be True or False"):
            reader(Cache(), **{name: "no"})


# --- wide prefixes


def test_wide_prefix_of_a_class_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A prefix over all rows makes each write drop every row; the log says so once, and `check` lists it."""
    with caplog.at_level("INFO", logger="fastrdb"):
        narrow, wide = Cache(), Cache()
        kept = [crud(narrow, ""), crud(wide, "user:*")]
    assert narrow.check() == []
    (found,) = wide.check()
    assert found.what == "each write deletes all that lies under 'user:*', which is every entry of its own pattern"
    assert [record.getMessage() for record in caplog.records] == [str(found)]
    assert len(kept) == 2


# --- two functions with one pattern


def test_pattern_of_another_function_is_refused() -> None:
    """Both are named; placeholders of other names are the same keys."""
    cache = Cache()
    load = reader(cache)

    async def other(identity: int) -> int:
        return identity

    said = r"other: 'user:\{identity\}' makes the same keys as 'user:\{number\}' of .*load, so that one answers for"
    with pytest.raises(PatternError, match=said):
        cache.cached("user:{identity}")(other)
    with pytest.raises(PatternError, match="shared=True on both"):
        cache.cached("user:{identity}", shared=True)(other)
    assert Cache().cached("user:{identity}")(other) is not None
    del load


def test_shared_pattern_needs_one_type() -> None:
    """Where both say that their keys are shared, the values must be of one type: else each evicts the other's."""
    cache = Cache()
    load = reader(cache, shared=True)

    async def many(numbers: list[int]) -> dict[int, int]:
        return {number: number for number in numbers}

    async def item(number: int) -> Item | None:
        return None

    assert cache.cached_many("user:{numbers}", shared=True)(many) is not None
    with pytest.raises(PatternError, match=r"item: .* of .*load, whose values have another type"):
        cache.cached("user:{number}", shared=True)(item)
    del load


def test_pattern_that_overlaps_another_is_refused() -> None:
    """The message has a key of both. Types of parameters may rule one out, and `shared` permits it."""
    cache = Cache()

    @cache.cached("account:{name}", shared=True)
    async def account(name: str) -> int:
        return 0

    async def own() -> int:
        return 0

    said = r"own: 'account:me' makes the key 'account:me', and so does 'account:\{name\}' of .*account, so that one"
    with pytest.raises(PatternError, match=said):
        cache.cached("account:me")(own)
    kept: list[Any] = [cache.cached("account:me", shared=True)(own), cache.cached("account:me:all")(own)]

    async def numbered(number: int) -> int:
        return number

    kept += [cache.cached("user:{number}")(numbered), cache.cached("user:me")(own)]
    with pytest.raises(PatternError, match="'user:5' makes the key 'user:5', and so does"):
        cache.cached("user:5")(own)
    assert len(kept) == 4


def test_attributes_of_an_instance_overlap_with_themselves_only() -> None:
    """A program gives its instances names that differ; arguments come from anywhere."""
    cache = Cache()

    class Table:
        def __init__(self, name: str) -> None:
            self.name = name

        @cache.cached("{self.name}:{key}")
        async def row(self, key: str) -> int:
            return 0

    class Other(Table):
        async def count(self) -> int:
            return 0

    assert reader(cache) is not None
    with pytest.raises(PatternError, match=r"makes the key '\{self.name\}:count', and so does"):
        cache.cached("{self.name}:count")(Other.count)


def test_same_function_again_is_a_new_version() -> None:
    """A module that is loaded again, or a factory of functions, refuses nothing; nor does a function that is gone."""
    cache = Cache()
    first, second = reader(cache), reader(cache)
    assert len(cache.functions()) == 2

    async def other(number: int) -> int:
        return number

    del first, second
    gc.collect()
    assert cache.cached("user:{number}")(other) is not None


def test_a_factory_makes_functions_that_answer_for_each_other() -> None:
    """The variables of a closure are in no key: such functions are a finding until one is left, unless shared."""
    cache = Cache()

    def made(tenant: str, **options: Any) -> Any:
        async def plan(number: int) -> str:
            return f"{tenant} {number}"

        return cache.cached("plan:{number}", never_invalidated=True, **options)(plan)

    one, two = made("one"), made("two")
    (finding,) = cache.check()
    assert finding.what == "2 functions that one factory has made have the same keys, 'plan:{}'"
    del two
    assert not cache.check()
    again = [made("one", shared=True), made("two", shared=True)]
    assert not cache.check()
    del one, again


def test_a_factory_makes_functions_that_differ_by_their_defaults() -> None:
    """A default is in no key either."""
    cache = Cache()

    def made(tenant: str) -> Any:
        async def plan(number: int, tenant: str = tenant) -> str:
            return f"{tenant} {number}"

        return cache.cached("plan:{number}", never_invalidated=True)(plan)

    alike = made("one"), made("one")
    assert not cache.check()
    other = made("two")
    (finding,) = cache.check()
    assert finding.what == "3 functions that one factory has made have the same keys, 'plan:{}'"
    del alike, other


@pytest.mark.parametrize("bound", [lambda function: function, classmethod])
def test_a_factory_makes_classes_that_answer_for_each_other(bound: Any) -> None:
    """Two classes of one name share their keys."""
    cache = Cache()

    def made(of: str) -> type:
        class Plans:
            tenant = of

            async def find(self: Any, number: int) -> str:
                return f"{self.tenant} {number}"

            plan = cache.cached("plan:{number}", never_invalidated=True)(bound(find))

        return Plans

    one = made("one")
    assert not cache.check()
    two = made("two")
    (finding,) = cache.check()
    assert finding.what == "2 functions that one factory has made have the same keys, 'plan:{}'"
    del one, two


def test_one_function_is_not_decorated_with_two_schemas() -> None:
    """The answers of the one would answer for the other: with the same code, types must be equal."""
    cache = Cache()

    async def load(number: int) -> User:
        return User(id=number, email="a@b")

    def made(schema: Any) -> Any:
        return cache.cached("user:{number}", schema=schema, never_invalidated=True)(load)

    kept = made(UserOut), made(UserOut)
    with pytest.raises(PatternError, match="whose values have another type: give one of the two another pattern"):
        made(Masked)
    del kept


def test_two_cruds_of_one_model_with_two_schemas_are_refused() -> None:
    """The private column of the one would be in the answers of the other."""
    cache = Cache()

    def made(schema: Any) -> Any:
        return FastRDB[User, UserOut, UserOut, Any](
            User, schema, pattern="user:{id}", list_pattern="users:{page}:{limit}", cache=cache
        )

    kept = made(UserOut), made(UserOut)
    with pytest.raises(PatternError, match="whose values have another type: give one of the two another pattern"):
        made(Masked)
    del kept


@pytest.mark.parametrize("by_class", [False, True])
def test_bound_methods_of_two_objects_answer_for_each_other(by_class: bool) -> None:
    """A pattern has no attribute of the object, or of the class, that a method was bound to before decoration."""
    cache = Cache()

    class Plans:
        async def find(self, number: int) -> str:
            return f"{id(self)} {number}"

        @classmethod
        async def of_class(cls, number: int) -> str:
            return f"{cls.__name__} {number}"

    class Others(Plans):
        pass

    def made(plans: Any) -> Any:
        return cache.cached("plan:{number}", never_invalidated=True)(plans.of_class if by_class else plans.find)

    one, another = (Plans, Others) if by_class else (Plans(), Plans())
    alike = made(one), made(one)
    assert not cache.check()
    other = made(another)
    (finding,) = cache.check()
    assert finding.what == "3 functions that one factory has made have the same keys, 'plan:{}'"
    del alike, other


# --- two caches


def _plan_of(cache: Cache, name: str, **options: Any) -> Any:
    async def plan(number: int) -> str:
        return f"{name} {number}"

    plan.__qualname__ = name
    return cache.cached("plan:{number}", never_invalidated=True, **options)(plan)


SAME = (
    "'plan:{number}' makes the same keys as 'plan:{number}' of one in another cache, so that one answers for the other"
)


async def test_functions_of_two_caches_answer_for_each_other(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """The caches have one server and one namespace: that is logged at decoration, and is a finding."""
    first, second = Cache(client), Cache(client)
    one, two = _plan_of(first, "one"), _plan_of(second, "two")
    (finding,) = second.check()
    assert (finding.function, finding.what) == ("two", SAME)
    assert finding.advice == (
        "give one of the two another pattern, or one of the two caches a namespace, "
        "or say shared=True on both if both give the same values"
    )
    assert [record.getMessage() for record in caplog.records] == [str(finding)]
    assert await one(1) == await two(1)
    del one
    assert not second.check()


@pytest.mark.parametrize(
    ("options", "of_function"),
    [({"namespace": "apart"}, {}), ({"hash_keys": b"secret"}, {}), ({}, {"shared": True})],
    ids=["namespace", "hash_keys", "shared"],
)
async def test_caches_whose_keys_differ_are_apart(
    client: Redis, options: Any, of_function: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """So are functions that share their keys on purpose."""
    first, second = Cache(client), Cache(client, **options)
    kept = _plan_of(first, "one", **of_function), _plan_of(second, "two", **of_function)
    assert not second.check()
    assert not caplog.records
    del kept


async def test_caches_whose_clients_come_with_calls_are_found(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Their servers are unknown until the first call."""
    caches = Cache(), Cache()

    def made(cache: Cache, name: str) -> Any:
        async def plan(number: int, redis: Redis) -> str:
            return f"{name} {number}"

        plan.__qualname__ = name
        return cache.cached("plan:{number}", never_invalidated=True)(plan)

    one, two = made(caches[0], "one"), made(caches[1], "two")
    assert not caches[1].check()
    await one(1, client)
    assert not caplog.records
    await two(1, client)
    (finding,) = caches[1].check()
    assert (finding.function, finding.what) == ("two", SAME)
    assert [record.getMessage() for record in caplog.records] == [str(finding)]


@pytest.mark.parametrize("wrong", [{"redis": object()}, {"verify": 2}], ids=["client", "verify"])
def test_a_cache_that_was_refused_is_no_other_cache(client: Redis, wrong: Any) -> None:
    """Its error holds it, and may be kept."""
    with pytest.raises((TypeError, OptionError)) as kept:
        Cache(**wrong)
    assert not Cache(client).check()
    _plan_of(Cache(client), "one")
    del kept


# --- functions and their counts


async def test_functions_are_listed_with_options_and_counts(client: Redis) -> None:
    """A service need not keep a list of its own."""
    cache = Cache(client)
    load, rename = reader(cache, exp=30, cache_if=lambda number: number > 1), writer(cache, "user:*")
    await load(1)
    await load(2)
    await rename()
    read, write = cache.functions()
    assert (read.function, read.decorator, read.pattern) == (load.__qualname__, "cached", "user:{number}")
    assert read.options["exp"] == 30
    assert read.stats == load.stats
    assert (write.decorator, write.pattern, write.options) == ("invalidates", "", {"prefix": ["user:*"], "keys": []})
    assert write.stats == Stats(invalidations=1, deleted=1)


async def test_invalidation_returns_how_many_it_deleted(client: Redis) -> None:
    """So a typo in a prefix is a zero, and a prefix that is too wide is a large number."""
    cache = Cache(client)
    load = reader(cache)
    for number in range(3):
        await load(number)
    assert await load.invalidate(0) == 1
    assert await cache.invalidate("usr:*") == 0
    assert await cache.invalidate("user:*") == 2
    assert await cache.invalidate(keys=["user:1"]) == 0
    await load(1)
    assert await cache.invalidate(keys="user:1") == 1
    assert (load.stats.deleted, cache.stats().deleted) == (1, 4)

    @cache.invalidates(keys="user:{number}")
    async def write(number: int) -> None:
        """Change nothing."""

    await load(1)
    await write(1)
    assert not await client.exists("user:1")


async def test_deleted_entries_are_counted_by_prefix(client: Redis) -> None:
    """The function says how many each of its prefixes has deleted, the hook for each prefix as it was filled in."""
    await _deleted_by_prefix(client)


async def test_deleted_entries_are_counted_by_prefix_on_a_cluster(cluster_client: RedisCluster) -> None:
    """The same, where entries are deleted in the slots of their keys."""
    await _deleted_by_prefix(cluster_client)


async def _deleted_by_prefix(client: Any) -> None:
    told: list[Event] = []
    cache = Cache(client, hook=told.append)
    users, posts = reader(cache, "user:{number}:name"), reader(cache, "post:{number}")

    @cache.invalidates(["user:{number}:*", "post:*"], keys=["post:{number}"])
    async def change(number: int) -> None:
        return None

    for number in range(3):
        await users(number)
        await posts(number)
    await change(1)
    await users(1)
    await change(1)
    await posts(2)
    await posts.invalidate(2)
    deleted = [event for event in told if event.kind == "deleted"]
    assert sorted((event.key, event.count) for event in deleted[:2]) == [("post:*", 3), ("user:1:*", 1)]
    assert [(event.key, event.count) for event in deleted[2:]] == [("user:1:*", 1), ("post:2", 1)]
    assert [event.seconds is None for event in deleted] == [False, True, False, False]
    dropped = {info.function.rpartition(".")[2]: info.dropped for info in cache.functions()}
    assert dropped["change"] == {"user:{number}:*": 2, "post:*": 3}
    assert [info.dropped for info in cache.functions() if info.pattern == "post:{number}"] == [{"post:{number}": 1}]
    assert cache.stats().dropped == {"post:*": 3, "user:{number}:*": 2, "post:{number}": 1}
    assert all(info.stats.dropped == info.dropped for info in cache.functions())


def test_counts_by_prefix_are_bounded() -> None:
    """Of invalidations by hand, each may have a prefix of its own."""
    counters = Counters("f")
    for number in range(60):
        counters.deleted(f"user:{number}:", 2)
    assert len(counters.dropped) == 51
    assert counters.dropped["other prefixes"] == 20
    assert counters.counts["deleted"] == 120


async def test_invalidation_that_redis_misses_returns_none() -> None:
    """It is pending."""
    async with Redis(port=1) as client, Cache(client, timeout=0.1) as cache:
        load = reader(cache)
        assert await load.invalidate(1) is None
        assert await cache.invalidate("user:*") is None


def test_only_public_names_are_offered() -> None:
    """Completion on a cache shows what users need, and one name behind which the inside is."""
    assert {name for name in dir(Cache()) if not name.startswith("_")} == {
        *("cached", "cached_list", "cached_many", "invalidates", "invalidate"),
        *("stats", "counts", "functions", "check", "ready", "seen"),
        *("redis", "namespace", "hooks", "samplers"),
        *("disabled", "untracked", "aclose"),
        "runtime",
    }
