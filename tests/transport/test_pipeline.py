"""What is sent when: alone at once, else in the next batch; and who is harmed by whom: nobody."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from fastrdb.testing import Gate
from fastrdb.transport import connection as lines
from fastrdb.transport.pipeline import Wire
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.lines import CLOSED, Asks, Border, Pool, Server, Told, Wired, deadlines, turns
from tests.support.network.slow import STEP, LoopClock
from tests.support.world.world import spawn


@pytest.fixture(autouse=True)
def _a_busy_machine_is_not_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no connection be given back, and greeted anew, because the test stood still for a moment."""
    monkeypatch.setattr(lines, "_LOOK", 60)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """Give a server in memory with a thousand keys and more."""
    made = Server()
    made.data.update({b"%d" % n: b"value %d" % n for n in range(5000)})
    yield made
    made.gates.open_all()


@pytest.fixture
def pool(server: Server) -> Pool:
    """Give a source that can spare its connection."""
    return Pool(server)


@pytest.fixture
def border() -> Border:
    """Give a boundary that leaves errors as they are."""
    return Border()


@pytest.fixture
async def wire(pool: Pool, border: Border, server: Server) -> Wire:
    """Give a wire that is connected and greeted; its log begins behind that."""
    made = Wire(pool, deadlines(), Asks(), border)
    await made.get(b"0")
    server.log.clear()
    server.senders.clear()
    return made


async def held(wire: Wire, server: Server, name: bytes = b"0", at: str = "read") -> tuple[asyncio.Task[Any], Gate]:
    """A lone GET that stands at a gate."""
    gate = server.gates.before(at)
    task = spawn(get(wire, name))
    await gate.reached()
    return task, gate


async def get(wire: Wire, name: bytes) -> bytes | None:
    """What a caller does."""
    return await wire.get(name)


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def gets(*numbers: int) -> Told:
    """The command that asks for these together."""
    return (b"MGET", *(b"%d" % number for number in numbers))


# --- who goes alone, who in a batch


async def test_a_lone_get_goes_out_at_once(wire: Wire, server: Server) -> None:
    """As a GET, in its caller's own task: no task, no turn of the loop is in between."""
    for number in range(3):
        assert await wire.get(b"%d" % number) == b"value %d" % number
    assert server.log == [[(b"GET", b"%d" % number)] for number in range(3)]
    assert set(server.senders) == {asyncio.current_task()}


async def test_a_lone_send_goes_out_at_once(wire: Wire, server: Server) -> None:
    """Its commands together, in its caller's own task."""
    assert await wire.send([("SET", b"a", b"1"), ("GET", b"a")]) == [b"OK", b"1"]
    assert server.log == [[(b"SET", b"a", b"1"), (b"GET", b"a")]]
    assert server.senders == [asyncio.current_task()]


async def test_who_comes_meanwhile_joins_the_next_batch(wire: Wire, server: Server) -> None:
    """Not the one in flight, which may have been answered already: also who asks for the very same key."""
    first, gate = await held(wire, server, b"1")
    server.data[b"1"] = b"newer"
    later = [spawn(get(wire, b"%d" % number)) for number in (1, 2, 1, 3, 1)]
    await turns()
    assert len(server.log) == 1
    gate.open()
    assert await first == b"value 1"
    assert await asyncio.gather(*later) == [b"newer", b"value 2", b"newer", b"value 3", b"newer"]
    assert server.log[1:] == [[gets(1, 2, 3)]]


async def test_who_comes_during_a_batch_joins_the_next(wire: Wire, server: Server) -> None:
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
async def test_eager_tasks(wire: Wire, server: Server) -> None:
    """Where tasks begin as they are made, a batch goes out when what it is for has queued, and is waited for."""
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  # not in 3.11
    for _ in range(3):
        assert await asyncio.gather(*(get(wire, b"%d" % number) for number in range(4))) == [
            b"value %d" % number for number in range(4)
        ]
        assert await get(wire, b"5") == b"value 5"  # the first after several


async def test_a_task_factory_has_no_say_in_batches(wire: Wire) -> None:
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


async def test_scripts_and_reads_travel_together(wire: Wire, server: Server) -> None:
    """What changes something keeps its order, and is one round trip with the reads that wait beside it."""
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


