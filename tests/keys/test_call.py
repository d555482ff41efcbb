"""Calls: one key however a call is spelt, never one key for two calls; where its Redis and its session come from."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Generic, Optional, TypeVar
from unittest.mock import AsyncMock

import pytest
import wrapt
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, create_model
from redis.asyncio import Redis, RedisCluster
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, create_async_engine

from fastrdb.errors import KeyValueError, MissingKeyFieldError, OptionError, PatternError
from fastrdb.keys import MISSING, CallPlan, Prefix, add_pairs

if TYPE_CHECKING:
    from somewhere import Unknown  # type: ignore[import-not-found]  # pyright: ignore[reportMissingImports]

Db = Annotated[AsyncSession, "depends"]
S = TypeVar("S", bound=AsyncSession)
Chosen = TypeVar("Chosen")

DB = AsyncSession()
CLIENT: Redis = Redis()


class Row(BaseModel):
    id: int
    code: str


class Shopper:
    """The session of a user of a shop."""


async def get_user(db: AsyncSession, redis: Redis, email: str) -> Any:
    """Return a user, as in the documents."""


async def list_users(
    db: AsyncSession,
    redis: Redis,
    page: int = 1,
    limit: int = 10,
    order_by: str | None = None,
    ascending: bool = True,
) -> Any:
    """Return a page of users, as in the documents."""


def plan_of(fn: Any, pattern: str | None = None, **options: Any) -> CallPlan:
    """Return the plan as `cached` makes it."""
    return CallPlan.of(fn, pattern=pattern, decorator="cached", **options)


def key_of(plan: CallPlan, *args: Any, **kwargs: Any) -> str:
    """Return the key of a call that need not be complete."""
    return plan.locate(None, args, kwargs, partial=True)[2]


if TYPE_CHECKING:
    Wrapper = wrapt.FunctionWrapper[..., Any]
else:  # wrapt 2.0 has no subscript at run time
    Wrapper = wrapt.FunctionWrapper


class Recorder(Wrapper):
    """A decorator built as fastrdb's are: it makes its plan from what it wraps, and binds with what wrapt gives it."""

    def __init__(self, wrapped: Any, pattern: str) -> None:
        super().__init__(wrapped, self._self_record)
        self._self_plan = plan_of(wrapped, pattern)

    def _self_record(self, wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        keys.append(self._self_plan.bind(instance, args, kwargs).key)
        return wrapped(*args, **kwargs)


keys: list[str] = []


def recorded(pattern: str) -> Callable[[Any], Any]:
    """Return a decorator that writes down the keys of calls, none so far."""
    keys.clear()
    return lambda wrapped: Recorder(wrapped, pattern)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_documented_keys() -> None:
    """The examples of the documentation, to the letter."""
    assert (
        key_of(plan_of(get_user, "user:email:{email}"), DB, CLIENT, "john@example.com") == "user:email:john@example.com"
    )
    users = plan_of(list_users, "user:page:{page}:limit:{limit}")
    assert key_of(users) == "user:page:1:limit:10"
    assert key_of(users, ascending=False, order_by="name") == "user:page:1:limit:10?ascending=false&order_by=name"


def test_one_key_however_it_is_spelt() -> None:
    """Positional, by keyword, or default left out: one key."""
    plan = plan_of(list_users, "user:{page}")
    spelt = [
        key_of(plan, DB, CLIENT, 2, 10),
        key_of(plan, DB, CLIENT, limit=10, page=2),
        key_of(plan, DB, CLIENT, 2, order_by=None),
        key_of(plan, page=2, ascending=True),
    ]
    assert set(spelt) == {"user:2"}


ARGUMENT = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 2), st.sampled_from(["", "1", "a", "a&b=c", "true", 1.0, "?", "None"])
)


async def anything(a: int, b: Any = 1, /, c: str = "a", *rest: int, d: bool | None = None, **more: Any) -> Any:
    """Take every kind of parameter."""
    return locals()


async def narrow(a: int, b: int = 2, *, c: int, d: int = 4) -> Any:
    """Take the common kinds of parameter."""
    return locals()


