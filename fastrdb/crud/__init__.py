"""The face of `fastrdb.crud`."""

from .pagination import PaginatedResponse
from .repository import FastRDB

__all__ = [
    "FastRDB",
    "PaginatedResponse",
]
