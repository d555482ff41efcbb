"""The face of `fastrdb.orm`."""

from .columns import Columns

__all__ = [
    "Columns",
]
