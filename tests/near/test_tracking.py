"""The tracking connection on real servers: what it reports to the near cache, and what a loss of it does."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers import _AsyncRESP2Parser, _AsyncRESP3Parser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.sentinel import SentinelConnectionPool

from fastrdb.near.cache import Near
from fastrdb.near.tracking import ServerTracking, covering
from fastrdb.testing import TcpProxy
from fastrdb.testing.server import EmbeddedServer
from tests.races.scenarios import near as scenarios_near
from tests.races.scenarios.near import KEY
from tests.support.network.clocks import ManualClock
from tests.support.world.near import Nearby, Observed, nearby

CLIENTS = {
    f"resp{protocol}-{'str' if decode else 'bytes'}": {"protocol": protocol, "decode_responses": decode}
    for protocol in (2, 3)
    for decode in (False, True)
}
PARSERS = {"resp2-python": (2, _AsyncRESP2Parser), "resp3-python": (3, _AsyncRESP3Parser)}


@pytest.fixture(params=CLIENTS.values(), ids=list(CLIENTS))
async def n(request: pytest.FixtureRequest, any_server: EmbeddedServer) -> AsyncIterator[Nearby]:
    """Yield a near cache on each kind of server, by each protocol."""
    async with nearby(any_server, **request.param) as made:
        yield made


@pytest.mark.parametrize("scenario", scenarios_near.ALL, ids=lambda scenario: scenario.__name__)
async def test_scenarios(n: Nearby, scenario: Any) -> None:
    """Each race, on each kind of server, by RESP2 and RESP3, with replies decoded or not."""
    await scenario(n)


@pytest.mark.parametrize(("protocol", "parser"), PARSERS.values(), ids=list(PARSERS))
@pytest.mark.parametrize("scenario", [scenarios_near.foreign_write, scenarios_near.flushed, scenarios_near.killed])
async def test_without_hiredis(server: EmbeddedServer, protocol: int, parser: Any, scenario: Any) -> None:
    """redis-py's own parsers, which hand pushes on in another way."""
    async with nearby(server, parser=parser, protocol=protocol) as n:
        await scenario(n)


async def test_many_pushes_between_two_answers(server: EmbeddedServer) -> None:
    """More pushes than a parser could nest: each is a message of its own, and all are applied."""
    async with nearby(server, protocol=3) as n:
        for number in range(1500):
            await n.foreign.set(f"item:{number}", b"")
        await n.told()
        assert {f"item:{number}".encode() for number in range(1500)} <= {*n.near.heard}


async def test_eviction() -> None:
    """An entry that the server evicts for want of memory is gone here too, and so are its later changes."""
    with EmbeddedServer(args=("--maxmemory", "3mb", "--maxmemory-policy", "volatile-ttl")) as small:
        async with nearby(small) as n:
            await n.foreign.set(KEY, b"old", px=60_000)
            await n.told()
            await n.read(KEY)
            assert n.local(KEY) == b"old"
            number = 0
            while await n.foreign.exists(KEY):
                number += 1
                await n.foreign.set(f"filler:{number}", b"x" * 10_000, px=3_600_000)
            await n.near.until(lambda: n.local(KEY) is None)


async def test_a_restarted_server(tmp_path: Path) -> None:
    """It has another run_id and perhaps other data: nothing is left of what was kept."""
    with EmbeddedServer(save=True) as saved:
        async with nearby(saved) as n:
            await n.foreign.set(KEY, b"old")
            await n.told()
            await n.read(KEY)
            saved.kill()
            await n.near.until(lambda: not n.on)
            saved.start()
            await scenarios_near.again(n)
            assert n.local(KEY) is None


async def test_the_own_connection_is_not_one_of_the_pool(server: EmbeddedServer) -> None:
    """A pool of one connection has that one still, and its name and database go for the tracking connection too."""
    pool = BlockingConnectionPool(port=server.port, max_connections=1, timeout=0.1, client_name="app", db=3)
    async with Redis(connection_pool=pool) as client:
        near = Observed(Near())
        tracking = ServerTracking(near, {"item:"})
        tracking.start(pool)
        await near.until(lambda: near.valid_until > 0)
        clients = [each for each in await client.client_list() if each["name"] == "app"]
        assert sorted("t" in each["flags"] for each in clients) == [False, True]
        assert {each["db"] for each in clients} == {"3"}
        await tracking.aclose()
        await pool.disconnect()


