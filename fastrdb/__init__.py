"""fastrdb: async query functions answered from Redis, never from before the last committed write.

`cached`, `cached_list`, `cached_many` and `invalidates` go on functions; `Cache` holds settings; `FastRDB` is typed
CRUD made of them.
"""

from importlib.metadata import PackageNotFoundError as _NotInstalled
from importlib.metadata import version as _version

from .cache import Cache, Cached, cached, cached_list, cached_many, default_cache, invalidates
from .crud import FastRDB, PaginatedResponse
from .errors import (
    CacheUnavailableError,
    FastRDBError,
    KeyValueError,
    MissingKeyFieldError,
    NoEventLoopError,
    OptionError,
    PageOutOfRange,
    PatternError,
    SchemaError,
    SessionInUseError,
    UnknownFieldError,
)
from .events import Event, Hook, Stats
from .loading import Explanation, Stored, no_store
from .near import Near
from .orm import Rows, rows
from .protocol import Heartbeat, Inspector, Readiness
from .registry import Finding, FunctionInfo

try:
    __version__ = _version("fastrdb")
except _NotInstalled:  # run from a checkout
    __version__ = "0"

__all__ = [
    "Cache",
    "CacheUnavailableError",
    "Cached",
    "Event",
    "Explanation",
    "FastRDB",
    "FastRDBError",
    "Finding",
    "FunctionInfo",
    "Heartbeat",
    "Hook",
    "Inspector",
    "KeyValueError",
    "MissingKeyFieldError",
    "Near",
    "NoEventLoopError",
    "OptionError",
    "PageOutOfRange",
    "PaginatedResponse",
    "PatternError",
    "Readiness",
    "Rows",
    "SchemaError",
    "SessionInUseError",
    "Stats",
    "Stored",
    "UnknownFieldError",
    "__version__",
    "cached",
    "cached_list",
    "cached_many",
    "default_cache",
    "invalidates",
    "no_store",
    "rows",
]
