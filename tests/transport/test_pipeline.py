"""The moment at which each command is sent: alone at once, else in the next batch; and no caller harms another."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from contextlib import nullcontext
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from fastrdb.errors import CacheUnavailableError
from fastrdb.testing import Gate
from fastrdb.transport import OTHER_DATA, Breaker, Health
from fastrdb.transport import connection as connections
from fastrdb.transport.pipeline import Pipeline
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.lines import CLOSED, Asks, Passing, Pool, Server, Told, Wired, turns
from tests.support.network.slow import STEP, LoopClock
from tests.support.world.world import spawn

TIMEOUT = 20 * STEP


@pytest.fixture(autouse=True)
def _a_busy_machine_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevent that a connection is greeted anew because the test stood still for a moment."""
    monkeypatch.setattr(connections, "GREETING_S", 1e9)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Yield a server in memory with a thousand keys and more."""
    made = Server()
    made.data.update({b"%d" % n: b"value %d" % n for n in range(5000)})
    yield made
    made.gates.open_all()


@pytest.fixture
def pool(server: Server) -> Pool:
    """Return the settings of connections to it."""
    return Pool(server)


class Node(Pipeline):
    """A pipeline to the server in memory."""

    def __init__(self, pool: Pool, timeout: float = 60, *, in_slots: bool = False) -> None:
        self.asks, self.health = Asks(), Health()
        breaker = Breaker(self.health)
        super().__init__(lambda: pool, timeout, self.asks, self.health, breaker, in_slots=in_slots)


@pytest.fixture
async def wire(pool: Pool, server: Server) -> AsyncIterator[Node]:
    """Yield a pipeline that is connected and greeted; its log begins behind that."""
    made = Node(pool)
    await made.get(b"0")
    server.log.clear()
    server.senders.clear()
    yield made
    server.gates.open_all()
    await made.aclose()


@pytest.fixture
async def clock() -> AsyncIterator[LoopClock]:
    """Return the clock of the event loop, which goes on by small steps."""
    with LoopClock().put_in() as made:
        going = spawn(made.sleep(3600))
        yield made
        await cancelled(going)


async def held(wire: Node, server: Server, name: bytes = b"0", at: str = "read") -> tuple[asyncio.Task[Any], Gate]:
    """Hold a lone GET at a gate."""
    gate = server.gates.before(at)
    task = spawn(get(wire, name))
    await gate.reached()
    return task, gate


async def get(wire: Node, name: bytes) -> bytes | None:
    """Get a value as a caller does."""
    return await wire.get(name)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def gets(*numbers: int) -> Told:
    """Return the command that asks for these together."""
    return (b"MGET", *(b"%d" % number for number in numbers))


# --- which callers go alone, which in a batch


async def test_a_lone_get_goes_out_at_once(wire: Node, server: Server) -> None:
    """As a GET, in its caller's own task: no task, no turn of the loop is in between."""
    for number in range(3):
        assert await wire.get(b"%d" % number) == b"value %d" % number
    assert server.log == [[(b"GET", b"%d" % number)] for number in range(3)]
    assert set(server.senders) == {asyncio.current_task()}


async def test_a_lone_send_goes_out_at_once(wire: Node, server: Server) -> None:
    """Its commands together, in its caller's own task."""
    assert await wire.send([("SET", b"a", b"1"), ("GET", b"a")]) == [b"OK", b"1"]
    assert server.log == [[(b"SET", b"a", b"1"), (b"GET", b"a")]]
    assert server.senders == [asyncio.current_task()]


async def test_who_comes_meanwhile_joins_the_next_batch(wire: Node, server: Server) -> None:
    """A caller does not join the batch in flight, whose read may be done already: not even for the very same key."""
    first, gate = await held(wire, server, b"1")
    server.data[b"1"] = b"newer"
    later = [spawn(get(wire, b"%d" % number)) for number in (1, 2, 1, 3, 1)]
    await turns()
    assert len(server.log) == 1
    gate.open()
    assert await first == b"value 1"
    assert await asyncio.gather(*later) == [b"newer", b"value 2", b"newer", b"value 3", b"newer"]
    assert server.log[1:] == [[gets(1, 2, 3)]]


