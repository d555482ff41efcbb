"""The rows that a compiled SELECT depends on, as tags. Pure.

For each table in a FROM clause, the reader finds an equality that a row must satisfy to be part of any answer. The
answer depends on the rows with that value, now or later. Without such an equality it depends on every row of the table.
Each nested SELECT, each arm of a UNION and each CTE is read by itself: only rows that satisfy its own conditions can
matter, however its result is used. HAVING, GROUP BY, LIMIT and ORDER BY never narrow.

A statement is read once for each compiled form, into a `ReadRows`. Each execution fills in its values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import BindParameter, Column, ColumnClause, Table, TableClause, TextClause
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm.util import LoaderCriteriaOption
from sqlalchemy.sql import dml, elements, operators
from sqlalchemy.sql import selectable as sel
from sqlalchemy.sql.functions import FunctionElement

from fastrdb.keys import ANYTHING, END, row_tag, table_tag
from fastrdb.orm import unique_keys

from .conditions import MOST_VALUES, Conditions, Pinned, Place, Places, parts_of, texts_at
from .lexer import attributes
from .names import Names, OncePerForm
from .text import OF_THE_MOMENT, named_in, reads_nothing, sent

_TEXTS: Final = (TextClause, getattr(elements, "AbstractTextClause", TextClause))  # the second since SQLAlchemy 2.1
_WRAPPERS: Final = (sel.AliasedReturnsRows, sel.SelectStatementGrouping, sel.FromGrouping, elements.Grouping)


class Origins(NamedTuple):
    """The tables and functions that a statement names, for `Catalog.besides`."""

    tables: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()


class TagColumn(NamedTuple):
    """A column of a table, and its tags up to the value."""

    table: str
    name: str
    head: str


class Asked(NamedTuple):
    """Columns of one or more tables that are pinned to the same values: only rows with these matter.

    A join gives a value to several tables; the text of the value is made once.
    """

    places: Places
    kind: type
    columns: tuple[TagColumn, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReadRows:
    """The dependencies of one compiled statement, before its values are known.

    Attributes:
        tags: those that all executions have.
        asked: the pinned columns, with a tag for each value.
        origins: the names of all tables, of which the catalog says which are views; and the functions of the database
            that may read tables, in lower case.
        coarse: a sentence for each tag that is wider than one row or value.
    """

    tags: frozenset[str]
    asked: tuple[Asked, ...]
    origins: Origins
    coarse: tuple[str, ...]

    def of(self, values: Mapping[str, Any], expanded: Mapping[str, Any]) -> tuple[set[str], tuple[str, ...]]:
        """Return the tags of one execution, and a sentence about each wide one. See `texts_at` for the arguments."""
        found, coarse = set(self.tags), self.coarse
        for places, kind, columns in self.asked:
            texts = texts_at(places, values, expanded, kind)
            for table, name, head in columns:
                if texts is None:
                    found.add(table_tag(table))
                    coarse = (*coarse, _too_wide(table, name))
                else:
                    for text in texts:
                        found.add(f"{head}{text}{END}")
        return found, coarse


NOTHING_KNOWN: Final = ReadRows(frozenset({ANYTHING}), (), Origins(), ("anything: the statement is text",))

reads_of: Final = OncePerForm[ReadRows](lambda compiled, names: _Reader(compiled, names).result())
"""Returns the dependencies of a compiled statement, which is read once for each set of names."""


def reads_of_text(text: str, dialect: str, names: Names) -> ReadRows:
    """Return the dependencies of a whole statement of hand-written SQL."""
    named = named_in(text, dialect)
    if not named.sure or named.writes:
        return NOTHING_KNOWN
    tables = frozenset(names.plain(name) for name in named.reads)
    coarse = tuple(f"{table}: any row, because the statement is text" for table in sorted(tables))
    return ReadRows(frozenset(map(table_tag, tables)), (), Origins(tables, named.functions, named.attributes), coarse)


class _Around(NamedTuple):
    """The SELECTs around a nested one: the columns pinned there, all FROM clauses, and those of the nearest."""

    pinned: Pinned
    froms: frozenset[Any] = frozenset()
    nearest: frozenset[Any] = frozenset()


class _Leaf(NamedTuple):
    """A table in a FROM clause; `on` are the parts of ON clauses that one of its rows must satisfy to matter."""

    selectable: Any
    table: Any
    on: tuple[Any, ...]


@dataclass(slots=True)
class _Scope:
    """The parts of one SELECT's FROM clause. `nullable`: the origins whose rows an outer join may replace by NULLs."""

    leaves: list[_Leaf] = field(default_factory=list)
    nested: list[Any] = field(default_factory=list)
    nullable: set[int] = field(default_factory=set)
    ons: list[Any] = field(default_factory=list)


