"""A private Redis Cluster: masters and replicas of the machine's own server, made into one by commands alone."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

from fastrdb.testing.server import EmbeddedServer, EmbeddedServerError
from tests.support.waiting import until_found

HOST = "127.0.0.1"
SLOTS = 16384
NODE_TIMEOUT = 1000  # ms until a server that does not answer is taken for dead
_TRIES = 5


@dataclass
class Node:
    """One server of the cluster."""

    server: EmbeddedServer
    bus: int
    id: str = ""

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server.port

    @property
    def name(self) -> str:
        """The name by which redis-py calls the server."""
        return f"{HOST}:{self.port}"

    @property
    def is_master(self) -> bool:
        """True if the server is a master by now."""
        return bool(self.info("replication")["role"] == "master")

    def ask(self, *command: Any) -> Any:
        """Send a command to this server, whatever its keys."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=5, decode_responses=True) as client:
            return client.execute_command(*command)

    def info(self, section: str) -> dict[str, Any]:
        """Return a section of INFO."""
        found: dict[str, Any] = self.ask("INFO", section)
        return found

    def knows(self) -> dict[str, tuple[str, str]]:
        """Return the servers that this one has in its map by their ids: flags, and id of the master if it has one."""
        lines = [line.split() for line in self.ask("CLUSTER", "NODES").splitlines()]
        return {line[0]: (line[2], line[3]) for line in lines}

    def is_well(self) -> bool:
        """Return True if the server takes the cluster for whole."""
        return "cluster_state:ok" in str(self.ask("CLUSTER", "INFO")).replace("': '", ":")

    def has_link(self) -> bool:
        """Return True if the server is a replica, and follows its master."""
        return bool(self.info("replication").get("master_link_status") == "up")


