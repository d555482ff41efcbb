"""What one transaction will do to the cache, done around its COMMIT.

The order is the protocol's, and the model check refutes every other one: barriers over all that is reached; then the
sweep, which deletes entries with their leases; then the writer's own leases; COMMIT; fills under those leases; barriers
down. A writer that dies anywhere leaves its barriers and leases to lapse, and nothing stale behind them.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Literal

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import EXACTLY, Client, Names, Reach, Target

from .outcomes import Fill
from .repairs import Repairs
from .sweep import Writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fastrdb.transport import Patience

logger = logging.getLogger("fastrdb")

_MOST_BARRIERS = 64
"""Every acquire looks at every barrier. A transaction that would set more than this (a bulk write, with prefixes of its
own for each row) bars their common head instead: more is barred for the time of a COMMIT, never less."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a store lends to its intents."""

    names: Names
    sweeper: Writing
    repairs: Repairs
    on_error: Literal["bypass", "raise"]
    renew: float
    loop: asyncio.AbstractEventLoop
    patience: Callable[[Client], Patience]


class Intent:
    """What one transaction will do to the cache. Call `begin` before COMMIT, then `end` or `abandon`, once.

    Cancelled in `begin`, do not commit: `end(False)` takes back what reached Redis, or it lapses.
    """

    def __init__(self, room: Room, client: Client) -> None:
        self._room, self._client = room, client
        self.token = secrets.token_hex(16)
        self._targets: dict[Target, None] = {}
        self._puts: dict[str, tuple[bytes, int]] = {}
        self._new: dict[Target, None] = {}
        self._new_puts: dict[str, None] = {}
        self._barred: dict[Target, None] = {}
        self._leases: dict[bytes, str] = {}  # what each holds; its token alone, where that is not known
        self._begun = -math.inf
        self._failed = False
        self._over = False

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the store."""
        return self._room.loop

    @property
    def pending(self) -> bool:
        """Whether something was added that `begin` has not covered yet."""
        return bool(self._new or self._new_puts)

    def add(self, prefixes: Iterable[Reach] = (), keys: Iterable[str] = ()) -> None:
        """Invalidate these too. A value that was put under one of them before is dropped: it may be out of date."""
        names = self._room.names
        for prefix in prefixes:
            self._add(names.under(prefix))
            for key in [key for key in self._puts if prefix.matches(key)]:
                self._drop(key)
        for key in keys:
            self._add(names.exactly(key))
            self._drop(key)

    def put(self, key: str, raw: bytes, ttl_ms: int) -> None:
        """Write `raw` through under `key` for `ttl_ms` (at least 1) once committed; replaces an earlier put of the key.

        The value must follow from rows that this transaction has written and so has locked: nobody else can have
        changed them since it was read.
        """
        self._puts[key] = (raw, ttl_ms)
        if self._room.names.entry(key) not in self._leases:
            self._new_puts[key] = None

    def distrust(self) -> None:
        """Store nothing of what was put so far, only invalidate it: a part of the transaction has been undone."""
        for key in list(self._puts):
            self._drop(key)

    async def begin(self) -> None:
        """Bar and delete what was added since the last time, and take the leases of what will be written through.

        Raises CacheUnavailableError if the store's `on_error` is "raise". Else what Redis did not do is owed to it: by
        barriers at once, since COMMIT comes next, and once more when it has been.
        """
        room, now = self._room, monotonic()
        late = now - self._begun > room.renew
        if late:  # what was barred before may lapse before this COMMIT is done
            leased = (room.names.exactly(key) for key in self._puts if key not in self._new_puts)
            self._new.update(dict.fromkeys([*self._targets, *leased]))
        targets, puts, again = list(self._new), list(self._new_puts), bool(self._leases)
        leases = dict.fromkeys((room.names.entry(key) for key in puts), self.token)
        fence = self._fence(targets, leases)
        # Noted before they are sent: whatever reaches the server, end() takes it back.
        self._barred.update(dict.fromkeys(fence))
        self._leases.update(leases)
        patience = room.patience(self._client)
        try:
            with patience:
                await room.sweeper.begin(
                    self._client, self.token, fence, targets, leases, again=again, progress=patience.renew
                )
        except CacheUnavailableError as error:
            if room.on_error == "raise":
                raise
            self._failed = True
            room.repairs.add(self._client, self._reached(), barred=True, reason=error)
        self._leases.update(leases)
        self._begun = now if late else self._begun
        for target in targets:
            self._new.pop(target, None)
        for key in puts:
            self._new_puts.pop(key, None)

    async def end(self, committed: bool) -> None:
        """Say how the transaction ended: fill what it put if it committed, and take the barriers down. Never fails.

        A barrier that Redis does not take down now lapses by itself; whether it stood for as long as it had to is not
        known then, so what it covered is owed. A commit that `begin` did not cover is owed from now on: a repair
        that came before the COMMIT has deleted too early to count, for its barrier may lapse before the COMMIT is done.
        """
        if self._over:
            return
        self._over = True
        if committed and (self._failed or self.pending):
            self._room.repairs.add(self._client, self._reached(), barred=False, reason="at a commit")
            return
        room = self._room
        entries = {room.names.entry(key): put for key, put in self._puts.items()} if committed else {}
        fills = [Fill(entry, self._leases.get(entry, self.token), *put) for entry, put in entries.items()]
        released = [entry for entry in self._leases if entry not in entries]
        patience = room.patience(self._client)
        more = patience.renew
        try:
            with patience:
                stood = await room.sweeper.end(self._client, self.token, fills, released, list(self._barred), more)
                # The server came back without the barriers, or they lapsed before the COMMIT: whoever loaded before it
                # may have stored what it saw.
                if not stood and committed:  # mechanism: second-sweep
                    await room.sweeper.delete(self._client, self._reached(), more)
        except CacheUnavailableError as error:
            if committed:
                room.repairs.add(self._client, self._reached(), barred=False, reason=error)

    def abandon(self) -> None:
        """Say that nobody knows how it ended: the barriers stay until they lapse, for it may be committing still.

        They are put up once more, and what has been stored since goes: a server that was started again lost them, and
        nobody will come to look whether they stood.
        """
        if self._over:
            return
        self._over = True
        if reached := self._reached():
            self._room.repairs.add(self._client, reached, barred=True, reason="the outcome of a COMMIT is unknown")

    def _add(self, target: Target) -> None:
        if target not in self._targets:
            self._targets[target] = self._new[target] = None

    def _drop(self, key: str) -> None:
        if self._puts.pop(key, None) is not None and self._new_puts.pop(key, self) is None:
            self._add(self._room.names.exactly(key))

    def _fence(self, targets: Iterable[Target], leases: Iterable[bytes]) -> list[Target]:
        """Give the targets to bar: single keys only where no prefix of this transaction bars them already."""
        wide = [target for target in targets if not target.exact]
        heads = tuple(target.head for target in self._targets if not target.filter)
        single = {target.head for target in targets if target.exact} | set(leases)
        fence = [*wide, *(Target(key, EXACTLY) for key in single if not key.startswith(heads))]
        if len(fence) <= _MOST_BARRIERS:
            return fence
        first, last = min(target.head for target in fence), max(target.head for target in fence)
        same = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
        return [Target(first[: next(same, len(first))])]  # what the first and the last share, all share

    def _reached(self) -> list[Target]:
        return [*self._targets, *map(self._room.names.exactly, self._puts)]
