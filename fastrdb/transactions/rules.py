"""What a session's state allows a cached call to do: read the cache, and fill it.

Rule 1: a session that has written does neither. Rule 2: a snapshot that may be older than the lease does not fill.
Rule 3: the identity map does not answer a load (see `scope`). Rule 4: the transaction's owner commits it (see `crud`).
Rule 5: a schema_translate_map is part of the key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InvalidRequestError,
    MultipleResultsFound,
    NoResultFound,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.pool import QueuePool
from sqlalchemy.util import greenlet_spawn

from fastrdb.orm import SchemaMap

from .state import (
    STATE,
    Transaction,
    changed,
    connections_of,
    next_order,
    outer_connection,
    transaction_of,
    undone_since,
)

WROTE = "the session has written in its open transaction"
READ_BACK = "the session has read what it had written, and rolled it back"
OTHER_SCHEMAS = "the session's schema_translate_map has changed since its key was made"
_CURRENT = ("READ COMMITTED", "AUTOCOMMIT")  # levels at which a statement sees all that is committed by then
# SQLSTATE: connection exception, login refused, no such database, insufficient resources, shutting down or not yet up
_UNREACHABLE = ("08", "28", "3D", "53", "57P")
UNNAMED_SCHEMAS = (
    "a session that is no argument of the call has a schema_translate_map, which is not in the key: take the session "
    "as a parameter"
)
EVENT_SCHEMAS = "an event has given a statement a schema_translate_map, which is not in the key"
_SCHEMA_MAP = "schema_translate_map"
GIVEN_MAP = "fastrdb_schema_translate_map"
_BINDS = "binds" if "binds" in vars(Session()) else "_Session__binds"
"""The attribute of `Session(binds=...)`: public since SQLAlchemy 2.1."""
_LEVEL, _STREAMS = "fastrdb.level", "fastrdb.streams"  # in `Connection.info`, which belongs to the driver's connection
_decoder = json.JSONDecoder()
_levels: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()


# --- sessions


def sync_session(session: object) -> Session | None:
    """Return the `Session` inside an `AsyncSession` or a scoped one; None for any other object."""
    if isinstance(session, AsyncSession):
        return session.sync_session
    if isinstance(session, async_scoped_session):
        found: Session = session().sync_session
        return found
    return None


def session_of(given: object) -> Session | None:
    """Return what `sync_session` returns; for a connection or an engine, a session that has joined its transaction.

    So the rules for sessions hold for connections, too.
    """
    if isinstance(given, AsyncConnection | AsyncEngine):
        return Session(getattr(given, "sync_connection", None) or given.sync_engine)
    return sync_session(given)


def plain_session(session: object) -> Session | None:
    """Return the `Session` inside an `AsyncSession` without a schema_translate_map; None for any other object."""
    # A hit pays for this: attributes are read from the instance's dictionary, and nothing of ours is called.
    if not isinstance(session, AsyncSession):
        return None
    found = session.sync_session
    known = found.__dict__
    if type(found) is not Session or known[_BINDS] or STATE in known.get("info", ()) or known.get("execution_options"):
        return found if schema_map(found) is None else None
    bind = known["bind"]
    return found if bind is None or _SCHEMA_MAP not in bind.get_execution_options() else None


def has_transaction(session: Session) -> bool:
    """Return True if a commit may follow that what is done now must wait for."""
    return session.in_transaction() or outer_connection(session) is not None


def holds_last_connection(sessions: Iterable[Session]) -> bool:
    """Return True if one of the sessions holds a connection of a pool that has no other to give."""
    pools = {connection.engine.pool for session in sessions for connection in connections_of(session)}
    return any(
        isinstance(pool, QueuePool) and 0 <= pool._max_overflow <= pool.overflow() and not pool.checkedin()
        for pool in pools
    )


def is_expired(value: object) -> bool:
    """Return True for an instance of a mapped class with attributes that a look at it would load."""
    state = instance_state(value) if isinstance(getattr(type(value), "__mapper__", None), Mapper) else None
    return state is not None and bool(state.expired_attributes)


def schema_map(session: Session) -> str | None:
    """Rule 5: return the schema_translate_maps under which the session's statements may run, or None without any.

    One is set on the session, its engines (`bind`, `binds`, an own `get_bind`) or on the connections of its open
    transaction. The text is the same in all processes.
    """
    options: Any = getattr(session, "execution_options", None)  # SQLAlchemy 2.1; stronger than those of a connection
    if options and (own := options.get(_SCHEMA_MAP)):
        return _map_text(own)
    bind, binds = session.bind, session.__dict__.get(_BINDS) or {}
    if type(session).get_bind is not Session.get_bind:
        with suppress(Exception):  # such a method may ask for a mapper
            bind = session.get_bind()
    if not binds and STATE not in session.info:  # a hit pays for this
        known = bind.get_execution_options() if bind is not None else None
        return _map_text(found) if known and (found := known.get(_SCHEMA_MAP)) else None
    connections = connections_of(session)
    for each in (*connections, bind, *binds.values()):  # a miss pays for this
        if each is not None and each.get_execution_options().get(_SCHEMA_MAP):
            places = (("", bind), *((quote(str(key), safe=""), each) for key, each in binds.items()))
            return _map_of_places(places, connections)
    return None


def _map_of_places(places: Iterable[tuple[str, Any]], connections: Collection[Connection]) -> str | None:
    """Return the text of the maps of a session's engines, by their names, and of the connections that it uses."""
    used = {each: each for each in connections} | {each.engine: each for each in connections}
    named = [(name, used.get(place, place)) for name, place in places if place is not None]
    others = sorted(_map_text_of(each) for each in {*connections} - {place for _, place in named})
    texts = sorted((name, _map_text_of(place)) for name, place in named)
    if len(different := {*others, *(text for _, text in texts)}) <= 1:
        return different.pop() or None
    # Which place has which map: the same two the other way round are other tables.
    return "|".join([*(f"{name}={text}" for name, text in texts), *others])


