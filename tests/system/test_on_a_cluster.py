"""The CRUD class, the tutorial, cancellations and repairs, by their own tests, once more: on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

import fastrdb.demo.cache
from fastrdb.protocol import Store
from fastrdb.testing import script_texts
from tests.crud.test_repository import *  # noqa: F403
from tests.guarantees.test_cancelled_load import test_cancelled_writers as test_cancelled_writers
from tests.guarantees.test_cancelled_load import test_ten_thousand_cancelled_reads as test_ten_thousand_cancelled_reads
from tests.protocol.test_repairs import *  # noqa: F403
from tests.support.servers.cluster import Cluster
from tests.support.world.gates import GatedCluster
from tests.system.test_tutorial import *  # noqa: F403


@pytest.fixture
def client(cluster: Cluster, cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> RedisCluster:
    """Yield a client of the cluster in the place of that of one server; the tutorial opens one of its own."""

    class Opens:
        @staticmethod
        def from_url(url: str, **options: Any) -> RedisCluster:
            return cluster.client(**options)

    monkeypatch.setattr(fastrdb.demo.cache, "Redis", Opens)
    return cluster_client


@pytest.fixture(params=["sqlite"])
def database(request: pytest.FixtureRequest) -> object:
    """Yield one database: the others have been tested with one server."""
    return request.getfixturevalue("sqlite")


@pytest.fixture
def gated(cluster: Cluster, cluster_client: RedisCluster) -> GatedCluster:
    """Yield a client whose commands stop at gates; the cluster has all scripts."""
    cluster.load(script_texts())
    return GatedCluster(cluster_client)


@pytest.fixture  # type: ignore[no-redef]
def make_store(pauses: Pauses) -> Callable[..., Store]:  # noqa: F405
    """Yield what makes stores whose repairs pause as the test says."""
    return partial(Store, timeout=5, cluster=True, sleep=pauses.sleep)


@pytest.fixture  # type: ignore[no-redef]
def make_client(cluster: Cluster) -> Callable[[], RedisCluster]:
    """Yield what makes clients."""
    return cluster.client


@pytest.fixture  # type: ignore[no-redef]
async def store(make_store: Callable[..., Store], cluster_client: RedisCluster) -> Store:
    """Yield a store, used already."""
    made = make_store()
    assert await made.get(cluster_client, "k") is None
    return made
