"""A small model with its schema, and a loader that counts its calls, for tests of the decorators."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All mapped classes of these tests."""


class Row(Base):
    """Row in the database."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Item(BaseModel):
    """Result for a caller."""

    id: int
    name: str


class Frozen(BaseModel, frozen=True):
    """Result that many callers may share."""

    id: int


class Loader:
    """Stands for a database: `calls` says how often it was asked, `name` what it answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.name = "a"

    def item(self, number: int) -> Item:
        """Return the item as it is now."""
        self.calls += 1
        return Item(id=number, name=self.name)
