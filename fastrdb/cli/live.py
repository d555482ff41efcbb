"""`fastrdb top`: the counts of all processes, renewed in place."""

from __future__ import annotations

import asyncio

from redis.exceptions import RedisError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from fastrdb import Inspector

from .show import dropped, drops, functions

_MOST_DROPS = _MOST_PREFIXES = 5


async def follow(console: Console, inspector: Inspector, every: float, times: float) -> None:
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