def arguments(function: Any, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the function's own locals, as Python binds them.

    (`inspect.Signature.bind` refuses more than Python 3.11 does.)
    """
    with pytest.raises(StopIteration) as ended:
        function(*args, **kwargs).send(None)
    found: dict[str, Any] = ended.value.value
    return found


PLANS = [plan_of(anything, pattern) for pattern in ("k", "k:{a}", "k:{a}-{c}", "k:{d}:{b}:x", "k:{rest}")]
CALL = st.tuples(
    st.lists(ARGUMENT, min_size=1, max_size=5),
    st.dictionaries(st.sampled_from(["c", "d", "a", "e", "rest", "**a", "%x", "more", "e=1&f"]), ARGUMENT, max_size=3),
).filter(lambda call: not ("c" in call[1] and len(call[0]) > 2))


def meaning(args: list[Any], kwargs: dict[str, Any]) -> str:
    """Return the meaning of a call to the function itself, with every value's type."""
    found = arguments(anything, args, kwargs)
    return repr([*sorted(found.pop("more").items(), key=lambda pair: str(pair[0])), *found.items()])


@settings(max_examples=300)
@given(st.lists(CALL, min_size=2, max_size=6), st.sampled_from(PLANS))
def test_equal_keys_are_equal_calls(calls: list[tuple[list[Any], dict[str, Any]]], plan: CallPlan) -> None:
    """Two calls have one key if and only if the function gets the same arguments, of whatever kind."""
    for first, second in itertools.combinations(calls, 2):
        same = meaning(*first) == meaning(*second)
        assert same == (key_of(plan, *first[0], **first[1]) == key_of(plan, *second[0], **second[1]))


@settings(max_examples=300)
@given(
    st.lists(ARGUMENT, max_size=8),
    st.dictionaries(st.sampled_from(["a", "b", "c", "d", "email", "x"]), ARGUMENT, max_size=4),
    st.booleans(),
)
def test_binding_is_pythons(args: list[Any], kwargs: dict[str, Any], wide: bool) -> None:
    """A call that Python refuses raises a TypeError naming the function; any other binds as Python binds it."""
    function: Any = anything if wide else narrow
    plan = plan_of(function)
    try:
        bound = arguments(function, args, kwargs)
    except TypeError:
        with pytest.raises(TypeError, match=function.__name__):
            plan.bind(None, tuple(args), kwargs)
        return
    values = plan.bind(None, tuple(args), kwargs).arguments
    more = bound.pop("more", {})
    assert {name: values[name] for name in bound} == bound
    assert len(values) == len(bound) + len(more)


def test_a_default_is_left_out_only_if_it_is_the_same() -> None:
    """True is not 1, and [True] is not [1], whatever == says; an equal copy of the default is left out."""

    unset = object()

    async def function(a: Any = 1, b: Any = (1, "x"), c: Any = unset) -> Any: ...

    plan = plan_of(function, "k")
    assert key_of(plan, 1, (1, "x"), unset) == "k"
    assert key_of(plan, True) == "k?a=true"
    assert key_of(plan, 1, (True, "x")) == "k?b=%t[true&x]"
    assert key_of(plan, c=2) == "k?c=2"


def test_extra_pairs_join_the_query() -> None:
    """A pair that the caller adds is escaped, and no argument can have such a name."""
    plan = plan_of(list_users, "k")
    assert add_pairs(key_of(plan, page=2), {"%schema": "a:b"}) == "k?page=2&%schema=a%3Ab"
    assert add_pairs(key_of(plan), {"%schema": "a:b"}) == "k?%schema=a%3Ab"


def test_what_is_ignored_is_not_in_the_key() -> None:
    """`ignore` takes names of parameters, one or several."""

    async def function(a: int, request: object, trace: object) -> Any: ...

    assert key_of(plan_of(function, "k:{a}", ignore=("request", "trace")), 1) == "k:1"
    assert key_of(plan_of(function, "k:{a}", ignore=["request", "trace"]), 1, object(), object()) == "k:1"
    with pytest.raises(KeyValueError, match=r"function.*'trace'.*object"):
        key_of(plan_of(function, "k:{a}", ignore="request"), 1, object(), object())


def test_attributes_of_parameters() -> None:
    """`{user.id}` stands for the whole argument; its declared type decides how it is written; None has its own text."""

    @dataclass
    class Account:
        id: str | None

    async def function(user: Account | None) -> Any: ...

    plan = plan_of(function, "k:{user.id}")
    assert key_of(plan, Account("1")) == "k:1"
    assert key_of(plan, {"id": "1"}) == "k:1"
    assert len({key_of(plan, each) for each in (None, Account(None), Account("None"), Account(""))}) == 4
    with pytest.raises(KeyValueError, match=r"function.*'user\.id'.*has no 'id'"):
        key_of(plan, 1)


def test_placeholders_from_keyword_arguments() -> None:
    """A function with **kwargs takes any placeholder, and a call without it says which one is missing."""

    async def function(db: AsyncSession, **filters: Any) -> Any: ...

    plan = plan_of(function, "k:{email}")
    assert key_of(plan, email="a", name="b", redis=CLIENT) == "k:a?name=b"
    with pytest.raises(MissingKeyFieldError, match=r"'email'.*k:\{email\}"):
        key_of(plan, name="b")


def test_partial_needs_what_the_key_needs() -> None:
    """Session, Redis and ignored parameters may be left out; what the key is made of may not."""
    plan = plan_of(get_user, "user:{email}")
    with pytest.raises(TypeError, match=r"get_user.*'email'"):
        plan.locate(None, (), {}, partial=True)
    with pytest.raises(TypeError, match=r"get_user.*'db'"):
        plan.bind(None, (), {"email": "a"})
    with pytest.raises(TypeError, match="nonsense"):
        plan.locate(None, (), {"email": "a", "nonsense": 1}, partial=True)


def test_long_keys_are_fitted() -> None:
    """A key of any arguments has at most 512 bytes."""
    assert len(key_of(plan_of(get_user, "user:{email}"), email="é" * 400).encode()) <= 512


# --- methods ----------------------------------------------------------------------------------------------------------


async def test_methods_of_every_kind() -> None:
    """self and cls are never in the key, in whatever order the decorators stand; a static method has neither."""

    class Repo:
        tenant = "t1"

        @recorded("m:{self.tenant}:{a}")
        async def method(self, a: int) -> int:
            return a

        @recorded("u:{a}")
        async def unusual(this, a: int) -> int:  # noqa: N805
            return a

        @recorded("c:{cls.tenant}:{a}")
        @classmethod
        async def outer(cls, a: int) -> int:
            return a

        @classmethod
        @recorded("d:{a}")
        async def inner(cls, a: int) -> int:
            return a

        @recorded("s:{a}")
        @staticmethod
        async def static_outer(a: int, b: int = 0) -> int:
            return a

        @staticmethod
        @recorded("r:{b}")
        async def static_inner(a: int, b: int = 0) -> int:
            return a

    repo = Repo()
    for function in (repo.method, repo.unusual, repo.outer, Repo.outer, repo.inner, Repo.inner):
        assert await function(1) == 1
    assert await Repo.method(repo, 1) == 1
    for function in (repo.static_outer, Repo.static_outer, repo.static_inner, Repo.static_inner):
        assert await function(1, b=2) == 1
    assert keys == [
        *("m:t1:1", "u:1", "c:t1:1", "c:t1:1", "d:1", "d:1", "m:t1:1"),
        *("s:1?b=2", "s:1?b=2", "r:2?a=1", "r:2?a=1"),
    ]


async def test_stacked_decorators_see_the_function() -> None:
    """A plan made from a wrapper, of a function or of a class method, is the plan of what it wraps."""

    class Repo:
        @recorded("one:{a}")
        @recorded("two:{a}")
        @classmethod
        async def both(cls, a: int) -> int:
            return a

        @recorded("three:{a}")
        @recorded("four:{a}")
        async def method(self, a: int) -> int:
            return a

    assert (await Repo.both(1), await Repo().both(1), await Repo().method(1)) == (1, 1, 1)
    assert keys == ["one:1", "two:1", "one:1", "two:1", "three:1", "four:1"]
    assert plan_of(Repo().method, "five:{a}").function.endswith("Repo.method")


async def test_bound_methods_can_be_decorated() -> None:
    """A bound method has its instance already: it is neither asked for nor in the key."""

    class Repo:
        async def method(self, a: int) -> int:
            return a

    method = recorded("k:{a}")(Repo().method)
    assert await method(1) == 1
    assert keys == ["k:1"]


def test_a_first_parameter_named_cls_with_a_value_type_is_a_value() -> None:
    """`cls: str` is a school's class, and two classes are not one key."""

    async def students(cls: str, year: int = 1) -> Any: ...

    assert key_of(plan_of(students, "k"), "a") == "k?cls=a"


def test_a_signature_of_its_own_is_honoured() -> None:
    """`__signature__` says what a function takes, its annotations included."""

    async def function(*args: Any, **kwargs: Any) -> Any: ...

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(name, kind, annotation=note) for name, note in (("db", AsyncSession), ("code", "str"))
    ]
    function.__signature__ = inspect.Signature(parameters, return_annotation=Row)  # type: ignore[attr-defined]
    plan = plan_of(function, "k:{code}")
    assert key_of(plan, code="1") == "k:1"
    assert plan.return_type is Row
    assert plan.session_name == "db"


