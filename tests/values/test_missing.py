"""The error of a missing row comes back from the cache as it was raised, or is not stored."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from itertools import count
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from sqlalchemy.exc import NoResultFound

from fastrdb import Cache
from fastrdb.values import Codec, DecodeError, decode_missing, encode_missing, is_missing
from tests.support.world.samples import CODEC, SAMPLE


class UserNotFound(NoResultFound):
    """An application's own, which its handlers turn into a 404."""


class WithId(UserNotFound):
    """An error with an attribute, made by a constructor that cannot be called with the message."""

    def __init__(self, user_id: int) -> None:
        super().__init__(f"no user {user_id}")
        self.user_id = user_id


class Errors:
    """A class as a name space."""

    class Nested(NoResultFound):
        """An error in a class."""

        def __str__(self) -> str:
            return f"nothing under {self.args[0]} and {self.args[1]}"


class Slotted(NoResultFound):
    """An error with an attribute that `vars` does not have."""

    __slots__ = ("user_id",)


class AlsoOsError(NoResultFound, OSError):
    """An error with the layout of a class written in C."""


READS = count()


class Changing(NoResultFound):
    """An error with another text each time."""

    def __str__(self) -> str:
        return f"read {next(READS)} times"


def noted(error: Exception) -> Exception:
    """Return the error with a note."""
    error.add_note("asked for by a test")
    return error


def with_attribute(value: Any) -> Exception:
    """Return an error with an attribute."""
    error = UserNotFound("no user")
    error.row = value  # type: ignore[attr-defined]
    return error


KEPT: list[Callable[[], Exception]] = [
    lambda: NoResultFound("No row was found when one was required"),
    NoResultFound,
    lambda: NoResultFound("a", code="gkpj"),
    lambda: UserNotFound("no user 1"),
    lambda: UserNotFound("no user", 1, None, 1.5, True),
    lambda: WithId(1),
    lambda: Errors.Nested("a", 2),
    lambda: noted(UserNotFound("a")),
    lambda: with_attribute({"id": [1, "a", None]}),
]


@pytest.mark.parametrize("make", KEPT)
def test_an_error_comes_back_with_its_class_arguments_and_attributes(make: Callable[[], Exception]) -> None:
    """Handlers find their class, and what it says; no constructor runs."""
    error = make()
    raw = encode_missing(error, NoResultFound)
    assert raw is not None
    assert is_missing(raw)
    found = decode_missing(raw, NoResultFound)
    assert found is not None
    assert type(found) is type(error)
    assert (str(found), found.args, vars(found)) == (str(error), error.args, vars(error))


def local() -> Exception:
    """Return an error of a class that no other process can find."""

    class Local(NoResultFound):
        pass

    return Local("a")


LOST: list[Callable[[], Exception]] = [
    local,
    lambda: Slotted("a"),
    lambda: AlsoOsError(2, "a"),
    lambda: Changing("a"),
    lambda: UserNotFound(object()),
    lambda: UserNotFound((1, 2)),
    lambda: with_attribute((1, 2)),
    lambda: with_attribute({1: 2}),
    lambda: with_attribute(b"a"),
    lambda: with_attribute(UserNotFound("inner")),
]


@pytest.mark.parametrize("make", LOST)
def test_an_error_that_would_come_back_changed_has_no_entry(make: Callable[[], Exception]) -> None:
    """Local classes, slots, layouts of C, and what JSON changes: then each call runs the function."""
    assert encode_missing(make(), NoResultFound) is None


@given(st.text())
@settings(max_examples=50)
def test_negative_entries_hold_their_message(message: str) -> None:
    """A negative entry is JSON with the message in plain sight, and is a value of no type at all."""
    raw = encode_missing(NoResultFound(message), NoResultFound)
    assert raw is not None
    assert json.loads(raw) == {"error": "NoResultFound", "message": message}
    with pytest.raises(DecodeError):
        Codec(dict[str, str], owner="load").decode(raw)


PLAIN = b' {"error": "NoResultFound", "message": "a"}'


@pytest.mark.parametrize(
    "raw",
    [b"", b" ", b" {}", b" []", b' {"error":"NoResultFound","message":1}', b' {"error":"X","message":"a"}', b" \xff",
     b" " + b"[" * 100_000, PLAIN[1:], PLAIN[:-1], CODEC.encode(SAMPLE), b' {"error":1,"message":"a"}',
     b' {"error":"NoResultFound","message":"a","more":1}', b' {"error":"NoResultFound","message":"a","args":"a"}',
     b' {"error":"NoResultFound","message":"a","attributes":[]}', b' {"error":"builtins:OSError","message":"a"}',
     b' {"error":"builtins:eval","message":"a"}', b' {"error":"os:environ.HOME","message":"a"}'],
)  # fmt: skip
def test_other_bytes_are_no_negative_entry(raw: bytes) -> None:
    """Damaged entries, values, and names of anything but an error of a missing row give no error."""
    assert decode_missing(raw, NoResultFound) is None


def test_what_redis_names_is_neither_imported_nor_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is not loaded stays so, and a module's own __getattr__ is not asked."""
    asked: list[str] = []
    module = ModuleType("lazy_errors")
    module.__getattr__ = asked.append  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "lazy_errors", module)
    for name in ("lazy_errors:Missing", "wsgiref.handlers:BaseHandler", "antigravity:x"):
        assert decode_missing(b' {"error": "%s", "message": "a"}' % name.encode(), NoResultFound) is None
    assert not asked
    assert "antigravity" not in sys.modules


async def test_a_hit_raises_what_the_miss_has_raised(client: Redis) -> None:
    """The class of an application's own error survives; an error that cannot be given back is raised by each load."""
    reasons: list[str] = []
    cache = Cache(client, hook=lambda event: reasons.append(event.reason) if event.kind == "unstored" else None)
    errors: dict[str, Callable[[], Exception]] = {"kept": lambda: WithId(1), "lost": local}

    @cache.cached("negative:{name}", negative_exp=30)
    async def load(name: str) -> str:
        error = errors[name]()
        raise error

    for _ in range(2):
        with pytest.raises(WithId) as caught:
            await load("kept")
        assert caught.value.user_id == 1
        with pytest.raises(NoResultFound, match="a"):
            await load("lost")
    assert (load.stats.loads, load.stats.hits) == (3, 1)
    assert reasons == ["Local would not come back as it is"] * 2


@pytest.mark.parametrize("fail_safe", [0, 60])
async def test_a_hit_raises_the_error_without_its_cause(client: Redis, fail_safe: float) -> None:
    """Neither the cause that the miss has, nor how fastrdb has read the entry, is in the traceback of a hit."""

    @Cache(client).cached("caused:{user_id}", negative_exp=30, fail_safe=fail_safe)
    async def load(user_id: int) -> str:
        raise WithId(user_id) from KeyError("row")

    with pytest.raises(WithId) as miss:
        await load(1)
    with pytest.raises(WithId) as hit:
        await load(1)
    assert (load.stats.loads, load.stats.hits) == (1, 1)
    assert (type(miss.value.__cause__), hit.value.__cause__) == (KeyError, None)
    shown = "".join(traceback.format_exception(hit.value))
    assert "no user 1" in shown
    assert "DecodeError" not in shown
