"""What is really sent to a cluster: each command on its way to a server, and what scripts do there."""

from __future__ import annotations

import ast
import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import hiredis
import pytest
from redis.asyncio.connection import AbstractConnection
from redis.crc import key_slot

from fastrdb.transport.commands import Command
from fastrdb.transport.connection import Wire
from tests.support.servers.cluster import HOST, SLOTS, Cluster

Words = tuple[bytes, ...]

_LINE = re.compile(rb"^\+\d+\.\d+ \[\d+ ([^\]]*)\] (.*)\r\n$", re.DOTALL)
_END = b"the end"
_WORD = re.compile(rb'"(?:[^"\\]|\\.)*"')


@dataclass
class Run:
    """One run of a script at a server, and the commands in it."""

    words: Words
    inside: list[Words] = field(default_factory=list)


class Tap:
    """Record of what this process has sent to each server (`sent`, by port), and which scripts ran there (`runs`)."""

    def __init__(self, cluster: Cluster) -> None:
        self.sent: list[tuple[int, Words]] = []
        self.runs: list[Run] = []
        self._node = cluster.masters[0]
        self._places: dict[bytes, tuple[int, int, int]] = {}
        self._owners: list[int] = [0] * SLOTS
        for first, last, (_, port, *_), *_ in self._node.ask("CLUSTER", "SLOTS"):
            self._owners[first : last + 1] = [port] * (last + 1 - first)

    def keys(self, words: Words) -> list[bytes]:
        """Return the keys of a command, as the server finds them."""
        name = words[0].upper()
        if name in {b"EVAL", b"EVALSHA"}:
            return list(words[3 : 3 + int(words[2])])
        if name not in self._places:
            ((_, told),) = self._node.ask("COMMAND", "INFO", name).items()
            self._places[name] = told["first_key_pos"], told["last_key_pos"], told["step_count"]
        first, last, step = self._places[name]
        return list(words[first : last + 1 if last >= 0 else None : step]) if first else []

    def misplaced(self) -> Iterator[tuple[int, Words]]:
        """Yield the commands whose keys are in several slots, or that went to a server without their slot."""
        for port, words in self.sent:
            slots = {key_slot(key) for key in self.keys(words)}
            if len(slots) > 1 or any(self._owners[slot] != port for slot in slots):
                yield port, words

    def undeclared(self) -> Iterator[tuple[bytes, Words]]:
        """Yield keys that scripts have touched without having them in their KEYS."""
        for run in self.runs:
            declared = {*self.keys(run.words)}
            yield from ((key, run.words) for words in run.inside for key in self.keys(words) if key not in declared)


@asynccontextmanager
async def tapped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tap]:
    """Note what is sent, and what MONITOR prints, until the block is left."""
    tap, send, ours = Tap(cluster), AbstractConnection.send_packed_command, Wire.send

    def note(port: int, parts: Iterable[bytes]) -> None:
        reader = hiredis.Reader()
        for part in parts:
            reader.feed(part)
        while (words := reader.gets()) is not False:
            tap.sent.append((port, tuple(words)))

    async def noted(connection: Any, command: Any, *args: Any, **options: Any) -> None:
        note(connection.port, [command] if isinstance(command, bytes) else command)
        await send(connection, command, *args, **options)

    def noted_of_ours(wire: Wire, commands: Sequence[Command]) -> Any:
        note(wire.connection.port, [hiredis.pack_command(tuple[Any](each)) for each in commands])
        return ours(wire, commands)

    monitors = [await asyncio.open_connection(HOST, node.port, limit=2**24) for node in cluster.masters]
    for reader, writer in monitors:
        writer.write(b"MONITOR\r\n")
        assert await reader.readline() == b"+OK\r\n"
    tasks = [asyncio.create_task(_listen(reader, tap)) for reader, _ in monitors]
    try:
        with monkeypatch.context() as patched:
            patched.setattr(AbstractConnection, "send_packed_command", noted)
            patched.setattr(Wire, "send", noted_of_ours)
            yield tap
    finally:
        for node in cluster.masters:
            await asyncio.to_thread(node.ask, "ECHO", _END)
        await asyncio.gather(*tasks)
        for _, writer in monitors:
            writer.close()


async def _listen(reader: asyncio.StreamReader, tap: Tap) -> None:
    """Note which scripts a server runs, and what is done in each: that follows at once upon the script itself."""
    run = Run(())
    while found := _LINE.match(await reader.readline()):
        words = tuple(map(_unescaped, _WORD.findall(found[2])))
        if words == (b"ECHO", _END):
            return
        if found[1] == b"lua":
            run.inside.append(words)
        elif words[0].upper() in {b"EVAL", b"EVALSHA"}:
            run = Run(words)
            tap.runs.append(run)
    raise AssertionError("MONITOR has ended")


def _unescaped(word: bytes) -> bytes:
    found: bytes = ast.literal_eval(f"b{word.decode()}") if b"\\" in word else word[1:-1]
    return found