# --- Redis and session ------------------------------------------------------------------------------------------------


class Holder:
    def __init__(self, **found: Any) -> None:
        self.__dict__.update(found)

    async def method(self, a: int = 0, redis: Redis | None = None) -> Any: ...


@pytest.mark.parametrize(
    "annotation",
    [Redis, "Redis", "Redis | None", RedisCluster, "Annotated[Redis, 1]", "Unknown[Redis]", "Redis[bytes]"],
)
def test_redis_is_found_by_its_annotation(annotation: Any) -> None:
    """The client is found by class, in unions and Annotated, and in annotations that cannot be evaluated."""

    async def function(client, a: int = 0) -> Any: ...  # type: ignore[no-untyped-def]

    function.__annotations__["client"] = annotation
    plan = plan_of(function, "k")
    call = plan.bind(None, (CLIENT,), {})
    assert call.client is CLIENT
    assert call.key == "k"


@pytest.mark.parametrize(
    "annotation",
    [AsyncSession, "Db", Db, "Unknown | AsyncSession", S, async_scoped_session, "async_scoped_session[Any]"],
)
def test_the_session_is_found_by_its_annotation(annotation: Any) -> None:
    """Likewise the session, through aliases and type variables too."""

    async def function(s, a: int = 0) -> Any: ...  # type: ignore[no-untyped-def]

    function.__annotations__["s"] = annotation
    plan = plan_of(function, "k")
    call = plan.bind(None, (DB,), {})
    assert call.session is DB
    assert plan.session_name == "s"
    assert call.key == "k"


