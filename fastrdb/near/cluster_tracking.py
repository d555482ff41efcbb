"""The channels of a near cache on a cluster: one to each master, for each tells of its own keys only.

No master is asked for an entry before there is a channel to it (`met`). One that is new turns the near cache off, and
takes what is on its way, until its channel is open: so what is kept has been read from masters that tell of changes. A
key that moves is deleted where it was, and written where it comes to: both tell.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from fastrdb.transport import ended

from .tracking import Tracking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from .cache import NearCache


class ClusterTracking:
    """Keeps the channels open, from `follow` to `aclose` or the end of the event loop. Arguments are `Tracking`'s."""

    def __init__(
        self,
        near: NearCache,
        wanted: Collection[str],
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._near, self._wanted, self._sleep = near, wanted, sleep
        # The clients whose every master we are told of, each with how to have it look at the map of the cluster; and
        # the map that was gone by last.
        self._looks: WeakKeyDictionary[Any, Callable[[], None]] = WeakKeyDictionary()
        self._maps: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._each: dict[str, Tracking] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._wants = False

    def covers(self, client: Any) -> bool:
        """Whether we are told of the masters that this client asks; not of those that it asks by itself."""
        return client in self._looks

    def met(self, client: Any, name: str, look: Callable[[], None]) -> None:
        """The client is about to ask this master: from now on nothing is kept without its channel."""
        self._looks[client] = look
        if self._wants and name not in self._each:
            self._add(name)

    def follow(self, client: Any) -> None:
        """See to it that somebody keeps a channel to each master open, and none to those that are gone."""
        if not self.covers(client):
            return
        self._wants = True
        if any(each.nodes_manager.slots_cache is not self._maps.get(each) for each in self._looks):
            self._go_by_map()
        for name, tracking in self._each.items():
            node = self._node(name)
            if node is not None:
                tracking.start(node)

    def stop(self) -> None:
        """Close the channels at once, and the connections soon."""
        for tracking in self._each.values():
            self._end(tracking)

    async def aclose(self) -> None:
        """Close channels and connections; `follow` opens them again."""
        self.stop()
        await ended(self._ending)

    def _go_by_map(self) -> None:
        """The map is another one: who is a master by it has a channel, and nobody else.

        A server that is asked all the same, because its slot has moved there since, is met again first.
        """
        names = {node.name for client in self._looks for node in client.get_primaries()}
        for client in list(self._looks):
            self._maps[client] = client.nodes_manager.slots_cache
        for name in self._each.keys() - names:
            tracking = self._each.pop(name)
            self._end(tracking)
            tracking.leave()
        for name in names - self._each.keys():
            self._add(name)

    def _add(self, name: str) -> None:
        self._each[name] = Tracking(self._near, self._wanted, sleep=self._sleep, of_cluster=True, off=self._off)

    def _off(self) -> None:
        """A master does not tell: it may be none any more, or may be gone."""
        for look in list(self._looks.values()):
            look()

    def _end(self, tracking: Tracking) -> None:
        task = tracking.stop()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _node(self, name: str) -> Any:
        """Give the node of this name, whose settings are those of a pool."""
        nodes = (client.nodes_manager.nodes_cache.get(name) for client in self._looks)
        return next((node for node in nodes if node is not None), None)
