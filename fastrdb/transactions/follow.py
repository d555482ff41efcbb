"""Follows the statements of SQLAlchemy for caches with `auto=True`: what loads depend on, and what commits change.

One event sees every statement: `before_cursor_execute`, with the compiled form and its parameters. A SELECT inside
of a load gives the load its tags. A write leaves a `Change` on its transaction. Before the COMMIT, the changes become
images, and each following cache invalidates what these reach.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection, Engine, Table, event

from fastrdb.inference import (
    ROLE,
    SEARCHES,
    Change,
    Names,
    Spread,
    catalog_of,
    changes_of_text,
    check,
    declare_views,
    forget,
    forget_again,
    functions_in,
    joined,
    look,
    path_is_chosen,
    reads_of,
    reads_of_text,
    writes_of,
)
from fastrdb.keys import ANYTHING, Image
from fastrdb.orm import Declared, images_of
from fastrdb.protocol import Intent

from .finish import finish
from .rules import autocommits, has_written
from .scope import RunningCall, RunningLoad, targets_around
from .sql import CHOOSES, Effect, effect, is_rowless, plain, settings_in, statements_in
from .state import Follower, Transaction, Written, state_of, transaction_of

_MOST_CHANGES = 256
"""Statements of one kind, in one transaction, that write to one table and are kept apart. With more, the last of these
stands for all that follow: it means any rows of the table."""
_MAP = "schema_translate_map"
_QUERIES = ("SELECT", "WITH", "VALUES", "TABLE")
_ELSEWHERE = frozenset({ANYTHING}), ("anything: the connection has another search_path",)
_log = logging.getLogger("fastrdb")


followers: WeakSet[Follower] = WeakSet()
"""The caches with `auto=True` that are alive."""
lost: list[str] = []
"""The names of those that have gone without an end, until a write that nothing follows is logged."""


def add_follower(cache: Follower) -> None:
    """Follow all statements of this process for a cache, as long as the cache lives."""
    for name, listener in (("after_cursor_execute", _on_executed), ("after_execute", _on_result)):
        if not event.contains(Engine, name, listener):  # after the end of all earlier caches, it still listens
            event.listen(Engine, name, listener)
    followers.add(cache)
    declare_views(cache.views)


def log_lost() -> None:
    """Log that a write is not followed, since the caches have gone that would."""
    _log.warning(
        "%s: a write is not followed: the cache with auto=True has gone, since nothing refers to it. Keep it in a "
        "variable of a module, or call its aclose() where writes need not be followed any more",
        lost.pop(),
    )
    lost.clear()


def follow(
    connection: Connection, transaction: Transaction, statement: str, context: Any, calls: Iterable[RunningCall]
) -> None:
    """Note what a statement that is about to run in these calls reads and writes."""
    if context is None:
        return
    if context.isinsert or context.isupdate or context.isdelete:
        # Before the statement itself, SQLAlchemy may query for a default. Then other values are not there yet.
        note = _writes if context.current_parameters is None else _calls
        note(connection, transaction, statement, context)
        return
    parts = statements_in(statement, context.dialect.name)
    settings = settings_in(statement, parts, context)
    if "search_path" in settings or any(CHOOSES.match(part) for part in parts):
        path_is_chosen(connection, parts)
    if "role" in settings or "authorization" in settings:
        connection.info[ROLE] = True
    does = effect(statement, connection.dialect.name)
    if does >= Effect.WRITES:
        forget(connection, statement)  # by a migration that is not tracked, too
        _writes(connection, transaction, statement, context)
    else:
        _reads(connection, statement, context, calls)
    if does is Effect.CALLS:
        _calls(connection, transaction, statement, context)


# --- reads


def _reads(connection: Connection, statement: str, context: Any, calls: Iterable[RunningCall]) -> None:
    """Add the tags of a query to the loads that it runs in."""
    loads = [call for call in calls if isinstance(call, RunningLoad) and call.follows]
    if not loads or (context.compiled is None and not plain(statement).startswith(_QUERIES)):
        return
    tags, coarse = _tags(connection, statement, context)
    for load in loads:
        load.add(tags, coarse)


def _tags(connection: Connection, statement: str, context: Any) -> tuple[Iterable[str], Sequence[str]]:
    options, compiled = context.execution_options, context.compiled
    declared, translated = options.get("fastrdb_reads"), options.get(_MAP)
    if declared is not None:
        return Declared(declared, owner="fastrdb_reads").tags({}, connection.dialect.name, [translated]), ()
    catalog = catalog_of(connection, info := connection.info)
    names = catalog.names(connection, translated)
    if names is None:
        return _ELSEWHERE
    if compiled is None:
        found, values = reads_of_text(statement, connection.dialect.name, names), {}
    else:
        found, values = reads_of(compiled, names), context.compiled_parameters[0]
    tags, coarse = found.of(values, context._expanded_parameters if compiled is not None else {})
    if info.get(SEARCHES) and any("." not in table for table in found.origins.tables):
        return _ELSEWHERE
    also, why = catalog.besides(connection, found.origins)
    return (tags | also, (*coarse, *why)) if also or why else (tags, coarse)


# --- writes


def _writes(connection: Connection, transaction: Transaction, statement: str, context: Any) -> None:
    """Note what a statement is about to change."""
    following = _following()
    if not following:
        return
    written = _written_of(transaction)
    if written.latest is not None and written.latest[0] is context:
        return  # the next batch of an INSERT, whose parameters were seen with the first
    changes, covered = _changes(connection, statement, context)
    if connection.info.get(SEARCHES) and any("." not in change.table for change, _ in changes):
        covered = [*covered, Image(None)]
    for image in covered:
        written.changes.append((_declared(connection, image, following), following))
    kept = list[Change]()
    for change, declared in changes:
        catalog = catalog_of(connection)
        catalog.warm(connection, change.table, declared, [each.effects for each in following])
        counted = change.table, change.kind, frozenset(following)
        count = written.counts[counted] = written.counts.get(counted, 0) + 1
        if count > _MOST_CHANGES:
            continue
        if count == _MOST_CHANGES:
            change.whole, change.counted = True, False  # whatever number of rows it changes itself
        concerned = tuple(each for each in following if not _is_quiet(each, change))
        if (context.isupdate or context.isdelete) and not (transaction.loose or autocommits(connection)):
            _look(connection, context, change, concerned)
        if concerned:
            written.changes.append((change, concerned))
            kept.append(change)
    written.latest = (context, kept)


def _declared(connection: Connection, image: Image, following: Collection[Follower]) -> Change | Image:
    """Return the change that stands for the declared rows of a statement: the database may write more because of it."""
    if image.table is None:
        return image
    catalog_of(connection).warm(connection, image.table, effects=[each.effects for each in following])
    texts = {name: each for name, each in (image.columns or {}).items() if each is not None}
    return Change("any", image.table, old=texts, new={**texts}, whole=image.columns is None)


def _following() -> tuple[Follower, ...]:
    return tuple(each for each in followers if not each.is_untracked())


def _calls(connection: Connection, transaction: Transaction, statement: str, context: Any) -> None:
    """Note the tables that functions of a query may write."""
    if _is_declared():
        return
    following = _following()
    written, catalog = _written_of(transaction), catalog_of(connection)
    functions = _functions(statement, context)
    written.doubtful |= functions is None
    for name in sorted(functions or ()):
        tables = catalog.called(connection, name).writes
        written.doubtful |= tables is None
        for table in sorted(tables or ()):
            catalog.warm(connection, table, effects=[each.effects for each in following])
            written.changes.append((Change("any", table, whole=True), following))


def _functions(statement: str, context: Any) -> frozenset[str] | None:
    compiled = context.compiled
    if compiled is None or context.is_text or context.current_parameters is not None:
        return functions_in(statement, context.dialect.name)
    return reads_of(compiled, Names(translated=context.execution_options.get(_MAP))).origins.functions


def _changes(
    connection: Connection, statement: str, context: Any
) -> tuple[list[tuple[Change, Any]], Collection[Image]]:
    """Return the changes of a statement with their tables, and the images that stand for what cannot be read."""
    touches, translated = context.execution_options.get("fastrdb_touches"), context.execution_options.get(_MAP)
    declared: Collection[Image] = () if touches is None else images_of(touches, "fastrdb_touches", [translated])
    if context.isddl:
        return [], () if is_rowless(statement, context.dialect.name) else (Image(None),)
    compiled: Any = context.compiled
    is_text = compiled is None or context.is_text
    if is_text and (touches is not None or is_rowless(statement, context.dialect.name)):
        return [], declared
    catalog = catalog_of(connection)
    names = catalog.names(connection, translated)
    if names is None:
        return [], [*declared, Image(None)]
    if not is_text:
        found = writes_of(compiled, names)
        changes = found.of(context.compiled_parameters, context._expanded_parameters or {})
        if changes or found.nothing or touches is not None or is_rowless(statement, context.dialect.name):
            is_open = bool(changes) and touches is None and not _is_declared()
            more = _called(connection, statement, found.functions) if is_open else []
            if more is None:
                return [], (Image(None),)
            changes += more
            return [(change, found.table if change.table == found.name else None) for change in changes], declared
    written = compiled.statement.text if is_text and compiled is not None else statement
    named, text = changes_of_text(written, connection.dialect.name, names)
    if _is_declared():
        return [(change, None) for change in named or ()], declared
    more = _called(connection, statement, None if named is None else text.functions)
    if named is None or more is None:
        return [], (Image(None),)
    return [(change, None) for change in (*named, *more)], ()


def _called(connection: Connection, statement: str, functions: Collection[str] | None) -> list[Change] | None:
    """Return the changes that the functions of a statement make; None, and a line in the log, if these may be any."""
    catalog = catalog_of(connection)
    found = joined(catalog.called(connection, name).writes for name in sorted(functions or ()))
    if functions is None or found is None:
        _unread(statement)
        return None
    return [Change("any", table, whole=True) for table in sorted(found)]


def _look(connection: Connection, context: Any, change: Change, following: Iterable[Follower]) -> None:
    wanted = {column for each in following if each.reads_rows for column in each.tag_columns(change.table)}
    if wanted - change.old.keys() and catalog_of(connection).known(change.table).may_lock:
        look(connection, context, change, wanted)


def _is_quiet(follower: Follower, change: Change) -> bool:
    quiet = follower.quiet.get(change.table.lower())
    return quiet is not None and change.kind == "update" and not change.whole and change.new.keys() <= quiet


def _is_declared() -> bool:
    """Return True inside of a call that declares which tables it writes, while it lasts: a task may outlive it."""
    return any(targets.images or targets.wide_images for targets in targets_around(active=True))


_logged: set[str] = set()


def _unread(statement: str) -> None:
    """Log once for each beginning of a statement that its tables cannot be read."""
    begin = " ".join(statement.split()[:3])
    if begin not in _logged and len(_logged) < 100:
        _logged.add(begin)
        _log.warning(
            "fastrdb: the tables that a statement writes cannot be read from it (%s ...): each commit of it "
            "invalidates all that is followed; say which tables with execution_options={'fastrdb_touches': [...]}",
            begin,
        )


def _written_of(transaction: Transaction) -> Written:
    transaction.written = transaction.written or Written()
    return transaction.written


def _on_executed(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    """Compare the count of rows with the count that was looked at; end what has committed by itself."""
    for change in _latest(connection, context):
        check(cursor, change)
    forget_again(connection)
    transaction = transaction_of(connection)
    if transaction is not None and transaction.autocommit and transaction.followed:
        over = [each for each in transaction.followed.values() if each in transaction.intents]
        transaction.intents = [each for each in transaction.intents if each not in over]
        transaction.followed.clear()
        finish(over, committed=True)


def _on_result(connection: Connection, clause: Any, multiparams: Any, params: Any, options: Any, result: Any) -> None:
    """Take the keys that the database has made for inserted rows."""
    context = getattr(result, "context", None)
    for change in _latest(connection, context):
        key = _single_key(context)
        if change.kind != "insert" or key is None or change.new.get(key.name, ()) is not None:
            continue
        rows = getattr(context, "inserted_primary_key_rows", None) or ()  # none where the statement has a RETURNING
        change.take_keys(key, [row[0] for row in rows if row is not None], connection.dialect.name)


def _latest(connection: Connection, context: Any) -> list[Change]:
    """Return the changes of the statement that has just run."""
    transaction = transaction_of(connection)
    written = transaction.written if transaction is not None else None
    latest = written.latest if written is not None else None
    return latest[1] if latest is not None and latest[0] is context else []


def _single_key(context: Any) -> Any:
    table = getattr(context.compiled.statement, "table", None) if context.compiled is not None else None
    keys = list(table.primary_key.columns) if isinstance(table, Table) else []
    return keys[0] if len(keys) == 1 else None


# --- commits


def attach(connection: Connection, transaction: Transaction) -> None:
    """Before something that commits: add the images of all changes to the intents of the caches that follow."""
    written = transaction.written
    if written is None:
        return
    commits = transaction.autocommit or transaction.loose  # by itself, and leaves no transaction that can be asked
    if written.doubtful and (commits or connection.dialect.name != "postgresql" or has_written(connection)):
        written.changes.append((Image(None), tuple(followers)))
    written.doubtful = False
    changes, written.changes = written.changes, []
    images: dict[Follower, list[Image]] = {}
    for change, following in changes:
        for follower in following:
            images.setdefault(follower, []).extend(_images(connection, change, follower))
    for follower, found in images.items():
        if (intent := _intent_of(transaction, follower)) is not None:
            intent.add(images=found)


def _images(connection: Connection, change: Change | Image, follower: Follower) -> Iterable[Image]:
    if isinstance(change, Image):
        return [change]
    catalog = catalog_of(connection)
    found = Spread(catalog.known, follower.effects).of(change)
    return [_narrowed(image, follower.tag_columns(image.table or "") or change.likely) for image in found]


def _narrowed(image: Image, columns: Collection[str]) -> Image:
    """Return the image without columns by which no entry is tagged, as far as this process has seen.

    Redis has them all, and takes the values of a column that is not named here for unknown.
    """
    if not image.columns:
        return image
    return Image(image.table, {name: texts for name, texts in image.columns.items() if name in columns})


def _intent_of(transaction: Transaction, follower: Follower) -> Intent | None:
    made = follower.intent()
    if made is None:
        return None
    owner, make = made
    for session in transaction.sessions:
        if (found := state_of(session).intents.get(owner)) is not None:
            return found
    known = transaction.followed.get(owner)
    if known is None or known not in transaction.intents:
        known = transaction.followed[owner] = make()
        transaction.intents.append(known)
    return known
