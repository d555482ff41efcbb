"""Pages: what is sliced, what is counted, what is refused."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fastrdb import FastRDB, PageOutOfRange, PaginatedResponse
from fastrdb.crud.pagination import check_page, paginate


class Item(BaseModel):
    number: int


@given(total=st.integers(0, 200), limit=st.integers(1, 30))
def test_pages_are_the_list(total: int, limit: int) -> None:
    """The pages one after the other are the list, each but the last is full, and the flags lead through them."""
    whole = list(range(total))
    collected: list[int] = []
    page = 1
    while True:
        found = paginate(whole, limit, page)
        assert (found.total, found.page, found.limit) == (total, page, limit)
        assert found.has_previous == (page > 1)
        assert len(found.data) == limit or not found.has_next
        collected += found.data
        if not found.has_next:
            break
        page += 1
    assert collected == whole
    assert found.pages == (page if total else 0)
    if total > limit:
        with pytest.raises(PageOutOfRange):
            paginate(whole, limit, page + 1)


def test_total_says_that_data_is_one_page() -> None:
    """With `total`, data is taken as that page and not sliced again."""
    found = paginate([11, 12], limit=10, page=2, total=12)
    assert (found.data, found.total, found.pages, found.has_next, found.has_previous) == ([11, 12], 12, 2, False, True)


def test_first_page_of_nothing() -> None:
    """The first page always is; the second of nothing is not."""
    assert paginate([], limit=10, page=1).data == []
    assert paginate([], limit=10, page=1, total=0).pages == 0
    with pytest.raises(PageOutOfRange, match="page 2 is past the end") as caught:
        paginate([], limit=10, page=2, total=0)
    assert (caught.value.page, caught.value.pages, caught.value.total) == (2, 0, 0)


def test_past_the_end_points_to_get_page() -> None:
    """A whole list that ends before the page is an error that names the way to the true total."""
    with pytest.raises(ValueError, match=r"page 3 is past the end.*get_page\(\)"):
        FastRDB.paginate(data=list(range(11)), limit=10, page=3)


@pytest.mark.parametrize("count", [10, 7, 0])
def test_at_most_limit_items_after_the_first_page_are_that_page(count: int) -> None:
    """So the tutorial uses it. The total is the least that is known, and a warning names the way to the true one."""
    data = list(range(count))
    with pytest.warns(UserWarning, match=r"at least \d+: .*total=.*get_page\(\)") as warned:
        found = FastRDB.paginate(data=data, limit=10, page=3)
    assert (found.data, found.total, found.page, found.has_next) == (data, 20 + count, 3, False)
    assert [each.filename for each in warned] == [__file__]


def test_a_first_page_needs_no_total() -> None:
    """At most `limit` items on page 1 are the whole list, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FastRDB.paginate(data=[1, 2], limit=10, page=1).total == 2
        assert FastRDB.paginate(data=[1, 2, 3], limit=2, page=2).data == [3]


@pytest.mark.parametrize("value", [0, -1, True, "1", 1.5, None])
def test_what_is_no_count(value: object) -> None:
    """Limits, pages and totals are integers; a text or True is none."""
    for name in ("limit", "page"):
        with pytest.raises(ValueError, match=f"{name}="):
            paginate([1], **{"limit": 10, "page": 1, name: value})  # type: ignore[arg-type]
    if value not in {0, None} or value is False:
        with pytest.raises(ValueError, match="total="):
            paginate([1], limit=10, page=1, total=value)  # type: ignore[arg-type]


def test_no_further_than_a_database_counts() -> None:
    """An offset that no database takes is refused before it is asked."""
    check_page(2**31, 2**31)
    for limit, page in ((2**64, 1), (2**40, 2**40)):
        with pytest.raises(ValueError, match="past the largest number of a row"):
            check_page(limit, page)


def test_as_a_response_model() -> None:
    """As FastAPI does: a page of anything is taken for a page of its schema, and is JSON with all its numbers."""
    page = paginate([Item(number=1), Item(number=2)], limit=2, page=1, total=3)
    typed = PaginatedResponse[Item].model_validate(page, from_attributes=True)
    assert typed.model_dump() == {
        "data": [{"number": 1}, {"number": 2}],
        "total": 3,
        "page": 1,
        "limit": 2,
        "pages": 2,
        "has_next": True,
        "has_previous": False,
    }
    assert PaginatedResponse[Item].model_validate_json(typed.model_dump_json()) == typed
    with pytest.raises(ValidationError):
        typed.total = 4
