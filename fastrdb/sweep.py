"""The sweep of the index: barriers over what is reached, entries deleted with their leases, the writer's leases taken.

begin.lua does it, in as many calls as it takes; here is how the work is cut, so that no call holds the server up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .link import Client, Link
from .near import NearCache
from .scripts import Names, Range, Script, Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_BEGIN = Script.load("begin")
_BYTES_PER_CALL = 256 * 1024


class Sweeper:
    """Sets barriers, and deletes what targets reach: begin.lua in as many calls as it takes."""

    def __init__(self, link: Link, names: Names, barrier_ms: int, chunk: int, near: NearCache) -> None:
        self._link, self.names, self.barrier_ms, self._chunk, self._near = link, names, barrier_ms, chunk, near

    async def begin(
        self,
        client: Client,
        token: str,
        barriers: Sequence[bytes],
        targets: Iterable[Target],
        leases: Sequence[bytes] = (),
        *,
        again: bool = False,
    ) -> int:
        """Do it in the protocol's order, and give the number of entries deleted. What is kept here goes first.

        `leases` are the entries to take the lease of. `again`: spare the leases that this token took before.
        """
        each = list(targets)
        ranges = [target.range() for target in each if not target.exact]
        keys = [target.head for target in each if target.exact]
        settings = (token, self.barrier_ms, self._chunk, self.names.leases, int(again))
        deleted = 0
        with self._near.shut([each.head for each in ranges], [*keys, *leases]):
            for call in batches(self._chunk, barriers, ranges, keys, leases):
                deleted += await self._call(client, settings, *call)
        return deleted

    async def delete(self, client: Client, targets: Iterable[Target]) -> int:
        """Delete what the targets reach; no barriers."""
        return await self.begin(client, "", (), targets)

    async def _call(
        self, client: Client, settings: Sequence[Any], barriers: list[bytes], ranges: list[Range], *rest: list[bytes]
    ) -> int:
        deleted = 0
        while True:
            arguments = lists(barriers, ranges, *rest)
            done, last, count = await self._link.script(client, _BEGIN, self.names.shared, *settings, *arguments)
            deleted += int(count)
            if done == len(ranges):
                return deleted
            # The barriers stand; go on in the range that the script stopped in, behind the last key it looked at.
            barriers, ranges = [], [ranges[done]._replace(start=b"(" + last), *ranges[done + 1 :]]


def lists(*each: Sequence[Any]) -> list[Any]:
    """Give lists as a script reads them: the length of each, then its items, a tuple's parts one by one."""
    arguments: list[Any] = []
    for items in each:
        arguments.append(len(items))
        for item in items:
            arguments.extend(item if isinstance(item, tuple) else (item,))
    return arguments


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
