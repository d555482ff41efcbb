"""A reader's steps on one server, where each is one script: look, take a lease, store under it, give it back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from fastrdb.transport import Call, Client, Link, Names, Restarts, Script

from .outcomes import Asked, Barred, Busy, Entry, Fill, Granted, Hit, Outcome

_ACQUIRE = Script.load("acquire")
_FILL = Script.load("fill")
_RELEASE = Script.load("release")
_INSPECT = Script.load("inspect")

DEAD_PER_FILL = 10
"""How many dead index members each fill or release sweeps: more than were added for it, so the index cannot grow with
what has expired."""


class Reading(Protocol):
    """A reader's steps, whatever Redis looks like. Names of entries are those in Redis."""

    async def get_many(self, client: Client, entries: Sequence[bytes]) -> list[bytes | None]:
        """Give entries, in one round trip."""
        ...

    async def get_timed(self, client: Client, entries: Sequence[bytes]) -> list[tuple[bytes | None, int]]:
        """Give entries, each with its PTTL, in one round trip."""
        ...

    async def acquire(self, client: Client, asked: Sequence[Asked]) -> list[Outcome]:
        """Ask for leases."""
        ...

    async def fill(self, client: Client, fills: Sequence[Fill]) -> list[bool]:
        """Store under leases, and give them back; whether each was stored."""
        ...

    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Give leases back, of an entry each, if they are held by these tokens."""
        ...

    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Tell what there is, and change nothing."""
        ...

    async def aclose(self) -> None:
        """Stop what runs in the background."""
        ...


class Grants:
    """What the leases hold that were granted here: with it they are filled, and not with the token alone."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, str], str] = {}

    def note(self, ask: Asked, held: bytes) -> Granted:
        """It was granted."""
        self._held[ask.entry, ask.token] = held.decode()
        return Granted()

    def use(self, fills: Iterable[Fill]) -> list[Fill]:
        """Give the same with what the leases hold."""
        return [fill._replace(token=self._held.get((fill.entry, fill.token), fill.token)) for fill in fills]

    def forget(self, leases: Iterable[tuple[bytes, str]]) -> None:
        """They are filled, or lost, or given back."""
        for lease in leases:
            self._held.pop(lease, None)


class Leases:
    """The steps on one server."""

    def __init__(
        self, link: Link, names: Names, restarts: Restarts, lease_ms: int, barrier_ms: int, chunk: int
    ) -> None:
        self._link, self._names, self._restarts = link, names, restarts
        self._lease_ms, self._barrier_ms, self._chunk = lease_ms, barrier_ms, chunk
        self._grants = Grants()

    async def get_many(self, client: Client, entries: Sequence[bytes]) -> list[bytes | None]:
        """Give entries by one MGET."""
        (raws,) = await self._link.read(client, (("MGET", *entries),))
        found: list[bytes | None] = raws
        return found

    async def get_timed(self, client: Client, entries: Sequence[bytes]) -> list[tuple[bytes | None, int]]:
        """Give entries, each with its PTTL."""
        # A value that is replaced in between gets its successor's life. It was there when it was read all the same.
        alone = len(entries) == 1
        values, *lives = await self._link.read(
            client, (("GET" if alone else "MGET", *entries), *(("PTTL", entry) for entry in entries))
        )
        return list(zip([values] if alone else values, lives, strict=True))

    async def acquire(self, client: Client, asked: Sequence[Asked]) -> list[Outcome]:
        """Ask for leases."""
        names = self._names
        calls = [
            Call(
                _ACQUIRE,
                (entry, names.lease(entry), *names.shared, names.server),
                (token, self._lease_ms, self._barrier_ms, old),
            )
            for entry, token, old in asked
        ]
        replies = await self._link.portions(client, calls, self._chunk)
        return [self._outcome(ask, reply) for ask, reply in zip(asked, replies, strict=True)]

    async def fill(self, client: Client, fills: Sequence[Fill]) -> list[bool]:
        """Store under leases."""
        names = self._names
        calls = [
            Call(
                _FILL,
                (entry, names.lease(entry), *names.shared, names.server),
                (token, raw, ttl_ms, names.leases, DEAD_PER_FILL),
            )
            for entry, token, raw, ttl_ms in self._grants.use(fills)
        ]
        replies = await self._link.portions(client, calls, self._chunk)
        self._grants.forget((fill.entry, fill.token) for fill in fills)
        return [bool(reply) for reply in replies]

    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Give leases back."""
        self._grants.forget(leases)
        names = self._names
        calls = [
            Call(
                _RELEASE,
                (entry, names.lease(entry), names.index, names.expiry),
                (token, names.leases, DEAD_PER_FILL),
            )
            for entry, token in leases
        ]
        await self._link.portions(client, calls, self._chunk)

    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Tell what there is."""
        keys = (entry, self._names.lease(entry), self._names.barriers)
        ttl_ms, size, leased, barred = await self._link.script(client, Call(_INSPECT, keys, ()))
        return Entry(None if ttl_ms == -2 else ttl_ms, size, bool(leased), bool(barred))

    async def aclose(self) -> None:
        """Nothing runs."""

    def _outcome(self, ask: Asked, reply: list[bytes]) -> Outcome:
        """Read the result of acquire.lua."""
        match reply:
            case [b"hit", raw]:
                return Hit(raw)
            case [b"granted", held]:
                return self._grants.note(ask, held)
            case [b"busy", token]:
                return Busy(token.decode())
            case [b"restarted"]:
                self._restarts.found()
                return Barred()
            case _:
                return Barred()
