"""Harmful values: made of all that means something in keys, globs, Lua patterns, JSON and Redis' own protocol.

Plain seeded randomness, because there are many: a hundred thousand take seconds. A failure shows its seed.
"""

from __future__ import annotations

import json
import pickle
import zlib
from collections.abc import Iterator
from decimal import Decimal
from random import Random
from typing import Any
from uuid import UUID

_SIGNS = ": * ? [ ] { } {} { {{ }} \\ % %% & = ^ $ . - + ( ) , ; ~ / ' \" ` < > | @ # ! ../ *3\r\n$3\r\nSET\r\n"
_WORDS = "%2A %3A %7B %none %nil %s %i1 %h %r %y %% fastrdb fastrdb: fastrdb:index lease: user user: :user ?limit=1"
_VALUES = "None null true True 1 01 1.0 1e0 -1 inf nan 0x1 a b ab 2020-01-01 10:00:00 é e\u0301 😀 \ud800 \udfff \uffff"
_BLANKS = ("", " ", "\t", "\n", "\r\n", "\0", "\x7f", "\x85", "\xa0", "\u2028", "\u202e")
_LONG = ("00000000-0000-0000-0000-000000000001", "x" * 130, "é" * 300, "'; return 1 --")
PIECES = (*_SIGNS.split(" "), *_WORDS.split(" "), *_VALUES.split(" "), *_BLANKS, *_LONG)


def text(random: Random) -> str:
    """Return a str of up to five pieces."""
    return "".join(random.choices(PIECES, k=random.randint(0, 5)))


def scalar(random: Random) -> Any:
    """Return a str mostly, else what may be written like one."""
    if random.random() < 0.7:
        return text(random)
    number = random.randint(-2, 2)
    return random.choice(
        [
            None,
            True,
            False,
            number,
            float(number),
            Decimal(number),
            text(random).encode("utf-8", "replace"),
            UUID(int=1),
        ]
    )


def value(random: Random, depth: int = 2) -> Any:
    """Return a scalar mostly, else a container of such."""
    if depth == 0 or random.random() < 0.85:
        return scalar(random)
    several = [value(random, depth - 1) for _ in range(random.randint(0, 3))]
    keyed = {text(random): each for each in several}
    return random.choice([several, tuple(several), keyed])


def identity(given: Any) -> Any:
    """Return what makes two values the same: type and content, all the way down.

    This shares no code with the package.
    """
    if isinstance(given, (list, tuple)):
        return (type(given), tuple(identity(each) for each in given))
    if isinstance(given, dict):
        return (dict, tuple((name, identity(each)) for name, each in given.items()))
    return (type(given), repr(given))


class Exploit:
    """Code that runs when unpickled; `ran` is True if it has."""

    ran = False

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return _run, ()


def _run() -> None:
    Exploit.ran = True


def entry(random: Random, valid: bytes) -> bytes:
    """Return bytes in the place of an entry: noise, a damaged entry, other JSON, a pickle, something packed."""
    match random.randrange(6):
        case 0:
            return random.randbytes(random.randint(0, 40))
        case 1:
            return _damaged(random, valid)
        case 2:
            return json.dumps(_document(random, 3)).encode()
        case 3:
            return _planted(random)
        case 4:
            return random.choice([b"", b" ", b"{", b"[", b'"', b"nul", b"-", b"NaN", b"1e999", b"\xef\xbb\xbf1"]) * 3
        case _:
            return b" " * random.randint(0, 2) + valid[: random.randint(0, len(valid))]


def _damaged(random: Random, valid: bytes) -> bytes:
    raw = bytearray(valid)
    for _ in range(random.randint(1, 3)):
        at = random.randrange(len(raw) + 1)
        match random.randrange(3):
            case 0:
                raw[at:at] = random.randbytes(1)
            case 1:
                del raw[at : at + 1]
            case _:
                raw[at : at + 1] = random.choice([b'"', b"{", b"}", b",", b":", b"0", b"\\", b"\x00", b"\xff"])
    return bytes(raw)


def _document(random: Random, depth: int) -> Any:
    leaves: list[Any] = [
        None,
        True,
        1,
        -1,
        1.5,
        10**30,
        "",
        "a",
        "1",
        "é",
        text(random).encode("utf-8", "replace").decode(),
    ]
    if depth == 0 or random.random() < 0.4:
        return random.choice(leaves)
    several = [_document(random, depth - 1) for _ in range(random.randint(0, 3))]
    names = random.choices(["id", "name", "at", "tags", "error", "message", "__class__", "$ref", "x"], k=len(several))
    return several if random.random() < 0.5 else dict(zip(names, several, strict=True))


def _planted(random: Random) -> bytes:
    held = random.choice([Exploit(), {"id": 1}, [1, 2], "text", b"x", None])
    raw = pickle.dumps(held, protocol=random.randint(0, pickle.HIGHEST_PROTOCOL))
    return random.choice([raw, zlib.compress(raw), b"sum:" + raw, b'"' + raw + b'"', b" " + raw])


def many(make: Any, count: int, seed: int) -> Iterator[Any]:
    """Yield so many of them."""
    random = Random(seed)
    return (make(random) for _ in range(count))
