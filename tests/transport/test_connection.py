"""One connection: what is sent on it, when it is opened and closed, and when the server counts as silent."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fastrdb.transport import connection as connections
from fastrdb.transport.connection import Connection
from fastrdb.transport.timeouts import Budget
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.lines import CLOSED, Asks, Passing, Pool, Server, Wired, turns
from tests.support.network.slow import STEP, LoopClock
from tests.support.world.world import spawn

GET = ("GET", b"k")


@pytest.fixture
def server() -> Server:
    """Yield a server in memory with one key."""
    made = Server()
    made.data[b"k"] = b"v"
    return made


@pytest.fixture
def asks() -> Asks:
    """Return a greeting."""
    return Asks()


@pytest.fixture
def pool(server: Server) -> Pool:
    """Return the settings of connections to it."""
    return Pool(server)


@pytest.fixture
async def line(pool: Pool, asks: Asks) -> AsyncIterator[Connection]:
    """Yield a connection with a timeout that a busy machine keeps."""
    made = Connection(lambda: pool, asks, 60)
    yield made
    await made.aclose()


async def cancelled(task: asyncio.Task[object]) -> None:
    """Cancel a task and wait until it has ended so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def begun(exchange: Any) -> asyncio.Task[Any]:
    """Return the task of an exchange that has been sent."""
    task = spawn(exchange)
    await turns(2)
    return task


async def test_a_greeting_goes_out_with_the_first_commands(line: Connection, server: Server, asks: Asks) -> None:
    """One round trip for both, and none for what comes after."""
    assert await line.exchange([GET, ("PING",)]) == [b"v", b"OK"]
    assert await line.exchange([GET]) == [b"v"]
    assert server.log == [[(b"WHO",), (b"GET", b"k"), (b"PING",)], [(b"GET", b"k")]]
    assert asks.replies == [b"OK"]


async def test_a_greeting_is_heard_before_any_reply_is_given(line: Connection, server: Server, asks: Asks) -> None:
    """Also where the server did not know the question, and is asked once more."""
    server.answer(b"WHO", ResponseError("what?"))
    asks.says.append(("WHO IN FULL",))
    gate = server.gates.before("send")
    second = server.gates.before("send")
    asking = spawn(line.exchange([GET]))
    gate.open()
    await second.reached()
    assert [str(reply) for reply in asks.replies] == ["what?"]
    assert not asking.done()
    second.open()
    assert await asking == [b"v"]
    assert server.told == [(b"WHO",), (b"GET", b"k"), (b"WHO IN FULL",)]
    assert asks.replies[1:] == [b"OK"]


@pytest.mark.parametrize("at", ["send", "read"])
async def test_a_greeting_that_was_cancelled_is_said_again(
    line: Connection, server: Server, asks: Asks, at: str
) -> None:
    """The next caller does not use a connection in an unknown state."""
    gate = server.gates.before(at)
    first = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(first)
    gate.open()
    assert await line.exchange([GET]) == [b"v"]
    assert asks.replies == [b"OK"]
    assert server.log[-1] == [(b"WHO",), (b"GET", b"k")]


