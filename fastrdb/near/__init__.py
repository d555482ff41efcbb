"""The face of `fastrdb.near`."""

from .cache import Kept, Near, NearCache, Token
from .tracking import Tracking

__all__ = [
    "Kept",
    "Near",
    "NearCache",
    "Token",
    "Tracking",
]
