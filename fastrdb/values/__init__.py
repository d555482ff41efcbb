"""The face of `fastrdb.values`."""

from .codec import ABSENT, Codec, DecodeError, decode_missing, encode_missing, is_missing
from .types import is_mapped

__all__ = [
    "ABSENT",
    "Codec",
    "DecodeError",
    "decode_missing",
    "encode_missing",
    "is_mapped",
    "is_missing",
]