async def test_no_prefix_tracks_everything(server: EmbeddedServer) -> None:
    """A pattern that begins with a placeholder has the empty head, which covers all others."""
    async with nearby(server) as n:
        n.heads.add("")
        await n.clock.asleep()
        n.clock.advance(n.heartbeat / 3)
        await n.near.until(lambda: n.near.begin("anything") is not None)
        await n.foreign.set("anything", b"new")
        await n.near.until(lambda: b"anything" in n.near.heard)


async def test_heads_lie_in_their_namespace(server: EmbeddedServer) -> None:
    """The heads that are tracked begin with the namespace, and keys are without it."""
    async with Redis(port=server.port) as client:
        near = Observed(Near(), before=b"ns:")
        tracking = ServerTracking(near, {"item:"})
        tracking.start(client.connection_pool)
        await near.until(lambda: near.valid_until > 0)
        token = near.begin("item:1")
        assert token is not None
        near.keep(token, b"old", size=3, ttl_ms=-1)
        await client.mset({"item:1": b"", "ns:item:1": b""})
        await near.until(lambda: bool(near.heard))
        assert near.heard == [b"ns:item:1"]
        assert near.lookup("item:1") is None
        await tracking.aclose()


# --- servers that say no


@pytest.mark.parametrize(
    ("protocol", "rules"),
    [(3, ("-client|tracking",)), (2, ("-client|tracking",))],
    ids=["resp3", "resp2"],
)
async def test_a_server_that_refuses(
    redis_server: EmbeddedServer, caplog: pytest.LogCaptureFixture, protocol: int, rules: tuple[str, ...]
) -> None:
    """The near cache stays off, which is said once; when the server has come round, it goes on."""
    async with Redis(port=redis_server.port) as admin:
        await admin.execute_command("ACL", "SETUSER", "app", "reset", "on", ">secret", "~*", "&*", "+@all", *rules)
        clock = ManualClock()
        near = Observed(Near(), clock=clock)
        tracking = ServerTracking(near, {"item:"}, sleep=clock.sleep)
        async with Redis(port=redis_server.port, protocol=protocol, username="app", password="secret") as client:
            with caplog.at_level(logging.INFO, "fastrdb"):
                tracking.start(client.connection_pool)
                for _ in range(3):
                    await clock.asleep()
                    assert near.begin("item:1") is None
                    clock.advance(60)
                assert len(caplog.records) == 1
                assert "the near cache is off" in caplog.text
                await clock.asleep()
                await admin.execute_command("ACL", "SETUSER", "app", "&*", "+@all")
                clock.advance(60)
                await near.until(lambda: near.begin("item:1") is not None)
                assert "the near cache is on again" in caplog.text
            await tracking.aclose()
        await admin.execute_command("ACL", "DELUSER", "app")


@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_user_with_just_these_rights(redis_server: EmbeddedServer, protocol: int) -> None:
    """The rights that the README names are enough."""
    rights = ("+client|tracking", "+ping")
    async with Redis(port=redis_server.port) as admin:
        await admin.execute_command("ACL", "SETUSER", "few", "reset", "on", ">secret", "~item:*", *rights)
        async with Redis(port=redis_server.port, protocol=protocol, username="few", password="secret") as client:
            near = Observed(Near(heartbeat=0.1))
            tracking = ServerTracking(near, {"item:"})
            tracking.start(client.connection_pool)
            await near.until(lambda: near.valid_until > 0)
            first = near.valid_until
            await near.until(lambda: near.valid_until > first)
            await tracking.aclose()
        await admin.execute_command("ACL", "DELUSER", "few")


