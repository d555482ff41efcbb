"""The face of `fastrdb.transactions`."""

from . import listeners as listeners  # puts the listeners on SQLAlchemy's classes
from .finish import drain, leave
from .follow import add_follower
from .rules import (
    NO_ROW,
    WROTE,
    autocommits,
    has_transaction,
    holds_last_connection,
    is_expired,
    missing_row,
    plain_session,
    schema_map,
    session_of,
    session_s_own,
    sync_session,
    unreachable,
    why_not_stored,
    wrote,
)
from .scope import RunningCall, RunningLoad, apart, is_loading, leads, no_store, running, used_here
from .state import Targets, intent_on, next_order, state_of

__all__ = [
    "NO_ROW",
    "WROTE",
    "RunningCall",
    "RunningLoad",
    "Targets",
    "add_follower",
    "apart",
    "autocommits",
    "drain",
    "has_transaction",
    "holds_last_connection",
    "intent_on",
    "is_expired",
    "is_loading",
    "leads",
    "leave",
    "missing_row",
    "next_order",
    "no_store",
    "plain_session",
    "running",
    "schema_map",
    "session_of",
    "session_s_own",
    "state_of",
    "sync_session",
    "unreachable",
    "used_here",
    "why_not_stored",
    "wrote",
]
