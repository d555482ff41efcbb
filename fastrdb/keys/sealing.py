"""Values in keys replaced by a keyed hash: whoever sees the keys does not see whose data it is. Pure."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Final

from fastrdb.errors import OptionError

from .encoding import Encoder

Seal = Callable[[str], str]

MARK: Final = "%y"
"""Before a hash: no value reads so, and no escape."""
_BYTES = 16  # two values meet by chance once in 2**64 values


def seal_of(secret: object, owner: str) -> Seal | None:
    """What replaces the text of a value by its hash under `secret`; None without one.

    Equal texts have equal hashes wherever they stand, so that a prefix still reaches the value's keys.

    Raises:
        OptionError: not bytes, or empty. It does not show the secret.
    """
    if secret is None:
        return None
    if not isinstance(secret, bytes) or not secret:
        raise OptionError(f"{owner}: hash_keys must be a secret of at least one byte, not {type(secret).__name__}")
    keyed = blake2b(key=blake2b(secret, person=b"fastrdb keys").digest(), digest_size=_BYTES)

    def seal(text: str) -> str:
        made = keyed.copy()
        made.update(text.encode())
        return f"{MARK}{made.hexdigest()}"

    return seal


def sealed(encode: Encoder, seal: Seal | None) -> Encoder:
    """The encoder, with all that it writes sealed."""
    return encode if seal is None else lambda value: seal(encode(value))
