"""Mapped classes with most of what makes a statement hard to read: inheritance, many-to-many, cascades."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


TAGGING = sa.Table(
    "tagging",
    Base.metadata,
    sa.Column("post_id", sa.ForeignKey("post.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("label_id", sa.ForeignKey("label.id", ondelete="CASCADE"), primary_key=True),
)


class Org(Base):
    __tablename__ = "org"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    people: Mapped[list[Person]] = relationship(back_populates="org", passive_deletes=True)


class Person(Base):
    __tablename__ = "person"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="person")
    email: Mapped[str] = mapped_column(unique=True)
    org_id: Mapped[int | None] = mapped_column(sa.ForeignKey("org.id", ondelete="CASCADE"), index=True)
    score: Mapped[float] = mapped_column(default=0.0)
    born: Mapped[dt.date | None]
    org: Mapped[Org | None] = relationship(back_populates="people")
    posts: Mapped[list[Post]] = relationship(back_populates="author", passive_deletes=True)
    __mapper_args__: dict[str, Any] = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012


class Admin(Person):
    __tablename__ = "admin"
    id: Mapped[int] = mapped_column(sa.ForeignKey("person.id", ondelete="CASCADE"), primary_key=True)
    level: Mapped[int] = mapped_column(default=1)
    __mapper_args__: dict[str, Any] = {"polymorphic_identity": "admin"}  # noqa: RUF012


class Post(Base):
    __tablename__ = "post"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int | None] = mapped_column(sa.ForeignKey("person.id", ondelete="SET NULL"))
    author: Mapped[Person | None] = relationship(back_populates="posts")
    labels: Mapped[list[Label]] = relationship(secondary=TAGGING, passive_deletes=True)


class Label(Base):
    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
