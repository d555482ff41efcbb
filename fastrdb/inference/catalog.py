"""The catalog of a database, asked once for each table and function of an engine.

A statement does not show that a name is a view, that a table has triggers, or that a function reads tables. Without
these facts, automatic invalidation would miss entries silently. An unknown fact counts as "any table".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import ProgrammingError, SQLAlchemyError

from fastrdb.keys import ANYTHING, table_tag

from .bodies import NO_FUNCTION, UNKNOWN_FUNCTION, Function, Tables, facts_in
from .facts import UNKNOWN_TABLE, Facts, Source, joined, links_of
from .names import SEARCHES, Names, SchemaMap, names_in
from .postgresql import PostgreSQL
from .reads import Origins
from .sources import MySQL, SQLite
from .text import SYNTAX

T = TypeVar("T")
# In `Connection.info`: a statement of fastrdb's own is running; the catalog of a transaction that changes tables.
_ASKING, _OWN, _PENDING = "fastrdb.asking", "fastrdb.catalog", "fastrdb.pending"
_LOCALLY = "locally"  # the value of SEARCHES, if what was chosen ends with the transaction
_SHARED = "fastrdb.shared"  # the catalog of the engine: a lookup here takes half the time of one by the dialect
ROLE: Final = "fastrdb.role"  # in `Connection.info`: a statement has chosen a role, which may lack rights of the login
OWN_STATEMENTS: Final = "fastrdb_own_statements"  # the option of an engine that sends none but fastrdb's own
_SOURCES: Final[Mapping[str, type[Source]]] = {
    "postgresql": PostgreSQL,
    "mysql": MySQL,
    "mariadb": MySQL,
    "sqlite": SQLite,
}
# Anywhere in a statement: behind a comment or another statement, or in a block of PL/pgSQL. EXECUTE may run any.
_DDL: Final = re.compile(
    r"\b(?:CREATE(?!\s+(?:LOCAL\s+|GLOBAL\s+)?TEMP(?:ORARY)?\s+TABLE)|ALTER|DROP|RENAME|ATTACH|DETACH|IMPORT|EXECUTE)\b",
    re.IGNORECASE,
)


class Catalog:
    """A cache of the facts that were read from the catalog of one engine."""

    def __init__(self, dialect: Dialect) -> None:
        source = _SOURCES.get(dialect.name)
        self._source = source(self) if source is not None else None
        self._names = names_in(dialect) if source is None else None
        self.forgotten = False  # `catalog_of` no longer returns this object
        self.failures = 0  # questions without an answer: what was asked meanwhile is asked again
        self._besides: dict[Origins, tuple[frozenset[str], tuple[str, ...]]] = {}
        self._facts: dict[str, Facts] = {}
        self._functions: dict[str, Function] = {}
        self._tables: Mapping[str, list[tuple[str | None, str]]] = {}

    def names(self, connection: Connection, translated: SchemaMap | None = None) -> Names | None:
        """Return the rules for names, which hold on all connections of the engine; None where these cannot be known."""
        if self._names is None and self._source is not None:
            self._names = self._ask(connection, None, partial(self._source.names, connection))
        return self._names if not translated or self._names is None else self._names._replace(translated=translated)

    @property
    def known_names(self) -> Names:
        """The rules for names, after `names` has returned them."""
        return self._names or Names()

    def facts(self, connection: Connection, table: str) -> Facts:
        """Return the facts of a table, read at the first call by the connection; `UNKNOWN_TABLE` after an error."""
        if table not in self._facts:
            if self._source is None:
                return Facts()  # a database without a source: SQLAlchemy's metadata has to do
            if self.names(connection) is None:
                return UNKNOWN_TABLE
            ask = partial(self._ask, connection, UNKNOWN_TABLE, partial(self._source.facts, connection, table))
            found = _settled(connection, self, (self._facts, table), Facts(), ask)
            if table in self._facts:  # tags have no case of letters
                self._facts.setdefault(table.lower(), found)
            return found
        return self._facts[table]

    def known(self, table: str) -> Facts:
        """Return the facts that were read before, without any I/O. A table that was not read is unknown."""
        unknown = Facts() if self._source is None else UNKNOWN_TABLE
        return self._facts.get(table) or self._facts.get(table.lower(), unknown)

    def warm(
        self, connection: Connection, table: str, declared: Any = None, effects: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Read the facts of a table, and of all tables that are written because of a write to it: see `Spread`.

        Without a source for this database, the metadata of the `declared` table says which foreign keys cascade.
        """
        if self._source is None and declared is not None and table not in self._facts:
            self._facts[table] = Facts(links=links_of(declared, names_in(connection.dialect).of))
        waiting, seen = [table], set[str]()
        while waiting:
            if (name := waiting.pop()) not in seen:
                seen.add(name)
                facts = self.facts(connection, name)
                waiting += [*(facts.writes or ()), *(link.child for link in facts.links)]
                waiting += [written for each in effects for written in each.get(name.lower(), ())]

    def besides(self, connection: Connection, origins: Origins) -> tuple[frozenset[str], tuple[str, ...]]:
        """Return the tags that a query has besides those of its statement: for views, policies and functions."""
        known = self._besides.get(origins)
        if known is None:
            failures = self.failures
            known = self._ask_besides(connection, origins)
            if failures == self.failures:
                self._besides[origins] = known
        return known

    def forget_queries(self) -> None:
        """Forget the tags that `besides` has worked out."""
        self._besides.clear()

    def _ask_besides(self, connection: Connection, origins: Origins) -> tuple[frozenset[str], tuple[str, ...]]:
        tags, coarse = set[str](), list[str]()
        functions = origins.functions
        if self._source is not None:
            functions |= self._source.unnamed | (origins.attributes & self._source.attributes)
        named = [(f"{name}()", self.called(connection, name).reads) for name in sorted(functions)]
        named += [(name, self._reads(connection, name)) for name in sorted(origins.tables)]
        for name, tables in named:
            if tables is None:
                tags.add(ANYTHING)
                coarse.append(f"anything: the tables that {name} reads are not known")
            else:
                tags.update(map(table_tag, tables))
                coarse += [f"{table}: any row, because {name} reads it" for table in sorted(tables)]
        return frozenset(tags), tuple(coarse)

    def _reads(self, connection: Connection, table: str) -> Tables:
        declared = _views.get(table.lower())
        return self.facts(connection, table).reads if declared is None else declared

    def function(self, connection: Connection, name: str) -> Function:
        """Return the facts of a function; `name` is its name or `schema.name`. An error gives `UNKNOWN_FUNCTION`."""
        key = name.lower()
        if key not in self._functions:
            if self._source is None or self.names(connection) is None:
                return UNKNOWN_FUNCTION
            ask = partial(self._ask, connection, UNKNOWN_FUNCTION, partial(self._source.function, connection, name))
            return _settled(connection, self, (self._functions, key), Function(), ask)
        return self._functions[key]

    def called(self, connection: Connection, name: str) -> Function:
        """Return the facts of a function that a statement calls, as it seems: it may be a word of SQL, too."""
        found = NO_FUNCTION if self._source is None else self.function(connection, name)
        return Function() if found is NO_FUNCTION and name.upper() in SYNTAX else found

    def named_in(
        self, connection: Connection, body: str, homes: Collection[str | None] | None = None, modes: str = ""
    ) -> Tables:
        """Return the tables that the text of a view, trigger or function may touch. See `facts_in` for the rest."""
        return self.of_text(connection, body, homes, modes).reads

    def of_text(
        self, connection: Connection, body: str, homes: Collection[str | None] | None = None, modes: str = ""
    ) -> Function:
        """Return the facts of the text of a view, trigger or function. See `facts_in`."""
        if not self._tables and self._source is not None:
            found: dict[str, list[tuple[str | None, str]]] = {}
            for schema, name in self._source.tables(connection):
                found.setdefault(name.lower(), []).append((schema, self.known_names.joined(schema, name)))
            self._tables = found
        function = partial(self._function_in, connection, homes)
        of_rows = frozenset() if self._source is None else self._source.attributes
        return facts_in(body, self._tables, function, connection.dialect.name, homes, modes, of_rows)

    def _function_in(self, connection: Connection, homes: Collection[str | None] | None, name: str) -> Function:
        """Return the facts of a function that is called by a text whose names without a schema are in these."""
        if homes is None or "." in name:
            return self.function(connection, name)
        names = {self.known_names.joined(home, name) for home in homes}
        found = [self.function(connection, each) for each in sorted(names)]
        return Function(joined(each.reads for each in found), joined(each.writes for each in found))

    def _ask(self, connection: Connection, unknown: Any, ask: Any) -> Any:
        with asking(connection):
            try:
                with savepoint(connection):
                    return ask()
            except ProgrammingError:  # the database has no such catalog, or not for this user
                return unknown
            except SQLAlchemyError:
                self.failures += 1
                return unknown


