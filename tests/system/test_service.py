"""Two workers under load with every integration on: answers are never old, and the counts add up."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis
from sqlalchemy import insert

from fastrdb import Inspector
from fastrdb.testing import EmbeddedServer
from tests.support import ROOT
from tests.support.programs.service import Base, Counter
from tests.support.servers.databases import Database
from tests.support.waiting import until

ROWS, WRITES, READERS = 5, 20, 6


@contextmanager
def worker(redis_url: str, database_url: str, folder: Path) -> Iterator[str]:
    """Start a worker, and yield its address."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-m", "tests.support.programs.service", redis_url, database_url]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"running on (http://\S+)", line) for line in process.stderr)))
        yield found[1]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


async def test_two_workers_with_all_of_it_on(
    server: EmbeddedServer, client: Redis, sqlite: Database, tmp_path: Path
) -> None:
    """Readers at both workers see no value from before the last write that had ended when the read began."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        await db.execute(insert(Counter), [{"id": row, "value": 0} for row in range(ROWS)])
        await db.commit()
    url = sqlite.engine.url.render_as_string(hide_password=False)
    with worker(server.url, url, tmp_path) as one, worker(server.url, url, tmp_path) as other:
        async with httpx.AsyncClient(base_url=one) as first, httpx.AsyncClient(base_url=other) as second:
            statuses = await _load([first, second])
            assert "fastrdb; fwd=miss; stored" in statuses
            assert any(status.startswith("fastrdb; hit; ttl=") for status in statuses)
            missing = await second.get("/counters/99")
            assert (missing.status_code, missing.json()) == (404, {"detail": "There is no such row."})
            await until(lambda: _both_published(Inspector(client)))
            totals = Inspector.totals(await Inspector(client).published())
            assert {name.rpartition(".")[2] for name in totals} >= {"read", "write"}
            assert (await first.get("/cache/keys", params={"prefix": "counter:*"})).json()["keys"]
            metrics = (await first.get("/metrics")).text
    loads = [
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == "fastrdb_load_seconds_count" and sample.labels["function"].endswith("read")
    ]
    loaded = [status for status in statuses if "fwd=" in status and "collapsed" not in status]
    assert sum(loads) == len(loaded) + 1  # the row that is missing, too


async def _both_published(inspector: Inspector) -> bool:
    return len(await inspector.published()) == 2


async def _load(workers: list[httpx.AsyncClient]) -> list[str]:
    """Write and read at both workers at once. Return what `Cache-Status` said of the reads."""
    written, statuses, done = dict.fromkeys(range(ROWS), 0), list[str](), asyncio.Event()

    async def write() -> None:
        for value in range(1, WRITES + 1):
            row = value % ROWS
            answer = await workers[value % 2].post(f"/counters/{row}", params={"value": value})
            answer.raise_for_status()
            written[row] = value
        done.set()

    async def read(number: int) -> None:
        while not done.is_set():
            row, least = number % ROWS, written[number % ROWS]
            answer = await workers[number % 2].get(f"/counters/{row}")
            assert answer.json()["value"] >= least
            statuses.append(answer.headers["cache-status"])
            number += 1

    await asyncio.gather(write(), *(read(number) for number in range(READERS)))
    return statuses
