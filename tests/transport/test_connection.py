"""The connection of a wire: what is said on it, when it is taken and when it is given back."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from fastrdb.transport.connection import Line
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.lines import CLOSED, Asks, Pool, Server, Timers, turns
from tests.support.world.world import spawn

GET = ("GET", b"k")


@pytest.fixture
def server() -> Server:
    """Give a server in memory with one key."""
    made = Server()
    made.data[b"k"] = b"v"
    return made


@pytest.fixture
def asks() -> Asks:
    """Give a greeting."""
    return Asks()


@pytest.fixture
def pool(server: Server) -> Pool:
    """Give a source that can spare its connection."""
    return Pool(server)


@pytest.fixture
async def line(pool: Pool, asks: Asks) -> Line:
    """Give a line."""
    return Line(pool, asks)


async def cancelled(task: asyncio.Task[object]) -> None:
    """Cancel a task and wait until it has ended so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_greeting_goes_out_with_the_first_commands(line: Line, server: Server, asks: Asks) -> None:
    """One round trip for both, and none for what comes after."""
    assert await line.exchange([GET, ("PING",)]) == [b"v", b"OK"]
    assert await line.exchange([GET]) == [b"v"]
    assert server.log == [[(b"WHO",), (b"GET", b"k"), (b"PING",)], [(b"GET", b"k")]]
    assert asks.heards == [b"OK"]


async def test_a_greeting_is_heard_before_any_reply_is_given(line: Line, server: Server, asks: Asks) -> None:
    """Also where the server did not know the question, and is asked once more."""
    unknown = ResponseError("NOSCRIPT")
    server.answer(b"WHO", unknown)
    asks.says.append(("WHO IN FULL",))
    gate = server.gates.before("send")
    second = server.gates.before("send")
    asking = spawn(line.exchange([GET]))
    gate.open()
    await second.reached()
    assert asks.heards == [unknown]
    assert not asking.done()
    second.open()
    assert await asking == [b"v"]
    assert server.told == [(b"WHO",), (b"GET", b"k"), (b"WHO IN FULL",)]
    assert asks.heards == [unknown, b"OK"]


@pytest.mark.parametrize("at", ["send", "read"])
async def test_a_greeting_that_was_cancelled_is_said_again(line: Line, server: Server, asks: Asks, at: str) -> None:
    """Who comes next does not use a connection of which nothing is known."""
    gate = server.gates.before(at)
    first = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(first)
    assert await line.exchange([GET]) == [b"v"]
    assert asks.heards == [b"OK"]
    assert server.log[-1] == [(b"WHO",), (b"GET", b"k")]