_views: dict[str, frozenset[str]] = {}


def declare_views(views: Mapping[str, frozenset[str]]) -> None:
    """Declare the tables that views read, for all catalogs: names of views in lower case, each with its tables."""
    for name, tables in views.items():  # of several caches, which may be on several databases: all count
        _views[name] = _views.get(name, frozenset()) | tables
    for catalog in _catalogs.values():
        catalog.forget_queries()


_catalogs: WeakKeyDictionary[Dialect, Catalog] = WeakKeyDictionary()


def catalog_of(connection: Connection, info: dict[Any, Any] | None = None) -> Catalog:
    """Return the catalog of the connection's engine; of a transaction that changes tables, its own.

    A caller that has read `connection.info` passes it as `info`: reading it twice would slow each followed miss.
    """
    info = connection.info if info is None else info
    known = cast("Catalog | None", info.get(_OWN) or info.get(_SHARED))
    if known is not None and not known.forgotten:
        return known
    found = _catalogs.get(connection.dialect)
    if found is None:
        found = _catalogs[connection.dialect] = Catalog(connection.dialect)
    info[_SHARED] = found
    return found


def _forget_shared() -> None:
    """Forget the facts of all engines: another one may be on the same database."""
    with suppress(KeyError):  # when there are no more
        while True:
            _catalogs.popitem()[1].forgotten = True


