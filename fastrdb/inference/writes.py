"""The rows that a compiled INSERT, UPDATE or DELETE changes, as far as the statement says. Pure.

An image holds for each column the values before and after the write. The values that are
inserted or set, and those that WHERE pins, are in the statement. The old values of other columns are unknown, unless
`look` has read the rows under a lock.

The private attributes of SQLAlchemy that are read here are pinned by a test.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import Alias, BindParameter, ColumnClause, Delete, Insert, Join, Table, Update
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import False_, TextClause
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.selectable import ReturnsRows

from fastrdb.keys import Image, value_text
from fastrdb.orm import exact_type

from .conditions import Conditions, Places, parts_of, texts_at
from .names import Names, OncePerForm
from .reads import ranks_of
from .text import OF_THE_MOMENT, Named, harmless, named_in, sent

_MYSQL: Final = ("mysql", "mariadb")
_SEVERAL_TARGETS: Final = re.compile(r"\s*DELETE\b.*\bUSING\b", re.IGNORECASE | re.DOTALL)  # read as one by sqlglot
_TRIGGERS_BY_ROW: Final = frozenset({"sqlite", *_MYSQL})
"""Databases whose triggers run for rows alone, so that a write of no row changes nothing."""
_WORD: Final = re.compile(r"\w+")
MOST_ROWS: Final = 64
"""Rows of one statement whose values are kept apart. A write of more rows reaches its whole table."""
Verb = Literal["insert", "upsert", "update", "delete", "any"]
Texts = frozenset[str]
_DML: Final = (Insert, Update, Delete)


@dataclass(slots=True)
class Change:
    """One execution of a statement that writes to one table.

    Attributes:
        kind, table: the kind of write, "any" where rows may be updated and deleted, and the name of the table.
        by_row: whether a row is changed depends on its own values only, so that `look` finds the rows.
        counted: the database counts the rows that the statement changes, before its result is read.
        empty: it has changed no row. Triggers may have.
        old: for each column that WHERE pins, the texts of its values before.
        new: for each column that is inserted or set, the texts of its values after; None where one is unknown.
        whole: any row may be changed, in any way.
        looked: for each column that `look` has read, the texts of the values before, of all rows.
        rows: the number of rows that `look` has locked, until `check` compares it with the statement's row count: then
            `looked` may be trusted.
        likely: columns by which entries are probably tagged: keys, and columns with an index.
    """

    kind: Verb
    table: str
    old: dict[str, Texts] = field(default_factory=dict)
    new: dict[str, Texts | None] = field(default_factory=dict)
    whole: bool = False
    looked: dict[str, Texts] = field(default_factory=dict)
    rows: int | None = None
    likely: frozenset[str] = frozenset()
    by_row: bool = False
    counted: bool = False
    empty: bool = False

    def take_keys(self, column: Any, values: Sequence[Any], dialect: str) -> None:
        """Add the primary keys that the database has generated for inserted rows."""
        kind = exact_type(column.type, dialect)
        if any(_is_changed(value, _replaced(column, dialect)) for value in values):
            return  # SQLAlchemy gives what was sent, and not what was stored
        texts = {value_text(value) for value in values if type(value) is kind}
        if texts and len(texts) == len(values) <= MOST_ROWS:
            self.new[column.name] = frozenset(text for text in texts if text is not None)

    def image(self) -> Image:
        """Return the image of the rows, with what is known of their values."""
        if self.whole:
            return Image(self.table)
        if self.kind in ("insert", "upsert"):
            return Image(self.table, dict(self.new))
        columns: dict[str, Texts | None] = {}
        looked = self.looked if self.rows is None else {}
        for column, before in {**self.old, **looked}.items():
            after = self.new.get(column, frozenset())
            columns[column] = None if after is None or not before else before | after
        return Image(self.table, columns)


@dataclass(frozen=True, slots=True)
class Writes:
    """The changes of one compiled statement, before its values are known.

    Attributes:
        table: the `Table` of the statement; None for one that only holds others that write.
        where: columns that WHERE pins, with the Python type of their values.
        sets: for each column that is inserted or set the names of its parameters, none for an expression.
        replaced: for columns of keys that are inserted, the values that the database replaces by others.
        others: the other tables that are written, such as in CTEs.
        by_row: whether a row is changed depends on its own values only.
        counted: the database counts the rows, and returns none.
        nothing: no row is written, and no trigger runs: WHERE is false, as in the UPDATE of no row by which `FastRDB`
            takes SQLite's write lock.
        functions: those that it may call, which may write more; None where these cannot be known.
    """

    kind: Verb
    table: Any
    name: str
    where: Mapping[str, tuple[Places, type]]
    sets: Mapping[str, tuple[tuple[str, ...], type | None]]
    whole: bool
    others: tuple[tuple[Verb, str], ...]
    likely: frozenset[str] = frozenset()
    by_row: bool = False
    counted: bool = False
    nothing: bool = False
    replaced: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    functions: frozenset[str] | None = frozenset()

    def of(self, parameter_sets: Sequence[Mapping[str, Any]], expanded: Mapping[str, Any]) -> list[Change]:
        """Return the changes of one execution with these parameters."""
        found = [Change(kind, name, whole=True) for kind, name in self.others]
        if self.table is not None:
            found.insert(0, self._own(parameter_sets, expanded))
        return found

    def _own(self, parameter_sets: Sequence[Mapping[str, Any]], expanded: Mapping[str, Any]) -> Change:
        if self.whole or len(parameter_sets) > MOST_ROWS:
            return Change(self.kind, self.name, whole=True)
        change = Change(self.kind, self.name, likely=self.likely, by_row=self.by_row)
        change.counted = self.counted and len(parameter_sets) == 1  # of several, a driver may count the last one
        for column, (places, kind) in self.where.items():
            texts = _union(texts_at(places, values, expanded, kind) for values in parameter_sets)
            if texts:
                change.old[column] = texts
        for column, (names, exact) in self.sets.items():
            replaced = self.replaced.get(column, ())
            change.new[column] = _union(_given(names, values, exact, replaced) for values in parameter_sets)
        return change


def changes_of_text(text: str, dialect: str, names: Names) -> tuple[list[Change] | None, Named]:
    """Return the changes of hand-written SQL, None if one cannot be known, and what the text names."""
    named = named_in(text, dialect)
    if not named.sure or not named.writes or (dialect in _MYSQL and _SEVERAL_TARGETS.match(text)):
        return None, named
    kind = _kind_of_text(text)
    return [Change(kind, names.plain(name), whole=True) for name in sorted(named.writes)], named


def _kind_of_text(text: str) -> Verb:
    first, words = text.upper().split()[0], set(_WORD.findall(text.upper()))
    if "REPLACE" in words or ";" in text.rstrip().removesuffix(";"):  # it deletes the rows that are in its way
        return "any"  # and of several statements, each may be of another kind
    if first == "INSERT":
        return "update" if "UPDATE" in words else "insert"
    return "update" if first == "UPDATE" else "delete" if first == "DELETE" else "any"


def statement_of(compiled: Any) -> Any:
    """Return the statement in its final form, as the database gets it."""
    statement = getattr(getattr(compiled, "compile_state", None), "statement", None)
    return compiled.statement if statement is None else statement


def _read(compiled: Any, names: Names) -> Writes:
    statement = statement_of(compiled)
    others: list[tuple[Verb, str]] = []
    main: Any = statement if isinstance(statement, _DML) and isinstance(statement.table, Table) else None
    # Private: iterates over what `with` holds, too, which `get_children` of an INSERT leaves out.
    inner = [statement, *getattr(statement, "_independent_ctes", ())] if statement is not None else []
    for element in (each for part in inner for each in visitors.iterate(part)):
        if isinstance(element, _DML) and element is not main:
            others.extend((_kind(element), names.of(table)) for table in _targets(element.table))
    found = sent(compiled)
    functions = None if found is None else found[1]
    if main is None:
        return Writes("update", None, "", {}, {}, False, tuple(dict.fromkeys(others)), functions=functions)
    is_empty = any(isinstance(part, False_) for part in parts_of(getattr(main, "_where_criteria", ())))
    if is_empty and not others and compiled.dialect.name in _TRIGGERS_BY_ROW:
        return Writes(_kind(main), None, "", {}, {}, False, (), nothing=True)
    conditions, sets = Conditions(compiled), dict[str, tuple[tuple[str, ...], type | None]]()
    where: dict[str, tuple[Places, type]] = {}
    whole = _is_whole(main)
    if isinstance(main, Insert):
        sets = _inserted(main, conditions)
    else:
        where = _pinned(main, conditions)
        sets = _set(main, compiled, conditions) if isinstance(main, Update) else {}
        verb: Verb = "update"
        others.extend((verb, names.of(table)) for table in _other_targets(main))
    besides: tuple[tuple[Verb, str], ...] = tuple(dict.fromkeys(others))
    by_row = not isinstance(main, Insert) and _is_by_row(main, conditions.dialect)
    counted = compiled.dialect.supports_sane_rowcount and not (isinstance(main, Insert) or compiled.effective_returning)
    likely = frozenset(ranks_of(main.table))
    replaced = {each.name: _replaced(each, conditions.dialect) for each in main.table.c if isinstance(main, Insert)}
    own = _kind(main), main.table, names.of(main.table)
    return Writes(*own, where, sets, whole, besides, likely, by_row, counted, replaced=replaced, functions=functions)


def _kind(statement: Any) -> Verb:
    if statement._prefixes:  # such as OR REPLACE
        return "any"
    if isinstance(statement, Insert):
        return "insert" if _keeps_rows(statement) else "upsert"
    return "update" if isinstance(statement, Update) else "delete"


def _targets(target: Any) -> list[Any]:
    """Return the tables of a target that may be an alias, or a join."""
    if isinstance(target, Join):
        return [*_targets(target.left), *_targets(target.right)]
    return [target.element if isinstance(target, Alias) else target]


def _is_whole(statement: Any) -> bool:
    """Return True for INSERT FROM SELECT, INSERT OR REPLACE and its like, and an upsert that may update any row."""
    if statement._prefixes or not isinstance(statement, Insert):
        return bool(statement._prefixes)
    conflict = _keeps_rows(statement) or bool(_conflict_columns(statement._post_values_clause))
    return statement.select is not None or not conflict


def _inserted(statement: Insert, conditions: Conditions) -> dict[str, tuple[tuple[str, ...], type | None]]:
    only = None if _keeps_rows(statement) else _conflict_columns(statement._post_values_clause)
    rows = sum(len(each) for each in statement._multi_values)
    given = _values_by_key(statement)
    found: dict[str, tuple[tuple[str, ...], type | None]] = {}
    for column in statement.table.c:
        if column.computed is not None:
            continue
        source = conditions.source(given, column)
        names = tuple(f"{column.key}_m{row}" for row in range(rows)) if rows else (source,) if source else ()
        known = names and (only is None or column.name in only)
        found[column.name] = (names, conditions.exact_type(column) if known else None)
    return found


def _keeps_rows(statement: Insert) -> bool:
    """Return True for an INSERT that changes no existing row: all but an upsert."""
    upsert: Any = statement._post_values_clause
    return upsert is None or type(upsert).__name__ == "OnConflictDoNothing"


def _conflict_columns(upsert: Any) -> frozenset[str]:
    """Return the columns in which an existing row that an upsert changes has the value to be inserted."""
    elements = getattr(upsert, "inferred_target_elements", None) or ()
    columns = {getattr(each, "name", each) for each in elements}
    changed = {getattr(key, "name", key) for key in dict(getattr(upsert, "update_values_to_set", None) or ())}
    return frozenset(column for column in columns - changed if isinstance(column, str))


def _set(statement: Update, compiled: Any, conditions: Conditions) -> dict[str, tuple[tuple[str, ...], type | None]]:
    given, keys = _values_by_key(statement), frozenset(compiled.column_keys or ())
    found: dict[str, tuple[tuple[str, ...], type | None]] = {}
    for column in statement.table.c:
        by_database = column.computed is not None or column.server_onupdate is not None
        if by_database or column.onupdate is not None or column.key in given or column.key in keys:
            source = None if by_database else conditions.source(given, column)
            found[column.name] = ((source,), conditions.exact_type(column)) if source else ((), None)
    return found


def _values_by_key(statement: Any) -> dict[str, Any]:
    """Return what a statement sets columns of its own table to: MySQL's UPDATE may set those of others as well."""
    own = hash(statement.table)
    given = (statement._values or {}).items()
    return {
        getattr(key, "key", key): value for key, value in given if hash(getattr(key, "table", statement.table)) == own
    }