async def test_a_greeting_grows_old(line: Line, server: Server, asks: Asks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second the server is looked at again, with the commands of that moment."""
    timers = Timers(monkeypatch)
    for _ in range(3):
        await line.exchange([GET])
        await line.exchange([GET])
        timers.go_off()
    assert [command[0] for command in server.told] == [b"WHO", b"GET", b"GET"] * 3


async def test_the_wrong_server_is_left(line: Line, server: Server, asks: Asks) -> None:
    """It is connected to anew, where a name may lead to another one by now; and given up if it does not."""
    wrong = RedisConnectionError("a replica")
    asks.says.extend([wrong, None])
    assert await line.exchange([GET]) == [b"v"]
    assert server.connects == 2
    await line.hang_up()
    asks.says.append(wrong)
    with pytest.raises(RedisConnectionError, match="a replica"):
        await line.exchange([GET])
    assert await line.exchange([GET]) == [b"v"]


async def test_the_replies_of_who_was_cancelled_are_skipped(line: Line, server: Server) -> None:
    """Nobody gets another's reply, and the connection stays."""
    await line.exchange([GET])
    server.data[b"other"] = b"not yours"
    gate = server.gates.before("read")
    first = spawn(line.exchange([("GET", b"other"), ("GET", b"other"), ("GET", b"other")]))
    await gate.reached()
    await cancelled(first)
    gate = server.gates.before("read")
    second = spawn(line.exchange([("GET", b"other"), GET]))
    await gate.reached()
    await cancelled(second)
    assert await line.exchange([GET, GET]) == [b"v", b"v"]
    assert server.connects == 1


async def test_nobody_gets_the_reply_of_who_was_cancelled_while_sending(line: Line, server: Server) -> None:
    """What had been written by then is answered, and nobody knows how much that is: the connection is given up."""
    await line.exchange([GET])
    server.data[b"other"] = b"not yours"
    gate = server.gates.after("send")
    first = spawn(line.exchange([("GET", b"other")]))
    await gate.reached()
    await cancelled(first)
    assert await line.exchange([GET]) == [b"v"]
    assert server.connects == 2


async def test_the_servers_errors_are_replies(line: Line, server: Server) -> None:
    """One command's error is that command's."""
    error = ResponseError("WRONGTYPE")
    server.answer(b"GET", error)
    assert await line.exchange([GET, GET]) == [error, b"v"]


async def test_a_connection_that_was_closed_is_made_anew(line: Line, server: Server, asks: Asks) -> None:
    """Closed by the server since the last use, or in the middle of it: what is sent is sent once more, greeted."""
    await line.exchange([GET])
    server.answer(b"GET", CLOSED)
    assert await line.exchange([GET]) == [b"v"]
    assert server.log[-1] == [(b"WHO",), (b"GET", b"k")]
    assert server.connects == 2
    server.answer(b"GET", CLOSED, CLOSED)
    with pytest.raises(RedisConnectionError):
        await line.exchange([GET])
    assert await line.exchange([GET]) == [b"v"]


async def test_a_connection_that_its_owner_has_closed(line: Line, pool: Pool, server: Server) -> None:
    """It is connected and greeted anew, and goes back closed, with nothing left of what was on its way before."""
    await line.exchange([GET])
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(asking)
    assert line._connection is not None
    await line._connection.disconnect()
    assert await line.exchange([GET]) == [b"v"]
    assert server.log[-1] == [(b"WHO",), (b"GET", b"k")]
    await line.give_back()
    assert pool.given == [False]


async def test_an_idle_connection_goes_back(line: Line, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a second without use, and connected: its next user need not connect. The next exchange takes it again."""
    timers = Timers(monkeypatch)
    await line.exchange([GET])
    assert [delay for delay, _ in timers.set] == [1.0]
    timers.go_off()
    await turns()
    assert pool.given == []
    timers.go_off()
    await turns()
    assert pool.given == [True]
    assert timers.set == []
    await line.exchange([GET])
    assert pool.taken == 2
    assert pool.server.connects == 1


async def test_a_connection_in_use_stays(
    line: Line, pool: Pool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exchange may take as long as it likes: the connection does not go to somebody else in the middle of it."""
    timers = Timers(monkeypatch)
    await line.exchange([GET])
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    for _ in range(5):
        timers.go_off()
        await turns()
    assert pool.given == []
    gate.open()
    assert await asking == [b"v"]


async def test_an_exchange_that_begins_as_the_connection_goes_back(
    line: Line, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one of its own, or fails: what is being given back is not used."""
    timers = Timers(monkeypatch)
    await line.exchange([GET])
    timers.go_off()
    timers.go_off()
    assert line._connection is None, "it would be given back in the middle of the exchange"
    await turns()
    assert await line.exchange([GET]) == [b"v"]
    assert pool.given == [True]


async def test_a_connection_that_was_renewed_goes_back_closed(line: Line, pool: Pool, server: Server) -> None:
    """Its owner may have closed the client, and would not do so again."""
    await line.exchange([GET])
    server.answer(b"GET", CLOSED)
    await line.exchange([GET])
    await line.give_back()
    assert pool.given == [False]


async def test_a_connection_with_unread_replies_goes_back_closed(line: Line, pool: Pool, server: Server) -> None:
    """Its next user would take them for the replies to its own commands."""
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(asking)
    await line.give_back()
    assert pool.given == [False]


async def test_a_source_that_cannot_spare_it_has_it_back_at_once(server: Server, asks: Asks) -> None:
    """After each exchange, also one that was cancelled or failed."""
    pool = Pool(server, spares=False)
    line = Line(pool, asks)
    assert await line.exchange([GET]) == [b"v"]
    assert pool.given == [True]
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(asking)
    assert pool.given == [True, False]
    server.answer(b"GET", CLOSED, CLOSED)
    with pytest.raises(RedisConnectionError):
        await line.exchange([GET])
    assert await line.exchange([GET]) == [b"v"]
    assert pool.free


async def test_without_a_connection_nothing_is_kept(line: Line, pool: Pool, server: Server) -> None:
    """A server that refuses is asked again by the next exchange."""
    await line.exchange([GET])
    await line.hang_up()
    server.refuses = True
    for _ in range(2):
        with pytest.raises(RedisConnectionError, match="refused"):
            await line.exchange([GET])
    server.refuses = False
    assert await line.exchange([GET]) == [b"v"]


async def test_a_connection_of_a_loop_that_has_ended_is_lost(line: Line, pool: Pool) -> None:
    """The source does without it."""
    await line.exchange([GET])
    line.lose()
    assert line._connection is None
    assert not pool.free[0].is_connected


MUTANTS = [
    (without("connection-in-use-stays"), test_a_connection_in_use_stays),
    (without("greeting-grows-old"), test_a_greeting_grows_old),
    (
        without("unclean-is-closed", "unclean = self._unread > 0"),
        test_a_connection_that_was_renewed_goes_back_closed,
    ),
    (without("unclean-is-closed", "unclean = self._renewed"), test_a_connection_with_unread_replies_goes_back_closed),
    (without("greeting-repeated"), test_a_greeting_that_was_cancelled_is_said_again),
    (without("unsent-hangs-up"), test_nobody_gets_the_reply_of_who_was_cancelled_while_sending),
    (without("greeting-heard"), test_the_wrong_server_is_left),
    (without("reconnection-noted"), test_a_connection_that_its_owner_has_closed),
]


@pytest.mark.parametrize(("change", "race"), MUTANTS, ids=label)
async def test_mutants(
    line: Line,
    server: Server,
    pool: Pool,
    asks: Asks,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    race: Any,
) -> None:
    """With the mechanism taken out, the test is lost."""
    change.apply(monkeypatch.setattr)
    arguments = {"line": line, "server": server, "pool": pool, "asks": asks, "monkeypatch": monkeypatch, "at": "read"}
    with pytest.raises((AssertionError, TimeoutError, pytest.fail.Exception, RedisConnectionError)):
        async with asyncio.timeout(2):
            await race(**{name: arguments[name] for name in inspect.signature(race).parameters})
