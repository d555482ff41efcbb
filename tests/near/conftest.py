"""A cache that keeps its entries in the process, and a sight of what happens to them."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

import fastrdb.protocol.store
from fastrdb import Cache
from fastrdb.testing import GatedClient
from tests.support.world.near import Observed


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch what happens to a near cache, so that tests can wait for it."""
    monkeypatch.setattr(fastrdb.protocol.store, "NearCache", Observed)


@pytest.fixture
async def cache(gated: GatedClient) -> AsyncIterator[Cache]:
    """Yield a cache that keeps its entries in the process."""
    async with Cache(gated, near=True, timeout=5) as made:
        yield made
