"""The binary log of MariaDB or MySQL, read by python-mysql-replication. Used in a thread.

An event that cannot be decoded or understood counts as any row of its table, or as a change of everything.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from fastrdb.inference import blanked

from .cascades import Row
from .source import ROWS_NAMED

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from fastrdb.inference import Verb

_BEAT_S: Final = 0.25
"""The pause after which the server sends a heartbeat. A heartbeat ends a read if the last events are of other kinds."""
_READ_TIMEOUT_S: Final = 30
_FORMAT: Final = 15  # the type of a FormatDescriptionEvent
_TAGGED: Final = 42  # the type of the name of a transaction with a tag, which the library does not decode
_GONE: Final = 1236  # the server's error for a place that its log does not have
_UNREAD: Final = (39, 40, *range(165, 172))
"""Types of events that may hold rows and that the library does not decode: partial, packed, compressed."""
_HARMLESS: Final = re.compile(
    r"BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|XA (?!COMMIT)|SET|GRANT|REVOKE|ANALYZE (?:\w+ )?TABLE|FLUSH"
    r"|CREATE (?!OR REPLACE)"
    r"|(?:CREATE OR REPLACE|DROP|ALTER) (?:DEFINER\S+ )?(?:/\*!\d+ )?(?:TEMPORARY|USER|ROLE|TRIGGER|EVENT|INDEX)\b",
    re.IGNORECASE,
)
_WORDS: Final = (
    r"TRUNCATE(?: TABLE)?+|(?:ALTER (?:ONLINE |IGNORE )*+TABLE|DROP TABLE)(?: IF EXISTS)?+|CREATE OR REPLACE TABLE"
)
# Without a backslash, which the library writes for bytes that are not UTF-8.
_NAME: Final = r"(`(?:[^`\\]|``)++`|[\w$\u0080-\U0010ffff]++)"
_TARGET: Final = re.compile(rf"(?>{_WORDS}) (?:{_NAME} ?\. ?)?+{_NAME}(?=\(| (?![,.])|;|$)", re.IGNORECASE)
_DEFINES: Final = re.compile(r"CREATE|ALTER|DROP|RENAME", re.IGNORECASE)
_UNDER_SETTINGS: Final = re.compile(r"SET STATEMENT .+? FOR (.+)", re.IGNORECASE)
_EXCHANGES: Final = re.compile(r"ALTER .*\b(?:EXCHANGE|CONVERT)\b", re.IGNORECASE)  # a partition: changes two tables
_HEX: Final = re.compile(r"[0-9a-fA-F]{32}")
_OPTIONS: Final = ("host", "port", "user", "password", "passwd", "unix_socket", "ssl")


class GoneError(Exception):
    """A place that the server's log no longer has, or that is in a file of another history."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file of the log, and an offset in it. `begun` is the time at which the file was begun, 0 if unknown."""

    file: str
    offset: int
    begun: int = field(default=0, compare=False)

    @property
    def order(self) -> tuple[int, int]:
        """Return the number of the file and the offset, by which places are sorted."""
        return int(self.file.rpartition(".")[2]), self.offset


def place_of(file: Any, offset: Any, begun: Any = 0) -> Place:
    """Return the place that a server reports."""
    return Place(str(file), int(offset), int(begun))


def is_available() -> bool:
    """Return whether the library is installed."""
    return find_spec("pymysqlreplication") is not None


