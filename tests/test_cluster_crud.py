"""The CRUD class and the tutorial, by their own tests, once more: on a cluster."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

import fastrdb.demo.cache
from tests.support.cluster import Cluster
from tests.test_crud import *  # noqa: F403
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