async def test_who_comes_during_a_batch_joins_the_next(wire: Node, server: Server) -> None:
    """Also if it asks for a key that the batch has asked for."""
    first, gate = await held(wire, server)
    early = [spawn(get(wire, b"1")), spawn(get(wire, b"2"))]
    await turns()
    batch = server.gates.before("read")
    gate.open()
    await batch.reached()
    server.data[b"1"] = b"newer"
    late = spawn(get(wire, b"1"))
    await turns()
    batch.open()
    assert await asyncio.gather(first, *early) == [b"value 0", b"value 1", b"value 2"]
    assert await late == b"newer"


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 has it")
async def test_eager_tasks(wire: Node, server: Server) -> None:
    """Where tasks begin as made, a batch goes out when its callers have queued, and is waited for."""
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  # not in 3.11
    for _ in range(3):
        assert await asyncio.gather(*(get(wire, b"%d" % number) for number in range(4))) == [
            b"value %d" % number for number in range(4)
        ]
        assert await get(wire, b"5") == b"value 5"  # the first after several


async def test_a_task_factory_has_no_say_in_batches(wire: Node) -> None:
    """One of eager tasks would begin a batch before anything has queued."""
    asked = []
    several = [spawn(get(wire, b"%d" % number)) for number in range(4)]

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        asked.append(coroutine)
        return asyncio.Task(coroutine, loop=loop, **options)

    asyncio.get_running_loop().set_task_factory(factory)
    for task in several:
        await task
    assert await get(wire, b"5") == b"value 5"
    assert asked == []


async def test_scripts_and_reads_travel_together(wire: Node, server: Server) -> None:
    """Writes keep their order, and are one round trip with the reads that wait beside these."""
    first, gate = await held(wire, server)
    sends = [spawn(wire.send([("SET", b"a", b"%d" % n), ("GET", b"a")])) for n in range(3)]
    read = spawn(get(wire, b"1"))
    await turns()
    gate.open()
    assert await asyncio.gather(*sends) == [[b"OK", b"%d" % n] for n in range(3)]
    assert await read == b"value 1"
    assert await first == b"value 0"
    (batch,) = server.log[1:]
    assert batch[0] == gets(1)
    assert batch[1:] == [each for n in range(3) for each in ((b"SET", b"a", b"%d" % n), (b"GET", b"a"))]


async def test_a_crowd_comes_along(wire: Node, server: Server) -> None:
    """Of many callers in one turn of the loop one goes ahead, all others follow in one batch, and next time in one."""
    for expected in ([1, 63], [64]):
        server.log.clear()
        assert await asyncio.gather(*(wire.get(b"%d" % n) for n in range(64))) == [b"value %d" % n for n in range(64)]
        assert [len(batch[0]) - 1 for batch in server.log] == expected


async def test_after_a_crowd_a_lone_caller_is_alone_again(wire: Node, server: Server) -> None:
    """It pays for at most one batch of its own."""
    await asyncio.gather(*(wire.get(b"%d" % n) for n in range(64)))
    server.log.clear()
    for _ in range(3):
        await wire.get(b"1")
    assert server.log == [[gets(1)], [(b"GET", b"1")], [(b"GET", b"1")]]


async def test_five_thousand_callers(wire: Node, server: Server, pool: Pool) -> None:
    """A few batches over one connection, none of them so large that others wait long for it."""
    found = await asyncio.gather(*(wire.get(b"%d" % n) for n in range(5000)))
    assert found == [b"value %d" % n for n in range(5000)]
    assert [len(batch[0]) - 1 for batch in server.log] == [1, 1024, 1024, 1024, 1024, 903]
    assert server.connects == 1


