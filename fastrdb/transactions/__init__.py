"""The face of `fastrdb.transactions`."""

from .drivers import autocommits
from .finish import leave
from .listeners import settled
from .rules import (
    WROTE,
    fresh_reads,
    has_transaction,
    missing_row,
    no_result,
    plain_session,
    schema_map,
    session_s_own,
    sync_session,
    unfit,
    unreachable,
    wrote,
)
from .scope import Load, Use, apart
from .state import Scope, mark, state_of, work_on

__all__ = [
    "WROTE",
    "Load",
    "Scope",
    "Use",
    "apart",
    "autocommits",
    "fresh_reads",
    "has_transaction",
    "leave",
    "mark",
    "missing_row",
    "no_result",
    "plain_session",
    "schema_map",
    "session_s_own",
    "settled",
    "state_of",
    "sync_session",
    "unfit",
    "unreachable",
    "work_on",
    "wrote",
]
