"""The output for people. Keys and values are shown as text, without markup and control characters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from redis.exceptions import RedisError
from rich.console import Console, Group, RenderableType
from rich.json import JSON
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fastrdb import Inspector
from fastrdb.protocol import KeyInfo

from .doctor import Diagnosis, Level, counted

_SIGNS: dict[Level, tuple[str, str]] = {
    "ok": ("ok  ", "green"),
    "warning": ("warn", "yellow"),
    "failure": ("FAIL", "bold red"),
}
_MOST_DROPS = _MOST_PREFIXES = 5
_ANSWERED = ("near", "hits", "stale")


def plain(text: str) -> Text:
    """Return text without control characters, which a terminal would obey."""
    return Text("".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text))


def lines(console: Console, texts: Iterable[str]) -> None:
    """Print a text in each line."""
    for text in texts:
        console.print(plain(text))


def diagnosis(console: Console, found: Diagnosis) -> None:
    """Print one finding, and below it what to do."""
    sign, style = _SIGNS[found.level]
    console.print(Text.assemble((sign, style), f" {found.check:<10} ", plain(found.found)))
    if found.advice:
        console.print(Text.assemble(" " * 16, ("-> ", style), plain(found.advice)))


def keys(console: Console, found: Sequence[KeyInfo], limit: int) -> None:
    """Print entries."""
    table = Table("key", "TTL", "size", box=None, header_style="bold", pad_edge=False)
    table.columns[0].overflow = "fold"
    for each in found:
        table.add_row(plain(each.key), life(each.ttl), size(each.size))
    console.print(table)
    more = f"the first {limit}; --limit shows more" if len(found) >= limit else counted(len(found), "entry")
    console.print(Text(more, "dim"))


def entry(console: Console, found: KeyInfo, raw: bytes) -> None:
    """Print one entry."""
    console.print(Text.assemble(plain(found.key), (f"   {life(found.ttl)}, {size(found.size)}", "dim")))
    value = parsed(raw)
    console.print(JSON.from_data(value, ensure_ascii=True) if not isinstance(value, bytes) else plain(repr(raw)))


def parsed(raw: bytes) -> Any:
    """Return the value of an entry, or its text if it is no JSON, such as NaN."""
    try:
        json.dumps(value := json.loads(raw), allow_nan=False)
    except ValueError:
        return raw.decode("utf-8", "backslashreplace")
    return value


def functions(published: Mapping[str, Any]) -> RenderableType:
    """Return a table of functions, the busiest first."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("function", overflow="fold")
    for name in ("calls", "hit ratio", "loads", "load", "Redis", "unstored", "dropped"):
        # May wrap: else a narrow terminal takes all from the names. Folded: "37…" could be any number.
        table.add_column(name, justify="right", overflow="fold")
    found = Inspector.totals(published)
    for name, each in sorted(found.items(), key=lambda item: -sum(map(item[1]["stats"].get, item[1]["stats"]))):
        stats = each["stats"].get
        answered = sum(stats(kind, 0) for kind in _ANSWERED)
        calls = answered + stats("misses", 0)
        ratio = f"{answered / calls:.1%}" if calls else "-"
        times = [_mean(each["times"].get(kind)) for kind in ("load", "redis")]
        counts = [f"{stats(kind, 0):,}" for kind in ("unstored", "deleted")]
        table.add_row(plain(name), f"{calls:,}", ratio, f"{stats('loads', 0):,}", *times, *counts)
    pending = [f"{each['host']} pid {each['pid']}" for each in published.values() if each.get("pending")]
    none = "no process publishes its counts in this namespace: Cache(publish=True)"
    foot = Text(counted(len(published), "process") if published else none, "dim")
    if pending:
        foot.append(f"   an invalidation is pending in {', '.join(pending)}", "bold red")
    return Group(table, foot)


def dropped(published: Mapping[str, Any], most: int) -> RenderableType:
    """Return a table of the prefixes under which most entries were deleted, and the functions that did it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("prefix", "dropped by"):
        table.add_column(name, overflow="fold")
    table.add_column("in all", justify="right", no_wrap=True)
    totals = Inspector.totals(published).items()
    rows = [(count, prefix, name) for name, each in totals for prefix, count in each["dropped"].items()]
    for count, prefix, name in sorted(rows, key=lambda row: -row[0])[:most]:
        table.add_row(plain(prefix), plain(name), f"{count:,}")
    return table


def drops(published: Mapping[str, Any], most: int) -> RenderableType:
    """Return a table of the latest invalidations, the newest first."""
    table = Table("dropped", "by", "entries", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.overflow = "fold"
    every = sorted((drop for each in published.values() for drop in each["drops"]), key=lambda drop: -drop["at"])
    for drop in every[:most]:
        table.add_row(
            plain(drop["key"]), plain(drop["function"]), "" if drop["count"] is None else f"{drop['count']:,}"
        )
    return table


def life(ttl: float | None) -> str:
    """Return a TTL in words."""
    if ttl is None:
        return "no TTL"
    return f"{ttl:.0f} s" if ttl < 600 else f"{ttl / 60:.0f} min" if ttl < 36_000 else f"{ttl / 3600:.0f} h"


def size(count: int) -> str:
    """Return a number of bytes in words."""
    return (
        f"{count} B"
        if count < 10_000
        else f"{count / 1024:.0f} KiB"
        if count < 10_000_000
        else f"{count / 1048576:.0f} MiB"
    )


def _mean(times: Sequence[float] | None) -> str:
    return "-" if not times or not times[0] else f"{times[1] / times[0] * 1000:.1f} ms"


async def top(console: Console, inspector: Inspector, every: float, times: float) -> None:
    """Show the counts in the whole terminal, `times` times, `every` seconds apart."""
    if not console.is_terminal:
        console.print(await _page(inspector))
        return
    page = await _page(inspector)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        count = 0
        while True:
            live.update(page, refresh=True)
            count += 1
            if count >= times:
                return
            await asyncio.sleep(every)
            try:
                page = await _page(inspector)
            except (RedisError, OSError) as error:  # a server restarts, or a replica takes over
                page = Text(f"Redis does not answer: {type(error).__name__}", "bold red")


async def _page(inspector: Inspector) -> RenderableType:
    published = await inspector.published()
    return Group(functions(published), "", dropped(published, _MOST_PREFIXES), "", drops(published, _MOST_DROPS))
