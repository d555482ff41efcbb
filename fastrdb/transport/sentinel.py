"""Which server is the master of a Sentinel group: after a failover the former one may go on answering for seconds.

Sentinel promotes a replica first, and makes a replica of the former master up to ten seconds later. A process that is
connected there reads what the new master does not have, and deletes what is not read any more. So each process asks
Sentinel with each greeting, and leaves a server that is the master no more. And the process that heals a new master
waits until all others have left the former one. Until then no commit counts as carried out.
"""

from __future__ import annotations

import asyncio
from typing import Any

GREETING_S = 1.0
"""A greeting counts for so long: a server may become a replica without closing the connection."""
_MARGIN_S = 0.25
_PAUSE_S = 0.1
_LIMIT_S = 15.0
"""Sentinels that disagree for so long are separated by the network."""


def has_sentinels(pool: Any) -> bool:
    """Return whether a pool, of redis-py's kind, asks Sentinel where to connect."""
    return getattr(pool, "sentinel_manager", None) is not None


async def is_master(pool: Any, connection: Any) -> bool:
    """Return whether Sentinel still names the server of this connection; True where there is no Sentinel to ask.

    Raises redis-py's ConnectionError if no Sentinel answers.
    """
    if not has_sentinels(pool):
        return True
    return bool(await pool.get_master_address() == (connection.host, connection.port))


async def left_by_all(pool: Any) -> None:
    """Wait until no process uses a former master: all Sentinels name one server, and all greetings have grown old."""
    if not has_sentinels(pool):
        return
    try:
        async with asyncio.timeout(_LIMIT_S):
            while len(await _masters(pool)) > 1:  # noqa: ASYNC110  # no Sentinel says when it changes its mind
                await asyncio.sleep(_PAUSE_S)
    except TimeoutError:
        pass
    await asyncio.sleep(GREETING_S + _MARGIN_S)


async def _masters(pool: Any) -> set[tuple[str, str]]:
    """Return the addresses that those Sentinels name which answer."""
    asked = [each.sentinel_get_master_addr_by_name(pool.service_name) for each in pool.sentinel_manager.sentinels]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    return {(str(each[0]), str(each[1])) for each in answers if each and not isinstance(each, BaseException)}