class _Reader:
    """One pass over a statement."""

    def __init__(self, compiled: Any, names: Names) -> None:
        self._compiled, self._names = compiled, names
        self._conditions = Conditions(compiled)
        self._tags = set[str]()
        self._asked: dict[tuple[Places, type], list[TagColumn]] = {}
        self._tables, self._functions, self._attributes = set[str](), frozenset[str](), frozenset[str]()
        self._coarse: dict[str, None] = {}
        self._seen = set[int]()  # the CTEs that were read
        self._has_nested_orm = False
        self._selects = 0

    def result(self) -> ReadRows:
        state = getattr(self._compiled, "compile_state", None)
        # The final form: with the joins of `joinedload` and of inheritance, which the user's own form lacks.
        statement = getattr(state, "statement", None)
        statement = self._compiled.statement if statement is None else statement
        if isinstance(statement, sel.TextualSelect) and not statement._independent_ctes:  # text(...).columns(...)
            statement = statement.element
        if isinstance(statement, TextClause):
            return reads_of_text(statement.text, self._conditions.dialect, self._names)
        self._read(statement, _Around({}))
        if self._has_nested_orm:
            self._read_criteria(getattr(state, "select_statement", None))
        self._compare()
        if ANYTHING in self._tags:
            self._tags, self._asked = {ANYTHING}, {}
        return ReadRows(
            frozenset(self._tags),
            tuple(Asked(*values, tuple(columns)) for values, columns in self._asked.items()),
            Origins(frozenset(self._tables), self._functions, self._attributes),
            tuple(self._coarse),
        )

    # --- what a statement is made of

    def _read(self, element: Any, around: _Around, *, as_from: bool = False) -> None:
        if isinstance(element, sel.CTE):
            if id(element) in self._seen:
                return
            self._seen.add(id(element))
            self._read(element.element, around._replace(pinned={}), as_from=True)
            self._expressions(_texts_around(element), around)
        elif isinstance(element, sel.CompoundSelect):
            for part in element.selects:
                self._read(part, around, as_from=as_from)
            self._expressions([*element._order_by_clauses, element._limit_clause, element._offset_clause], around)
        elif isinstance(element, sel.Select):
            self._select(element, around, as_from=as_from)
        elif isinstance(element, _WRAPPERS):
            self._read(element.element, around, as_from=as_from and not isinstance(element, sel.Lateral))
        elif isinstance(element, TableClause):
            self._whole(self._names.of(element), "no condition is known")
        elif isinstance(element, FunctionElement | sel.Values):
            self._expressions([element], around)
        elif not isinstance(element, dml.UpdateBase):  # a load that writes is not stored
            self._anything("a part of the statement is text, or of an unknown kind")

    def _select(self, select: Any, around: _Around, *, as_from: bool) -> None:
        self._selects += 1
        self._has_nested_orm |= "compile_state_plugin" in select._propagate_attrs
        statement, froms = _final(select, around, as_from=as_from)
        scope, where = _Scope(), parts_of(statement._where_criteria)
        for origin in froms:
            self._from(origin, False, (), scope)
        # What is around pins its own rows, and not those of a table that this SELECT names once more.
        hidden = {hash(leaf.selectable) for leaf in scope.leaves}
        outer = {spot: places for spot, places in around.pinned.items() if spot.origin not in hidden}
        nullable = frozenset(scope.nullable)
        for leaf in scope.leaves:
            self._leaf(leaf, self._conditions.pinned([*where, *leaf.on], outer, nullable))
        # A constant of this SELECT is one in each SELECT nested in its expressions.
        certain = [part for leaf in scope.leaves if hash(leaf.selectable) not in nullable for part in leaf.on]
        pinned = self._conditions.pinned([*where, *certain], outer, nullable)
        known = {spot: places for spot, places in pinned.items() if spot.origin not in nullable and _is_given(places)}
        own = frozenset(each for origin in froms for each in origin._from_objects)
        inside = _Around({**outer, **known}, around.froms | own, own)
        for element in scope.nested:
            self._read(element, inside._replace(pinned=outer), as_from=True)
        self._expressions(_expressions_of(statement, scope), inside)
        for hint in (*statement._hints.values(), *(hint for _, hint in statement._statement_hints)):
            self._fragment(hint)

    def _from(self, origin: Any, is_nullable: bool, on: tuple[Any, ...], scope: _Scope) -> None:
        if isinstance(origin, sel.Join):
            scope.ons.append(origin.onclause)
            own = tuple(parts_of([origin.onclause]))
            if origin.full:
                sides = ((True, ()), (True, ()))
            elif origin.isouter:
                sides = ((is_nullable, on), (True, (*on, *own)))
            else:
                sides = ((is_nullable, (*on, *own)), (is_nullable, (*on, *own)))
            for side, (may_be_null, conditions) in zip((origin.left, origin.right), sides, strict=True):
                self._from(side, may_be_null, conditions, scope)
            return
        if isinstance(origin, sel.FromGrouping):
            self._from(origin.element, is_nullable, on, scope)
            return
        table = origin.element if isinstance(origin, sel.Alias | sel.TableSample) else origin
        if not isinstance(table, TableClause):
            scope.nested.append(origin)
            return
        scope.leaves.append(_Leaf(origin, table, on))
        if is_nullable:
            scope.nullable.add(hash(origin))

    def _leaf(self, leaf: _Leaf, pinned: Pinned) -> None:
        """Add the tag of a table: by the most selective column that is pinned."""
        name, origin = self._names.of(leaf.table), hash(leaf.selectable)
        found = {spot.column: places for spot, places in pinned.items() if spot.origin == origin}
        if not found:
            why = "the join has no constant (joinedload): selectinload is exact" if leaf.on else "no value is asked for"
            self._whole(name, why)
            return
        self._tables.add(name)
        ranks = ranks_of(leaf.table)
        kinds = {each.name: self._conditions.exact_type(each) for each in leaf.table.c if each.name in found}

        def width(name: str) -> tuple[bool, bool, int, int, str]:
            places = found[name]  # most rows may be without a value, as where `deleted_at` is
            return kinds[name] is None, Place("null") in places, ranks.get(name, 3), len(places), name

        column = min(found, key=width)
        places, kind = found[column], kinds[column]
        head = row_tag(name, column, "")
        if kind is None or head is None or len(places) > MOST_VALUES:
            self._whole(name, f"values of {column} may be equal in the database and different here")
        else:
            self._asked.setdefault((places, kind), []).append(TagColumn(name, column, head.removesuffix(END)))

    # --- expressions

    def _expressions(self, parts: Iterable[Any], around: _Around) -> None:
        """Read the SELECTs and the functions in them."""
        stack = [part for part in parts if part is not None]
        while stack:
            element = stack.pop()
            if isinstance(element, _TEXTS):
                self._fragment(getattr(element, "text", None))
            elif isinstance(element, ColumnClause):
                self._fragment(element.name if element.is_literal else "")
            elif isinstance(element, sel.SelectBase | sel.AliasedReturnsRows):
                if not isinstance(getattr(element, "element", None), TableClause):
                    self._read(element, around)
            elif not isinstance(element, TableClause | BindParameter):
                if isinstance(operator := getattr(element, "operator", None), operators.custom_op):
                    self._fragment(operator.opstring)
                if isinstance(element, FunctionElement):
                    self._function(element)
                elif hasattr(type(element), "_compiler_dispatcher"):  # SQL made by a function of the user: @compiles
                    self._anything(f"{type(element).__name__} is compiled by a function of its own")
                stack += element.get_children()

    def _fragment(self, text: str | None) -> None:
        if text is None or not reads_nothing(text, self._conditions.dialect):
            self._anything("a part of the statement is text")

    def _function(self, function: FunctionElement[Any]) -> None:
        name = getattr(function, "name", None)
        if hasattr(type(function), "_compiler_dispatcher") or name is None:
            self._anything(f"{type(function).__name__} is compiled by a function of its own")
        elif name.upper() in OF_THE_MOMENT and not getattr(function, "packagenames", ()):
            self._coarse[f"{name}() changes without a write: only the ttl bounds its age"] = None

    def _compare(self) -> None:
        """Read the functions from the statement as it is sent; look for a SELECT that no element of it is."""
        found = sent(self._compiled)
        if found is None or sum(token[:2] == ("word", "select") for token in found[0]) > self._selects:
            self._anything("a part of the statement is text")
        else:
            self._functions, self._attributes = found[1], attributes(found[0])

    def _read_criteria(self, statement: Any) -> None:
        """Read `with_loader_criteria`, which SQLAlchemy adds to nested SELECTs only as it compiles them."""
        for option in getattr(statement, "_with_options", ()):
            if isinstance(option, LoaderCriteriaOption):
                criteria = None if option.deferred_where_criteria else option.where_criteria
                if criteria is None:
                    self._anything("with_loader_criteria has a function, and the statement a subquery")
                else:
                    self._expressions([criteria], _Around({}))

    # --- results

    def _whole(self, table: str, why: str) -> None:
        self._tables.add(table)
        self._tags.add(table_tag(table))
        self._coarse[f"{table}: any row, because {why}"] = None

    def _anything(self, why: str) -> None:
        self._tags.add(ANYTHING)
        self._coarse[f"anything: {why}"] = None