async def test_a_crowd_comes_along(wire: Wire, server: Server) -> None:
    """Many who ask in one turn of the loop: one goes ahead, all others follow in one batch, and next time in one."""
    for expected in ([1, 63], [64]):
        server.log.clear()
        assert await asyncio.gather(*(wire.get(b"%d" % n) for n in range(64))) == [b"value %d" % n for n in range(64)]
        assert [len(batch[0]) - 1 for batch in server.log] == expected


async def test_after_a_crowd_a_lone_caller_is_alone_again(wire: Wire, server: Server) -> None:
    """It pays for at most one batch of its own."""
    await asyncio.gather(*(wire.get(b"%d" % n) for n in range(64)))
    server.log.clear()
    for _ in range(3):
        await wire.get(b"1")
    assert server.log == [[gets(1)], [(b"GET", b"1")], [(b"GET", b"1")]]


async def test_five_thousand_callers(wire: Wire, server: Server, pool: Pool) -> None:
    """A few batches over one connection, none of them so large that others wait long for it."""
    found = await asyncio.gather(*(wire.get(b"%d" % n) for n in range(5000)))
    assert found == [b"value %d" % n for n in range(5000)]
    assert [len(batch[0]) - 1 for batch in server.log] == [1, 1024, 1024, 1024, 1024, 903]
    assert pool.taken == server.connects == 1


async def test_many_commands_are_several_batches(wire: Wire, server: Server) -> None:
    """What belongs together stays together, and in order."""
    first, gate = await held(wire, server)
    sends = [spawn(wire.send([("SET", b"a", b"%d" % n)] * 100)) for n in range(5)]
    await turns()
    gate.open()
    await asyncio.gather(first, *sends)
    assert [len(batch) for batch in server.log[1:]] == [200, 200, 100]
    assert [command[2] for command in server.told[1:]] == [b"%d" % n for n in range(5) for _ in range(100)]


async def test_a_value_that_is_not_there(wire: Wire, server: Server) -> None:
    """None, alone or in a batch."""
    assert await wire.get(b"none") is None
    assert await asyncio.gather(*(wire.get(key) for key in (b"none", b"1", b"none"))) == [None, b"value 1", None]


# --- cancellation


async def test_who_is_alone_and_cancelled(wire: Wire, server: Server, pool: Pool) -> None:
    """Who waits behind it gets its own answer, on the same connection."""
    first, _ = await held(wire, server, b"1")
    later = [spawn(get(wire, b"2")), spawn(get(wire, b"3"))]
    await turns()
    await cancelled(first)
    assert await asyncio.gather(*later) == [b"value 2", b"value 3"]
    assert await wire.get(b"4") == b"value 4"
    assert server.connects == 1


async def test_who_queues_and_is_cancelled(wire: Wire, server: Server) -> None:
    """The others get what they asked for, those who wait for the same key too."""
    first, gate = await held(wire, server)
    later = [spawn(get(wire, b"%d" % n)) for n in (1, 1, 2)]
    await turns()
    await cancelled(later[0])
    gate.open()
    assert await asyncio.gather(first, *later[1:]) == [b"value 0", b"value 1", b"value 2"]


@pytest.mark.parametrize("at", ["send", "read"])
async def test_who_is_cancelled_in_a_batch(wire: Wire, server: Server, at: str) -> None:
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


async def test_a_release_follows_its_acquire(wire: Wire, server: Server) -> None:
    """Wherever the acquire was cancelled: alone in flight, or in the queue, where it is sent all the same."""
    gate = server.gates.before("read")
    acquire = spawn(wire.send([("SET", b"lease", b"me")]))
    await gate.reached()
    await cancelled(acquire)
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


async def turn_until(wire: Wire) -> None:
    """Go on until the wire has a task that has not begun."""
    while wire._next_drain is None:
        await turns(1)


async def everything(tasks: set[asyncio.Task[Any]]) -> None:
    """Cancel the wire's own tasks, as a loop does that is ending, and let them end."""
    for task in tasks:
        task.cancel()
    await turns()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_batch_that_is_cancelled(wire: Wire, server: Server, begun: bool) -> None:
    """All tasks are cancelled, and the loop goes on: nobody waits for ever, and the next caller is answered."""
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
        with pytest.raises(RuntimeError, match="the event loop is ending"):
            await task
    assert await wire.get(b"4") == b"value 4"
    assert list(await asyncio.gather(wire.get(b"5"), wire.get(b"6"))) == [b"value 5", b"value 6"]


# --- errors and deadlines