async def test_many_commands_are_several_batches(wire: Node, server: Server) -> None:
    """Commands that belong together stay together, and in order."""
    first, gate = await held(wire, server)
    sends = [spawn(wire.send([("SET", b"a", b"%d" % n)] * 100)) for n in range(5)]
    await turns()
    gate.open()
    await asyncio.gather(first, *sends)
    assert [len(batch) for batch in server.log[1:]] == [200, 200, 100]
    assert [command[2] for command in server.told[1:]] == [b"%d" % n for n in range(5) for _ in range(100)]


async def test_a_value_that_is_not_there(wire: Node, server: Server) -> None:
    """None, alone or in a batch."""
    assert await wire.get(b"none") is None
    assert await asyncio.gather(*(wire.get(key) for key in (b"none", b"1", b"none"))) == [None, b"value 1", None]


# --- cancellation


async def test_who_is_alone_and_cancelled(wire: Node, server: Server, pool: Pool) -> None:
    """A caller behind it gets its own answer, on the same connection."""
    first, gate = await held(wire, server, b"1")
    later = [spawn(get(wire, b"2")), spawn(get(wire, b"3"))]
    await turns()
    await cancelled(first)
    gate.open()
    assert await asyncio.gather(*later) == [b"value 2", b"value 3"]
    assert await wire.get(b"4") == b"value 4"
    assert server.connects == 1


async def test_who_queues_and_is_cancelled(wire: Node, server: Server) -> None:
    """The others get their answers, also those that wait for the same key."""
    first, gate = await held(wire, server)
    later = [spawn(get(wire, b"%d" % n)) for n in (1, 1, 2)]
    await turns()
    await cancelled(later[0])
    gate.open()
    assert await asyncio.gather(first, *later[1:]) == [b"value 0", b"value 1", b"value 2"]


@pytest.mark.parametrize("at", ["send", "read"])
async def test_who_is_cancelled_in_a_batch(wire: Node, server: Server, at: str) -> None:
    """The batch goes on without it."""
    first, gate = await held(wire, server)
    later = [spawn(get(wire, b"%d" % n)) for n in (1, 2, 2)] + [spawn(wire.send([("GET", b"3")]))]
    await turns()
    batch = server.gates.before(at)
    gate.open()
    await batch.reached()
    await cancelled(later[0])
    await cancelled(later[3])
    batch.open()
    assert [await each for each in (first, later[1], later[2])] == [b"value 0", b"value 2", b"value 2"]
    assert await wire.get(b"4") == b"value 4"


async def test_a_release_follows_its_acquire(wire: Node, server: Server) -> None:
    """Wherever the acquire was cancelled: alone in flight, or in the queue, where it is sent all the same."""
    gate = server.gates.before("read")
    acquire = spawn(wire.send([("SET", b"lease", b"me")]))
    await gate.reached()
    await cancelled(acquire)
    gate.open()
    await wire.send([("SET", b"lease", b"")])
    assert server.data[b"lease"] == b""
    first, gate = await held(wire, server)
    acquire = spawn(wire.send([("SET", b"lease", b"me")]))
    await turns()
    await cancelled(acquire)
    release = spawn(wire.send([("SET", b"lease", b"")]))
    await turns()
    gate.open()
    await asyncio.gather(first, release)
    assert server.told[-2:] == [(b"SET", b"lease", b"me"), (b"SET", b"lease", b"")]


async def turn_until(wire: Node) -> None:
    """Go on until the wire has a task that has not begun."""
    while wire._next_drain is None:
        await turns(1)