class Cluster:
    """`with Cluster() as cluster:` masters with as many slots each, and a replica of each if there are to be any."""

    def __init__(
        self, binary: Path | None = None, *, masters: int = 3, replicas: bool = False, args: Sequence[str] = ()
    ) -> None:
        self._binary, self._args = binary, tuple(args)
        self._counts = masters, masters if replicas else 0
        self.masters: list[Node] = []
        self.replicas: list[Node] = []

    def __enter__(self) -> Self:
        masters, replicas = self._counts
        try:
            self.masters += (self._start() for _ in range(masters))
            self.replicas += (self._start() for _ in range(replicas))
            self._join()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def nodes(self) -> list[Node]:
        """All servers."""
        return [*self.masters, *self.replicas]

    @property
    def running(self) -> list[Node]:
        """All that have not been killed."""
        return [node for node in self.nodes if node.server.running]

    def client(self, kind: type[RedisCluster] = RedisCluster, **options: Any) -> RedisCluster:
        """Return a client."""
        return kind(startup_nodes=[ClusterNode(HOST, node.port) for node in self.running], **options)

    def close(self) -> None:
        """Stop all servers."""
        for node in self.nodes:
            if node.server.running:
                os.kill(node.server.pid, signal.SIGCONT)
            node.server.close()

    def load(self, scripts: Iterable[str]) -> None:
        """Load these scripts into every server, so that a call is one command."""
        for script in scripts:
            for node in self.masters:
                node.ask("SCRIPT", "LOAD", script)

    def flush(self) -> None:
        """Delete everything."""
        for node in self.masters:
            node.ask("FLUSHALL")

    def owner(self, slot: int) -> Node:
        """Return the master that has a slot."""
        for first, last, (_, port, *_), *_ in self.masters[0].ask("CLUSTER", "SLOTS"):
            if int(first) <= slot <= int(last):
                return next(node for node in self.nodes if node.port == int(port))
        raise LookupError(slot)

    # --- a slot that moves

    def begin_move(self, slot: int, source: Node, target: Node) -> None:
        """Begin to move a slot: what is not there any more is asked for at the target."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id)

    def move_keys(self, slot: int, source: Node, target: Node) -> None:
        """Move what is in the slot."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", HOST, target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, target: Node) -> None:
        """Assign the slot to the target."""
        for node in (target, *(node for node in self.masters if node is not target)):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", target.id)

    # --- faults

    def cut_off(self, number: int) -> None:
        """Cut a master's replica off: nothing reaches it of what is written from now on."""
        replica = self.replicas[number]
        until_found(replica.has_link, "the replica does not follow")
        self.masters[number].ask("WAIT", 1, 5000)
        os.kill(replica.server.pid, signal.SIGSTOP)
        self.masters[number].ask("CLIENT", "KILL", "TYPE", "replica")

    def fail_over(self, number: int) -> None:
        """Kill a master, and have its replica take over, with what it has."""
        master, replica = self.masters[number], self.replicas[number]
        master.server.kill()
        os.kill(replica.server.pid, signal.SIGCONT)
        until_found(lambda: replica.ask("CLUSTER", "FAILOVER", "TAKEOVER"), "the replica does not take over")
        until_found(lambda: replica.is_master, "the replica has not taken over")
        self.masters[number], self.replicas[number] = replica, master
        for node in self.running:
            until_found(partial(self._follows, node, replica), f"{node.name} does not know of the takeover")
            until_found(node.is_well, f"{node.name} takes the cluster for broken")

    def come_back(self, number: int) -> None:
        """Start a server that was killed; it becomes the replica of the one in its place."""
        replica = self.replicas[number]
        replica.server.start()
        until_found(replica.has_link, "the server that came back does not follow")

    # --- one more

    def join(self) -> Node:
        """Start one more master, which has no slots yet."""
        joined = self._start()
        self.masters.append(joined)
        joined.id = joined.ask("CLUSTER", "MYID")
        for node in self.masters[:-1]:
            node.ask("CLUSTER", "MEET", HOST, joined.port, joined.bus)
        for node in self.masters:
            until_found(partial(self._knows_all, node), "the new one is not known")
        until_found(lambda: joined.ask("CLUSTER", "SLOTS") and joined.is_well(), "it takes the cluster for broken")
        return joined

    # --- making it

    def _start(self) -> Node:
        for left in reversed(range(_TRIES)):
            port, bus = _free_ports()
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            options += ["--cluster-node-timeout", str(NODE_TIMEOUT), "--repl-diskless-sync-delay", "0", *self._args]
            server = EmbeddedServer(binary=self._binary, port=port, args=options)
            try:
                return Node(server.start(), bus)
            except EmbeddedServerError:
                server.close()
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _join(self) -> None:
        for number, node in enumerate(self.nodes):
            node.id = node.ask("CLUSTER", "MYID")
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        share = SLOTS / len(self.masters)
        for number, master in enumerate(self.masters):
            master.ask("CLUSTER", "ADDSLOTSRANGE", round(number * share), round((number + 1) * share) - 1)
        for at, one in enumerate(self.nodes):
            for other in self.nodes[at + 1 :]:
                one.ask("CLUSTER", "MEET", HOST, other.port, other.bus)
        for node in self.nodes:
            until_found(partial(self._knows_all, node), f"{node.name} does not know all others")
        for master, replica in zip(self.masters, self.replicas, strict=False):
            until_found(partial(replica.ask, "CLUSTER", "REPLICATE", master.id), f"{replica.name} follows nobody")
        for replica in self.replicas:
            until_found(replica.has_link, f"{replica.name} has no link")
        for node in self.nodes:
            until_found(node.is_well, f"{node.name} takes the cluster for broken")

    def _knows_all(self, node: Node) -> bool:
        known = node.knows()
        return len(known) == len(self.nodes) and not any("handshake" in flags for flags, _ in known.values())

    def _follows(self, node: Node, master: Node) -> bool:
        flags, _ = node.knows()[master.id]
        return "master" in flags and "fail" not in flags


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind((HOST, 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
