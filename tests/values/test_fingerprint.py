"""The digest of a type: the same in every process, and another one for other values."""

from __future__ import annotations

import subprocess
import sys
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from fastrdb.values import Codec


class Tree(BaseModel):
    """A type that holds itself, whose schema has names with addresses."""

    value: int
    children: list[Tree] = []


class Colour(Enum):
    """A type whose members count."""

    RED = "red"


class Colours(Enum):
    """The same with one more."""

    RED = "red"
    BLUE = "blue"


def digest(kind: Any) -> str:
    """Return the digest of a type."""
    return Codec(kind, owner="f").fingerprint()


def test_digest_is_the_same_in_every_process() -> None:
    """Addresses and the order of hashes are no part of it."""
    code = "from tests.values.test_fingerprint import *; print(digest(Tree), digest(Colours), digest(dict[str, Tree]))"
    found = {subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout for _ in range(2)}
    assert found == {f"{digest(Tree)} {digest(Colours)} {digest(dict[str, Tree])}\n".encode()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (int, str),
        (int, int | None),
        (list[int], list[str]),
        (Literal["a"], Literal["b"]),
        (Colour, Colours),
        (Annotated[int, Field(gt=0)], Annotated[int, Field(gt=1)]),
        (dict[str, int], dict[str, float]),
    ],
    ids=str,
)
def test_digest_of_another_type_is_another(one: Any, other: Any) -> None:
    """A change that changes the values changes the digest."""
    assert digest(one) != digest(other)
