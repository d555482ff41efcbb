"""The two ways in which the store's keys may lie, on one server or on a cluster: what works on them, put together."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from fastrdb.near import NearCache
from fastrdb.transport import Client, Histories, Link, Met, Names, Obstacles, Restarts, SlotNames

from .cluster_leases import ClusterLeases
from .cluster_search import ClusterSearch
from .cluster_sweep import ClusterSweeper
from .leases import Leases, Reading
from .search import Search
from .sweep import Sweeper, Writing


@dataclass(frozen=True, slots=True)
class Settings:
    """What a layout is made with: times in milliseconds, but `timeout` in seconds."""

    namespace: str
    timeout: float
    lease_ms: int
    barrier_ms: int
    chunk: int
    obstacles: Obstacles
    near: NearCache
    met: Met | None = None
    heads: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """What the store works with. `insistent` tries Redis whatever the breaker says; `heal` is for other data."""

    names: Names
    trust: Restarts | Histories
    link: Link
    leases: Reading
    sweeper: Writing
    insistent: Writing
    heal: Callable[[Client], None]


def one_server(settings: Settings) -> Layout:
    """Each step of the protocol is one script."""
    names = Names(settings.namespace)
    restarts = Restarts(names, settings.obstacles)
    link = Link(settings.timeout, restarts, settings.obstacles)
    sweeper, insistent = (
        Sweeper(each, names, Search(each, names, settings.heads), settings.barrier_ms, settings.chunk, settings.near)
        for each in (link, link.insisting())
    )

    def heal(client: Client) -> None:
        restarts.heal(lambda call: link.script(client, call), lambda: sweeper.delete(client, [names.everything]))

    leases = Leases(
        link, names, restarts, lease_ms=settings.lease_ms, barrier_ms=settings.barrier_ms, chunk=settings.chunk
    )
    return Layout(names, restarts, link, leases, sweeper, insistent, heal)


def cluster(settings: Settings) -> Layout:
    """Each slot is a step of its own."""
    names = SlotNames(settings.namespace)
    histories = Histories(names, settings.obstacles)
    link = Link(settings.timeout, histories, settings.obstacles, settings.met)
    sweeper, insistent = (
        ClusterSweeper(
            each,
            names,
            histories,
            ClusterSearch(each, names, histories, settings.heads),
            barrier_ms=settings.barrier_ms,
            chunk=settings.chunk,
            near=settings.near,
        )
        for each in (link, link.insisting())
    )

    leases = ClusterLeases(
        link, names, histories, lease_ms=settings.lease_ms, barrier_ms=settings.barrier_ms, chunk=settings.chunk
    )
    return Layout(names, histories, link, leases, sweeper, insistent, sweeper.heal)