@dataclass(slots=True)
class Found:
    """The changes between two places.

    Attributes:
        rows: the changed rows; one row stands for all where too many rows of a table have changed.
        count: the number of changes.
        everything: an event was not understood, so anything may have changed.
        defined: tables were made or altered.
    """

    rows: list[Row] = field(default_factory=list)
    count: int = 0
    everything: bool = False
    defined: bool = False
    _counts: dict[tuple[str, Verb], int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """Add a row. Rows beyond `ROWS_NAMED` of a table are only counted."""
        self.count += 1
        key = row.table, row.kind
        self._counts[key] = self._counts.get(key, 0) + 1
        if self._counts[key] <= ROWS_NAMED + 1 or row.before is row.after is None:
            self.rows.append(row)


class Log:
    """A connection that reads the log of one database, beginning at a place.

    Args:
        engine: gives the address of the server.
        place: the end of a transaction.
        columns: the columns of each table whose values are reported.
    """

    def __init__(self, engine: Engine, place: Place, columns: Mapping[str, frozenset[str]]) -> None:
        from pymysqlreplication import BinLogStreamReader  # noqa: PLC0415  # an extra
        from pymysqlreplication.event import PreviousGtidsEvent  # noqa: PLC0415

        self.place, self._columns, self._reads = place, columns, False
        self._held: Any = None
        self._database = str(engine.url.database)
        _, options = engine.dialect.create_connect_args(engine.url)
        settings = {name: options[name] for name in _OPTIONS if name in options}
        # Not `is_mariadb`: with it, the library begins at the first event of all.
        self._stream: Any = BinLogStreamReader(
            settings | {"read_timeout": _READ_TIMEOUT_S},
            server_id=2**31 + secrets.randbelow(2**31 - 1),  # the server disconnects the first of two with one number
            log_file=place.file,
            log_pos=place.offset,
            resume_stream=True,
            blocking=True,
            slave_heartbeat=_BEAT_S,
            filter_non_implemented_events=False,
            ignored_events=[PreviousGtidsEvent],  # not decoded once a name has had a tag, and of no use here
            enable_logging=False,
            pymysql_wrapper=_connect,
        )

    def read(self, end: Place, unseen: Collection[str] = ()) -> Found:
        """Return the changes up to `end`, which the log has, or up to the first transaction of `unseen`.

        Raises:
            GoneError: the server no longer has the place: the file was purged, or has another time of its beginning.
            OSError: the server does not answer.
        """
        import pymysql  # noqa: PLC0415

        found = Found()
        while self.place.order < end.order:
            try:
                event, self._held = self._held or self._stream.fetchone(), None
            except pymysql.MySQLError as error:
                if error.args and error.args[0] == _GONE:
                    raise GoneError from None
                raise ConnectionError("the server has ended the reading of its binary log") from error
            except (OSError, EOFError):
                raise
            except Exception as error:  # an event that the library cannot decode, of any kind
                if not self._reads:
                    raise ConnectionError("the binary log cannot be opened") from error
                found.everything = True
                continue
            if unseen and (event.event_type == _TAGGED or getattr(event, "gtid", None) in unseen):
                self._held = event
                break
            self._reads, file = True, self._stream.log_file
            begun = self.place.begun if file == self.place.file else 0
            if event.event_type == _FORMAT:  # the first of each file, and of each connection
                if begun not in (0, event.timestamp):
                    raise GoneError
                begun = event.timestamp
            self.place = place_of(file, self._stream.log_pos, begun)
            self._take(event, found)
        return found

    def _take(self, event: Any, found: Found) -> None:
        if hasattr(event, "query") and hasattr(event, "schema"):
            self._take_statement(event.query, event.schema.decode(), found)
        elif type(event).__name__ in ("WriteRowsEvent", "UpdateRowsEvent", "DeleteRowsEvent"):
            if not hasattr(event, "table"):  # the event that names the table was not decoded
                found.everything = True
            elif event.schema == self._database:
                for row in self._rows(event):
                    found.add(row)
        elif event.event_type in _UNREAD:
            found.everything = True

    def _take_statement(self, written: str, schema: str, found: Found) -> None:
        statement = " ".join((blanked(written, "mysql") or "?").split())
        if (settings := _UNDER_SETTINGS.match(statement)) is not None:
            statement = settings[1]
        if not statement or _HARMLESS.match(statement):
            found.defined |= statement[:6].upper() == "CREATE"
            return
        if statement[:9].upper() == "XA COMMIT":  # the rows were in the log when it was prepared, and seen by no reader
            found.everything = True
            return
        target = None if _EXCHANGES.match(statement) else _TARGET.match(statement)
        if target is not None:
            schema = _unquoted(target[1]) if target[1] else schema
        elif schema != self._database and self._database not in written:
            return
        if target is None:
            found.everything = found.defined = True
        elif schema == self._database:
            found.defined |= _DEFINES.match(statement) is not None  # no foreign key acts on a change of these
            found.add(Row("insert", _unquoted(target[2]), None, None))

    def _rows(self, event: Any) -> Iterator[Row]:
        kind: Verb = {"W": "insert", "U": "update", "D": "delete"}[type(event).__name__[0]]  # type: ignore[assignment]
        columns = self._columns.get(event.table, frozenset())
        try:
            rows = list(event.rows)
        except Exception:  # noqa: BLE001  # a value of a kind that the library cannot decode
            yield Row(kind, event.table, None, None)
            return
        if not rows:
            yield Row(kind, event.table, None, None)
        for row in rows:
            if kind == "update":
                before = _values(row["before_values"], row["before_none_sources"], columns)
                after = _values(row["after_values"], row["after_none_sources"], columns)
            else:
                before = after = _values(row["values"], row["none_sources"], columns)
            yield Row(kind, event.table, before, after)

    def close(self) -> None:
        """Close the connection. A `read` in another thread ends with an error."""
        self._stream.close()


def _unquoted(name: str) -> str:
    return name[1:-1].replace("``", "`") if name[0] == "`" else name


def _connect(**options: Any) -> Any:
    """Connect, with options under the names that PyMySQL has now: the library uses an older one."""
    import pymysql  # noqa: PLC0415

    if "db" in options:
        options["database"] = options.pop("db")
    if "passwd" in options:
        options["password"] = options.pop("passwd")
    return pymysql.connect(**options)


def _values(values: Mapping[str, Any], missing: Mapping[str, str], columns: frozenset[str]) -> dict[str, Any]:
    """Return the values that readers tag by. A None that does not stand for NULL is left out: it is unknown."""
    found = dict[str, Any]()
    for name, value in values.items():
        if name not in columns:
            continue
        if type(value) in (int, date) or (value is None and missing.get(name) == "null"):
            found[name] = value
        elif isinstance(value, str) and _HEX.fullmatch(value):
            found[name] = UUID(value)
    return found
