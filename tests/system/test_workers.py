"""A worker that only writes, as the recipes show it for Celery: its commits invalidate what the application cached."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from fastrdb.demo.blog.api import create_tables
from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Author, Tenant
from fastrdb.demo.blog.services import Blog
from fastrdb.testing import isolated
from fastrdb.testing.server import EmbeddedServer
from tests.support import ROOT

RECIPES = (ROOT / "fastrdb" / "docs" / "recipes.md").read_text("utf-8")
SEND = "import sys, tasks; tasks.rename_author.delay(1, sys.argv[1]).get(timeout=120)"
"""A caller of the task, in a process of its own: it waits for the result."""


@asynccontextmanager
async def working(folder: Path, environment: dict[str, str]) -> AsyncIterator[None]:
    """Run Celery's worker, as a deployment does: one process that forks another for the tasks."""
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency", "1", "--loglevel", "WARNING"),
        cwd=folder,
        env=environment,
    )
    try:
        yield
    finally:
        worker.terminate()
        await worker.wait()


async def test_tasks_of_celery_invalidate_what_they_write(
    server: EmbeddedServer, client: Redis, tmp_path: Path
) -> None:
    """Two tasks after each other, in event loops of their own: the reader has a miss after each, and the new row."""
    pytest.importorskip("celery", reason="the recipe for Celery is tried where Celery is installed")
    [code] = re.findall(r"^```python celery\n(.*?)^```$", RECIPES, re.DOTALL | re.MULTILINE)
    url = f"sqlite+aiosqlite:///{tmp_path / 'blog.db'}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": server.url, "DATABASE_URL": url}
    engine = create_async_engine(url)
    await create_tables(engine)
    async with AsyncSession(engine) as db:
        for row in (Tenant(id=1, name="one"), Author(id=1, tenant_id=1, email="ann@example.com", name="Ann")):
            db.add(row)
            await db.commit()
    async with isolated(cache, redis=client) as namespace:
        (tmp_path / "tasks.py").write_text(code.replace('"blog"', repr(namespace)), "utf-8")
        async with working(tmp_path, environment):
            await change_twice(engine, tmp_path, environment)
    await engine.dispose()


async def change_twice(engine: AsyncEngine, folder: Path, environment: dict[str, str]) -> None:
    """Read, let a task write, and read again, two times."""
    for before, after in (("Ann", "Anna"), ("Anna", "Annie")):
        async with AsyncSession(engine) as db:
            authors = Blog(db, 1).authors
            assert [(await authors.get(1)).name for _ in range(2)] == [before] * 2
            assert (await authors.get.explain(1)).state == "hit"
        caller = await asyncio.create_subprocess_exec(sys.executable, "-c", SEND, after, cwd=folder, env=environment)
        assert await caller.wait() == 0
        async with AsyncSession(engine) as db:
            authors = Blog(db, 1).authors
            assert (await authors.get.explain(1)).state == "miss"
            assert (await authors.get(1)).name == after
