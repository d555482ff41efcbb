"""The face of `fastrdb.values`."""

from .codec import ABSENT, Codec, DecodeError, decode_missing, encode_missing, is_missing

__all__ = [
    "ABSENT",
    "Codec",
    "DecodeError",
    "decode_missing",
    "encode_missing",
    "is_missing",
]