async def test_a_greeting_grows_old(
    line: Connection, server: Server, asks: Asks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a second the server is judged again, with the commands of that moment."""
    time = Passing(monkeypatch)
    for _ in range(3):
        await line.exchange([GET])
        await line.exchange([GET])
        time.passes(1.0)
    assert [command[0] for command in server.told] == [b"WHO", b"GET", b"GET"] * 3


async def test_the_wrong_server_is_left(line: Connection, server: Server, asks: Asks) -> None:
    """It is connected to anew, where a name may lead to another one by now; and given up if it does not."""
    wrong = RedisConnectionError("a replica")
    asks.says.extend([wrong, None])
    assert await line.exchange([GET]) == [b"v"]
    assert server.connects == 2
    await line.aclose()
    asks.says.extend([wrong, wrong])
    with pytest.raises(RedisConnectionError, match="a replica"):
        await line.exchange([GET])
    assert await line.exchange([GET]) == [b"v"]


async def test_the_replies_of_who_was_cancelled_are_skipped(line: Connection, server: Server) -> None:
    """No caller gets another's reply, and the connection stays."""
    await line.exchange([GET])
    server.data[b"other"] = b"not yours"
    gate = server.gates.before("read")
    first = spawn(line.exchange([("GET", b"other"), ("GET", b"other"), ("GET", b"other")]))
    await gate.reached()
    await cancelled(first)
    await cancelled(await begun(line.exchange([("GET", b"other"), GET])))
    third = await begun(line.exchange([GET, GET]))
    gate.open()
    assert await third == [b"v", b"v"]
    assert server.connects == 1


async def test_nobody_gets_the_reply_of_who_was_cancelled_while_sending(line: Connection, server: Server) -> None:
    """A command that was written as a whole is answered as a whole: the connection stays."""
    await line.exchange([GET])
    server.data[b"other"] = b"not yours"
    gate = server.gates.after("send")
    first = spawn(line.exchange([("GET", b"other")]))
    await gate.reached()
    await cancelled(first)
    gate.open()
    assert await line.exchange([GET]) == [b"v"]
    assert server.connects == 1


async def test_the_servers_errors_are_replies(line: Connection, server: Server) -> None:
    """One command's error is that command's."""
    server.answer(b"GET", ResponseError("WRONGTYPE"))
    error, value = await line.exchange([GET, GET])
    assert (type(error), str(error), value) == (ResponseError, "WRONGTYPE", b"v")


async def test_a_connection_that_was_closed_is_made_anew(line: Connection, server: Server, asks: Asks) -> None:
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


async def test_a_connection_that_is_closed_is_not_opened_by_redis_py(line: Connection, server: Server) -> None:
    """It is opened and greeted here."""
    await line.exchange([GET])
    await server.connections[0].disconnect()
    await turns()
    assert await line.exchange([GET]) == [b"v"]
    assert server.log[-1] == [(b"WHO",), (b"GET", b"k")]


async def test_settings_are_read_for_each_connection(line: Connection, server: Server, pool: Pool) -> None:
    """A password that was changed in the pool counts from the next connection on."""
    await line.exchange([GET])
    other = Server()
    other.data[b"k"] = b"other"
    pool.connection_kwargs["server"] = other
    server.answer(b"GET", CLOSED)
    assert await line.exchange([GET]) == [b"other"]


async def test_a_client_that_is_gone(server: Server, asks: Asks) -> None:
    """There is nothing to connect by."""
    with pytest.raises(RedisConnectionError, match="the client is gone"):
        await Connection(lambda: None, asks, 60).exchange([GET])


# --- idle and closed


async def test_an_idle_connection_is_closed(line: Connection, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a minute without use; the next exchange opens another one."""
    time = Passing(monkeypatch)
    await line.exchange([GET])
    time.passes(59)
    await turns()
    await line.exchange([GET])
    time.passes(59)
    await turns()
    assert server.connections[0].is_connected
    time.passes(2)
    await turns()
    assert not server.connections[0].is_connected
    assert await line.exchange([GET]) == [b"v"]
    assert server.connects == 2


async def test_a_connection_in_use_stays(line: Connection, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exchange that lasts is not idle."""
    line.timeout = 1000.0
    time = Passing(monkeypatch)
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    time.passes(100)
    await turns()
    assert server.connections[0].is_connected
    gate.open()
    assert await asking == [b"v"]


async def test_closing(line: Connection, server: Server) -> None:
    """The connection is closed, also with replies that have yet to come; the next exchange opens another one."""
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(asking)
    await line.aclose()
    assert not server.connections[0].is_connected
    assert await line.exchange([GET]) == [b"v"]
    assert server.connects == 2


def test_a_connection_closed_as_its_event_loop_ends_is_closed(server: Server, pool: Pool, asks: Asks) -> None:
    """The client is freed by the last step of a program, and the loop cancels tasks that have not begun."""

    async def main() -> None:
        line = Connection(lambda: pool, asks, 60)
        await line.exchange([GET])
        asyncio.get_running_loop().call_soon(line.close)  # as when the client is freed

    asyncio.run(main())
    assert not server.connections[0].is_connected


async def test_a_connection_that_is_refused(line: Connection, server: Server) -> None:
    """A server that refuses is asked again by the next exchange, once each."""
    await line.exchange([GET])
    await line.aclose()
    server.refuses = True
    for _ in range(2):
        with pytest.raises(RedisConnectionError, match="refused"):
            await line.exchange([GET])
    assert len(server.connections) == 3
    server.refuses = False
    assert await line.exchange([GET]) == [b"v"]


async def test_a_connection_that_is_cancelled_while_it_opens(line: Connection, server: Server) -> None:
    """It is closed, and the next exchange opens another one."""
    gate = server.gates.after("connect")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    await cancelled(asking)
    assert not server.connections[0].is_connected
    assert await line.exchange([GET]) == [b"v"]


# --- silence


TIMEOUT = 20 * STEP


@pytest.fixture
async def clock() -> AsyncIterator[LoopClock]:
    """Return the clock of the event loop, which goes on by small steps."""
    made = LoopClock()
    with made.put_in():
        going = spawn(made.sleep(3600))
        yield made
        await cancelled(going)


@pytest.mark.parametrize("at", ["connect", "send", "read"])
async def test_a_silent_server(pool: Pool, server: Server, asks: Asks, clock: LoopClock, at: str) -> None:
    """Its connection is closed after the timeout; the caller's task is not cancelled, and nothing is sent again."""
    line, gate = Connection(lambda: pool, asks, TIMEOUT), server.gates.before(at)
    began = clock.now
    with pytest.raises((RedisTimeoutError, TimeoutError)):
        await line.exchange([GET])
    assert gate.was_reached
    assert TIMEOUT <= clock.now - began <= 1.2 * TIMEOUT
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    assert len(server.log) <= 1
    assert await line.exchange([GET]) == [b"v"]
    assert len(server.connections) == 2


async def test_a_slow_server_is_not_silent(pool: Pool, server: Server, asks: Asks, clock: LoopClock) -> None:
    """As long as one reply comes after the other an exchange may last."""
    line = Connection(lambda: pool, asks, TIMEOUT)
    reply = Wired.reply

    async def slowly(wired: Wired) -> None:
        await clock.sleep(0.6 * TIMEOUT)
        await reply(wired)

    began = clock.now
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Wired, "reply", slowly)
        assert await line.exchange([GET] * 5) == [b"v"] * 5
    assert clock.now - began > 3 * TIMEOUT
    await line.aclose()


async def test_exchanges_one_after_the_other_are_not_silent(
    pool: Pool, server: Server, asks: Asks, clock: LoopClock
) -> None:
    """Each has a timeout of its own."""
    line = Connection(lambda: pool, asks, TIMEOUT)
    for _ in range(5):
        gate = server.gates.before("read")
        asking = spawn(line.exchange([GET]))
        await gate.reached()
        await clock.sleep(0.6 * TIMEOUT)
        gate.open()
        assert await asking == [b"v"]
    await line.aclose()


async def held_up(line: Connection, server: Server, time: Passing, *stalls: float) -> list[Any]:
    """Exchange while the event loop stands still for so long before each reply."""
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET]))
    await gate.reached()
    for seconds in stalls:
        await turns()
        time.passes(seconds)
        await turns(1)
    if not asking.done():
        gate.open()
    return await asking


