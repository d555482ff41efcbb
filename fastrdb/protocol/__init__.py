"""The face of `fastrdb.protocol`."""

from fastrdb.transport import Budget, is_cluster

from .inspector import BarrierInfo, IndexInfo, Inspector, KeyInfo
from .intent import Intent, OnError
from .interface import UNKNOWN, Barred, Busy, Entry, Granted, Hit, Outcome, Tagged, Timed
from .keyspace import Keyspace, Target
from .lua import scripts
from .publishing import Publisher
from .readiness import Readiness
from .store import Fill, Store
from .watched import Heartbeat

__all__ = [
    "UNKNOWN",
    "Barred",
    "BarrierInfo",
    "Budget",
    "Busy",
    "Entry",
    "Fill",
    "Granted",
    "Heartbeat",
    "Hit",
    "IndexInfo",
    "Inspector",
    "Intent",
    "KeyInfo",
    "Keyspace",
    "OnError",
    "Outcome",
    "Publisher",
    "Readiness",
    "Store",
    "Tagged",
    "Target",
    "Timed",
    "is_cluster",
    "scripts",
]