async def test_an_error_of_one_command(wire: Wire, server: Server, border: Border) -> None:
    """It is given to whose command it is, as a value; nobody else notices."""
    first, gate = await held(wire, server)
    error = ResponseError("OOM")
    server.answer(b"SET", error)
    later = [spawn(wire.send([("SET", b"a", b"1"), ("GET", b"1")])), spawn(get(wire, b"2"))]
    await turns()
    gate.open()
    assert await asyncio.gather(first, *later) == [b"value 0", [error, b"value 1"], b"value 2"]
    assert border.failures == []


@pytest.mark.parametrize("callers", [1, 5])
async def test_an_error_of_a_read(wire: Wire, server: Server, border: Border, callers: int) -> None:
    """It is raised to all who asked, translated once."""
    server.answer(b"GET", ResponseError("WRONGTYPE"))
    server.answer(b"MGET", ResponseError("WRONGTYPE"))
    tasks = [spawn(get(wire, b"1")) for _ in range(callers)]
    assert [type(found) for found in await asyncio.gather(*tasks, return_exceptions=True)] == [ResponseError] * callers
    assert len(border.failures) == min(callers, 2)


async def test_what_was_read_may_be_refused(wire: Wire, server: Server, border: Border) -> None:
    """All reads of a batch are, if what the batch began with says so; writes are told by their own replies."""
    border.refusal = LookupError("other data")
    tasks = [spawn(get(wire, b"1")), spawn(get(wire, b"2")), spawn(wire.send([("GET", b"3")]))]
    *reads, sent = await asyncio.gather(*tasks, return_exceptions=True)
    assert reads == [border.refusal] * 2
    assert sent == [b"value 3"]


@pytest.mark.parametrize("lone", [True, False], ids=["alone", "batch"])
async def test_the_server_closes_the_connection(wire: Wire, server: Server, border: Border, lone: bool) -> None:
    """Once: nobody notices. Twice: all who wait get the error, and the next caller has a new connection."""
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
        assert [type(each) for each in found] == [bytes if len(replies) == 1 else RedisConnectionError]
        if not lone:
            first, gate = await held(wire, server)
    if first is not None:
        gate.open()
        await first
    assert len(border.failures) == 1
    assert await wire.get(b"2") == b"value 2"


async def test_a_deadline_fails_all_who_wait(pool: Pool, server: Server, border: Border) -> None:
    """Those in the queue at once, too; the server is counted as silent once, and the next caller connects anew."""
    wire = Wire(pool, deadlines(), Asks(), border)
    await wire.get(b"0")
    wire._deadlines = deadlines(0)
    gate = server.gates.before("read")
    first = spawn(get(wire, b"0"))
    await gate.reached()
    later = [spawn(get(wire, b"1")), spawn(wire.send([("GET", b"2")]))]
    found = await asyncio.gather(first, *later, return_exceptions=True)
    assert [type(each) for each in found] == [TimeoutError] * 3
    assert len(border.failures) == 1
    wire._deadlines = deadlines()
    assert await wire.get(b"3") == b"value 3"
    assert server.connects == 2
    assert server.told.count((b"GET", b"2")) == 0


