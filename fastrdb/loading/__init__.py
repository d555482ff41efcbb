"""The face of `fastrdb.loading`."""

from fastrdb.transactions import no_store

from .function import CachedFunction, Explanation, with_variant
from .many import CachedMany, get_many
from .policy import Policy

__all__ = [
    "CachedFunction",
    "CachedMany",
    "Explanation",
    "Policy",
    "get_many",
    "no_store",
    "with_variant",
]