def test_names_count_where_annotations_do_not() -> None:
    """`redis`, `db` and `session` without a type mean what their names say; a str named `session` is a value."""

    async def unannotated(db, redis, a=0): ...  # type: ignore[no-untyped-def]

    async def session_id(session: str, redis: str) -> Any: ...

    async def both(db: AsyncSession, session: Any) -> Any: ...

    async def login(session: Row) -> Any: ...

    plan = plan_of(unannotated, "k")
    assert plan.locate(None, (DB, CLIENT), {}) == (CLIENT, DB, "k")
    plan = plan_of(session_id, "k")
    assert plan.locate(None, ("a", "b"), {}) == (MISSING, None, "k?redis=b&session=a")
    assert key_of(plan_of(both, "k"), DB, "a") == "k?session=a"
    assert key_of(plan_of(login, "k"), Row(id=1, code="a")) == "k?session=%o[id=1&code=a]"


@pytest.mark.parametrize("name", ["db", "session"])
@pytest.mark.parametrize("annotation", [inspect.Parameter.empty, Shopper])
def test_what_is_only_called_a_session_is_not_left_out(name: str, annotation: Any) -> None:
    """An object of a user's session, say, that has no canonical form: two of them would share a key."""

    async def cart(**arguments: Any) -> Any: ...

    keyword = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
    cart.__signature__ = inspect.Signature([keyword])  # type: ignore[attr-defined]
    plan = plan_of(cart, "k")
    with pytest.raises(KeyValueError, match=rf"cart: parameter '{name}' of type .*Shopper"):
        plan.locate(None, (), {name: Shopper()})
    for handle in (None, DB, AsyncMock(), create_async_engine("sqlite+aiosqlite://").connect()):
        assert key_of(plan, **{name: handle}) == "k"


