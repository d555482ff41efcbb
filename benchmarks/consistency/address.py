"""Where a process finds Redis: one server or a cluster, directly or through proxies, or by asking sentinels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.sentinel import Sentinel

from tests.support.servers.sentinels import SERVICE

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Address:
    """The ports of the servers, and for each the port of the proxy to go through, if any; or those of sentinels."""

    ports: tuple[int, ...]
    cluster: bool = False
    detours: Mapping[int, int] = field(default_factory=dict)
    sentinels: tuple[int, ...] = ()

    def connect(self) -> Any:
        """Give a client; nothing is sent yet."""
        if self.sentinels:
            return Sentinel([(HOST, port) for port in self.sentinels], socket_timeout=0.5).master_for(SERVICE)
        if not self.cluster:
            return Redis(host=HOST, port=self._detour(self.ports[0]))
        nodes = [ClusterNode(HOST, self._detour(port)) for port in self.ports]
        return RedisCluster(startup_nodes=nodes, address_remap=self._remap)

    def _detour(self, port: int) -> int:
        return self.detours.get(port, port)

    def _remap(self, address: tuple[str, int]) -> tuple[str, int]:
        """Where to go for what a cluster says of itself."""
        return HOST, self._detour(address[1])
