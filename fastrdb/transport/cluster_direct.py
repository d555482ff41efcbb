"""A cluster by its client's own methods: for clients with something of their own in them, which must see it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any
from weakref import ref

from redis.asyncio.cluster import PipelineCommand
from redis.exceptions import AskError, ClusterError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from .cluster import REDIRECTIONS, redirected
from .deadlines import Deadlines
from .histories import LOOK, Histories
from .pipeline import Boundary
from .scripts import Command

logger = logging.getLogger("fastrdb")


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

    async def look(self) -> None:
        """Have the client look at the map of the cluster, and wait for it."""
        client = self._client()
        try:
            with self._deadlines.start():
                if client is not None:
                    await client.nodes_manager.initialize()
        except Exception as error:
            raise self._boundary.failed("connect", error) from error

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
    if len(commands) == 1 and not _has_several_keys(commands[0]):
        try:
            return [await _one(client, commands[0])]
        except ClusterError as error:  # see `_asking`
            logger.debug("the client has lost its way: %s", error)
    replies = await _piped(client, commands)
    for at in redirected(commands, replies):
        replies[at] = await _again(client, commands[at], replies[at])
    return replies


async def _piped(client: Any, commands: Sequence[Command]) -> list[Any]:
    """Send commands without having them followed, or tried again where their keys are being moved."""
    async with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command, NEVER_DECODE=True)
        replies: list[Any] = await pipeline.execute(raise_on_error=False, allow_redirections=False)
    return replies


async def _again(client: Any, command: Command, reply: Any) -> Any:
    """Send a command again, to whom its slot has gone."""
    for _ in range(REDIRECTIONS):
        if isinstance(reply, MovedError):
            reply = await _one(client, command)  # the client follows it, and knows from then on
        elif isinstance(reply, AskError):
            reply = await _asking(client, command, reply)
        else:
            (reply,) = await _piped(client, (command,))
        if not isinstance(reply, AskError):
            break
    return reply


async def _asking(client: Any, command: Command, error: AskError) -> Any:
    """Send it to the server that a slot is on its way to.

    Not by `execute_command`: that sends ASKING over one connection, and the command over the next.
    """
    host, port = client.nodes_manager.remap_host_port(error.host, error.port)
    node = client.get_node(node_name=f"{host}:{port}")
    if node is None:
        return error
    asked = PipelineCommand(1, *command, NEVER_DECODE=True)
    await node.execute_pipeline([PipelineCommand(0, "ASKING"), asked])
    return asked.result


async def _one(client: Any, command: Command) -> Any:
    try:
        return await client.execute_command(*command, NEVER_DECODE=True)
    except ResponseError as error:
        return error


def _has_several_keys(command: Command) -> bool:
    """Whether it may be refused while its slot is being moved: the client itself would pause, and try it again."""
    return command[0] in ("EVALSHA", "EVAL") and int(command[2]) > 1


async def _asked(client: Any, node: Any, command: Command) -> Any:
    try:
        return await client.execute_command(*command, target_nodes=node, NEVER_DECODE=True)
    except ResponseError as error:
        return error
