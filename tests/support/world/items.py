"""A small model with its schema, and a loader that counts its calls, for tests of the decorators."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """All mapped classes of these tests."""


class Row(Base):
    """What the database holds."""

    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Item(BaseModel):
    """What a caller gets."""

    id: int
    name: str


class Frozen(BaseModel, frozen=True):
    """What many callers may share."""

    id: int


class Loader:
    """Stands for a database: `calls` says how often it was asked, `name` what it answers."""

    def __init__(self) -> None:
        self.calls = 0
        self.name = "a"

    def item(self, number: int) -> Item:
        """Give the item as it is now."""
        self.calls += 1
        return Item(id=number, name=self.name)
