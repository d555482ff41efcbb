"""The face of `fastrdb.protocol`."""

from fastrdb.transport import Budget, is_cluster

from .inspector import BarrierInfo, IndexInfo, Inspector, KeyInfo
from .intent import Intent, OnError
from .interface import Barred, Busy, Entry, Granted, Hit, Outcome, Timed
from .keyspace import Keyspace, Target
from .lua import scripts
from .store import Fill, Store

__all__ = [
    "Barred",
    "BarrierInfo",
    "Budget",
    "Busy",
    "Entry",
    "Fill",
    "Granted",
    "Hit",
    "IndexInfo",
    "Inspector",
    "Intent",
    "KeyInfo",
    "Keyspace",
    "OnError",
    "Outcome",
    "Store",
    "Target",
    "Timed",
    "is_cluster",
    "scripts",
]
