"""The face of `fastrdb.invalidation`."""

from .function import Invalidation

__all__ = [
    "Invalidation",
]
