"""Gates: a test holds one command of one caller still, looks or acts, and lets it go on. Nothing sleeps."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline

import fastrdb
from fastrdb.scripts import SHARED, Script

GREETINGS = ("adopt", "look")
"""Scripts that are sent once before a client is used; they are not written down."""

_LUA = Path(fastrdb.__file__).parent / "lua"


class Gate:
    """Closed until opened; whoever comes to it waits. It holds one command, the first to come."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._open = asyncio.Event()

    async def reached(self) -> None:
        """Wait until a command stands at the gate."""
        await self._reached.wait()

    def open(self) -> None:
        """Let it go on, or let it pass if it has not come yet."""
        self._open.set()

    @property
    def was_reached(self) -> bool:
        """Whether a command has come to the gate."""
        return self._reached.is_set()

    async def hold(self) -> None:
        """Stand at the gate (called by what is gated)."""
        self._reached.set()
        await self._open.wait()


@dataclass
class Gates:
    """The gates set for names, each used once, in the order in which they were set."""

    _made: list[Gate] = field(default_factory=list)
    _before: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))
    _after: defaultdict[str, deque[Gate]] = field(default_factory=lambda: defaultdict(deque))

    def before(self, name: str) -> Gate:
        """Hold the next `name` before it is sent."""
        gate = self._make()
        self._before[name].append(gate)
        return gate

    def after(self, name: str) -> Gate:
        """Hold the next `name` when its reply has arrived and its caller has not seen it yet."""
        gate = self._make()
        self._after[name].append(gate)
        return gate

    def open_all(self) -> None:
        """Let everybody go on: the test is over."""
        for gate in self._made:
            gate.open()

    def _make(self) -> Gate:
        self._made.append(Gate())
        return self._made[-1]

    async def arrive(self, name: str) -> None:
        """Stand at the gate before `name`, if one is set."""
        if waiting := self._before[name]:
            await waiting.popleft().hold()

    async def leave(self, name: str) -> None:
        """Stand at the gate after `name`, if one is set."""
        if waiting := self._after[name]:
            await waiting.popleft().hold()


@dataclass
class _Fault:
    error: BaseException | type[BaseException]
    times: int | None
    name: str | None
    sent: bool

    def strikes(self, name: str, *, sent: bool) -> bool:
        """Tell whether this command fails here, and count it."""
        if self.sent is not sent or self.name not in (None, name) or self.times == 0:
            return False
        if name in GREETINGS and self.name is None and self.times is not None:
            return False  # so many of what a test sends
        self.times = None if self.times is None else self.times - 1
        return True


class GatedClient(redis.asyncio.Redis):
    """A client over another's connection pool whose commands stop at gates, fail when told to, and are written down.

    A command goes by its name (`GET`), a Lua script by its file's stem (`acquire`), whether by EVALSHA or EVAL.
    A pipeline's commands are held together: before the first is sent, and after the last reply.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self.gates = Gates()
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self._faults: list[_Fault] = []
        self._scripts = {_digest(text): stem for stem, text in script_texts().items()}

    def before(self, name: str) -> Gate:
        """Hold the next `name` before it is sent."""
        return self.gates.before(name)

    def after(self, name: str) -> Gate:
        """Hold the next `name` when its reply has arrived and its caller has not seen it yet."""
        return self.gates.after(name)

    def fail_with(
        self,
        error: BaseException | type[BaseException],
        times: int | None = None,
        on: str | None = None,
        *,
        sent: bool = False,
    ) -> None:
        """Let commands fail, the next *times* of them (None: all until `heal`), all or those named *on*.

        The server never sees them; with *sent* it has done its work and only the reply is lost.
        """
        self._faults.append(_Fault(error, times, on, sent))

    def heal(self) -> None:
        """End all faults."""
        self._faults.clear()

    def names(self) -> list[str]:
        """Give the names of what was sent so far, in order."""
        return [name for name, _ in self.log]

    def knows(self, sha: str, name: str) -> None:
        """Give a script of a test's own a name."""
        self._scripts[sha] = name

    def name_of(self, args: tuple[Any, ...]) -> str:
        """Give the name by which gates, faults and log know a command."""
        command = _text(args[0]).upper()
        if command in {"EVALSHA", "EVALSHA_RO"}:
            return self._scripts.get(_text(args[1]), command)
        if command in {"EVAL", "EVAL_RO"}:
            return self._scripts.get(_digest(_text(args[1])), command)
        return command

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, past its gates and faults."""
        names = [self.enter(args)]
        await self.approach(names)
        reply = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        await self.depart(names)
        return reply

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Give a pipeline whose commands pass the same gates and faults."""
        return _GatedPipeline(self, transaction, shard_hint)

    def enter(self, args: tuple[Any, ...]) -> str:
        """Write a command down and give its name."""
        name = self.name_of(args)
        if name not in GREETINGS:
            self.log.append((name, args))
        return name

    async def approach(self, names: list[str]) -> None:
        """Pass the gates before these commands, and the faults that keep them from the server."""
        for name in names:
            await self.gates.arrive(name)
        self._strike(names, sent=False)

    async def depart(self, names: list[str]) -> None:
        """Pass the faults that lose the reply, and the gates after these commands."""
        self._strike(names, sent=True)
        for name in names:
            await self.gates.leave(name)

    def _strike(self, names: list[str], *, sent: bool) -> None:
        for name in names:
            for fault in self._faults:
                if fault.strikes(name, sent=sent):
                    raise fault.error


class _GatedPipeline(Pipeline):
    def __init__(self, owner: GatedClient, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(owner.connection_pool, owner.response_callbacks, transaction, shard_hint)
        self._owner = owner

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        names = [self._owner.enter(command[0]) for command in self.command_stack]
        await self._owner.approach(names)
        replies: list[Any] = await super().execute(raise_on_error)
        await self._owner.depart(names)
        return replies


def script_texts() -> dict[str, str]:
    """Give each script as it is sent, by its file's stem."""
    return {path.stem: Script.load(path.stem).text for path in _LUA.glob("*.lua") if path.stem not in SHARED}


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
