"""The face of `fastrdb.inference`."""

from .names import Names
from .reads import Dependencies, reads_of, reads_of_text
from .text import CALLED, HARMLESS
from .writes import Change, Writes, changes_of_text, writes_of

__all__ = [
    "CALLED",
    "HARMLESS",
    "Change",
    "Dependencies",
    "Names",
    "Writes",
    "changes_of_text",
    "reads_of",
    "reads_of_text",
    "writes_of",
]
