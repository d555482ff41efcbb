"""The face of `fastrdb.near`."""

from .cache import Kept, Near, NearCache, Token
from .cluster_tracking import ClusterTracking
from .tracking import Tracking

__all__ = [
    "ClusterTracking",
    "Kept",
    "Near",
    "NearCache",
    "Token",
    "Tracking",
]
