"""A cluster by its client's own methods: for clients with something of their own in them, which must see it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any
from weakref import ref

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .deadlines import Deadlines
from .histories import LOOK, Histories
from .masters import redirected
from .scripts import Command
from .wire import Boundary


class ClusterDirect:
    """The route to a cluster through its client. A takeover is noticed when a command has failed."""

    def __init__(self, client: Any, deadlines: Deadlines, histories: Histories, boundary: Boundary) -> None:
        self._client, self._deadlines, self._histories, self._boundary = ref(client), deadlines, histories, boundary
        self._greeted, self.answer_due = False, 0.0

    async def get(self, name: bytes) -> bytes | None:
        """Give the value of a key."""
        (reply,) = await self.send((("GET", name),))
        refused = self._boundary.answered()
        if refused is not None:
            raise refused
        if isinstance(reply, Exception):
            raise self._boundary.failed("GET", reply)
        raw: bytes | None = reply
        return raw

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands, those of each slot in their order."""
        try:
            with self._deadlines.start() as deadline:
                client = self._client()
                if client is None:
                    raise RedisConnectionError("the client is gone")  # noqa: TRY301
                if not self._greeted:
                    await self._greet(client)
                    self._greeted = True
                replies = await _sent_in_slots(client, commands)
        except Exception as error:
            self._greeted = False  # it may be another server that answers next
            raise self._boundary.failed(str(commands[0][0]), error) from error
        self.answer_due = deadline.when
        self._boundary.answered()
        return replies

    def due(self, _: Collection[bytes]) -> float:
        """By when the latest answer was due."""
        return self.answer_due

    def crowded(self) -> bool:
        """Nobody queues here."""
        return False

    async def aclose(self, *, closing: bool = False) -> None:
        """Nothing is held."""

    def lose(self) -> None:
        """Nothing is held."""

    async def _greet(self, client: Any) -> None:
        """Look at every master, and whether what they have can be relied on."""
        await client.initialize()
        for node in client.get_primaries():
            self._histories.heard(await _asked(client, node, LOOK.whole()))
        if self._histories.other_data:
            await self._histories.settle(partial(_sent_in_slots, client))


async def _sent_in_slots(client: Any, commands: Sequence[Command]) -> list[Any]:
    if len(commands) == 1:
        return [await _one(client, commands[0])]
    async with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command, NEVER_DECODE=True)
        replies: list[Any] = await pipeline.execute(raise_on_error=False, allow_redirections=False)
    for at in redirected(commands, replies):
        replies[at] = await _one(client, commands[at])
    return replies


async def _one(client: Any, command: Command) -> Any:
    try:
        return await client.execute_command(*command, NEVER_DECODE=True)
    except ResponseError as error:
        return error


async def _asked(client: Any, node: Any, command: Command) -> Any:
    try:
        return await client.execute_command(*command, target_nodes=node, NEVER_DECODE=True)
    except ResponseError as error:
        return error
