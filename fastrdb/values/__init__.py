"""The face of `fastrdb.values`."""

from .codec import ABSENT, Codec, DecodeError, encode_missing, missing_message

__all__ = [
    "ABSENT",
    "Codec",
    "DecodeError",
    "encode_missing",
    "missing_message",
]
