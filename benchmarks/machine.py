"""What it was measured on: the machine, and the version of everything that takes part."""

from __future__ import annotations

import asyncio
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from redis.asyncio import Redis

from fastrdb.testing.server import EmbeddedServer

OURS = ("fastrdb", "redis", "hiredis", "pydantic", "sqlalchemy", "aiosqlite", "fastapi")
PEERS = ("cashews", "aiocache", "fastapi-cache2", "dogpile.cache", "uvloop")


def installed(package: str) -> str | None:
    """The version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


async def surroundings() -> dict[str, str]:
    """Everything that a reader needs to judge the figures, by name."""
    with EmbeddedServer() as server:
        async with Redis(host="127.0.0.1", port=server.port) as client:
            info = await client.info("server")
    kind = "Valkey" if "valkey_version" in info else "Redis"
    found = {
        "machine": f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        "load before": load(),
        "Python": f"{platform.python_version()} ({platform.python_implementation()})",
        "event loop": type(asyncio.get_running_loop()).__module__.partition(".")[0],
        "server": f"{kind} {info[f'{kind.lower()}_version']}",
    }
    return found | {name: installed(name) or "not installed" for name in (*OURS, *PEERS)}


def load() -> str:
    """What else the machine does: the load of the last minute, 5 and 15 minutes. A busy machine's figures are rough."""
    return "/".join(f"{each:.1f}" for each in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
