"""The equalities that a row must satisfy to matter to a statement. Pure.

A condition of WHERE or ON is taken apart into parts that all must hold. A part may pin a column to some values:
`c = value`, `c IN (values)`, `c IS NULL`, or an OR of such for one column. Other parts (ranges, negations, expressions)
pin nothing: the result is wider and never wrong. `a.x = b.y` gives the values of one column to the other.

The expression in a compiled statement holds the values of the first execution. So a value is kept as a `Place`, the
name of its parameter, and is taken from the parameters of each execution.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import BindParameter, Column
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, Grouping, Null

from fastrdb.keys import value_text
from fastrdb.orm import exact_type

MOST_VALUES: Final = 32
"""Values of one table in one statement. An entry with more would have as many members in Redis."""

_NULL: Final = value_text(None) or ""


class Place(NamedTuple):
    """The place of a value in the parameters of an execution: one value, those of an IN, or always NULL."""

    kind: Literal["one", "list", "null"]
    name: str = ""


class Spot(NamedTuple):
    """A column of one table as the table stands in one FROM clause: two aliases of a table have different ones."""

    origin: int
    column: str


Places = tuple[Place, ...]
Pinned = dict[Spot, Places]


def spot_of(column: Any) -> Spot | None:
    """Return the place of a column in its FROM clause; None for any other expression."""
    if not isinstance(column, Column) or column.table is None:
        return None
    return Spot(hash(column.table), column.name)  # a column with annotations, as of the ORM, has the hash of its own


def parts_of(clauses: Iterable[Any]) -> list[Any]:
    """Return the conditions that all must hold, those inside of an AND one by one."""
    found = []
    for clause in clauses:
        plain = _ungrouped(clause)
        if isinstance(plain, BooleanClauseList) and plain.operator is operators.and_:
            found += parts_of(plain.clauses)
        elif plain is not None:
            found.append(plain)
    return found


class Conditions:
    """The reader of the conditions of one compiled statement."""

    def __init__(self, compiled: Any) -> None:
        # By key: the compiler may have made a copy of a parameter.
        self._names: dict[str, str] = {each.key: name for each, name in compiled.bind_names.items()}
        self._made = {name for each, name in compiled.bind_names.items() if each._is_crud}
        self.dialect: str = compiled.dialect.name

    def pinned(self, parts: Sequence[Any], outer: Pinned, nullable: frozenset[int]) -> Pinned:
        """Return the columns that all of these parts together pin, and the places of their values.

        Args:
            outer: what the statement around pins: its rows are constants inside of a correlated subquery.
            nullable: the origins in whose place an outer join may put NULLs. IS NULL says nothing of their rows.
        """
        found: Pinned = {}
        for part in parts:
            _narrow(found, self._of_part(part, outer, nullable))
        links = [link for part in parts for link in self._links(part)]
        again = True
        while again:
            again = False
            for one, other in links:
                places = found.get(other) or outer.get(other)
                if one not in found and places and Place("null") not in places:
                    found[one], again = places, True
        return found

    def places(self, element: Any, outer: Pinned) -> Places:
        """Return the places of a value, or nothing if it is an expression."""
        plain = _ungrouped(element)
        if isinstance(plain, BindParameter):
            name = self._names.get(plain.key, plain.key)
            return (Place("list", name) if plain.expanding else Place("one", name),)
        spot = spot_of(plain)
        return outer.get(spot, ()) if spot is not None else ()

    def exact_type(self, column: Any) -> type | None:
        """Return the column's Python type; None if the database may take different values of it for equal."""
        return exact_type(column.type, self.dialect)

    def source(self, given: Mapping[str, Any], column: Any) -> str | None:
        """Return the name of the parameter with the column's value in INSERT or SET; None for an expression."""
        value = given.get(column.key)
        if value is None:  # a parameter with the column's key may be one of the user's, for another place
            return column.key if column.key in self._made else None
        if isinstance(value, BindParameter) and self._is_plain(value, column):
            return self._names.get(value.key)
        return None

    def _of_part(self, part: Any, outer: Pinned, nullable: frozenset[int]) -> Pinned:
        plain = _ungrouped(part)
        if isinstance(plain, BooleanClauseList):
            branches = [self._of_part(each, outer, nullable) for each in plain.clauses]
            if plain.operator is operators.and_:
                return _all_of(branches)
            return _one_of(branches) if plain.operator is operators.or_ else {}
        if not isinstance(plain, BinaryExpression):
            return {}
        if plain.operator is operators.eq:
            sides = ((plain.left, plain.right), (plain.right, plain.left))
            found = (self._of_equality(one, other, outer) for one, other in sides)
            return next((each for each in found if each), {})
        if plain.operator is operators.in_op:
            return self._of_equality(plain.left, plain.right, outer)
        spot = spot_of(plain.left)
        if plain.operator is operators.is_ and isinstance(plain.right, Null) and spot is not None:
            return {} if spot.origin in nullable else {spot: (Place("null"),)}
        return {}

    def _of_equality(self, column: Any, value: Any, outer: Pinned) -> Pinned:
        spot, plain = spot_of(column), _ungrouped(value)
        if spot is None or self.exact_type(column) is None:
            return {}
        if isinstance(plain, BindParameter) and not self._is_plain(plain, column):
            return {}
        places = self.places(value, outer)
        return {spot: places} if places and Place("null") not in places else {}

    def _is_plain(self, value: BindParameter[Any], column: Any) -> bool:
        """Return True if the value is sent as it is. A TypeDecorator may change it on the way."""
        return value.type._isnull or exact_type(value.type, self.dialect) is self.exact_type(column)

    def _links(self, part: Any) -> Iterator[tuple[Spot, Spot]]:
        """Yield two columns that must be equal, in both directions."""
        if not isinstance(part, BinaryExpression) or part.operator is not operators.eq:
            return
        one, other = spot_of(part.left), spot_of(part.right)
        if one is None or other is None:
            return
        exact = self.exact_type(part.left)
        if exact is not None and exact is self.exact_type(part.right):
            yield one, other
            yield other, one


