"""The face of `fastrdb.loading`."""

from fastrdb.transactions import no_store

from .function import CachedFunction, Explanation, with_variant
from .many import CachedMany, get_many
from .policy import Policy
from .stored import Stored

__all__ = [
    "CachedFunction",
    "CachedMany",
    "Explanation",
    "Policy",
    "Stored",
    "get_many",
    "no_store",
    "with_variant",
]
