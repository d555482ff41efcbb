"""The face of `fastrdb.values`."""

from .codec import ABSENT, Codec, DecodeError, decode_missing, encode_missing, is_missing, left_open
from .types import is_mapped, own_copy

__all__ = [
    "ABSENT",
    "Codec",
    "DecodeError",
    "decode_missing",
    "encode_missing",
    "is_mapped",
    "is_missing",
    "left_open",
    "own_copy",
]
