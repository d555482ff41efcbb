"""`fastrdb top`: the counts of all processes, renewed in place."""

from __future__ import annotations

import asyncio

from rich.console import Console, Group, RenderableType
from rich.live import Live

from fastrdb import Inspector

from .show import dropped, drops, functions

_MOST_DROPS = _MOST_PREFIXES = 5


async def follow(console: Console, inspector: Inspector, every: float, times: float) -> None:
    """Show the counts in the whole terminal, `times` times, `every` seconds apart."""
    if not console.is_terminal:
        console.print(await _page(inspector))
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        count = 0
        while True:
            live.update(await _page(inspector), refresh=True)
            count += 1
            if count >= times:
                return
            await asyncio.sleep(every)


async def _page(inspector: Inspector) -> RenderableType:
    published = await inspector.published()
    return Group(functions(published), "", dropped(published, _MOST_PREFIXES), "", drops(published, _MOST_DROPS))
