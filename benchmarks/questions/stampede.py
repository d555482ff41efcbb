"""How often a slow function runs when several processes ask for one cold key at the same moment.

Each process has callers enough to be a stampede by itself. All wait at a barrier, and then ask for a key that nobody
has asked for before. Those who have an option against this take part with it and without.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from statistics import median
from time import perf_counter
from typing import NamedTuple

from benchmarks.catalogue import slow_user, user
from benchmarks.comparison import enter, idle_sessions
from benchmarks.contestants.field import USUAL, absence, opened
from benchmarks.harness import Sizes
from benchmarks.questions.loops import runner
from benchmarks.report import Limit, Row, absent, duration
from fastrdb.testing.server import EmbeddedServer

LOAD = 0.05
"""Seconds that the function takes."""
LIMIT = 120
"""Seconds after which a process that does not answer is given up."""
NAMES = (*USUAL, "cashews, lock", "aiocache, stampede")


class Order(NamedTuple):
    """What a process is told to do: call what this contestant has decorated, for this number."""

    name: str
    number: int


class Answer(NamedTuple):
    """What it says then: how often its function ran, and how long its callers waited, in seconds."""

    loads: int
    seconds: float


async def rows(sizes: Sizes) -> list[Row]:
    """Several keys, one after the other, for each contestant."""
    case, found = f"stampede, {sizes.processes} processes x {sizes.callers}", []
    with EmbeddedServer() as server, _processes(server.port, sizes) as connections:
        for name in NAMES:
            if (why := absence(name)) is not None:
                found.append(absent("stampede", case, name, why))
                continue
            loads, waits = [], []
            for number in range(sizes.repeats):
                answers = await asyncio.to_thread(_ask, connections, Order(name, number))
                loads.append(sum(answer.loads for answer in answers))
                waits.append(max(answer.seconds for answer in answers))
            note = f"most of {sizes.repeats}; a load takes {duration(LOAD)}, the last caller {duration(median(waits))}"
            limit = Limit("value", bar=1, aim=1) if name == "fastrdb" else None
            of = f"{max(loads):,} of {sizes.processes * sizes.callers:,}"
            found.append(Row("stampede", case, name, max(loads), "loads", limit=limit, loads=of, note=note))
    return found


@contextmanager
def _processes(port: int, sizes: Sizes) -> Iterator[list[Connection]]:
    """Start the processes; each is ready when it has answered once."""
    context = multiprocessing.get_context("spawn")  # a fork would share sockets and locks with its parent
    barrier, started = context.Barrier(sizes.processes), []
    try:
        for _ in range(sizes.processes):
            near, far = context.Pipe()
            loop = type(asyncio.get_running_loop()).__module__.partition(".")[0]
            process = context.Process(target=_process, args=(port, sizes.callers, loop, far, barrier), daemon=True)
            process.start()
            started.append((process, near))
        connections = [near for _, near in started]
        _answers(connections)
        yield connections
        for connection in connections:
            connection.send(None)
        for process, _ in started:
            process.join(LIMIT)
    finally:
        for process, _ in started:
            process.kill()


def _ask(connections: Sequence[Connection], order: Order) -> list[Answer]:
    for connection in connections:
        connection.send(order)
    return _answers(connections)


def _answers(connections: Sequence[Connection]) -> list[Answer]:
    for connection in connections:
        if not connection.poll(LIMIT):
            raise TimeoutError(f"a process of the stampede did not answer within {LIMIT} s")
    return [connection.recv() for connection in connections]


def _process(port: int, callers: int, loop: str, connection: Connection, barrier: Barrier) -> None:
    with runner(loop) as running:
        running.run(_serve(port, callers, connection, barrier))


async def _serve(port: int, callers: int, connection: Connection, barrier: Barrier) -> None:
    async with opened(port, NAMES) as field, idle_sessions(callers) as sessions:
        entrants = {entrant.name: entrant for entrant in enter(field, "stampede", partial(slow_user, LOAD))}
        for entrant in entrants.values():  # connections and scripts are there
            await entrant.call(sessions[0], field.client, -1)
        connection.send(Answer(0, 0.0))
        while (order := await asyncio.to_thread(connection.recv)) is not None:
            entrant = entrants[order.name]
            before = entrant.loads.count
            await asyncio.to_thread(barrier.wait, LIMIT)
            start = perf_counter()
            found = await asyncio.gather(*(entrant.call(db, field.client, order.number) for db in sessions))
            seconds = perf_counter() - start
            assert found == [user(order.number)] * callers, f"{order.name} gave something else"
            connection.send(Answer(entrant.loads.count - before, seconds))
