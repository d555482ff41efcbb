"""The CRUD class, the tutorial, cancellations and repairs, by their own tests, once more: on a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

import fastrdb.demo.cache
from fastrdb.store import Store
from tests.support.cluster import Cluster
from tests.support.gated_cluster import GatedCluster
from tests.support.gates import script_texts
from tests.support.stores import store_on
from tests.test_cancellation import test_cancelled_writers as test_cancelled_writers
from tests.test_cancellation import test_ten_thousand_cancelled_reads as test_ten_thousand_cancelled_reads
from tests.test_crud import *  # noqa: F403
from tests.test_repairs import *  # noqa: F403
from tests.test_tutorial import *  # noqa: F403


@pytest.fixture
def client(cluster: Cluster, cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> RedisCluster:
    """Give a client of the cluster in the place of that of one server; the tutorial opens one of its own."""

    class Opens:
        @staticmethod
        def from_url(url: str, **options: Any) -> RedisCluster:
            return cluster.client(**options)

    monkeypatch.setattr(fastrdb.demo.cache, "Redis", Opens)
    return cluster_client


@pytest.fixture(params=["sqlite"])
def database(request: pytest.FixtureRequest) -> object:
    """Give one database: the others have been tested with one server."""
    return request.getfixturevalue("sqlite")


@pytest.fixture
def gated(cluster: Cluster, cluster_client: RedisCluster) -> GatedCluster:
    """Give a client whose commands stop at gates; the cluster knows all scripts."""
    cluster.load(script_texts().values())
    return GatedCluster(cluster_client)


@pytest.fixture  # type: ignore[no-redef]
async def store(pauses: Pauses, cluster_client: RedisCluster) -> Store:  # noqa: F405
    """Give a store whose repairs pause as the test says, used already."""
    made = store_on(cluster_client, sleep=pauses.sleep)
    assert await made.get(cluster_client, "k") is None
    return made


# They make clients and stores of their own, which are those of one server.
del test_closing_gives_up_at_its_limit, test_a_wider_target_covers_narrower_ones  # noqa: F821
del test_what_is_owed_is_bounded, test_no_client_is_held_when_nothing_is_owed  # noqa: F821
del test_what_is_owed_outside_of_a_loop_waits_for_one, test_invalidate_soon_never_loses_anything  # noqa: F821
