"""Pages of a list: checked limits, and a page with the totals around it. Pure; knows no database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, computed_field

from fastrdb.errors import PageOutOfRange

T = TypeVar("T")
_LARGEST_OFFSET = 2**63 - 1  # what a database takes


class PaginatedResponse(BaseModel, Generic[T]):
    """One page of a list: its items, and where it stands among the `total` items there are."""

    model_config = ConfigDict(frozen=True)

    data: list[T]
    total: int
    page: int
    limit: int

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated properties
    @property
    def pages(self) -> int:
        """How many pages there are; none where there are no items."""
        return pages_of(self.total, self.limit)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def has_next(self) -> bool:
        """True if a page with items follows."""
        return self.page < self.pages

    @computed_field  # type: ignore[prop-decorator]
    @property
    def has_previous(self) -> bool:
        """True unless this is the first page."""
        return self.page > 1


def pages_of(total: int, limit: int) -> int:
    """How many pages of `limit` items `total` items make."""
    return -(-total // limit)


def check_page(limit: int, page: int) -> None:
    """Refuse what is not a page. Raises ValueError naming the argument."""
    for name, value in (("limit", limit), ("page", page)):
        if not _is_count(value) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if limit > _LARGEST_OFFSET or (page - 1) * limit > _LARGEST_OFFSET:
        raise ValueError(f"page={page!r} of limit={limit!r} is further than any database counts")


def paginate(data: Sequence[T], limit: int, page: int, total: int | None = None) -> PaginatedResponse[T]:
    """One page as a response.

    Args:
        data: without `total` the whole list, of which the page is taken; with it, that page already.
        limit: the most items on a page.
        page: its number, from 1.
        total: how many items there are in all.

    Raises:
        PageOutOfRange: there is no such page. The first one always is, even with nothing on it.
        ValueError: an argument that is not a count.
    """
    check_page(limit, page)
    if total is not None and (not _is_count(total) or total < 0):
        raise ValueError(f"total={total!r} must be an integer of at least 0")
    whole = len(data) if total is None else total
    pages = pages_of(whole, limit)
    if page > max(pages, 1):
        raise PageOutOfRange(page, pages, whole)
    items = data[(page - 1) * limit : page * limit] if total is None else data
    return PaginatedResponse(data=list(items), total=whole, page=page, limit=limit)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