def _other_targets(statement: Any) -> Iterator[Any]:
    """Yield the tables besides its own that MySQL's UPDATE of several tables sets columns of."""
    for key in getattr(statement, "_values", None) or ():
        table = getattr(key, "table", None)
        if isinstance(table, Table) and table is not statement.table:
            yield table


def _pinned(statement: Any, conditions: Conditions) -> dict[str, tuple[Places, type]]:
    pinned = conditions.pinned(parts_of(statement._where_criteria), {}, frozenset())
    columns = {column.name: column for column in statement.table.c}
    found = {}
    for spot, places in pinned.items():
        if spot.origin == hash(statement.table) and (kind := conditions.exact_type(columns[spot.column])) is not None:
            found[spot.column] = (places, kind)
    return found


def _is_by_row(statement: Update | Delete, dialect: str) -> bool:
    """Return True if WHERE names the row alone, and nothing that may change while the row is locked.

    The result of a subquery, or of a function such as random(), may change between a look and the statement. A look
    would also lock rows of the other table, which the statement does not.
    """
    if statement.kwargs or getattr(statement, "_post_criteria_clause", None) is not None:
        return False  # such as LIMIT, which leaves out rows that a look would lock
    pure = harmless(dialect) - OF_THE_MOMENT - {"DATE", "STRFTIME"}  # SQLite's may be asked for 'now'
    parts: Iterable[Any] = (each for clause in statement._where_criteria for each in visitors.iterate(clause))
    for element in parts:
        if isinstance(element, ColumnClause):
            if element.is_literal or hash(element.table) != hash(statement.table):
                return False
        elif isinstance(element, FunctionElement):
            if str(getattr(element, "name", "")).upper() not in pure or bool(element.packagenames):
                return False
        elif isinstance(element, ReturnsRows | TextClause) or hasattr(type(element), "_compiler_dispatcher"):
            return False  # a subquery, or SQL that a user's function compiles
        elif isinstance(element, BindParameter) and element.literal_execute:
            return False  # the statement is sent with the value, and its parameters lack it
    return True