def texts_at(
    places: Places, values: Mapping[str, Any], expanded: Mapping[str, Any], kind: type
) -> Collection[str] | None:
    """Return the texts of the values of one execution at these places; None if one cannot be known.

    Args:
        places: as `Conditions` found them.
        values: the parameters by their names.
        expanded: the names that stand for the single values of an IN.
        kind: the Python type of the column. A value of another type may be converted by the database.
    """
    if len(places) == 1:  # as in most statements, and mostly all values are of the column's type
        what, place = places[0]
        if what == "one":
            value = values.get(place, places)
            if type(value) is kind and (text := value_text(value)) is not None:
                return (text,)
        elif 0 < len(names := expanded.get(place, ())) <= MOST_VALUES:
            texts: list[str] = []  # `list[str]()`, or a comprehension, would take as long as two values
            for name in names:
                value = values.get(name)
                if type(value) is not kind or (text := value_text(value)) is None:
                    break
                texts.append(text)
            else:
                return texts
    return _texts_at_all(places, values, expanded, kind)


def _texts_at_all(
    places: Places, values: Mapping[str, Any], expanded: Mapping[str, Any], kind: type
) -> set[str] | None:
    found = set[str]()
    for what, place in places:
        if what == "null":
            found.add(_NULL)
            continue
        names = (place,) if what == "one" else expanded.get(place)
        if names is None or len(names) > MOST_VALUES:
            return None
        for name in names:
            value = values.get(name, places)
            if type(value) is kind and (text := value_text(value)) is not None:
                found.add(text)
            elif value is not None:  # `= NULL` holds for no row
                return None
    return found if len(found) <= MOST_VALUES else None


def _ungrouped(clause: Any) -> Any:
    while isinstance(clause, Grouping):
        clause = clause.element
    return clause


def _narrow(found: Pinned, offered: Pinned) -> None:
    """Add what is offered where it is narrower."""
    for spot, places in offered.items():
        if spot not in found or len(places) < len(found[spot]):
            found[spot] = places


def _all_of(branches: Sequence[Pinned]) -> Pinned:
    found: Pinned = {}
    for branch in branches:
        _narrow(found, branch)
    return found


def _one_of(branches: Sequence[Pinned]) -> Pinned:
    """Return the columns that every branch of an OR pins, with the values of all branches."""
    shared = set(branches[0]).intersection(*branches[1:]) if branches else set()
    return {spot: tuple(place for branch in branches for place in branch[spot]) for spot in shared}
