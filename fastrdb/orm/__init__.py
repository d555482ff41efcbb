"""The face of `fastrdb.orm`."""

from sqlalchemy import Table

from .columns import Columns, exact_type, unique_keys
from .dependency import Declared, Dependency, Rows, SchemaMap, images_of, readable, rows, table_names
from .plain import NotPlainError, plain_copy

__all__ = [
    "Columns",
    "Declared",
    "Dependency",
    "NotPlainError",
    "Rows",
    "SchemaMap",
    "Table",
    "exact_type",
    "images_of",
    "plain_copy",
    "readable",
    "rows",
    "table_names",
    "unique_keys",
]