async def everything(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel the wire's own tasks, as a loop does that is ending, and let them end."""
    for task in tasks:
        task.cancel()
    await turns()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_batch_that_is_cancelled(wire: Node, server: Server, begun: bool) -> None:
    """All tasks are cancelled, and the loop goes on: no caller waits for ever, and the next one is answered."""
    first, gate = await held(wire, server)
    later = [spawn(get(wire, b"1")), spawn(wire.send([("GET", b"2")]))]
    await turns()
    batch = server.gates.before("read")
    gate.open()
    if begun:
        await batch.reached()
        later.append(spawn(get(wire, b"3")))
        await turns()
    else:
        batch.open()
        await turn_until(wire)
    await everything(wire._tasks)
    assert await first == b"value 0"
    for task in later:
        with pytest.raises(CacheUnavailableError, match="the event loop is ending"):
            await task
    batch.open()
    assert await wire.get(b"4") == b"value 4"
    assert list(await asyncio.gather(wire.get(b"5"), wire.get(b"6"))) == [b"value 5", b"value 6"]


# --- errors and timeouts


async def test_an_error_of_one_command(wire: Node, server: Server) -> None:
    """It is given to whose command it is, as a value; the others are answered, and it is no failure of the server."""
    first, gate = await held(wire, server)
    server.answer(b"SET", ResponseError("what?"))
    later = [spawn(wire.send([("SET", b"a", b"1"), ("GET", b"1")])), spawn(get(wire, b"2"))]
    await turns()
    gate.open()
    found, (error, value), other = await asyncio.gather(first, *later)
    assert [found, str(error), value, other] == [b"value 0", "what?", b"value 1", b"value 2"]
    assert wire.breaker.failures == 0


@pytest.mark.parametrize("callers", [1, 5])
async def test_an_error_of_a_read(wire: Node, server: Server, callers: int) -> None:
    """It is raised to all callers."""
    server.answer(b"GET", ResponseError("WRONGTYPE"))
    server.answer(b"MGET", ResponseError("WRONGTYPE"))
    tasks = [spawn(get(wire, b"1")) for _ in range(callers)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(each) for each in found] == [CacheUnavailableError] * callers
    assert wire.breaker.failures == 0


async def test_reads_of_other_data_are_refused(wire: Node, server: Server) -> None:
    """All reads of a batch are, if what the batch began with says so; scripts judge by themselves."""
    wire.health.block(object(), "restart")
    wire.asks.other_data = True
    tasks = [spawn(get(wire, b"1")), spawn(get(wire, b"2")), spawn(wire.send([("GET", b"3")]))]
    *reads, sent = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(each).endswith(OTHER_DATA) for each in reads] == [True, True]
    assert sent == [b"value 3"]


@pytest.mark.parametrize("lone", [True, False], ids=["alone", "batch"])
async def test_the_server_closes_the_connection(wire: Node, server: Server, lone: bool) -> None:
    """Once: no caller notices. Twice: all callers get the error, and the next one has a new connection."""
    first, gate = (None, Gate()) if lone else await held(wire, server)
    name = b"GET" if lone else b"MGET"
    for replies in ([CLOSED], [CLOSED, CLOSED]):
        server.answer(name, *replies)
        tasks = [spawn(get(wire, b"1"))]
        if first is not None:
            await turns()
            gate.open()
            await first
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in found] == [bytes if len(replies) == 1 else CacheUnavailableError]
        assert wire.breaker.failures == len(replies) - 1
        if not lone:
            first, gate = await held(wire, server)
    if first is not None:
        gate.open()
        await first
    assert await wire.get(b"2") == b"value 2"


async def test_a_silent_server_fails_all_who_wait(pool: Pool, server: Server, clock: LoopClock) -> None:
    """Those in the queue at once, too; the server is counted as silent once, and the next caller connects anew."""
    wire = Node(pool, TIMEOUT)
    await wire.get(b"0")
    first, gate = await held(wire, server)
    later = [spawn(get(wire, b"1")), spawn(wire.send([("GET", b"2")]))]
    began = clock.now
    found = await asyncio.gather(first, *later, return_exceptions=True)
    assert clock.now - began <= 1.2 * TIMEOUT
    assert [type(each) for each in found] == [CacheUnavailableError] * 3
    assert wire.breaker.failures == 1
    gate.open()
    assert await wire.get(b"3") == b"value 3"
    assert server.connects == 2
    assert server.told.count((b"GET", b"2")) == 0
    await wire.aclose()


