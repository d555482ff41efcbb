"""A client whose commands fail, are late, or lose their connection: always, never, so many times, or by chance."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from random import Random
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.errors import OptionError
from fastrdb.transport import SHARED, Script

GREETINGS = ("adopt", "look")
"""The script that is sent once before a client is used; it is not written down."""


@dataclass
class _Rule:
    """What strikes commands of one name (None: of any), with a probability, so many times (None: without end)."""

    name: str | None
    probability: float
    times: int | None

    def strikes(self, name: str, random: Random) -> bool:
        """Tell whether it strikes this command, and count it."""
        if self.name not in (None, name) or self.times == 0:
            return False
        if name in GREETINGS and self.name is None and self.times is not None:
            return False  # so many of what a test sends
        if self.probability < 1 and random.random() >= self.probability:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


@dataclass
class _Fault(_Rule):
    error: BaseException | type[BaseException]
    sent: bool


@dataclass
class _Delay(_Rule):
    seconds: float


class FaultyClient(redis.asyncio.Redis):
    """A client over another's connection pool whose commands fail when told to, and are written down.

    A command goes by its name (`GET`), a Lua script of fastrdb by its file's stem (`acquire`, `fill`, `begin`, `end`),
    whether by EVALSHA or EVAL. A pipeline's commands go together: one that fails, fails all.

    A cache sends all it has to say to such a client by the client's own methods, each command by itself, and not by
    the connection that plain clients share; `probability=1` is always, `spare` is never.

    Args:
        client: whose connections are used; it stays as it is.
        seed: of the chances, so that a run can be repeated.
        sleep: is awaited with the seconds of a delay.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        seed: int | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        super().__init__(connection_pool=client.connection_pool)
        self.log: list[tuple[str, tuple[Any, ...]]] = []
        self._random = Random(seed)
        self._sleep = sleep
        self._faults: list[_Fault] = []
        self._delays: list[_Delay] = []
        self._spared: set[str] = set()
        self._left: int | None = None
        self._scripts = {_digest(text): stem for stem, text in script_texts().items()}

    # --- what is to happen

    def fail_with(
        self,
        error: BaseException | type[BaseException] = RedisConnectionError,
        times: int | None = None,
        on: str | None = None,
        *,
        sent: bool = False,
        probability: float = 1.0,
    ) -> None:
        """Let commands fail, the next `times` of them (None: all until `heal`), all or those named `on`.

        The server never sees them; with `sent` it has done its work and only the reply is lost.

        Raises:
            OptionError: `probability` is not between 0 and 1.
        """
        self._faults.append(_Fault(on, _chance(probability), times, error, sent))

    def delay(
        self, seconds: float, on: str | None = None, *, times: int | None = None, probability: float = 1.0
    ) -> None:
        """Let commands be sent so many seconds late, all or those named `on`.

        Raises:
            OptionError: `probability` is not between 0 and 1, or `seconds` less than 0.
        """
        if seconds < 0:
            raise OptionError(f"delay: seconds={seconds!r} must not be less than 0")
        self._delays.append(_Delay(on, _chance(probability), times, seconds))

    def spare(self, *names: str) -> None:
        """Let commands of these names pass, whatever else is told."""
        self._spared.update(names)

    def cut(self, after: int = 0) -> None:
        """Close all connections after so many more commands, and let every command fail from then on until `heal`.

        Raises:
            OptionError: `after` is less than 0.
        """
        if after < 0:
            raise OptionError(f"cut: after={after!r} must not be less than 0")
        self._left = after

    def heal(self) -> None:
        """End all of it; `spare` too."""
        self._faults.clear()
        self._delays.clear()
        self._spared.clear()
        self._left = None

    # --- what has happened

    def names(self) -> list[str]:
        """Give the names of what was sent so far, in order."""
        return [name for name, _ in self.log]

    def knows(self, sha: str, name: str) -> None:
        """Give a script of a test's own a name."""
        self._scripts[sha] = name

    def name_of(self, args: tuple[Any, ...]) -> str:
        """Give the name by which faults and log know a command."""
        command = _text(args[0]).upper()
        if command in {"EVALSHA", "EVALSHA_RO"}:
            return self._scripts.get(_text(args[1]), command)
        if command in {"EVAL", "EVAL_RO"}:
            return self._scripts.get(_digest(_text(args[1])), command)
        return command

    # --- the client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command, if nothing strikes it."""
        names = [self.enter(args)]
        await self.approach(names)
        reply = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        await self.depart(names)
        return reply

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Give a pipeline whose commands are struck by the same."""
        return _FaultyPipeline(self, transaction, shard_hint)

    def enter(self, args: tuple[Any, ...]) -> str:
        """Write a command down and give its name."""
        name = self.name_of(args)
        if name not in GREETINGS:
            self.log.append((name, args))
        return name

    async def approach(self, names: list[str]) -> None:
        """Pass what comes before these commands are sent: delays, a cut, faults that keep them from the server."""
        for name in names:
            for delay in self._delays:
                if name not in self._spared and delay.strikes(name, self._random):
                    await self._sleep(delay.seconds)
        for name in names:
            await self._come_to_the_cut(name)
        self._strike(names, sent=False)

    async def depart(self, names: list[str]) -> None:
        """Pass what comes after their replies: faults that lose these."""
        self._strike(names, sent=True)

    async def _come_to_the_cut(self, name: str) -> None:
        if self._left is None or name in self._spared:
            return
        if self._left > 0:
            self._left -= 1
            return
        await self.connection_pool.disconnect()
        raise RedisConnectionError("the connection is cut")

    def _strike(self, names: list[str], *, sent: bool) -> None:
        for name in names:
            for fault in self._faults:
                if fault.sent is sent and name not in self._spared and fault.strikes(name, self._random):
                    raise fault.error


class _FaultyPipeline(Pipeline):
    def __init__(self, owner: FaultyClient, transaction: bool, shard_hint: str | None) -> None:
        super().__init__(owner.connection_pool, owner.response_callbacks, transaction, shard_hint)
        self._owner = owner

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        names = [self._owner.enter(command[0]) for command in self.command_stack]
        await self._owner.approach(names)
        replies: list[Any] = await super().execute(raise_on_error)
        await self._owner.depart(names)
        return replies


def script_texts() -> dict[str, str]:
    """Give the Lua scripts of fastrdb as they are sent, by their files' stems."""
    folder = resources.files("fastrdb.protocol") / "lua"
    stems = (each.name.removesuffix(".lua") for each in folder.iterdir() if each.name.endswith(".lua"))
    return {stem: Script.load(stem).text for stem in sorted(stems) if stem not in SHARED}


def _chance(probability: float) -> float:
    if not 0 <= probability <= 1:
        raise OptionError(f"probability={probability!r} must be between 0 and 1")
    return probability


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
