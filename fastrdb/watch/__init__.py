"""Writes from outside: a watcher invalidates what any program commits to the database."""

from .journal import SILENT_S as SILENT_S
from .journal import Journal as Journal
from .journal import ages as ages
from .journal import columns_in_use as columns_in_use
from .source import ChangeSource as ChangeSource
from .source import Poll as Poll
from .source import Status as Status
from .watcher import Watcher as Watcher
from .watcher import source_of as source_of