def forget(connection: Connection, statement: str) -> None:
    """Forget the facts if `statement`, which is about to run, may change the schema.

    Until it ends, the transaction has a catalog of its own: other transactions do not see its changes yet.
    """
    if _DDL.search(statement):
        _forget_shared()
        connection.info[_OWN] = Catalog(connection.dialect)


def forget_again(connection: Connection) -> None:
    """Forget again after a DDL statement that commits by itself: others may have read old facts while it ran."""
    if _OWN in connection.info:
        _forget_shared()


def path_is_chosen(connection: Connection, statements: Iterable[str]) -> None:
    """Note that after these statements, in upper case, the database may look elsewhere for names without a schema."""
    is_local = all(each.startswith("SET LOCAL") for each in statements)
    if not is_local or SEARCHES not in connection.info:
        connection.info[SEARCHES] = _LOCALLY if is_local else True


def transaction_begins(connection: Connection) -> None:
    """Drop what held in the connection's previous transaction alone: its catalog, and a search_path of SET LOCAL."""
    if not connection.invalidated:  # else `info` would connect again, and raise an error of the driver
        connection.info.pop(_OWN, None)
        if connection.info.get(SEARCHES) == _LOCALLY:
            del connection.info[SEARCHES]


def transaction_commits(info: dict[Any, Any]) -> None:
    """Forget the shared facts after the COMMIT of a transaction that changed tables: others read old ones before."""
    if info.pop(_OWN, None) is not None:
        _forget_shared()


@dataclass(slots=True)
class _Pending:
    """The questions of one connection, each of which came up in the one before.

    Other connections ask for themselves meanwhile: what is not known yet must not be taken for nothing.

    Attributes:
        names: what is being asked.
        parts: what was found in a circle, and lacks what lies further out.
        lacks: the answer that is being worked out lacks something.
    """

    names: set[tuple[int, str]] = field(default_factory=set)
    parts: dict[tuple[int, str], Any] = field(default_factory=dict)
    lacks: bool = False


def _settled(
    connection: Connection, catalog: Catalog, place: tuple[dict[str, T], str], nothing: T, ask: Callable[[], T]
) -> T:
    """Ask for a fact, and keep the answer, but for one that the database has not given.

    In a circle, as of functions that call each other, what is being asked already counts as nothing. An answer that
    lacks something for this reason is not kept: only the outermost one has all of it.
    """
    known, key = place
    pending: _Pending = connection.info.setdefault(_PENDING, _Pending())
    name, outer, failures = (id(known), key), pending.lacks, catalog.failures
    if name in pending.names or name in pending.parts:
        pending.lacks = True
        return cast("T", pending.parts.get(name, nothing))
    pending.names.add(name)
    pending.lacks = False
    try:
        found = ask()
        if pending.lacks and len(pending.names) > 1:
            pending.parts[name] = found
        elif failures == catalog.failures:
            known[key] = found
        return found
    finally:
        pending.names.discard(name)
        pending.lacks |= outer
        if not pending.names:
            pending.parts.clear()
            pending.lacks = False


@contextmanager
def asking(connection: Connection) -> Iterator[None]:
    """Mark the statements inside of the block as fastrdb's own: no listener follows them."""
    info = connection.info
    outer, info[_ASKING] = info.get(_ASKING), True
    try:
        yield
    finally:
        info[_ASKING] = outer


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """Keep an error inside of the block from the user's transaction, which PostgreSQL would abort."""
    commits = getattr(connection.connection.dbapi_connection, "autocommit", None) is True  # psycopg's, set by its user
    if connection.dialect.name != "postgresql" or commits or connection._is_autocommit_isolation():
        yield
        return
    connection.exec_driver_sql("SAVEPOINT fastrdb")
    try:
        yield
        connection.exec_driver_sql("RELEASE SAVEPOINT fastrdb")
    except Exception:
        with suppress(SQLAlchemyError):  # the connection may be lost
            connection.exec_driver_sql("ROLLBACK TO SAVEPOINT fastrdb")
        raise


def is_asking(connection: Connection) -> bool:
    """Return True while a statement of fastrdb's own runs on the connection, or if all of its statements are."""
    return OWN_STATEMENTS in connection.get_execution_options() or bool(connection.info.get(_ASKING))