def test_where_redis_comes_from() -> None:
    """The argument, None included; else `self.redis`, None included; else it is missing."""
    plan = plan_of(Holder.method, "k")
    other: Redis = Redis()
    holder = Holder(redis=other)
    assert plan.bind(holder, (), {"redis": CLIENT}).client is CLIENT
    assert plan.bind(holder, (), {"redis": None}).client is None
    assert plan.bind(holder, (), {}).client is other
    assert plan.bind(Holder(redis=None), (), {}).client is None
    assert plan.bind(Holder(), (), {}).client is MISSING
    assert plan.bind(Holder(redis="redis://"), (), {}).client is MISSING
    assert plan.redis_optional
    assert not plan_of(get_user).redis_optional


def test_where_the_session_comes_from() -> None:
    """The argument, else `self.db`, else `self.session`, if that is a session; else there is none."""
    plan = plan_of(Holder.method, "k")
    assert plan.bind(Holder(db=DB), (), {}).session is DB
    assert plan.bind(Holder(db="sqlite://", session=DB), (), {}).session is DB
    assert plan.bind(Holder(session=object()), (), {}).session is None
    plan = plan_of(get_user, "k")
    assert plan.bind(None, (DB, CLIENT, "a"), {}).session is DB


# --- prefixes and keys ------------------------------------------------------------------------------------------------


def test_prefixes_of_arguments_and_of_results() -> None:
    """Prefixes of arguments are known before the call, those of the result after it; the empty prefix adds nothing."""

    async def rename(db: AsyncSession, email: str) -> Row:
        raise AssertionError

    plan = plan_of(
        rename,
        prefixes=["user:*", "user:{email}:*", "id:{result.id}", "code:{email}:{result.code}:*", ""],
        keys=["one:{email}", "two:{result.code}"],
    )
    values = plan.bind(None, (DB, "a*"), {}).arguments
    before = plan.templates.before([values])
    assert before.prefixes[:3] == [Prefix("user:"), Prefix("user:a%2A:"), Prefix("user:a%2A%a", "*:*")]
    assert before.keys == ["one:a%2A"]
    after = plan.templates.after([values], Row(id=1, code="a"))
    assert after.prefixes[0] == Prefix("id:1", "", whole=True)
    assert Prefix("code:a%2A:a:") in after.prefixes
    assert after.keys == ["two:a"]


def test_several_calls_reach_what_each_of_them_reaches() -> None:
    """A prefix that several calls share is sent once."""

    async def write(a: Any, b: int) -> None: ...

    plan = plan_of(write, prefixes=["a:{a}", "b:{b}:*", "c:*"], keys=["one:{a}", "two:{b}"])
    calls = [plan.bind(None, each, {}).arguments for each in ((1, 5), ("1", 5), (2, 5), (2, 6))]
    for kind in (0, 1):
        each: list[Any] = [made for call in calls for made in plan.templates.before([call])[kind]]
        together = plan.templates.before(calls)[kind]
        assert set(together) == set(each)
        assert len(together) == len(set(together)) < len(each)


@pytest.mark.parametrize("result", [None, 1, [Row(id=1, code="a")], {"id": object(), "code": object()}])
def test_results_that_do_not_fit_invalidate_more(result: Any) -> None:
    """A result without the attribute cuts the prefix there, and makes one of a single key; it is never an error."""

    async def function(a: int) -> Any: ...

    plan = plan_of(function, prefixes=["id:{result.id}:x"], keys=["two:{result.code}"])
    assert plan.templates.after([{"a": 1}], result) == ([Prefix("id:"), Prefix("two:")], [])


# --- what is refused, and what is not ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["k:{mail}", "k:{db}", "k:{redis.x}", "k:{result.id}", "k:{mail.x}"])
def test_wrong_placeholders_are_refused(pattern: str) -> None:
    """At decoration, naming function and parameter, and what there is."""
    name = pattern[3:-1].partition(".")[0]
    with pytest.raises(PatternError, match=f"@cached on get_user.*'{name}'"):
        plan_of(get_user, pattern)
    if not name.startswith("result"):
        with pytest.raises(PatternError, match=f"get_user.*'{name}'"):
            plan_of(get_user, prefixes=[f"{pattern}:*"])


