"""The face of `fastrdb.orm`."""

from .columns import Columns
from .rows import NotPlainError, plain_copy

__all__ = [
    "Columns",
    "NotPlainError",
    "plain_copy",
]
