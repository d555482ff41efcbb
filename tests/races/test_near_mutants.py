"""The races of the near cache are worth something: with one mechanism taken out, one of them is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

import fastrdb.protocol.store
import fastrdb.values.types
from fastrdb import Cache
from fastrdb.loading.entry import MISS, Entries
from fastrdb.near.cache import NearCache, Token
from fastrdb.testing.server import EmbeddedServer
from fastrdb.transport.obstacles import Obstacles
from tests.near import test_functions as whole
from tests.races.mechanisms import without
from tests.races.scenarios import near
from tests.races.seams import Change
from tests.support.servers.databases import Database
from tests.support.world.near import Nearby, Observed, nearby, set_each
from tests.support.world.world import World, world

Race = Callable[[Nearby], Coroutine[Any, Any, None]]
_keep, _pushed = NearCache.keep, NearCache.pushed


@pytest.fixture
async def n(server: EmbeddedServer) -> AsyncIterator[Nearby]:
    """Give a near cache that is on."""
    async with nearby(server) as made:
        yield made


def deaf(self: NearCache, names: Iterable[bytes] | None) -> None:
    """Pushes are not heard."""
    _pushed(self, [] if names is None else [name for name in names if b"mark" in name])


@contextmanager
def drops_and_stays_open(self: NearCache, heads: Iterable[bytes] = (), names: Iterable[bytes] = ()) -> Iterator[None]:
    """What an own invalidation reaches goes before it is sent, and may come back meanwhile."""
    for name in names:
        self._drop(name.decode())
    yield


@contextmanager
def drops_entries_only(self: NearCache, heads: Iterable[bytes] = (), names: Iterable[bytes] = ()) -> Iterator[None]:
    """What is on its way is not stopped."""
    for name in names:
        if (kept := self._kept.pop(name.decode(), None)) is not None:
            self._account(name.decode(), kept)
    yield


ANY_TOKEN = "if key not in self._tokens:"
MUTANTS: dict[Change, list[Race]] = {
    without("near-token-check", ANY_TOKEN): [near.aba],
    without("near-token-check"): [near.push_before_reply, near.aba, near.read_across_own_write],
    without("near-change-takes-token"): [near.push_before_reply],
    without("near-push", deaf): [near.foreign_write, near.flushed, near.expiry, near.storm],
    without("near-flush"): [near.flushed],
    without("near-signs-of-life"): [near.black_hole_down, near.black_hole_up, near.late_pushes],
    without("near-dropped-on-loss"): [near.killed, near.cut],
    without("near-entry-ttl"): [near.expiry],
    without("near-key-tracked"): [near.new_head],
    without("near-shut"): [near.own_write, near.read_during_own_write],
    without("near-shut", drops_and_stays_open): [near.read_during_own_write],
    without("near-shut", drops_entries_only): [near.read_across_own_write],
}


async def lost(race: Coroutine[Any, Any, None]) -> None:
    """The race ends with a wrong answer."""
    with pytest.raises(AssertionError):
        await race


@pytest.mark.parametrize(
    ("change", "race"),
    [
        pytest.param(change, race, id=f"{change}: {race.__name__}")
        for change, races in MUTANTS.items()
        for race in races
    ],
)
async def test_mutants(n: Nearby, monkeypatch: pytest.MonkeyPatch, change: Change, race: Race) -> None:
    """One mechanism less, and the race is lost."""
    change.apply(monkeypatch.setattr)
    await lost(race(n))


async def test_ignoring_ones_own_echo(n: Nearby, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process has written it keeps, and takes the next push of that key for its own: it was another's too."""
    echoes: set[bytes] = set()

    async def write(self: Nearby, values: dict[str, bytes]) -> None:
        tokens = {key: self.near.begin(key) for key in values}
        echoes.update(key.encode() for key in values)
        await set_each(self.client, values)
        for key, value in values.items():
            self.keep(tokens[key], (value, -1))

    def pushed(self: NearCache, names: Iterable[bytes] | None) -> None:
        heard = [name for name in names or () if name not in echoes]
        echoes.difference_update(names or ())
        _pushed(self, heard)

    monkeypatch.setattr(Nearby, "write", write)
    without("near-push", pushed).apply(monkeypatch.setattr)
    await lost(near.own_and_foreign(n))


# --- of the whole


@pytest.fixture
async def w(sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Give a world of two processes, each with a near cache."""
    monkeypatch.setattr(fastrdb.protocol.store, "NearCache", Observed)
    async with world(sqlite, client, near=True) as made:
        yield made


@pytest.mark.parametrize("kind", ["write", "save", "refresh", "invalidate", "cache.invalidate"])
async def test_own_invalidations_wait_for_their_push(
    w: World, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Without `shut` a process reads what it has replaced itself."""
    without("near-shut").apply(monkeypatch.setattr)
    await lost(whole.test_ones_own_write_with_slow_pushes(w, server, kind))


async def test_a_session_that_has_written_is_not_asked_for(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered from the process, past its own row."""
    without("rule-1-own-writes").apply(monkeypatch.setattr)
    await lost(whole.test_a_session_that_has_written(w))


async def test_other_data_is_no_obstacle(w: World) -> None:
    """What was kept of the old server is believed."""
    w.one.store.obstacles = Obstacles()
    await lost(whole.test_a_server_with_other_data(w))


async def test_objects_are_anybodys(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions with one key hand out each other's objects."""

    def nobodys(self: NearCache, token: Token, value: Any, owner: object | None = None, **options: Any) -> bool:
        return _keep(self, token, value, None, **options)

    def anybodys(self: Entries, store: Any, key: str) -> Any:
        kept = store.near.lookup(key)
        return MISS if kept is None else kept.value

    monkeypatch.setattr(NearCache, "keep", nobodys)
    monkeypatch.setattr(
        Entries, "kept", lambda self, store, key: MISS if (kept := store.near.lookup(key)) is None else kept.value
    )
    async with Cache(w.one.client, near=True, timeout=5) as cache:
        await lost(whole.test_two_functions_one_key(cache, w.one.client))


async def test_mutable_objects_are_shared(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one caller changes, the next one gets."""
    monkeypatch.setattr(fastrdb.values.types, "is_immutable", lambda entry: True)
    async with Cache(w.one.client, near=True, timeout=5) as cache:
        await lost(whole.test_what_a_caller_changes_is_its_own(cache, w.one.client, whole.renumber))


async def test_pings_are_not_sent(n: Nearby, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them a near cache is off after a heartbeat: it could not go on for ever without asking."""
    monkeypatch.setattr(type(n.tracking), "_beat", lambda *_: asyncio.get_running_loop().create_future())
    n.tracking._task.cancel()  # type: ignore[union-attr]
    await n.near.until(lambda: not n.on)
    n.start()
    await n.opened()
    n.clock.advance(n.heartbeat)
    assert not n.on
