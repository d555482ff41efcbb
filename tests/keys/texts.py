"""Canonical texts of single values."""

from __future__ import annotations

from typing import Any

from fastrdb.keys import MISSING
from fastrdb.keys.encoders import encode_with, encoder_for
from fastrdb.keys.pattern import escaping


def encode_value(value: Any, declared: Any = MISSING, *, also: str = "") -> str:
    """Return the text of *value* for a parameter declared as *declared*; the character *also* is escaped besides."""
    return encode_with(escaping(encoder_for(declared), also), value)
