"""The inside of a cache: a store for each server in each event loop, background tasks, and what a fork leaves behind.

Futures, tasks and connections belong to the event loop in which each was made. When a loop ends in an orderly way, as
`asyncio.run` ends it, background tasks end first, and connections are closed. Invalidations that Redis has missed go to
the next loop. A child process leaves all connections to its parent: it would send on the parent's sockets.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Coroutine, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import Context, ContextVar
from dataclasses import dataclass
from threading import get_ident
from types import FunctionType, MethodType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakSet, WeakValueDictionary, finalize, ref

from .errors import CacheUnavailableError, NoEventLoopError, OptionError
from .events import Counters, Hook, context_without
from .keys import MISSING, BoundCall, BoundMany, CallPlan, Image, Prefix
from .near import Near
from .protocol import OnError, Publisher, Store, Target, is_cluster
from .registry import Registry
from .singleflight import Flights
from .transport import checked as checked
from .transport import ended, server_of

DISABLED = "the cache is disabled"
_LOOP_END_S = 1.0  # the longest that the end of an event loop waits for background tasks


@dataclass(slots=True, eq=False)
class Block:
    """A block in which its owner is disabled. Tasks that were started inside may outlive the block."""

    owner: object
    active: bool = True


disabled: ContextVar[tuple[Block, ...]] = ContextVar("fastrdb_disabled", default=())
"""The blocks around the running code: see `Runtime.disabled`."""


@contextmanager
def disabling(owner: object) -> Iterator[None]:
    """Disable the owner inside of the block, in this task and those that it starts."""
    block = Block(owner)
    token = disabled.set((*disabled.get(), block))
    try:
        yield
    finally:
        block.active = False
        disabled.reset(token)


def is_disabled(owner: object) -> bool:
    """Return True inside of a block that disables the owner."""
    return any(block.active and block.owner is owner for block in disabled.get())


class LoopState:
    """The part of a cache in one event loop: flights, tasks, and a store for each server."""

    def __init__(self) -> None:
        self.flights = Flights()
        self.stores: dict[Hashable, Store] = {}
        self.by_pool: WeakKeyDictionary[Any, Store] = WeakKeyDictionary()
        self.tasks: set[asyncio.Task[Any]] = set()
        self.reloads: dict[tuple[Store, str], asyncio.Task[None]] = {}  # by key
        self.pending: dict[Hashable, dict[Target, bool]] = {}  # invalidations of loops that have ended, by server
        # A loop that ends waits for its asynchronous generators to close: this one closes the cache.
        self.publisher: asyncio.Task[None] | None = None
        self._open = self._until_the_end()
        with suppress(StopIteration):
            self._open.asend(None).send(None)

    async def aclose(self, limit: float) -> None:
        """Wait for background tasks, at most `limit` seconds; then close all connections."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit
        if self.publisher is not None:
            await ended((self.publisher,))
            self.publisher = None
        if self.reloads:
            _, late = await asyncio.wait(set(self.reloads.values()), timeout=limit)
            for task in late:
                task.cancel()
            if late:  # each has a session to close, and a lease to give back
                await asyncio.wait(late)
        if self.tasks:
            await asyncio.wait(set(self.tasks), timeout=limit)
        for store in list(self.stores.values()):
            await store.aclose(max(0.0, end - loop.time()))

    async def _until_the_end(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.aclose(_LOOP_END_S)

    def inherit(self, ended: LoopState) -> None:
        """Take over the invalidations that a loop which has ended could not bring to Redis."""
        self.pending.update(ended.pending)
        for server, store in ended.stores.items():
            if pending := store.detach():
                self.pending[server] = pending


def _dead() -> Any:
    """Return None, as a dead reference does."""


_Latest = tuple[Callable[[], asyncio.AbstractEventLoop | None], LoopState | None]
_Recent = tuple[Callable[[], Any], int, Callable[[], asyncio.AbstractEventLoop | None], Any]


class Runtime:
    """The inside of a `Cache`, which has checked the settings given here. `owner` is its name in messages.

    The functions that are decorated with the cache hold this, and not the cache.
    """

    def __init__(
        self,
        owner: str,
        *,
        near: Near | bool | None,
        on_error: OnError,
        timeout: float,
        lease: float,
        barrier: float,
        hook: Hook | None,
        seal: Any,
        max_bytes: int,
        watched: float | None,
        publish: bool,
    ) -> None:
        self.owner = owner
        self.near, self.near_by_default = near if isinstance(near, Near) else Near(), bool(near)
        self.on_error: OnError = on_error
        self.hooks: list[Hook] = [] if hook is None else [hook]
        self.samplers: list[Hook] = []
        self.leaving: list[Callable[[], object]] = []  # each is called in the context of work in the background
        self.seal, self.max_bytes, self.watched = seal, max_bytes, watched
        self.timeout, self.lease, self.barrier = timeout, lease, barrier
        self.near_heads: set[str] = set()  # the heads of keys that functions keep in this process
        self.owned: set[str] = set()  # the heads of the keys of all functions
        self.counted: list[Counters] = []
        self.registry = Registry(self._beside)
        self.own_counters = self.counters(owner)
        self.follower: Any = None  # see `follow_with`
        self._lost: finalize[..., Any] | None = None
        self._publisher = Publisher(self.counted, self.registry) if publish else None
        if self._publisher is not None:
            self.samplers.append(self._publisher.tally)

    def move(self, namespace: str, redis: Any) -> None:
        """Go on in another namespace, with another client, and forget all else: for tests."""
        self.namespace, self.redis = namespace, redis
        self._states: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopState] = WeakKeyDictionary()
        self._repairs: dict[Hashable, WeakValueDictionary[int, Any]] = {}
        self._latest: _Latest = (_dead, None)
        # The client of the latest call, its thread, loop and store: get_running_loop() costs more than all the rest.
        self._recent: _Recent = (_dead, 0, _dead, None)
        _runtimes.add(self)  # only now: others look at what is set here

    def counters(self, function: str) -> Counters:
        """Return the counters of one more decorated function."""
        counters = Counters(function, self.hooks, self.samplers)
        self.counted.append(counters)
        return counters

    # --- the client of a call, and its store

    def client(self, plan: CallPlan, call: BoundCall | BoundMany) -> Any:
        """Return the client of a call: its argument, else the cache's own. None means: just run the function."""
        return self.own(plan) if call.client is MISSING else call.client

    def own(self, plan: CallPlan) -> Any:
        """Return the cache's own client, for a call that has none; None where the function may do without."""
        return self.redis if plan.redis_optional or is_disabled(self) else self.required(plan.function)

    def required(self, owner: str) -> Any:
        """Return the cache's own client. Raises OptionError, naming `owner`, if there is none."""
        if self.redis is None:
            raise OptionError(
                f"{owner}: no Redis: give it a parameter `redis`, its instance an attribute `redis`, "
                "or Cache(redis=...)"
            )
        return self.redis

    def store(self, client: Any, plan: CallPlan | None = None) -> Store:
        """Return the store behind `client`: one for each server, so that clients made per request share it.

        Raises OptionError, naming function and parameter of the `plan`, for what is no client; NoEventLoopError.
        """
        recent, thread, loop, latest = self._recent
        if recent() is client and thread == get_ident() and (running := loop()) is not None and running.is_running():
            found: Store = latest
            return found
        state = self.here()
        pool = getattr(client, "connection_pool", None) or self._checked(client, plan)
        store = state.by_pool.get(pool)
        if store is None:
            server = server_of(self._checked(client, plan), pool)
            store = state.stores.get(server)
            if store is None:
                store = state.stores[server] = self._new_store(cluster=is_cluster(client))
                self.registry.warn()  # the server is known only now, where the client comes with the calls
                store.repairs.join(self._repairs.setdefault(server, WeakValueDictionary()))
                store.add_pending(client, state.pending.pop(server, {}))
                if self._publisher is not None and state.publisher is None:
                    publishing = self._publisher.run(client, self.namespace, lambda: store.has_pending)
                    state.publisher = asyncio.get_running_loop().create_task(publishing, context=Context())
            state.by_pool[pool] = store
        self._recent = ref(client), get_ident(), ref(asyncio.get_running_loop()), store
        return store

    def _checked(self, client: Any, plan: CallPlan | None) -> Any:
        where = f"{self.owner}: its client" if plan is None else plan.where_client
        return checked(client, where, mocks=is_disabled(self))

    def _new_store(self, *, cluster: bool) -> Store:
        store = Store(
            namespace=self.namespace,
            timeout=self.timeout,
            lease=self.lease,
            barrier=self.barrier,
            on_error=self.on_error,
            near=self.near,
            heads=self.near_heads,
            owned=self.owned,
            cluster=cluster,
            watched=self.watched,
            seal=self.seal,
        )
        count = self.own_counters.count  # not a method of this cache: its stores may outlive it for a moment
        store.obstacles.listeners.append(lambda kind, reason: count(kind, "", reason))
        return store

    def _servers(self) -> set[Hashable]:
        """Return the identities of the servers that this cache has, or has had a call for."""
        of_calls = {server for state in list(self._states.values()) for server in list(state.stores)}
        if self.redis is None:
            return of_calls
        return {*of_calls, server_of(self.redis, getattr(self.redis, "connection_pool", None) or self.redis)}

    def _beside(self) -> Iterator[Registry]:
        """Yield the registries of other caches of this process whose keys are names on the same server."""
        servers = self._servers()
        for other in list(_runtimes) if servers else ():
            alike = other.namespace == self.namespace and other.seal is self.seal is None
            if other is not self and alike and other._servers() & servers:
                yield other.registry

    def bypass_reason(self, store: Store, client: Any) -> str | None:
        """Return why entries may not be read for now, or None."""
        return DISABLED if is_disabled(self) else store.bypass_reason(client)

    # --- work beside the calls

    def here(self) -> LoopState:
        """Return the state of the running event loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            raise NoEventLoopError(self.owner) from None
        latest, state = self._latest
        if latest() is not loop or state is None:
            state = self._states.get(loop) or self._begin(loop)
            self._latest = (ReferenceType(loop), state)
        return state

    def _begin(self, loop: asyncio.AbstractEventLoop) -> LoopState:
        state = LoopState()
        # Other threads begin loops of theirs meanwhile, and take over from those that have ended.
        for known in self._states.keyrefs():
            other = known()
            if other is not None and other.is_closed() and (ended := self._states.pop(other, None)) is not None:
                state.inherit(ended)
        self._states[loop] = state
        return state

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` even if the caller is cancelled. What it does not get done with an unwell Redis lapses by time."""
        tasks = self.here().tasks
        task = asyncio.get_running_loop().create_task(work, context=context_without(self.leaving))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_forgive)
        return task

    def reload(self, store: Store, keys: Iterable[str], work: Callable[[list[str]], Coroutine[Any, Any, None]]) -> None:
        """Run `work(keys)` in the background, for the keys that no task in this loop is reloading already."""
        reloads = self.here().reloads
        mine = [key for key in keys if (store, key) not in reloads]
        if not mine:
            return
        task = asyncio.get_running_loop().create_task(work(mine), context=context_without(self.leaving))
        places = [(store, key) for key in mine]
        reloads.update(dict.fromkeys(places, task))

        def done(_: object) -> None:
            for place in places:
                del reloads[place]

        task.add_done_callback(done)

    async def delete(
        self,
        client: Any,
        prefixes: Sequence[Prefix] = (),
        keys: Sequence[str] = (),
        counters: Counters | None = None,
        images: Sequence[Image] = (),
    ) -> int | None:
        """Invalidate now, with no transaction in sight; go on if the caller is cancelled.

        Return the number of entries deleted; None if Redis has missed it, and the invalidation is pending.
        """
        store, counted = self.store(client), counters or self.own_counters
        if self.on_error == "raise":
            task = asyncio.ensure_future(store.invalidate(client, prefixes, keys, counted, images))
        else:
            task = self.background(store.invalidate_soon(client, prefixes, keys, counted, images))
        return await asyncio.shield(task)

    def report_loss(self, lost: Callable[[str], object]) -> None:
        """Call `lost` with the name of the cache if the cache goes without an `aclose`."""
        self._lost = finalize(self, lost, self.owner)

    async def aclose(self, limit: float) -> None:
        """End the work in this event loop."""
        await self.here().aclose(limit)
        if self._lost is not None:
            self._lost.detach()

    def leave(self) -> None:
        """Forget all, in a child process: the connections are the parent's."""
        # Kept, and never closed: that would take their sockets off the selector, which the parent has, too.
        _parents.append(([*self._states.items()], self._latest))
        self.move(self.namespace, self.redis)


def as_coroutine_of(method: Any, name: str) -> Any:
    """Return a bound method whose coroutines have that name: Python quotes it where a caller has forgotten `await`."""
    made, own = method.__func__, method.__self__
    copy = FunctionType(made.__code__, made.__globals__, made.__name__, made.__defaults__, made.__closure__)
    copy.__kwdefaults__, copy.__qualname__ = made.__kwdefaults__, name
    return MethodType(copy, own)


def _forgive(task: asyncio.Task[Any]) -> None:
    """Retrieve the task's exception, so that asyncio logs nothing for an unwell Redis."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, CacheUnavailableError):
        raise error


_runtimes: WeakSet[Runtime] = WeakSet()
_parents: list[Any] = []


def _in_child() -> None:
    for runtime in list(_runtimes):
        runtime.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
