"""The private attributes of SQLAlchemy that `fastrdb.inference` reads: a version that lacks one is noticed here."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from .models import Person


@pytest.fixture
def context() -> Any:
    """Return the context of an execution with an IN."""
    engine, found = sa.create_engine("sqlite://"), list[Any]()
    event.listen(engine, "before_cursor_execute", lambda *args: found.append(args[4]))
    with engine.connect() as db:
        db.execute(sa.select(sa.literal(1).in_([1, 2]))).all()
    engine.dispose()
    return found[-1]


def test_an_execution_says_how_an_in_was_expanded(context: Any) -> None:
    """The names stand for single values among the parameters."""
    ((names),) = context._expanded_parameters.values()
    assert [context.compiled_parameters[0][name] for name in names] == [1, 2]


def test_a_select_shows_its_parts() -> None:
    """The clauses, and the FROM clauses without those of the SELECTs around."""
    select = sa.select(Person).where(Person.id == 1)
    for name in ("_raw_columns", "_where_criteria", "_having_criteria", "_group_by_clauses", "_order_by_clauses"):
        assert isinstance(getattr(select, name), tuple | list), name
    for name in ("_distinct_on", "_limit_clause", "_offset_clause", "_fetch_clause", "_propagate_attrs"):
        assert hasattr(select, name), name
    state = select._compile_state_factory(select, select._default_compiler())
    assert list(state._get_display_froms((), ())) == [Person.__table__]
    assert list(state.statement._where_criteria)
    assert [*sa.inspect(Person).local_table._from_objects] == [Person.__table__]


def test_a_write_shows_its_values() -> None:
    """SET, the rows of VALUES, and what an upsert finds and changes."""
    table: Any = Person.__table__
    assert {getattr(key, "name", key) for key in sa.update(table).values(org_id=1)._values or {}} == {"org_id"}
    assert len(sa.insert(table).values([{"id": 1}, {"id": 2}])._multi_values[0]) == 2
    assert sa.insert(table).prefix_with("OR REPLACE")._prefixes
    for dialect in (sqlite, postgresql):
        upsert: Any = (
            dialect.insert(table).values(id=1).on_conflict_do_update(index_elements=["id"], set_={"org_id": 2})
        )
        clause = upsert._post_values_clause
        assert [getattr(each, "name", each) for each in clause.inferred_target_elements] == ["id"]
        assert [getattr(key, "name", key) for key in dict(clause.update_values_to_set)] == ["org_id"]
        nothing: Any = dialect.insert(table).on_conflict_do_nothing()
        assert type(nothing._post_values_clause).__name__ == "OnConflictDoNothing"


def test_a_dialect_says_what_a_backslash_means() -> None:
    """It asks a connection for `standard_conforming_strings`; this is its value before that."""
    assert isinstance(postgresql.dialect()._backslash_escapes, bool)  # type: ignore[no-untyped-call]
