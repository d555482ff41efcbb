"""A worker with all integrations on: `python -m tests.support.programs.service REDIS_URL DATABASE_URL`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel
from redis.asyncio import from_url
from sqlalchemy import select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache
from fastrdb.integrations import opentelemetry, prometheus
from fastrdb.integrations.dashboard import Dashboard
from fastrdb.integrations.fastapi import CacheStatus, Session, add_handlers, cached_response, lifespan


class Base(DeclarativeBase):
    """All mapped classes here."""


class Counter(Base):
    """A row with a number."""

    __tablename__ = "counters"
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class CounterOut(BaseModel):
    """A row as an answer."""

    id: int
    value: int


def service(redis_url: str, database_url: str) -> FastAPI:
    """Return the application."""
    cache = Cache(from_url(redis_url), publish=True, timeout=5)
    prometheus.instrument(cache)
    opentelemetry.instrument(cache)
    app = FastAPI(lifespan=lifespan(cache, redis=cache.redis, database=database_url))
    app.add_middleware(CacheStatus, cache=cache)
    add_handlers(app)
    app.mount("/cache", Dashboard(cache))

    @app.get("/counters/{number}")
    @cached_response(max_age=0)
    @cache.cached("counter:{number}")
    async def read(number: int, db: Session) -> CounterOut:
        found = (await db.execute(select(Counter).where(Counter.id == number))).scalar_one()
        return CounterOut(id=found.id, value=found.value)

    @app.post("/counters/{number}")
    @cache.invalidates("counter:{number}")
    async def write(number: int, value: int, db: Session) -> None:
        await db.execute(update(Counter).where(Counter.id == number).values(value=value))
        await db.commit()

    @app.get("/metrics")
    async def metrics() -> Response:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return Response(generate_latest(registry), media_type="text/plain")

    return app


if __name__ == "__main__":
    uvicorn.run(service(*sys.argv[1:3]), port=0, timeout_graceful_shutdown=2)
