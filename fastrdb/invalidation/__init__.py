"""The face of `fastrdb.invalidation`."""

from .enlist import Put, enlist
from .follower import Following, follow_with, follows
from .function import Invalidation

__all__ = [
    "Following",
    "Invalidation",
    "Put",
    "enlist",
    "follow_with",
    "follows",
]
