"""The face of `fastrdb.protocol`."""

from fastrdb.transport import Budget, is_cluster

from .intent import Intent, OnError
from .interface import Barred, Busy, Entry, Granted, Hit, Outcome, Timed
from .keyspace import Keyspace, Target
from .lua import scripts
from .store import Fill, Store

__all__ = [
    "Barred",
    "Budget",
    "Busy",
    "Entry",
    "Fill",
    "Granted",
    "Hit",
    "Intent",
    "Keyspace",
    "OnError",
    "Outcome",
    "Store",
    "Target",
    "Timed",
    "is_cluster",
    "scripts",
]