def schema_maps(session: Session) -> list[SchemaMap]:
    """Return the maps of `schema_map`."""
    return _maps_in(schema_map(session) or "")


def one_schema_map(session: Session | None, others: Collection[str], arguments: Callable[[], Any]) -> bool:
    """Return whether the further sessions among the arguments of a call have the map of its session, as its key has.

    `others` are the names of these arguments.
    """
    if not others:
        return True
    own = None if session is None else schema_map(session)
    given = arguments()
    found = (session_of(given.get(name)) for name in others)
    return all(schema_map(each) == own for each in found if each is not None)


def unnamed_schemas(connection: Connection, named: str | None) -> bool:
    """Return whether a connection has a map that is none of those in the text `named`, which is in a key."""
    found: Any = connection.get_execution_options().get(_SCHEMA_MAP)
    return bool(found) and _map_text(found) not in map(_map_text, _maps_in(named or ""))


def note_schemas(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the option that says which map a statement was given by the function that runs it."""
    return {GIVEN_MAP: options.get(_SCHEMA_MAP)}


def has_other_schemas(connection: Connection, options: Mapping[str, Any]) -> bool:
    """Return True if a statement has another map than it was given, and than its connection has.

    A listener to `do_orm_execute` has set that map, which is in no key. `options` are those of a statement inside of a
    load, with what `note_schemas` has put there.
    """
    given = options[GIVEN_MAP] or connection.get_execution_options().get(_SCHEMA_MAP) or {}
    own = options.get(_SCHEMA_MAP) or {}
    return own != given and _map_text(own) != _map_text(given)


def _maps_in(text: str) -> list[SchemaMap]:
    found, at = list[SchemaMap](), 0
    while (at := text.find("[", at)) >= 0:
        pairs, at = _decoder.raw_decode(text, at)
        found.append(dict(pairs))
    return found


def _map_text_of(place: Any) -> str:
    """Return the text of the map of an engine or a connection, "" without one."""
    found = place.get_execution_options().get(_SCHEMA_MAP)
    return _map_text(found) if found else ""


def _map_text(schemas: Mapping[str | None, str | None]) -> str:
    """Return a text of a schema_translate_map, without regard to its order."""
    # A connection holds None's schema a second time, as that of "_none".
    own = [item for item in schemas.items() if item[0] != "_none" or None not in schemas]
    return json.dumps(sorted(own, key=repr))


# --- rules 1 and 2


def wrote(session: Session, connections: Collection[Connection] | None = None) -> bool:
    """Rule 1: return True if its open transaction has written, flushed or not.

    `connections` are those of the transaction, where the caller has them.
    """
    # Adding, changing and deleting objects begins one. A hit pays for this: `has_transaction`, without a call.
    if not session.in_transaction() and (not isinstance(bind := session.bind, Connection) or not bind.in_transaction()):
        return False
    if changed(session) or ((state := session.info.get(STATE)) is not None and state.declared):
        return True
    used = connections_of(session) if connections is None else connections
    return any(found.wrote for each in used if (found := transaction_of(each)))


def partly_committed(session: Session) -> bool:
    """Return True if a part of the outer transaction may be committed already: by now, another may have written."""
    for each in connections_of(session):
        found = transaction_of(each)
        if (found is not None and (found.published or found.loose)) or (not each.closed and autocommits(each)):
            return True
    return False


async def why_not_stored(session: Session, since: int) -> str | None:
    """Return why what was loaded after the point `since` must not be stored (rules 1 and 2); None if it may.

    `since` is when the lease was granted: a transaction that was open by then may look at an older snapshot.
    """
    connections = connections_of(session)
    if wrote(session, connections):
        return WROTE
    if undone_since(session, since):
        return READ_BACK
    for connection in connections:
        if connection.closed:
            continue
        transaction = transaction_of(connection)
        try:
            level = known_level(connection)
            if level is None:
                level = await greenlet_spawn(ask_level, connection)
        except Exception as error:  # noqa: BLE001  # the driver's own: a failed transaction, say, answers nothing
            return unanswered(error)
        if transaction is not None and transaction.called and (found := await why_unpublished(connection)) is not None:
            return found
        if (old := older(connection, transaction, level, since)) is not None:
            return old
    return None


async def why_unpublished(connection: Connection) -> str | None:
    """Say why functions of the database that were called may have written; None if none has."""
    try:
        return WROTE if await greenlet_spawn(has_written, connection) else None
    except Exception as error:  # noqa: BLE001  # the driver's own
        return unanswered(error)


def unanswered(error: Exception) -> str:
    """Say that the database could not be asked."""
    return f"the database does not report the state of the transaction: {error}"


def older(connection: Connection, transaction: Transaction | None, level: str, since: int) -> str | None:
    """Rule 2: say why a statement on `connection` may be answered from before `since`; None if it cannot."""
    if level == "READ UNCOMMITTED":
        return "READ UNCOMMITTED sees what may never be committed"
    if streams(connection, since):
        return "a result that is still being read holds an older snapshot"
    if level in _CURRENT or (transaction is not None and transaction.order > since):
        return None
    driver = sqlite_driver(connection)
    if driver is not None and not driver.in_transaction:  # it sends BEGIN late, or never: see sqlite3's manual
        return None
    return f"the session's snapshot ({level}) may be older than the lease"


# --- facts of the driver's connection, and what outlasts one transaction


def autocommits(connection: Connection) -> bool:
    """Return True if each statement commits by itself. SQLAlchemy has no public word for what the engine was set to."""
    if connection._is_autocommit_isolation():
        return True
    driver = sqlite_driver(connection)
    own = connection.connection.dbapi_connection if driver is None else getattr(driver, "_conn", driver)
    commits = getattr(own, "autocommit", None) is True  # psycopg's, and sqlite3's since Python 3.12
    if driver is not None:
        return (commits or driver.isolation_level is None) and not driver.in_transaction
    asked = getattr(own, "get_autocommit", None)  # MariaDB's and MySQL's drivers
    return commits or (asked is not None and bool(asked()))


def sqlite_driver(connection: Connection) -> Any:
    """Return the driver's connection to SQLite, which has its transaction's state; None for other databases."""
    return connection.connection.driver_connection if connection.dialect.name == "sqlite" else None


def known_level(connection: Connection) -> str | None:
    """Return the isolation level, or None if the database must be asked."""
    if autocommits(connection):
        return "AUTOCOMMIT"
    if _LEVEL in connection.info:
        return None
    chosen = connection.get_execution_options().get("isolation_level")
    return _levels.get(connection.engine) if chosen is None else str(chosen).replace("_", " ").upper()


def ask_level(connection: Connection) -> str:
    """Ask the database: once for each engine, until a statement sets a level of its own."""
    level = connection.get_isolation_level()
    if _LEVEL not in connection.info:
        _levels[connection.engine] = level
    return level


def level_is_set(connection: Connection) -> None:
    """Note that a statement sets an isolation level, for its transaction or for all of the driver's connection."""
    connection.info[_LEVEL] = True


def has_written(connection: Connection) -> bool:
    """Ask the database whether functions that were called have written. Only PostgreSQL can say; False for others."""
    if connection.dialect.name != "postgresql":
        return False
    return bool(connection.exec_driver_sql("SELECT txid_current_if_assigned() IS NOT NULL").scalar())


def stream_begins(connection: Connection, context: Any) -> None:
    """Note that a result is not read at once. In SQLite it holds a snapshot until its end, for all statements."""
    connection.info.setdefault(_STREAMS, WeakKeyDictionary())[context] = next_order()


def streams(connection: Connection, since: int) -> bool:
    """Return True if a result that is being read began before the point `since`: noted for SQLite only."""
    return any(order < since for order in connection.info.get(_STREAMS, {}).values())


# --- errors of the database


NO_ROW: Final = NoResultFound
"""The error of a row that is not there, which `negative_exp` may cache."""


def missing_row(error: BaseException) -> bool:
    """Return True if the error says that there is no such row."""
    return isinstance(error, NO_ROW)


def session_s_own(error: BaseException) -> bool:
    """Return True if the error is about how a session was used, or left, and not about what is in the database.

    A session whose flush has failed raises such errors, and one that is closed for good. Other sessions do not.
    """
    return isinstance(error, InvalidRequestError) and not isinstance(error, NoResultFound | MultipleResultsFound)


def unreachable(error: BaseException) -> bool:
    """Return True if the database could not be reached: then `fail_safe` may fall back on an old value.

    That is: no connection to be had (an OSError of the driver, the pool's TimeoutError, an error before any statement
    was sent), or one that was lost. An answer of the database is none of these, whatever the class of its error: a
    missing column is an OperationalError on some of them.
    """
    if isinstance(error, PermissionError | FileExistsError | IsADirectoryError | NotADirectoryError):
        return False  # an answer to the function: an old value must not stand for "access denied"
    if isinstance(error, OSError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):  # the driver's own, which SQLAlchemy 2.0 does not translate when connecting
        return str(getattr(error, "sqlstate", "")).startswith(_UNREACHABLE)
    connecting = error.statement is None and (
        isinstance(error, OperationalError | InterfaceError) or type(error) is DBAPIError
    )
    return error.connection_invalidated or connecting
