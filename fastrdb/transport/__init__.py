"""The face of `fastrdb.transport`."""

from .client import Client, Link, is_cluster
from .cluster import Met
from .connections import connections_of
from .deadlines import ended
from .histories import NOT_YET, Histories
from .obstacles import Obstacles
from .reasons import hushed
from .restarts import OTHER_DATA, Restarts
from .scripts import EXACTLY, SHARED, Argument, Call, Command, Names, Range, Reach, Script, Target, lists
from .slots import SLOTS, Shard, SlotNames
from .timeouts import Patience

__all__ = [
    "EXACTLY",
    "NOT_YET",
    "OTHER_DATA",
    "SHARED",
    "SLOTS",
    "Argument",
    "Call",
    "Client",
    "Command",
    "Histories",
    "Link",
    "Met",
    "Names",
    "Obstacles",
    "Patience",
    "Range",
    "Reach",
    "Restarts",
    "Script",
    "Shard",
    "SlotNames",
    "Target",
    "connections_of",
    "ended",
    "hushed",
    "is_cluster",
    "lists",
]
