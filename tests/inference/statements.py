"""Random queries and writes on three tables of SQLite, with many joins, anti-joins, subqueries and set operations."""

from __future__ import annotations

from random import Random
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert as upsert

METADATA = sa.MetaData()
ORGS = sa.Table(
    "org",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("kind", sa.Integer),
    sa.Column("size", sa.Integer),
)
USERS = sa.Table(
    "user",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("email", sa.String, unique=True),
    sa.Column("org_id", sa.Integer, sa.ForeignKey("org.id"), index=True),
    sa.Column("age", sa.Integer),
)
POSTS = sa.Table(
    "post",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("user_id", sa.Integer, sa.ForeignKey("user.id"), index=True),
    sa.Column("state", sa.Integer),
    sa.Column("likes", sa.Integer),
)
TABLES = [ORGS, USERS, POSTS]


class Statements:
    """A source of random statements."""

    def __init__(self, random: Random) -> None:
        self.random = random

    def value(self, column: Any) -> Any:
        """Return a value of the column, out of few, so that rows and conditions often meet."""
        if column.name == "email":
            return f"e{self.random.randrange(6)}"
        if self.random.random() < 0.08 and column.nullable:
            return None
        return self.random.randrange(6)

    def row(self, table: sa.Table) -> dict[str, Any]:
        """Return a row of the table."""
        return {column.name: self.value(column) for column in table.c}

    def query(self, *, nested: bool = False) -> Any:
        """Return a SELECT, or several with UNION and its like."""
        shape = self.random.random()
        if not nested and shape < 0.12:
            return self._compound()
        if not nested and shape < 0.20:
            return self._over_a_part()
        return self._plain()

    def write(self) -> tuple[sa.Table, Any, dict[str, Any] | None]:
        """Return a table, a statement that writes to it, and its parameters."""
        table = self.random.choice(TABLES)
        columns = [column for column in table.c if column.name != "id"]
        roll = self.random.random()
        if roll < 0.25:
            statement = sa.insert(table)
            some = [column for column in table.c if self.random.random() < 0.9 or column.name == "id"]
            made = statement.prefix_with("OR REPLACE") if self.random.random() < 0.15 else statement
            return table, made, {column.name: self.value(column) for column in some}
        if roll < 0.32:
            changed = self.random.choice(columns)
            conflict = upsert(table).values(self.row(table))
            return table, conflict.on_conflict_do_update(["id"], set_={changed.name: self.value(changed)}), None
        if roll < 0.60:
            return table, *self._flush(table, columns)
        if roll < 0.78:
            changed = self.random.choice(columns)
            plain = changed.name == "email" or self.random.random() < 0.7
            new = self.value(changed) if plain else changed + 1
            return table, sa.update(table).where(self.condition(list(table.c))).values({changed: new}), None
        where = table.c.id == self.random.randrange(6) if roll < 0.86 else self.condition(list(table.c))
        return table, sa.delete(table).where(where), None

    def _flush(self, table: sa.Table, columns: list[Any]) -> tuple[Any, dict[str, Any]]:
        """Return an UPDATE as the ORM's flush makes it."""
        changed = self.random.sample(columns, self.random.randrange(1, 3))
        statement = sa.update(table).where(table.c.id == sa.bindparam("b_id"))
        values = {"b_id": self.random.randrange(6), **{column.key: self.value(column) for column in changed}}
        return statement.values({column: sa.bindparam(column.key) for column in changed}), values

    # --- conditions

    def condition(self, columns: list[Any], depth: int = 0) -> Any:
        """Return a condition on one or several of these columns."""
        column, roll = self.random.choice(columns), self.random.random()
        if roll < 0.40:
            return column == self.value(column)
        if roll < 0.50:
            return column.in_([self.value(column) for _ in range(self.random.randrange(4))])
        if roll < 0.56:
            return column.is_(None)
        if roll < 0.70:
            return self._wide(column, roll)
        if depth > 1:
            return column == self.value(column)
        if roll < 0.93:
            return self._combined(columns, depth, roll)
        return self._subquery(columns)

    def _wide(self, column: Any, roll: float) -> Any:
        if roll < 0.62:
            return column > (self.value(column) or 2)
        return column != self.value(column) if roll < 0.66 else sa.func.coalesce(column, 3) == 3

    def _combined(self, columns: list[Any], depth: int, roll: float) -> Any:
        parts = [self.condition(columns, depth + 1), self.condition(columns, depth + 1)]
        if roll < 0.80:
            return sa.or_(*parts)
        return sa.not_(parts[0]) if roll < 0.86 else sa.and_(*parts)

    def _subquery(self, columns: list[Any]) -> Any:
        table = self.random.choice(TABLES).alias()
        inner = sa.select(table.c.id).where(self.condition(list(table.c), 2))
        outer, roll = self.random.choice(columns), self.random.random()
        if roll < 0.5:
            return outer.in_(inner) if roll < 0.3 else outer.not_in(inner)
        linked = inner.where(self.random.choice(list(table.c)) == outer)
        found = sa.exists(linked.correlate(outer.table) if self.random.random() < 0.5 else linked)
        return found if roll < 0.8 else ~found

    # --- queries

    def _compound(self) -> Any:
        parts = [self.query(nested=True), self.query(nested=True)]
        width = min(len(part.selected_columns) for part in parts)
        cut = [
            part.with_only_columns(*list(part.selected_columns)[:width], maintain_column_froms=True) for part in parts
        ]
        return self.random.choice([sa.union, sa.union_all, sa.except_, sa.intersect])(*cut)

    def _over_a_part(self) -> Any:
        inner = self.query(nested=True)
        part = inner.cte() if self.random.random() < 0.5 else inner.subquery()
        table = self.random.choice(TABLES)
        other: Any = table.alias() if self.random.random() < 0.5 else table
        on = self.random.choice(list(other.c)) == self.random.choice(list(part.c))
        made = sa.select(part, other.c.id.label("outer_id"))
        made = made.join_from(part, other, on, isouter=self.random.random() < 0.4)
        return made.where(self.condition(list(other.c))) if self.random.random() < 0.6 else made

    def _plain(self) -> Any:
        table = self.random.choice(TABLES)
        first: Any = table.alias() if self.random.random() < 0.3 else table
        joined, columns, wanted = self._joined(first)
        made = sa.select(*[column.label(f"c{at}") for at, column in enumerate(columns)]).select_from(joined)
        if self.random.random() < 0.15:
            most = sa.func.max(self.random.choice(columns)).label("m")
            made = sa.select(sa.func.count().label("n"), most).select_from(joined)
        elif self.random.random() < 0.1 and table is not POSTS:
            scalar = sa.select(sa.func.count()).select_from(POSTS).where(POSTS.c.user_id == self.random.choice(columns))
            made = made.add_columns(scalar.where(self.condition(list(POSTS.c), 2)).scalar_subquery().label("s"))
        made = made.where(*wanted)
        for _ in range(self.random.choice([0, 1, 1, 2])):
            made = made.where(self.condition(columns))
        if self.random.random() < 0.2:
            ordered = made.order_by(*made.selected_columns)
            made = ordered.limit(self.random.randrange(1, 4)).offset(self.random.randrange(3))
        return made

    def _joined(self, first: Any) -> tuple[Any, list[Any], list[Any]]:
        """Return joined tables, their columns, and the conditions of anti-joins."""
        joined, columns, wanted = first, list(first.c), list[Any]()
        for _ in range(self.random.choice([0, 0, 0, 1, 1, 2])):
            table: Any = self.random.choice(TABLES).alias()
            on = self.random.choice(columns) == self.random.choice(list(table.c))
            if self.random.random() < 0.45:
                among = columns if self.random.random() < 0.5 else [*columns, *table.c]
                on = sa.and_(on, self.condition(among, 2))
            kind = self.random.random()
            if kind < 0.4 and self.random.random() < 0.5:
                missing = table.c.id if self.random.random() < 0.5 else self.random.choice(list(table.c))
                wanted.append(missing.is_(None))
            nested = kind > 0.6 and columns[-1].table is not first and self.random.random() < 0.5
            joined = (
                joined.join(table, on, isouter=kind < 0.4, full=kind > 0.9) if not nested else joined.join(table, on)
            )
            columns += list(table.c)
        return joined, columns, wanted
