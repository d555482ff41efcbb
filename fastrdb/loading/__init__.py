"""The face of `fastrdb.loading`."""

from .function import CachedQuery, Explanation, no_store, nothing
from .many import ManyQuery, NearManyQuery, get_many
from .near_loads import query_of
from .policy import Policy

__all__ = [
    "CachedQuery",
    "Explanation",
    "ManyQuery",
    "NearManyQuery",
    "Policy",
    "get_many",
    "no_store",
    "nothing",
    "query_of",
]