def test_other_mistakes_are_refused() -> None:
    """A sync function, a name in ignore that is none, an ignored placeholder, a bare self."""

    def sync() -> Any: ...

    async def generator() -> Any:
        yield 1

    for function, message in (
        (sync, "async def"),
        (generator, "async generator"),
        (functools.partial(sync), "async def"),
    ):
        with pytest.raises(OptionError, match=message):
            plan_of(function, "k")
    with pytest.raises(OptionError, match=r"get_user.*'nonsense'.*'email'"):
        plan_of(get_user, "k", ignore=["nonsense"])
    with pytest.raises(PatternError, match="'email' is ignored"):
        plan_of(get_user, "k:{email}", ignore=["email"])
    with pytest.raises(PatternError, match="'self'"):
        plan_of(Holder.method, "k:{self}")
    assert key_of(plan_of(get_user), DB, CLIENT, "a") == ""


def test_types_for_checkers_only_do_not_break_decoration() -> None:
    """A name that is imported under TYPE_CHECKING leaves its own parameter undeclared, and no other."""

    async def function(a: Unknown, b: str, c: list[Unknown]) -> Unknown:
        raise AssertionError

    plan = plan_of(function, "k:{a}:{b}")
    assert key_of(plan, "1", "1", []) == "k:1%as:1?c=%l[]"
    assert plan.return_type == "Unknown"


def test_local_types_are_found() -> None:
    """A model that is local to the function in which the decoration happens is found all the same."""

    class Local(BaseModel):
        id: int

    async def function(a: int) -> list[Local]:
        raise AssertionError

    assert plan_of(function, "k").return_type == list[Local]


def test_no_return_type_is_told_apart_from_none() -> None:
    """A function that declares nothing has MISSING; one that declares None has NoneType."""

    async def nothing(): ...  # type: ignore[no-untyped-def]

    async def none() -> None: ...

    assert plan_of(nothing).return_type is MISSING
    assert plan_of(none).return_type is type(None)


def test_generics_of_two_models_with_one_name_have_keys_of_their_own() -> None:
    """The name of such a class has its arguments without their modules."""

    class Filter(BaseModel, Generic[Chosen]):
        limit: int = 1

    billing, auth = (create_model("Row", __module__=module, number=(int, 1)) for module in ("billing", "auth"))

    async def rows(chosen: Any) -> None: ...

    keys = {
        key_of(plan_of(rows, "rows:{chosen}"), Filter[row]())  # type: ignore[valid-type]
        for row in (billing, auth, Optional[billing], Optional[auth])  # noqa: UP045
    }
    assert len(keys) == 4


async def of_sessions(*dbs: AsyncSession) -> int:
    """Take any number of sessions."""
    return 0


async def of_more_sessions(**dbs: AsyncSession | None) -> int:
    """Take any number of sessions, by names."""
    return 0


async def of_clients(*clients: Redis) -> int:
    """Take any number of clients."""
    return 0


@pytest.mark.parametrize(
    ("function", "parameter", "role"),
    [
        (of_sessions, r"\*dbs", "session"),
        (of_more_sessions, r"\*\*dbs", "session"),
        (of_clients, r"\*clients", "redis"),
    ],
)
def test_any_number_of_sessions_is_refused(function: Any, parameter: str, role: str) -> None:
    """Which of them counts for the key, no one could say."""
    said = f"@cached on {function.__name__}: parameter '{parameter}' takes any number of arguments, .* its {role}; "
    with pytest.raises(OptionError, match=said):
        CallPlan.of(function, pattern="x", decorator="cached")


def test_any_number_of_arguments_may_be_called_like_a_session() -> None:
    """A name alone makes no session of several values."""

    async def f(*db: Any, **session: Any) -> int:
        return 0

    assert CallPlan.of(f, pattern="x", decorator="cached").locate(None, (1,), {"a": 2})[2] == "x?a=2&db=%t[1]"
