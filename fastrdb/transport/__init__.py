"""The face of `fastrdb.transport`."""

from .client import RedisClient
from .client import RedisClient as Link
from .cluster import Met
from .connection import Greeting, own_connection
from .health import OTHER_DATA, Breaker, Health, redacted
from .health import Health as Obstacles
from .health import redacted as hushed
from .histories import NOT_YET, Histories
from .passthrough import Client, is_cluster
from .restarts import Restarts
from .scripts import EXACTLY, SHARED, Argument, Call, Command, Names, Range, Reach, Script, Target, lists
from .slots import SLOTS, Shard, SlotNames
from .timeouts import Budget, ended
from .timeouts import Budget as Patience

__all__ = [
    "EXACTLY",
    "NOT_YET",
    "OTHER_DATA",
    "SHARED",
    "SLOTS",
    "Argument",
    "Breaker",
    "Budget",
    "Call",
    "Client",
    "Command",
    "Greeting",
    "Health",
    "Histories",
    "Link",
    "Met",
    "Names",
    "Obstacles",
    "Patience",
    "Range",
    "Reach",
    "RedisClient",
    "Restarts",
    "Script",
    "Shard",
    "SlotNames",
    "Target",
    "ended",
    "hushed",
    "is_cluster",
    "lists",
    "own_connection",
    "redacted",
]
