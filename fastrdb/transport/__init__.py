"""The face of `fastrdb.transport`."""

from .client import RedisClient, address_of
from .cluster import Met
from .commands import SLOTS, Argument, Command, Script, hash_tag, slot_of, tags, whole
from .connection import Greeting, own_connection
from .health import OTHER_DATA, Breaker, Health, ended, redacted
from .passthrough import Client, checked, is_cluster, server_of
from .sentinel import is_master
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
    "checked",
    "ended",
    "hash_tag",
    "is_cluster",
    "is_master",
    "own_connection",
    "redacted",
    "server_of",
    "slot_of",
    "tags",
    "whole",
]
