"""The face of `fastrdb.protocol`."""

from .intent import Intent
from .store import Barred, Busy, Granted, Hit, Outcome, Patience, Store, Timed, is_cluster

__all__ = [
    "Barred",
    "Busy",
    "Granted",
    "Hit",
    "Intent",
    "Outcome",
    "Patience",
    "Store",
    "Timed",
    "is_cluster",
]
