"""What `FastRDB` writes is what a session would write of the same values."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import JSON, PickleType, TypeDecorator, select, text
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from fastrdb import FastRDB
from tests.support.servers.databases import Database

UNTIL = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


class Settings(BaseModel):
    theme: str = "dark"
    until: datetime = UNTIL


class AsDecorator(TypeDecorator[Settings]):
    """The recipe for models in JSON columns."""

    impl = JSON
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: object) -> Any:
        return None if value is None else value.model_dump(mode="json")

    def process_result_value(self, value: Any, dialect: object) -> Any:
        return None if value is None else Settings.model_validate(value)


class AsText(UserDefinedType[Settings]):
    """A type of the application's own."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"

    def bind_processor(self, dialect: object) -> Any:
        return lambda value: value.model_dump_json()

    def result_processor(self, dialect: object, coltype: object) -> Any:
        return Settings.model_validate_json


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"

    id: Mapped[int] = mapped_column(primary_key=True)
    decorated: Mapped[Settings] = mapped_column(AsDecorator)
    defined: Mapped[Settings] = mapped_column(AsText)
    pickled: Mapped[Settings] = mapped_column(PickleType)
    plain: Mapped[Any] = mapped_column(JSON)
    mutable: Mapped[Any] = mapped_column(MutableDict.as_mutable(JSON))
    several: Mapped[Any] = mapped_column(JSON)


class AccountIn(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    decorated: Settings = Settings()
    defined: Settings = Settings()
    pickled: Settings = Settings()
    plain: Settings = Settings()
    mutable: Settings = Settings()
    several: dict[str, list[Settings]] = {"a": [Settings()]}


OWN = ["decorated", "defined", "pickled"]
JSON_TEXT = {"theme": "dark", "until": "2030-01-02T03:04:05Z"}


def crud() -> FastRDB[Account, AccountIn, Any, AccountIn]:
    """Return the class under test."""
    return FastRDB(Account, AccountIn, "account:{id}", "accounts:{page}:{limit}")


async def rows(sqlite: Database) -> list[Account]:
    """Return the rows as a new session has them."""
    async with sqlite.sessions() as db:
        return list((await db.scalars(select(Account).order_by(Account.id))).all())


@pytest.mark.parametrize("as_mapping", [False, True], ids=["model", "mapping"])
async def test_types_of_the_application_get_the_very_value(sqlite: Database, client: Redis, as_mapping: bool) -> None:
    """A type that takes a model gets the model and no dict, in every method that writes."""
    await sqlite.create(Base)
    users = crud()

    def values(number: int) -> Any:
        made = AccountIn(id=number)
        return dict(made) if as_mapping else made

    async with sqlite.sessions() as db:
        await users.create(db, client, values(1))
        await users.create_multi(db, client, [values(2), values(3)])
        await users.upsert(db, client, values(4))
        changed: dict[str, Any] = {name: Settings(theme="light") for name in OWN}
        answer = await users.update(db, client, changed, id=1)
        assert answer == AccountIn(id=1, **changed) == await users.get(db, client, id=1)
    for row in await rows(sqlite):
        theme = "light" if row.id == 1 else "dark"
        assert [getattr(row, name) for name in OWN] == [Settings(theme=theme)] * len(OWN)


@pytest.mark.parametrize("as_mapping", [False, True], ids=["model", "mapping"])
async def test_models_in_json_columns_are_plain_json(sqlite: Database, client: Redis, as_mapping: bool) -> None:
    """A model, also one inside of containers, is written as pydantic writes it, with its times."""
    await sqlite.create(Base)
    made = AccountIn(id=1)
    async with sqlite.sessions() as db:
        answer = await crud().create(db, client, dict(made) if as_mapping else made)
        assert answer == made
        found = await db.execute(text("SELECT plain, mutable, several FROM account"))
    texts = [json.loads(each) for each in found.one()]
    assert texts == [JSON_TEXT, JSON_TEXT, {"a": [JSON_TEXT]}]
    [row] = await rows(sqlite)
    assert (row.plain, dict(row.mutable), row.several) == (JSON_TEXT, JSON_TEXT, {"a": [JSON_TEXT]})
