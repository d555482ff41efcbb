"""A writer's steps on one server: bar what is reached, delete entries with their leases, take leases, take it all back.

begin.lua and end.lua do it, in as many calls as it takes. How the work is cut is here: no call holds the server up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from fastrdb.near import NearCache
from fastrdb.transport import Call, Client, Link, Names, Range, Script, Target, lists

from .outcomes import Fill
from .search import Search

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, MutableMapping, Sequence

_BEGIN = Script.load("begin")
_END = Script.load("end")
_BYTES_PER_CALL = 256 * 1024


T = TypeVar("T")
Progress = Callable[[], None]


def nothing() -> None:
    """Nobody wants to know how far it has come."""


class Writing(Protocol):
    """A writer's steps, whatever Redis looks like. Names of entries are those in Redis."""

    @property
    def names(self) -> Names:
        """What keys are called."""
        ...

    async def begin(
        self,
        client: Client,
        token: str,
        fence: Sequence[Target],
        targets: Iterable[Target],
        leases: MutableMapping[bytes, str] | None = None,
        *,
        again: bool = False,
        progress: Progress = nothing,
    ) -> int:
        """Bar the fence, delete what the targets reach, take leases; in the protocol's order. Gives what was deleted.

        What is kept in this process goes first.
        `leases` has the entries to take the lease of, and is told what each then holds.
        `again`: spare the leases that this token took before.
        `progress` is called when a portion is done and more is to be done.
        """
        ...

    async def delete(self, client: Client, targets: Iterable[Target], progress: Progress = nothing) -> int:
        """Delete what the targets reach; no barriers."""
        ...

    async def end(
        self,
        client: Client,
        token: str,
        fills: Sequence[Fill],
        released: Sequence[bytes],
        fence: Sequence[Target],
        progress: Progress = nothing,
    ) -> bool:
        """Fill under the own leases, give others back, take barriers down; whether all of them stood until now."""
        ...


class Sweeper:
    """The steps on one server."""

    def __init__(self, link: Link, names: Names, search: Search, barrier_ms: int, chunk: int, near: NearCache) -> None:
        self._link, self.names, self._search = link, names, search
        self._barrier_ms, self._chunk, self._near = barrier_ms, chunk, near

    async def begin(
        self,
        client: Client,
        token: str,
        fence: Sequence[Target],
        targets: Iterable[Target],
        leases: MutableMapping[bytes, str] | None = None,
        *,
        again: bool = False,
        progress: Progress = nothing,
    ) -> int:
        """Bar, delete, take leases."""
        each = list(targets)
        barriers = [target.barrier(token) for target in fence]
        ranges = [target.range() for target in each if not target.exact]
        keys = [target.head for target in each if target.exact]
        settings = (token, self._barrier_ms, self._chunk, self.names.leases, int(again))
        deleted = 0
        leases = {} if leases is None else leases
        with self._near.shut([each.head for each in ranges], [*keys, *leases]):
            for call in one_by_one(batches(self._chunk, barriers, ranges, keys, list(leases)), progress):
                count, held = await self._begin(client, progress, settings, *call)
                deleted += count
                leases.update(dict.fromkeys(call[-1], held.decode()))
        return deleted

    async def delete(self, client: Client, targets: Iterable[Target], progress: Progress = nothing) -> int:
        """Delete what the targets reach."""
        return await self.begin(client, "", (), targets, progress=progress)

    async def end(
        self,
        client: Client,
        token: str,
        fills: Sequence[Fill],
        released: Sequence[bytes],
        fence: Sequence[Target],
        progress: Progress = nothing,
    ) -> bool:
        """Fill, give back, take barriers down."""
        names, stood = self.names, True
        keys = (*names.shared, names.server)
        barriers = [target.barrier(token) for target in fence]
        filled = [(fill.entry, fill.token, fill.raw, fill.ttl_ms) for fill in fills]
        for call in one_by_one(batches(self._chunk, filled, released, barriers), progress):
            _, down = await self._link.script(client, Call(_END, keys, (token, names.leases, *lists(*call))))
            stood = stood and not down
        return stood

    async def _begin(
        self,
        client: Client,
        progress: Progress,
        settings: Sequence[Any],
        barriers: list[bytes],
        ranges: list[Range],
        *rest: list[bytes],
    ) -> tuple[int, bytes]:
        deleted = 0
        while True:
            call = Call(_BEGIN, self.names.shared, (*settings, *lists(barriers, ranges, *rest)))
            done, last, count, lost, held = await self._link.script(client, call)
            deleted += int(count)
            if done == len(ranges):
                return deleted, held
            progress()
            # The barriers stand. Find without the index what is left, or go on in the range that the script stopped in,
            # behind the last key it looked at.
            barriers = []
            if lost:
                token, *_, spare = settings
                deleted += await self._search.delete(client, ranges[done:], token if spare else "", progress)
                ranges = []
            else:
                ranges = [ranges[done]._replace(start=b"(" + last), *ranges[done + 1 :]]


def one_by_one(portions: Iterable[T], progress: Progress) -> Iterator[T]:
    """Give portions of work. When one of them is done, and there is another, that is progress."""
    for at, portion in enumerate(portions):
        if at:
            progress()
        yield portion


def batches(size: int, *each: Sequence[Any]) -> Iterator[list[list[Any]]]:
    """Cut lists into calls of at most `size` items (and not much more than 256 KiB), keeping the order of all."""
    call: list[list[Any]] = [[] for _ in each]
    count = weight = 0
    for at, items in enumerate(each):
        for item in items:
            cost = len(item) if isinstance(item, bytes) else sum(len(part) for part in item if isinstance(part, bytes))
            if count and (count == size or weight + cost > _BYTES_PER_CALL):
                yield call
                call, count, weight = [[] for _ in each], 0, 0
            call[at].append(item)
            count, weight = count + 1, weight + cost
    if count:
        yield call
