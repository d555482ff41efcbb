"""Generated users: always the same ones, so that two runs of the demo can be compared."""

from __future__ import annotations

import random
from typing import Any

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb.demo.models import User

_FIRST = ("Ada", "Alan", "Barbara", "Donald", "Edsger", "Frances", "Grace", "John", "Katherine", "Leslie", "Margaret")
_LAST = ("Allen", "Backus", "Dijkstra", "Hamilton", "Hoare", "Hopper", "Knuth", "Lamport", "Liskov", "Turing")
_BIOS = (None, "Reads more than writes.", "Likes short functions.", "Counts from zero.", "Pages through lists.")


def generated(rows: int, *, first: int = 1) -> list[dict[str, Any]]:
    """Return the values of so many users, numbered from `first`."""
    return [_user(number) for number in range(first, first + rows)]


async def insert_users(db: AsyncSession, rows: int) -> None:
    """Put generated users into the table, past the cache: as if the rows had been there before."""
    if rows:
        await db.execute(insert(User), generated(rows))
        await db.commit()


def _user(number: int) -> dict[str, Any]:
    chance = random.Random(number)
    first, last = chance.choice(_FIRST), chance.choice(_LAST)
    return {
        "email": f"{first}.{last}.{number}@example.com".lower(),
        "name": f"{first} {last}",
        "bio": chance.choice(_BIOS),
        "is_active": chance.random() < 0.9,
    }
