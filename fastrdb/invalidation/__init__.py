"""The face of `fastrdb.invalidation`."""

from .enlist import Put, enlist
from .function import Invalidation

__all__ = [
    "Invalidation",
    "Put",
    "enlist",
]
