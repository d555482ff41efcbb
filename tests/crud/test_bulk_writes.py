"""What many rows invalidate in one go: what each of them would."""

from __future__ import annotations

import enum
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import Enum, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import FastRDB
from fastrdb.keys import fingerprint
from fastrdb.keys.encoding import undeclared
from tests.support.servers.databases import Database


class Secret(str):
    """Value whose text hides its content."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "***"


class Kind(enum.Enum):
    """Kind of a row, whose text hides its content too."""

    NEW = "new"
    OLD = "old"

    def __repr__(self) -> str:
        return "a kind"


class SecretType(TypeDecorator[str]):
    impl = String
    cache_ok = True

    def process_result_value(self, value: Any, dialect: object) -> Secret | None:
        return None if value is None else Secret(value)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(SecretType(50))
    kind: Mapped[Kind] = mapped_column(Enum(Kind))
    balance: Mapped[int] = mapped_column(default=0)


class AccountOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    token: str
    kind: Kind
    balance: int


class Balance(BaseModel):
    balance: int


@pytest.mark.parametrize("pattern", ["account:{token}", "account:{kind}"])
async def test_rows_whose_values_print_alike(sqlite: Database, client: Redis, pattern: str) -> None:
    """Each goes, not only the last that looks like it."""
    await sqlite.create(Base)
    crud = FastRDB[Account, AccountOut, Balance, AccountOut](
        Account, AccountOut, pattern=pattern, list_pattern="accounts:{page}:{limit}"
    )
    several = [AccountOut(id=n, token=f"t{n}", kind=kind, balance=0) for n, kind in enumerate(Kind)]
    async with sqlite.sessions() as db:
        await crud.create_multi(db=db, redis=client, instances=several)

    async def balances() -> list[int]:
        fields = [{"id": each.id, "token": each.token, "kind": each.kind} for each in several]
        asked = [{name: value for name, value in each.items() if f"{{{name}}}" in pattern} for each in fields]
        async with sqlite.sessions() as db:
            return [(await crud.get(db=db, redis=client, **each)).balance for each in asked]

    assert await balances() == [0, 0]
    async with sqlite.sessions() as db:
        await crud.update_multi(db=db, redis=client, obj_in=Balance(balance=7), balance=0)
    assert await balances() == [7, 7]


VALUES = st.one_of(
    *(
        st.sampled_from(each)
        for each in (list(Kind), [Secret("a"), Secret("b")], [1, True, 1.0, "1", b"1", Decimal(1)])
    ),
    st.sampled_from([None, "None", (1, "a"), (True, "a"), Decimal("1.0"), -0.0, 0.0, [1], [2]]),
    st.timedeltas(timedelta(0), timedelta(1)).map(lambda each: datetime(2026, 1, 1, tzinfo=UTC) + each),
)


@given(st.lists(VALUES, min_size=1, max_size=2), st.lists(VALUES, min_size=1, max_size=2))
def test_what_is_marked_alike_is_written_alike(one: list[Any], other: list[Any]) -> None:
    """Else one of them would be taken for said when the other is."""
    if fingerprint(one) == fingerprint(other):
        assert [undeclared(each) for each in one] == [undeclared(each) for each in other]


def test_plain_values_are_known_again() -> None:
    """Else each row would be said by itself, and a bulk write would be slow."""
    for plain in ("a", 1, True, None, 1.5, Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), Kind.NEW, ("count", "t")):
        assert fingerprint([plain, 1]) == fingerprint([plain, 1])
    assert fingerprint([Secret("a")]) != fingerprint([Secret("a")])