def _final(select: Any, around: _Around, *, as_from: bool) -> tuple[Any, Sequence[Any]]:
    """Return a SELECT as SQLAlchemy compiles it, and its own FROM clauses, without correlated ones."""
    state = select._compile_state_factory(select, select._default_compiler())
    explicit, implicit = around.froms, around.nearest
    if as_from:
        explicit, implicit = explicit - implicit, frozenset()
    try:
        return state.statement, state._get_display_froms(explicit, implicit)
    except InvalidRequestError:  # all of them are those of SELECTs around
        return state.statement, state._get_display_froms()


def _expressions_of(select: Any, scope: _Scope) -> list[Any]:
    return [
        *select._raw_columns,
        *select._where_criteria,
        *select._having_criteria,
        *select._group_by_clauses,
        *select._order_by_clauses,
        *(select._distinct_on or ()),
        *scope.ons,
        select._limit_clause,
        select._offset_clause,
        select._fetch_clause,
        *_texts_around(select),
    ]


def _texts_around(element: Any) -> list[Any]:
    """Return the prefixes and suffixes."""
    return [text for text, _ in (*element._prefixes, *element._suffixes)]


def _is_given(places: Places) -> bool:
    return Place("null") not in places


def ranks_of(table: Any) -> dict[str, int]:
    """Return the rank of each column, best first: primary key 0, unique 1, indexed 2. Others, left out, are 3."""
    if not isinstance(table, Table):
        return {}
    ranks = {column.name: 2 for column in table.c if column.foreign_keys}
    ranks |= {names[0]: 2 for index in table.indexes if (names := _names_in(index.expressions))}
    ranks |= {names[0]: 1 for key in unique_keys(table) if len(names := _names_in(key)) == 1}
    if len(table.primary_key.columns) == 1:
        ranks |= {column.name: 0 for column in table.primary_key.columns}
    return ranks


def unique_columns(table: Table) -> frozenset[str]:
    """Return the columns of the primary key, and of all other keys that are unique."""
    keys: list[list[Any]] = [[*table.primary_key.columns], *unique_keys(table)]
    return frozenset(name for key in keys for name in _names_in(key))


def _names_in(key: Sequence[Any]) -> list[str]:
    """Return the names of a key's columns; none for a key that has an expression."""
    return [each.name for each in key] if all(isinstance(each, Column) for each in key) else []


def _too_wide(table: str, column: str) -> str:
    return (
        f"{table}: any row, because of {column} there were more than {MOST_VALUES} values, "
        "or one of another type than the column's"
    )
