"""What fastrdb is compared with: GET, SET and DEL by hand, and cashews, each as its users write it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter
from redis.exceptions import RedisError
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.consistency.address import HOST, Address
from benchmarks.consistency.database import RowOut, Table
from benchmarks.consistency.followed import FollowedSubject
from benchmarks.consistency.outside import OutsideWriter
from benchmarks.consistency.settings import Settings, SettingsError
from benchmarks.consistency.subjects import LIFE, Attempt, DecoratedSubject, RowSubject, Subject, note
from benchmarks.consistency.workload import Style, block_of

_BLOCK = TypeAdapter(list[RowOut])


class Naive(RowSubject):
    """GET, or load and SET; COMMIT, then DEL. Redis being away is a miss, and a DEL that is not done."""

    def __init__(self, settings: Settings, address: Address) -> None:
        self.client = address.connect()
        self._table = Table(settings.faults)

    async def row(self, db: AsyncSession, row: int) -> RowOut:
        """One key for each row."""
        key = f"row:{row}"
        if (raw := await self._get(key)) is not None:
            return RowOut.model_validate_json(raw)
        note("load")
        value = RowOut.model_validate(await self._table.row(db, row))
        await self._set(key, value.model_dump_json())
        return value

    async def block(self, db: AsyncSession, block: int) -> list[RowOut]:
        """One key for each block."""
        key = f"block:{block}:page:1"
        if (raw := await self._get(key)) is not None:
            return _BLOCK.validate_json(raw)
        note("load")
        value = await self._table.block(db, block)
        await self._set(key, _BLOCK.dump_json(value))
        return value

    async def write(self, db: AsyncSession, attempt: Attempt, rows: Sequence[int], style: Style) -> None:
        """The keys are known, so they are deleted one by one."""
        if await _changed(self._table, db, attempt, rows, style):
            for key in [key for row in rows for key in (f"row:{row}", f"block:{block_of(row)}:page:1")]:
                with suppress(RedisError, OSError):
                    await self.client.delete(key)

    async def aclose(self, limit: float) -> None:
        """Nothing is under way."""
        await self.client.aclose()

    async def _get(self, key: str) -> Any:
        with suppress(RedisError, OSError):
            return await self.client.get(key)
        return None

    async def _set(self, key: str, raw: str | bytes) -> None:
        with suppress(RedisError, OSError):
            await self.client.set(key, raw, ex=LIFE)


class Cashews(RowSubject):
    """cashews, by its decorators: `cache` and `invalidate`."""

    def __init__(self, settings: Settings, address: Address) -> None:
        try:
            cache: Any = import_module("cashews").Cache  # an optional dependency
        except ImportError:
            raise SettingsError('--protocol cashews: it is not installed: pip install -e ".[bench]"') from None
        if address.cluster:
            raise SettingsError("--cluster: compared on one server only: --protocol cashews has no proxies there")
        port = address.detours.get(address.ports[0], address.ports[0])
        self._table = Table(settings.faults)
        self.cache: Any = cache()
        self.cache.setup(f"redis://{HOST}:{port}", client_side=settings.near, max_connections=50)
        self._row, self._block, self._write = _cashews(self.cache, self._table)

    async def row(self, db: AsyncSession, row: int) -> RowOut:
        """By `cache`."""
        found: RowOut = await self._row(db, row)
        return found

    async def block(self, db: AsyncSession, block: int) -> list[RowOut]:
        """By `cache`."""
        found: list[RowOut] = await self._block(db, block)
        return found

    async def write(self, db: AsyncSession, attempt: Attempt, rows: Sequence[int], style: Style) -> None:
        """By `invalidate`, the commit inside."""
        if style in ("together", "undone"):
            if await _changed(self._table, db, attempt, rows, style):
                for row in rows:
                    await self.cache.delete(f"row:{row}")
                    await self.cache.delete_match(f"block:{block_of(row)}:*")
            return
        for row in rows:
            await self._write(db, row, block_of(row), attempt, style)

    async def aclose(self, limit: float) -> None:
        """Nothing is under way."""
        await self.cache.close()


def _cashews(cache: Any, table: Table) -> Any:
    """Its decorators have no types, so they are put on by calling them."""

    async def read(db: AsyncSession, row: int) -> RowOut:
        note("load")
        return RowOut.model_validate(await table.row(db, row))

    async def read_block(db: AsyncSession, block: int) -> list[RowOut]:
        note("load")
        return await table.block(db, block)

    async def write(db: AsyncSession, row: int, block: int, attempt: Attempt, style: Style) -> None:
        await _changed(table, db, attempt, [row], style)

    return (
        cache(ttl=LIFE, key="row:{row}")(read),
        cache(ttl=LIFE, key="block:{block}:page:1")(read_block),
        cache.invalidate("row:{row}")(cache.invalidate("block:{block}:*")(write)),
    )


async def _changed(table: Table, db: AsyncSession, attempt: Attempt, rows: Sequence[int], style: Style) -> bool:
    """Change and commit; False where it is rolled back."""
    await table.change(db, rows, attempt.number)
    if style == "undone":
        await db.rollback()
        return False
    await attempt.commit(db)
    return True


def subject_of(settings: Settings, kind: str = "reader") -> Callable[[Settings, Address], Subject]:
    """Give what is under test, for a kind of process."""
    if settings.outside and kind == "writer":
        return OutsideWriter
    return FollowedSubject if settings.auto else SUBJECTS[settings.protocol]


SUBJECTS: dict[str, type[DecoratedSubject | Naive | Cashews]] = {
    "fastrdb": DecoratedSubject,
    "naive": Naive,
    "cashews": Cashews,
}