async def test_a_client_unlike_any_other(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it does: the near cache is off, and says why."""
    clock = ManualClock()
    near = Observed(Near(), clock=clock)
    tracking = ServerTracking(near, {"item:"}, sleep=clock.sleep)
    tracking.start(object())
    await clock.asleep()
    assert "AttributeError" in caplog.text
    assert near.begin("item:1") is None
    await tracking.aclose()


async def test_a_server_that_is_not_there_is_asked_again(server: EmbeddedServer) -> None:
    """With pauses that grow to a second and no further."""
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as client:
        await proxy.refuse()
        clock = ManualClock()
        near = Observed(Near(), clock=clock)
        tracking = ServerTracking(near, {"item:"}, sleep=clock.sleep)
        tracking.start(client.connection_pool)
        for _ in range(10):
            await clock.asleep()
            clock.advance(1.0)
        await clock.asleep()
        await proxy.accept()
        clock.advance(1.0)
        await near.until(lambda: near.begin("item:1") is not None)
        await tracking.aclose()


async def test_a_master_that_is_master_no_more(server: EmbeddedServer) -> None:
    """Sentinel names another master by now: the former one may live on, and reports nothing new."""

    class Manager:
        """Source of one of two addresses of the same server."""

        master = ("127.0.0.1", server.port)

        async def discover_master(self, service: str) -> tuple[str, int]:
            return self.master

    manager = Manager()
    pool = SentinelConnectionPool("service", manager)
    async with TcpProxy(server.port) as proxy:
        clock = ManualClock()
        near = Observed(Near(), clock=clock)
        tracking = ServerTracking(near, {"item:"}, sleep=clock.sleep)
        tracking.start(pool)
        await near.until(lambda: near.valid_until > 0)
        manager.master = ("127.0.0.1", proxy.port)
        await clock.asleep()
        clock.advance(0.5)
        await near.until(lambda: near.valid_until < 0)
        await clock.asleep()
        clock.advance(1.0)
        await near.until(lambda: near.valid_until > 0)
        assert proxy.connections == 1
        await tracking.aclose()
        await pool.disconnect()


# --- heads


@given(st.lists(st.text(alphabet="ab:é", max_size=4)))
def test_heads_do_not_overlap_and_leave_nothing_out(heads: list[str]) -> None:
    """The server refuses heads of which one begins with another."""
    found = covering(heads)
    assert all(any(head.startswith(each) for each in found) for head in heads)
    assert not any(one != other and one.startswith(other) for one in found for other in found)
    assert {*found} <= {*heads}


async def test_the_heads_of_an_open_connection(server: EmbeddedServer) -> None:
    """A head that is covered already costs nothing: the connection stays, and so does what was kept."""
    async with nearby(server) as n:
        await n.foreign.set(KEY, b"old")
        await n.told()
        await n.read(KEY)
        n.heads.add("item:list:")
        await n.beat()
        assert n.local(KEY) == b"old"
        assert n.proxy.connections == 1


# --- by the clock on the wall


async def test_signs_of_life_by_the_real_clock(server: EmbeddedServer) -> None:
    """The near cache stays on as long as the server answers; and goes off when it does not, by the real clock."""
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as client:
        near = Observed(Near(heartbeat=0.2))
        tracking = ServerTracking(near, {"item:"})
        tracking.start(client.connection_pool)
        await near.until(lambda: near.valid_until > 0)
        first = near.valid_until
        await near.until(lambda: near.valid_until > first + 0.4)
        proxy.drop("down")
        await near.until(lambda: near.valid_until < 0)
        proxy.heal()
        await near.until(lambda: near.valid_until > 0)
        await tracking.aclose()


async def test_closing_and_starting_again(server: EmbeddedServer) -> None:
    """After `aclose` no entry answers and no connection is left; `start` is all it takes."""
    async with nearby(server) as n:
        await n.tracking.aclose()
        assert not n.on
        while any("t" in each["flags"] for each in await n.foreign.client_list()):
            pass
        n.start()
        await n.opened()
        n.start()
        await scenarios_near.foreign_write(n)
        assert n.proxy.connections == 2


_PROGRAM = """
import asyncio, logging
from redis.asyncio import Redis
from fastrdb.near.cache import Near, NearCache
from fastrdb.near.tracking import ServerTracking

logging.basicConfig(level=logging.WARNING)

async def main():
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is no finding
    near = NearCache(Near(heartbeat=0.1))
    tracking = ServerTracking(near, {{"item:"}})
    async with Redis(port={port}, protocol={protocol}) as client:
        for _ in range({rounds}):
            tracking.start(client.connection_pool)
            await asyncio.sleep(0)
        while {open} and near.begin("item:1") is None:
            await asyncio.sleep(0)

for _ in range(2):
    asyncio.run(main())
"""


@pytest.mark.parametrize(("protocol", "rounds", "is_open"), [(2, 1, False), (3, 5, False), (2, 1, True), (3, 1, True)])
async def test_a_loop_that_ends(server: EmbeddedServer, protocol: int, rounds: int, is_open: bool) -> None:
    """A program that ends without closing anything ends at once, and without a word on its error output."""
    program = _PROGRAM.format(port=server.port, protocol=protocol, rounds=rounds, open=is_open)
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
