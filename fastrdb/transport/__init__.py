"""The face of `fastrdb.transport`."""

from .client import RedisClient, address_of
from .cluster import Met
from .connection import Greeting, own_connection
from .health import OTHER_DATA, Breaker, Health, ended, redacted
from .passthrough import Client, is_cluster
from .scripts import Argument, Command, Script, whole
from .sentinel import is_master
from .slots import SLOTS, hash_tag, slot_of, tags
from .timeouts import Budget

__all__ = [
    "OTHER_DATA",
    "SLOTS",
    "Argument",
    "Breaker",
    "Budget",
    "Client",
    "Command",
    "Greeting",
    "Health",
    "Met",
    "RedisClient",
    "Script",
    "address_of",
    "ended",
    "hash_tag",
    "is_cluster",
    "is_master",
    "own_connection",
    "redacted",
    "slot_of",
    "tags",
    "whole",
]