async def test_time_in_the_queue_counts(pool: Pool, server: Server, clock: LoopClock) -> None:
    """A caller that has waited for most of its time behind others has only the rest of it for its own reply.

    That is no failure of the server, which answers others in time.
    """
    wire = Node(pool, TIMEOUT)
    await wire.get(b"0")
    first, gate = await held(wire, server)
    began = clock.now
    later = [spawn(get(wire, b"1")), spawn(wire.send([("GET", b"2")]))]
    await clock.sleep(0.8 * TIMEOUT)
    batch = server.gates.before("read")
    gate.open()
    await batch.reached()
    assert await first == b"value 0"
    found = await asyncio.gather(*later, return_exceptions=True)
    assert ["has waited for Redis for as long as it may" in str(each) for each in found] == [True, True]
    assert clock.now - began <= 1.2 * TIMEOUT
    assert wire.breaker.failures == 0
    batch.open()
    assert await wire.get(b"3") == b"value 3"
    assert server.connects == 1
    await wire.aclose()


async def test_a_crowd_is_answered_as_long_as_replies_come(
    pool: Pool, server: Server, monkeypatch: pytest.MonkeyPatch, clock: LoopClock
) -> None:
    """Neither the time in the queue ends a part of it, nor that of a batch whose replies come one by one."""
    reply = Wired.reply

    async def slowly(wired: Wired) -> None:
        await clock.sleep(STEP)
        await reply(wired)

    monkeypatch.setattr(Wired, "reply", slowly)
    wire = Node(pool, TIMEOUT)
    found = await asyncio.gather(*(wire.send([("GET", b"%d" % n)]) for n in range(500)))
    assert found == [[b"value %d" % n] for n in range(500)]
    assert len(server.log) == 3
    assert wire.breaker.failures == 0
    await wire.aclose()


async def test_a_crowd_before_a_silent_server(pool: Pool, server: Server, clock: LoopClock) -> None:
    """All of it is refused when the batch in flight has waited for one timeout, and that is one failure."""
    wire = Node(pool, TIMEOUT)
    await wire.get(b"0")
    first, gate = await held(wire, server)
    sends = [spawn(wire.send([("GET", b"%d" % n)])) for n in range(600)]
    await turns()
    batch = server.gates.before("read")
    began = clock.now
    gate.open()
    await batch.reached()
    found = await asyncio.gather(first, *sends, return_exceptions=True)
    assert clock.now - began <= 1.2 * TIMEOUT
    assert [type(each) for each in found] == [bytes] + [CacheUnavailableError] * 600
    assert wire.breaker.failures == 1
    await wire.aclose()


async def test_no_connection_to_be_had(wire: Node, server: Server) -> None:
    """All callers get the error, and callers that come when the server is there again are answered."""
    server.refuses = True
    await wire.connection.aclose()
    with pytest.raises(CacheUnavailableError, match="refused"):
        await wire.get(b"0")
    assert wire.breaker.failures == 1
    server.refuses = False
    assert await wire.get(b"0") == b"value 0"


