"""The field: those contestants that are installed, on one server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from benchmarks.contestants.aiocache import Aiocache, AiocacheLocked
from benchmarks.contestants.base import HOST, POOL, Contestant
from benchmarks.contestants.by_hand import Bare, Pooled
from benchmarks.contestants.cashews import Cashews, CashewsLocked, CashewsNear
from benchmarks.contestants.dogpile import Dogpile
from benchmarks.contestants.fastapi_cache import FastapiCache
from benchmarks.contestants.ours import Ours, OursNear
from benchmarks.machine import installed
from fastrdb import Cache, OptionError

KINDS: dict[str, type[Contestant]] = {
    "fastrdb": Ours,
    "fastrdb, near": OursNear,
    "bare": Bare,
    "bare, pooled": Pooled,
    "cashews": Cashews,
    "cashews, client_side": CashewsNear,
    "cashews, lock": CashewsLocked,
    "aiocache": Aiocache,
    "aiocache, stampede": AiocacheLocked,
    "fastapi-cache2": FastapiCache,
    "dogpile.cache": Dogpile,
}
USUAL = ("fastrdb", "bare", "cashews", "aiocache", "fastapi-cache2", "dogpile.cache")


LOGGERS = ("aiocache", "cashews", "fastapi_cache")
"""They log each failure of their Redis; here it is a load, which is counted."""
NOT_INSTALLED, NOT_YET = "not installed", "not in this version"


@dataclass(frozen=True, slots=True)
class Field:
    """Those who take part on one server."""

    client: Redis
    contestants: dict[str, Contestant]
    absent: dict[str, str]
    """Those who do not, and why."""


@asynccontextmanager
async def opened(port: int, names: Collection[str] = USUAL) -> AsyncIterator[Field]:
    """Give those of `names` that can take part, and a client that they share."""
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    async with Redis(host=HOST, port=port, max_connections=POOL) as client:
        field = Field(client, {}, {})
        try:
            for name in names:
                if (reason := absence(name)) is None:
                    field.contestants[name] = KINDS[name](port, client)
                else:
                    field.absent[name] = reason
            yield field
        finally:
            for contestant in field.contestants.values():
                await contestant.aclose()


def absence(name: str) -> str | None:
    """Why a contestant cannot take part, or None if it can."""
    kind = KINDS[name]
    if installed(kind.package) is None:
        return NOT_INSTALLED
    if issubclass(kind, Ours):
        try:
            Cache(**kind.settings)
        except OptionError:
            return NOT_YET
    return None
