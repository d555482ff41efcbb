"""A client whose commands fail, are late or lose their connection: always, so many times, or by chance."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import redis.asyncio
from redis.asyncio.client import Pipeline
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.errors import OptionError
from fastrdb.protocol import scripts

GREETINGS = ("greet",)
"""The script that is sent once before a client is used; it is not written down."""


@dataclass
class _Rule:
    """A fault or a delay of commands of one name (None: of any), by chance, so many times (None: without end)."""

    name: str | None
    probability: float
    times: int | None
    seconds: float = 0.0
    error: BaseException | type[BaseException] | None = None
    sent: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise OptionError(f"probability={self.probability!r} must be between 0 and 1")
        if self.seconds < 0:
            raise OptionError(f"delay: seconds={self.seconds!r} must not be less than 0")

    def strikes(self, name: str, random: Random) -> bool:
        """Return True if the rule applies to this command, and count that."""
        if self.name not in (None, name) or self.times == 0:
            return False
        if name in GREETINGS and self.name is None and self.times is not None:
            return False  # `times` counts what a test sends
        if self.probability < 1 and random.random() >= self.probability:
            return False
        self.times = None if self.times is None else self.times - 1
        return True


class FaultyClient(redis.asyncio.Redis):
    """A client over another client's connection pool whose commands fail on request, and are logged.

    A command goes by its name (`GET`), a Lua script of fastrdb by that of its file (`acquire`, `fill`, `begin`, `end`).
    The commands of a pipeline fail together.

    A cache sends each command to such a client by the client's own methods, and not through the shared connection.

    Args:
        client: the owner of the connections. The client itself stays as it is.
        seed: the seed of all chances, so that a run can be repeated.
        sleep: awaited with the seconds of each delay.
    """

    close_limit = 0.25
    """The longest that closing a cache waits for this client, in seconds: a client that fails is not soon well."""

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
        self._rules: list[_Rule] = []
        self._spared: set[str] = set()
        self._left: int | None = None  # commands before the cut
        self._scripts = {script.sha: script.name for script in scripts()}

    # --- faults

    def fail_with(
        self,
        error: BaseException | type[BaseException] = RedisConnectionError,
        times: int | None = None,
        on: str | None = None,
        *,
        sent: bool = False,
        probability: float = 1.0,
    ) -> None:
        """Fail the next `times` commands (None: all until `heal`), those named `on` or any.

        Without `sent` the server never sees the command. With `sent` the command is done and only the reply is lost.

        Raises:
            OptionError: `probability` is not between 0 and 1.
        """
        self._rules.append(_Rule(on, probability, times, error=error, sent=sent))

    def delay(
        self, seconds: float, on: str | None = None, *, times: int | None = None, probability: float = 1.0
    ) -> None:
        """Send commands so many seconds late, those named `on` or any.

        Raises:
            OptionError: `probability` is not between 0 and 1, or `seconds` is less than 0.
        """
        self._rules.append(_Rule(on, probability, times, seconds))

    def spare(self, *names: str) -> None:
        """Except commands of these names from all faults, delays and cuts."""
        self._spared.update(names)

    def cut(self, after: int = 0) -> None:
        """Close all connections after `after` more commands; every later command fails until `heal`.

        Raises:
            OptionError: `after` is less than 0.
        """
        if after < 0:
            raise OptionError(f"cut: after={after!r} must not be less than 0")
        self._left = after

    def heal(self) -> None:
        """End all faults, delays, cuts and exceptions from them. `emptied` and `isolated` do so for their client."""
        self._rules.clear()
        self._spared.clear()
        self._left = None

    # --- the log

    def names(self) -> list[str]:
        """Return the names of the commands that were sent so far, in order."""
        return [name for name, _ in self.log]

    def name_script(self, sha: str, name: str) -> None:
        """Add the name of another script, by its SHA1 digest."""
        self._scripts[sha] = name

    def name_of(self, args: tuple[Any, ...]) -> str:
        """Return the name of a command in faults and in the log."""
        command = _text(args[0]).upper()
        if command in {"EVALSHA", "EVALSHA_RO"}:
            return self._scripts.get(_text(args[1]), command)
        if command in {"EVAL", "EVAL_RO"}:
            return self._scripts.get(_digest(_text(args[1])), command)
        return command

    # --- the client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command. Raises the error of the first fault that applies."""
        names = [self.enter(args)]
        await self.approach(names)
        reply = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        await self.depart(names)
        return reply

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        """Return a pipeline with the same faults."""
        return _FaultyPipeline(self, transaction, shard_hint)

    def enter(self, args: tuple[Any, ...]) -> str:
        """Log a command and return its name."""
        name = self.name_of(args)
        if name not in GREETINGS:
            self.log.append((name, args))
        return name

    async def approach(self, names: list[str]) -> None:
        """Apply delays, cuts and faults before these commands are sent."""
        for name in names:
            for rule in self._rules:
                if rule.seconds and name not in self._spared and rule.strikes(name, self._random):
                    await self._sleep(rule.seconds)
        for name in names:
            if self._left is not None and name not in self._spared:
                if self._left == 0:
                    await self.connection_pool.disconnect()
                    raise RedisConnectionError("the connection is cut")
                self._left -= 1
        self._fail(names, sent=False)

    async def depart(self, names: list[str]) -> None:
        """Apply the faults that lose the replies to these commands."""
        self._fail(names, sent=True)

    def _fail(self, names: list[str], *, sent: bool) -> None:
        for name in names:
            for rule in self._rules:
                if rule.error is None or rule.sent is not sent or name in self._spared:
                    continue
                if rule.strikes(name, self._random):
                    raise rule.error


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


def script_texts() -> list[str]:
    """Return the Lua scripts of fastrdb as the server gets them."""
    return [script.text for script in scripts()]


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