async def test_time_that_the_event_loop_stood_still_is_not_the_servers(
    line: Connection, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that has come meanwhile is read."""
    assert await held_up(line, server, Passing(monkeypatch), 90) == [b"v"]


async def test_time_before_an_exchange_excuses_nothing(
    line: Connection, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop stood still before: a caller that comes afterwards waits no longer because of that."""
    time = Passing(monkeypatch)
    await line.exchange([GET])
    time.passes(30)  # the watchdog's look of that exchange is late
    budget = Budget(60)
    budget.start(began := asyncio.get_running_loop().time())
    gate = server.gates.before("read")
    asking = spawn(line.exchange([GET], budget))
    await gate.reached()
    await turns()
    assert budget.until == began + 60
    gate.open()
    assert await asking == [b"v"]


async def test_silence_is_noticed_though_the_event_loop_stands_still(
    line: Connection, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it does."""
    with pytest.raises(RedisTimeoutError):
        await held_up(line, server, Passing(monkeypatch), *[90] * 6)


async def test_a_reply_of_the_turn_in_which_the_time_is_over_is_read(
    line: Connection, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came while the event loop was busy."""
    monkeypatch.setattr(connections, "_EXCUSES", 0)
    assert await held_up(line, server, Passing(monkeypatch), 60.01) == [b"v"]


MUTANTS = [
    (without("connection-in-use-stays"), test_a_connection_in_use_stays),
    (without("greeting-grows-old"), test_a_greeting_grows_old),
    (without("greeting-repeated"), test_a_greeting_that_was_cancelled_is_said_again),
    (without("unread-skipped"), test_the_replies_of_who_was_cancelled_are_skipped),
    (without("greeting-applied"), test_the_wrong_server_is_left),
    (without("reconnection-noted"), test_a_connection_that_is_closed_is_not_opened_by_redis_py),
    (without("exchanges-distinguished"), test_exchanges_one_after_the_other_are_not_silent),
    (without("progress-is-replies"), test_a_slow_server_is_not_silent),
    (without("blocked-loop-excused"), test_time_that_the_event_loop_stood_still_is_not_the_servers),
    (without("excuses-bounded"), test_silence_is_noticed_though_the_event_loop_stands_still),
    (without("last-look"), test_a_reply_of_the_turn_in_which_the_time_is_over_is_read),
]


LOST = (AssertionError, TimeoutError, pytest.fail.Exception, RedisConnectionError, RedisTimeoutError)


@pytest.mark.parametrize(("change", "race"), MUTANTS, ids=label)
async def test_mutants(
    line: Connection,
    server: Server,
    pool: Pool,
    asks: Asks,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    race: Callable[..., Any],
) -> None:
    """With the mechanism taken out, the test is lost."""
    change.apply(monkeypatch.setattr)
    arguments = {"line": line, "server": server, "pool": pool, "asks": asks, "monkeypatch": monkeypatch, "at": "read"}
    names = inspect.signature(race).parameters
    with LoopClock().put_in() if "clock" in names else nullcontext(LoopClock()) as clock:
        going = spawn(clock.sleep(3600)) if "clock" in names else None
        arguments["clock"] = clock
        with pytest.raises(LOST):
            await asyncio.wait_for(race(**{name: arguments[name] for name in names}), 2 if going is None else 3600)
        if going is not None:
            await cancelled(going)