async def test_an_open_breaker(wire: Node, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """No caller waits; one of them has the server tried, and its answer closes the breaker.

    An insisting caller may ask.
    """
    time = Passing(monkeypatch)
    wire.breaker._clock = asyncio.get_running_loop().time
    for _ in range(3):
        wire.breaker.on_error("GET", RedisConnectionError("gone"))
    for ask in (wire.get, lambda name: wire.send([("GET", name)])):
        with pytest.raises(CacheUnavailableError, match="has not answered lately"):
            await ask(b"1")
    assert server.log == []
    time.passes(1)
    with pytest.raises(CacheUnavailableError, match="has not answered lately"):
        await wire.get(b"1")
    await turns()
    assert server.told == [(b"PING",)]
    assert not wire.breaker.opened
    assert await wire.get(b"1") == b"value 1"
    wire.breaker.on_error("GET", RedisConnectionError("gone"))
    wire.breaker.on_error("GET", RedisConnectionError("gone"))
    wire.breaker.on_error("GET", RedisConnectionError("gone"))
    assert wire.breaker.opened
    assert await wire.send([("GET", b"1")], insist=True) == [b"value 1"]
    assert not wire.breaker.opened


# --- the end


async def test_closing_waits_for_what_was_asked(wire: Node, server: Server) -> None:
    """Everybody has an answer; then the connection is closed, and the next caller opens another one."""
    first, gate = await held(wire, server)
    later = spawn(get(wire, b"1"))
    await turns()
    closing = spawn(wire.aclose())
    await turns()
    assert not closing.done()
    assert server.connections[0].is_connected
    gate.open()
    await closing
    assert [await first, await later] == [b"value 0", b"value 1"]
    assert not server.connections[0].is_connected
    assert await wire.get(b"2") == b"value 2"
    assert server.connects == 2


async def test_closing_under_load_comes_to_its_end(wire: Node, server: Server) -> None:
    """Though the callers never stop."""
    closed = asyncio.Event()

    async def caller(number: int) -> None:
        while not closed.is_set():
            assert await wire.get(b"%d" % number) == b"value %d" % number

    callers = [spawn(caller(number)) for number in range(5)]
    await turns(5)
    await wire.aclose()
    closed.set()
    await asyncio.gather(*callers)


async def test_closing_while_nothing_answers(pool: Pool, server: Server, clock: LoopClock) -> None:
    """It takes no longer than the timeout, and raises nothing."""
    wire = Node(pool, TIMEOUT)
    await wire.get(b"0")
    first, _ = await held(wire, server)
    began = clock.now
    await wire.aclose()
    assert clock.now - began <= 1.2 * TIMEOUT
    with pytest.raises(CacheUnavailableError):
        await first
    assert not any(connection.is_connected for connection in server.connections)


# --- each of these mechanisms is needed


MUTANTS = [
    (without("batch-sent-once"), test_who_comes_during_a_batch_joins_the_next),
    (without("get-joins-batch"), test_who_comes_meanwhile_joins_the_next_batch),
    (without("cancelled-commands-sent"), test_a_release_follows_its_acquire),
    (without("cancelled-get-skipped"), test_who_is_cancelled_in_a_batch),
    (without("crowd-noticed"), test_a_crowd_is_answered_as_long_as_replies_come),
    (without("crowd-waits-its-turn"), test_a_crowd_is_answered_as_long_as_replies_come),
    (without("crowd-goes-together"), test_a_crowd_comes_along),
    (without("crowd-remembered"), test_a_crowd_comes_along),
    (without("queue-counts"), test_time_in_the_queue_counts),
    (without("budget-counts-queue"), test_time_in_the_queue_counts),
    (without("unread-skipped"), test_who_is_alone_and_cancelled),
]


@pytest.mark.parametrize(("change", "race"), MUTANTS, ids=label)
async def test_mutants(
    wire: Node, server: Server, pool: Pool, monkeypatch: pytest.MonkeyPatch, change: Change, race: Any
) -> None:
    """With the mechanism taken out, the race is lost: by a wrong answer, or by none."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # what is left lying then is no news
    change.apply(monkeypatch.setattr)
    arguments = {"wire": wire, "server": server, "pool": pool, "at": "read", "monkeypatch": monkeypatch}
    names = inspect.signature(race).parameters
    lost = (AssertionError, TimeoutError, ValueError, asyncio.InvalidStateError, CacheUnavailableError)
    with LoopClock().put_in() if "clock" in names else nullcontext(LoopClock()) as clock:
        going = spawn(clock.sleep(3600)) if "clock" in names else None
        arguments["clock"] = clock
        with pytest.raises(lost):
            await asyncio.wait_for(race(**{name: arguments[name] for name in names}), 2 if going is None else 3600)
        if going is not None:
            await cancelled(going)
    gc.collect()
