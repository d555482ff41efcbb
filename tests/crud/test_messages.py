"""Messages of `FastRDB`: what cannot be is refused where the class is made, and a missing row is named."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, model_validator
from redis.asyncio import Redis
from sqlalchemy import ForeignKey
from sqlalchemy.exc import NoResultFound
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from fastrdb import Cache, FastRDB, OptionError
from tests.support.servers.databases import Database


class Base(DeclarativeBase):
    """The mapped classes of these tests."""


class Author(Base):
    """A row that others refer to."""

    __tablename__ = "message_authors"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class Post(Base):
    """A row with a relationship."""

    __tablename__ = "message_posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("message_authors.id"))
    author: Mapped[Author] = relationship()


class AuthorOut(BaseModel, from_attributes=True):
    """An answer."""

    id: int
    email: str


class PostOut(BaseModel, from_attributes=True):
    """An answer with the row that it refers to."""

    id: int
    author: AuthorOut


class Nicked(AuthorOut):
    """An answer with a field that no row has."""

    nick: str


class Optional(AuthorOut):
    """The same with a default."""

    nick: str = ""


class Computed(Nicked):
    """An answer that makes the field itself."""

    @model_validator(mode="before")
    @classmethod
    def make(cls, row: Any) -> Any:
        """Return the fields of a row."""
        return {"id": row.id, "email": row.email, "nick": row.email}


def crud(model: Any, schema: Any, **settings: Any) -> Any:
    """Return the CRUD of a model."""
    return FastRDB[Any, Any, Any, Any](model, schema, "thing:{id}", "things:{page}", cache=Cache(), **settings)


def test_relationship_needs_an_option() -> None:
    """Without one, the first answer would be an error of SQLAlchemy about greenlets."""
    with pytest.raises(OptionError) as caught:
        crud(Post, PostOut)
    assert str(caught.value) == "PostOut.author is a relationship of Post: options=[selectinload(Post.author)]"
    assert crud(Post, PostOut, options=[selectinload(Post.author)])


def test_field_that_no_row_has_is_refused() -> None:
    """Unless it has a default, or the schema makes the field itself."""
    with pytest.raises(OptionError) as caught:
        crud(Author, Nicked)
    assert str(caught.value) == "Nicked.nick: Author has no attribute 'nick'; its columns: id, email"
    assert crud(Author, Optional)
    assert crud(Author, Computed)


GIVEN: dict[str, dict[str, Any]] = {"get": {"id": 1}, "create": {"obj_in": {"id": 1}}, "count": {}, "get_page": {}}


@pytest.mark.parametrize("method", GIVEN)
async def test_engine_in_place_of_a_session_is_refused(sqlite: Database, method: str) -> None:
    """The error names the parameter, and not an attribute of a session that the engine lacks."""
    call = getattr(crud(Author, AuthorOut), method)
    with pytest.raises(OptionError) as caught:
        await call(sqlite.engine, None, **GIVEN[method])
    assert str(caught.value) == "FastRDB: parameter 'db' must be an AsyncSession, not AsyncEngine"


@pytest.mark.parametrize("negative_exp", [None, 60])
async def test_missing_row_is_named(client: Redis, sqlite: Database, negative_exp: int | None) -> None:
    """The error has model and filters, from the database as from a stored answer."""
    await sqlite.create(Base)
    authors = crud(Author, AuthorOut, negative_exp=negative_exp)
    async with sqlite.sessions() as db:
        for _ in range(2):
            with pytest.raises(NoResultFound, match=r"^no Author with id=7$") as caught:
                await authors.get(db, client, id=7)
            assert vars(caught.value) | {"model": "Author", "filters": {"id": 7}} == vars(caught.value)
        with pytest.raises(NoResultFound, match=r"^no Author with email='a@x'$"):
            await authors.delete(db, client, email="a@x")