def _replaced(column: Any, dialect: str) -> tuple[Any, ...]:
    """Return the values in whose place an INSERT into this column may make another, as AUTO_INCREMENT does."""
    if not column.primary_key and column.autoincrement is not True:
        return ()
    return (None, 0) if dialect in ("mysql", "mariadb") else (None,)


def _is_changed(value: Any, replaced: tuple[Any, ...]) -> bool:
    """Return True if the database may store another value: PostgreSQL cuts spaces behind the length of a VARCHAR."""
    return (type(value) is str and value.endswith(" ")) or (type(value) is not bool and value in replaced)


def _given(
    names: Iterable[str], values: Mapping[str, Any], kind: type | None, replaced: tuple[Any, ...]
) -> set[str] | None:
    if kind is None:
        return None
    found = set[str]()
    for name in names:
        value = values.get(name, names)
        is_known = (value is None or type(value) is kind) and not _is_changed(value, replaced)
        text = value_text(value) if is_known else None
        if text is None:
            return None
        found.add(text)
    return found


def _union(sets: Iterable[Collection[str] | None]) -> Texts | None:
    found = set[str]()
    for each in sets:
        if each is None:
            return None
        found.update(each)
    return frozenset(found) if len(found) <= MOST_ROWS else None


writes_of: Final[OncePerForm[Writes]] = OncePerForm(_read)
"""Returns the changes of a compiled statement, which is read once for each set of names."""
