"""The face of `fastrdb.inference`."""

from .catalog import (
    OWN_STATEMENTS,
    ROLE,
    Catalog,
    asking,
    catalog_of,
    declare_views,
    forget,
    forget_again,
    is_asking,
    path_is_chosen,
    transaction_begins,
    transaction_commits,
)
from .facts import Spread, joined
from .lexer import blanked
from .look import check, look
from .names import SEARCHED, SEARCHES, Names
from .reads import Origins, ReadRows, reads_of, reads_of_text
from .text import functions_in, harmless
from .writes import Change, Verb, Writes, changes_of_text, writes_of

__all__ = [
    "OWN_STATEMENTS",
    "ROLE",
    "SEARCHED",
    "SEARCHES",
    "Catalog",
    "Change",
    "Names",
    "Origins",
    "ReadRows",
    "Spread",
    "Verb",
    "Writes",
    "asking",
    "blanked",
    "catalog_of",
    "changes_of_text",
    "check",
    "declare_views",
    "forget",
    "forget_again",
    "functions_in",
    "harmless",
    "is_asking",
    "joined",
    "look",
    "path_is_chosen",
    "reads_of",
    "reads_of_text",
    "transaction_begins",
    "transaction_commits",
    "writes_of",
]
