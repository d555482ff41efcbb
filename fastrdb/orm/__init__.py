"""The face of `fastrdb.orm`."""

from .columns import Columns, exact_type
from .rows import NotPlainError, plain_copy

__all__ = [
    "Columns",
    "NotPlainError",
    "exact_type",
    "plain_copy",
]