async def test_time_in_the_queue_counts(
    pool: Pool, server: Server, border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has waited for most of its deadline behind others has only the rest of it for its own reply."""
    loop, passed = asyncio.get_running_loop(), 0.0
    time = loop.time
    monkeypatch.setattr(loop, "time", lambda: time() + passed)
    wire = Wire(pool, deadlines(30), Asks(), border)
    await wire.get(b"0")
    first, gate = await held(wire, server)
    later = spawn(get(wire, b"1"))
    await turns()
    passed = 29.0
    batch = server.gates.before("read")
    gate.open()
    await batch.reached()
    assert await first == b"value 0"
    passed = 31.0
    with pytest.raises(TimeoutError):
        await later


async def test_a_crowd_is_answered_as_long_as_replies_come(
    pool: Pool, server: Server, border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the time in the queue ends a part of it, nor that of a batch whose replies come one by one."""
    clock, read_response = LoopClock(), Wired.read_response

    async def slowly(wired: Wired, **options: Any) -> Any:
        await clock.sleep(STEP)
        return await read_response(wired, **options)

    monkeypatch.setattr(Wired, "read_response", slowly)
    wire = Wire(pool, deadlines(200 * STEP), Asks(), border)
    with clock.put_in():
        found = await asyncio.gather(*(wire.send([("GET", b"%d" % n)]) for n in range(600)))
        assert found == [[b"value %d" % n] for n in range(600)]
        assert len(server.log) == 4
        assert border.failures == []


async def test_a_crowd_before_a_silent_server(
    pool: Pool, server: Server, border: Border, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it is refused when the batch in flight has waited for one deadline, and that is one failure."""
    clock, wire = LoopClock(), Wire(pool, deadlines(10 * STEP), Asks(), border)
    await wire.get(b"0")
    first, gate = await held(wire, server)
    sends = [spawn(wire.send([("GET", b"%d" % n)])) for n in range(600)]
    await turns()
    batch = server.gates.before("read")
    with clock.put_in():
        began, time = clock.now, spawn(clock.sleep(60))
        gate.open()
        await batch.reached()
        found = await asyncio.gather(first, *sends, return_exceptions=True)
        assert clock.now - began <= 12 * STEP
        await cancelled(time)
    assert [type(each) for each in found] == [bytes] + [TimeoutError] * 600
    assert len(border.failures) == 1


async def test_no_connection_to_be_had(pool: Pool, server: Server, border: Border) -> None:
    """All who wait get the error, and who comes when the server is there again is answered."""
    wire = Wire(pool, deadlines(), Asks(), border)
    server.refuses = True
    pool.free[0].is_connected = False
    with pytest.raises(RedisConnectionError, match="refused"):
        await wire.get(b"0")
    server.refuses = False
    pool.free = [*pool.free] or [type(pool).__call__(server).free[0]]
    assert await wire.get(b"0") == b"value 0"


# --- the end


async def test_closing_waits_for_what_was_asked(wire: Wire, server: Server, pool: Pool) -> None:
    """Everybody has an answer; then the connection goes back, and the next caller takes one again."""
    first, gate = await held(wire, server)
    later = spawn(get(wire, b"1"))
    await turns()
    closing = spawn(wire.aclose())
    await turns()
    assert not closing.done()
    assert pool.given == []
    gate.open()
    await closing
    assert [await first, await later] == [b"value 0", b"value 1"]
    assert pool.given == [True]
    assert await wire.get(b"2") == b"value 2"
    assert pool.taken == 2


async def test_closing_under_load_comes_to_its_end(wire: Wire, server: Server) -> None:
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


async def test_closing_while_nothing_answers(pool: Pool, server: Server, border: Border) -> None:
    """It takes no longer than the deadline, and raises nothing."""
    wire = Wire(pool, deadlines(), Asks(), border)
    await wire.get(b"0")
    wire._deadlines = deadlines(0)
    first, _ = await held(wire, server)
    await wire.aclose()
    with pytest.raises(TimeoutError):
        await first
    assert pool.given == [False]


# --- each of these mechanisms is needed


MUTANTS = [
    (without("batch-sent-once"), test_who_comes_during_a_batch_joins_the_next),
    (without("get-joins-batch"), test_who_comes_meanwhile_joins_the_next_batch),
    (without("cancelled-commands-sent"), test_a_release_follows_its_acquire),
    (without("cancelled-get-skipped"), test_who_is_cancelled_in_a_batch),
    (without("crowd-noticed"), test_a_crowd_is_answered_as_long_as_replies_come),
    (without("progress-is-replies"), test_a_crowd_is_answered_as_long_as_replies_come),
    (without("crowd-goes-together"), test_a_crowd_comes_along),
    (without("crowd-remembered"), test_a_crowd_comes_along),
    (without("unread-counted"), test_who_is_alone_and_cancelled),
    (without("unread-skipped"), test_who_is_alone_and_cancelled),
]


@pytest.mark.parametrize(("change", "race"), MUTANTS, ids=label)
async def test_mutants(
    wire: Wire, server: Server, pool: Pool, monkeypatch: pytest.MonkeyPatch, change: Change, race: Any
) -> None:
    """With the mechanism taken out, the race is lost: by a wrong answer, or by none."""
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # what is left lying then is no news
    change.apply(monkeypatch.setattr)
    arguments = {"wire": wire, "server": server, "pool": pool, "border": Border(), "at": "read"}
    arguments["monkeypatch"] = monkeypatch
    with pytest.raises((AssertionError, TimeoutError, ValueError, asyncio.InvalidStateError)):
        async with asyncio.timeout(2):
            await race(**{name: arguments[name] for name in inspect.signature(race).parameters})
    gc.collect()
