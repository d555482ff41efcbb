"""The face of `fastrdb.protocol`."""

from .store import Barred, Busy, Granted, Hit, Outcome, Patience, Store, Timed, is_cluster

__all__ = [
    "Barred",
    "Busy",
    "Granted",
    "Hit",
    "Outcome",
    "Patience",
    "Store",
    "Timed",
    "is_cluster",
]
