"""Pages of a list: checked limits, and a page with its totals. Pure, without a database."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, computed_field

from fastrdb.errors import PageOutOfRange

T = TypeVar("T")
_LARGEST_OFFSET = 2**63 - 1  # of any database


class PaginatedResponse(BaseModel, Generic[T]):
    """One page of a list: its items, and its place among the `total` items of the whole list."""

    model_config = ConfigDict(frozen=True)

    data: list[T]
    total: int
    page: int
    limit: int

    @computed_field  # type: ignore[prop-decorator]  # mypy lacks decorated properties
    @property
    def pages(self) -> int:
        """The number of pages; 0 without items."""
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
    """Return the number of pages of `limit` items that `total` items make."""
    return -(-total // limit)


def check_page(limit: int, page: int) -> None:
    """Raise ValueError, naming the argument, unless both are integers from 1 to the largest that a database takes."""
    for name, value in (("limit", limit), ("page", page)):
        if not _is_count(value) or value < 1:
            raise ValueError(f"{name}={value!r} must be an integer of at least 1")
    if limit > _LARGEST_OFFSET or (page - 1) * limit > _LARGEST_OFFSET:
        raise ValueError(f"page={page!r} of limit={limit!r} is past the largest number of a row")


def paginate(data: Sequence[T], limit: int, page: int, total: int | None = None) -> PaginatedResponse[T]:
    """Return one page as a response.

    Without `total`, more than `limit` items count as the whole list, of which the page is taken. At most `limit` items
    with a `page` after the first count as that page itself: `total` is then a lower bound, with a warning.

    Args:
        data: the whole list, or one page of it.
        limit: the most items on a page.
        page: the number of the page, from 1.
        total: the number of items on all pages; with it, `data` is one page.

    Raises:
        PageOutOfRange: the list ends before that page. The first page always exists, even if it is empty.
        ValueError: an argument that is not a count.
    """
    check_page(limit, page)
    if total is not None and (not _is_count(total) or total < 0):
        raise ValueError(f"total={total!r} must be an integer of at least 0")
    before = (page - 1) * limit
    if total is None and page > 1 and len(data) <= limit:
        total = before + len(data)
        warnings.warn(
            f"paginate() got {len(data)} items for page {page} and took them for that page, so the total is at least "
            f"{total}: give the true one as total=, or use get_page(), which counts",
            stacklevel=3,  # the caller of FastRDB.paginate
        )
        return PaginatedResponse(data=list(data), total=total, page=page, limit=limit)
    whole = len(data) if total is None else total
    pages = pages_of(whole, limit)
    if page > max(pages, 1):
        raise PageOutOfRange(page, pages, whole)
    items = data[before : before + limit] if total is None else data
    return PaginatedResponse(data=list(items), total=whole, page=page, limit=limit)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
