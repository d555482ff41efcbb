"""Gates for the client of a cluster: as `gates` has them for that of one server."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterPipeline, RedisCluster

from fastrdb.testing import Gate, GatedClient
from tests.support.world.stores import is_cluster

_NAMES = {"fence": "begin", "fill": "end", "unbar": "end", "lease": "acquire"}
"""What begins on a cluster what one script does on one server goes by that script's name."""


def gated(client: Any) -> Any:
    """Return a client with gates over the connections of another."""
    return GatedCluster(client) if is_cluster(client) else GatedClient(client)


class GatedCluster(RedisCluster):
    """Client over another's connections whose commands stop at gates, fail on demand, and are written down."""

    def __init__(self, client: RedisCluster) -> None:
        for name in {slot for cls in type(client).__mro__ for slot in getattr(cls, "__slots__", ())} | {*vars(client)}:
            if hasattr(client, name):
                setattr(self, name, getattr(client, name))
        self.gated = GatedClient(Redis())  # never connected: it has the gates, and writes down
        self.gates = self.gated.gates
        self.log = self.gated.log
        for sha, name in list(self.gated._scripts.items()):
            self.gated.name_script(sha, _NAMES.get(name, name))

    def __del__(self, *_: object) -> None:
        """Close nothing: the connections are another's."""

    def before(self, name: str) -> Gate:
        """Hold the next `name` before it is sent."""
        return self.gated.before(name)

    def after(self, name: str) -> Gate:
        """Hold the next `name` when its reply has arrived and its caller has not seen it yet."""
        return self.gated.after(name)

    def fail_with(
        self,
        error: BaseException | type[BaseException],
        times: int | None = None,
        on: str | None = None,
        *,
        sent: bool = False,
    ) -> None:
        """Make commands fail."""
        self.gated.fail_with(error, times, on, sent=sent)

    def heal(self) -> None:
        """End all faults."""
        self.gated.heal()

    def names(self) -> list[str]:
        """Return the names of what was sent so far, in order."""
        return self.gated.names()

    def name_of(self, args: tuple[Any, ...]) -> str:
        """Return the name by which gates, faults and log refer to a command."""
        return self.gated.name_of(args)

    def name_script(self, sha: str, name: str) -> None:
        """Name a script of a test's own."""
        self.gated.name_script(sha, _NAMES.get(name, name))

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, past its gates and faults."""
        if "target_nodes" in options:  # to greet a master
            return await super().execute_command(*args, **options)
        names = [self.gated.enter(args)]
        await self.gated.approach(names)
        reply = await super().execute_command(*args, **options)
        await self.gated.depart(names)
        return reply

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """Return a pipeline whose commands pass the same gates and faults."""
        return _GatedPipeline(self)  # type: ignore[abstract]


class _GatedPipeline(ClusterPipeline):
    def __init__(self, owner: GatedCluster) -> None:
        super().__init__(owner)  # redis-py before 6.2 takes no more
        self._gated = owner.gated
        self._names: list[str] = []

    def execute_command(self, *args: Any, **kwargs: Any) -> ClusterPipeline:
        name = self._gated.name_of(args)
        if self._names[-1:] != [name]:  # the same for many slots is one step
            self._names.append(self._gated.enter(args))
        return super().execute_command(*args, **kwargs)

    async def execute(self, raise_on_error: bool = True, allow_redirections: bool = True) -> list[Any]:
        names, self._names = self._names, []
        await self._gated.approach(names)
        replies: list[Any] = await super().execute(raise_on_error, allow_redirections)
        await self._gated.depart(names)
        return replies
