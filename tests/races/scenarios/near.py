"""The races of the near cache, step by step. Each fails with an AssertionError when its mechanism is taken out."""

from __future__ import annotations

import asyncio
import random

from tests.support.world.near import Nearby, set_each

KEY = "item:1"
KEYS = 200


async def foreign_write(n: Nearby) -> None:
    """Another program writes: the next read after its push is new."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    assert await n.read(KEY) == b"old"
    assert n.local(KEY) == b"old"
    await n.foreign.set(KEY, b"new")
    await n.told()
    assert await n.read(KEY) == b"new"
    await n.foreign.delete(KEY)
    await n.told()
    assert await n.read(KEY) is None


async def push_before_reply(n: Nearby) -> None:
    """R16: the reply is on its way on one connection, the push overtakes it on the other."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    token = n.near.begin(KEY)
    assert token is not None
    fetched = await n.fetch(KEY)
    await n.foreign.set(KEY, b"new")
    await n.told()
    n.keep(token, fetched)
    assert await n.read(KEY) == b"new"


async def aba(n: Nearby) -> None:
    """R16 with two readers: the second has put down its token by the time that the first one's reply arrives."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    first = n.near.begin(KEY)
    old = await n.fetch(KEY)
    await n.foreign.set(KEY, b"new")
    await n.told()
    second = n.near.begin(KEY)
    n.keep(first, old)
    assert n.local(KEY) is None
    assert n.keep(second, await n.fetch(KEY))
    assert n.local(KEY) == b"new"


async def flushed(n: Nearby) -> None:
    """FLUSHALL names no keys: all go."""
    await n.foreign.mset({KEY: b"old", "post:1": b"old"})
    await n.told()
    await n.read(KEY)
    await n.read("post:1")
    await n.foreign.flushall()
    await n.near.until(lambda: n.near.heard[-1] is None)
    assert (await n.read(KEY), await n.read("post:1")) == (None, None)


async def killed(n: Nearby) -> None:
    """CLIENT KILL of the tracking connection: no push says what changes before the connection is there again."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    await n.read(KEY)
    await n.proxy.refuse()
    assert await n.foreign.execute_command("CLIENT", "KILL", "ID", await tracker_id(n)) == 1
    await n.near.until(lambda: not n.on)
    await n.foreign.set(KEY, b"new")
    assert await n.read(KEY) == b"new"
    assert n.local(KEY) is None
    await n.proxy.accept()
    await again(n)
    assert n.local(KEY) is None
    await foreign_write(n)


async def cut(n: Nearby) -> None:
    """Cut the connection in the network: the same."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    await n.read(KEY)
    n.proxy.cut()
    await n.near.until(lambda: not n.on)
    await n.foreign.set(KEY, b"new")
    assert await n.read(KEY) == b"new"
    await again(n)
    assert n.local(KEY) is None
    await foreign_write(n)


async def black_hole_down(n: Nearby) -> None:
    """C16: nothing comes from the server any more, without an error: entries are trusted for a heartbeat, no longer."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    await n.beat()
    await n.read(KEY)
    n.proxy.drop("down")
    await n.foreign.set(KEY, b"new")
    n.clock.advance(n.heartbeat * 0.99)
    assert n.local(KEY) == b"old"
    n.clock.advance(n.heartbeat * 0.01)
    assert await n.read(KEY) == b"new"
    await given_up(n)
    await foreign_write(n)


async def black_hole_up(n: Nearby) -> None:
    """C16: nothing gets through to the server any more. The server may have closed the connection."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    await n.beat()
    await n.read(KEY)
    n.proxy.drop("up")
    n.clock.advance(n.heartbeat)
    assert n.local(KEY) is None
    await given_up(n)
    await foreign_write(n)


async def late_pushes(n: Nearby) -> None:
    """Hold up pushes on the way, and the answer to the PING that was sent after the change."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    await n.read(KEY)
    n.proxy.hold("down")
    await n.foreign.set(KEY, b"new")
    await n.clock.asleep()
    n.clock.advance(n.heartbeat / 3)
    await n.clock.asleep()  # a PING is sent
    await n.proxy.held("down")
    n.clock.advance(n.heartbeat)
    assert n.local(KEY) is None
    n.proxy.release()
    await n.told()
    await n.beat()
    assert n.local(KEY) is None
    assert await n.read(KEY) == b"new"


async def own_write(n: Nearby) -> None:
    """Hold up the push of a process's own write: its own reads after the write are new all the same."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    await n.read(KEY)
    n.proxy.hold("down")
    await n.write({KEY: b"new"})
    assert await n.read(KEY) == b"new"
    n.proxy.release()
    await n.told()
    assert await n.read(KEY) == b"new"


async def read_during_own_write(n: Nearby) -> None:
    """Begin a read when the own write is about to be sent: the read finds the old value, and the push is slow."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    n.proxy.hold("down")
    with n.near.shut(names=[KEY.encode()]):
        assert await n.read(KEY) == b"old"
        await n.client.set(KEY, b"new")
    assert await n.read(KEY) == b"new"
    n.proxy.release()
    await n.told()


async def read_across_own_write(n: Nearby) -> None:
    """Read across an own write: the read was under way already when the write began."""
    await n.foreign.set(KEY, b"old")
    await n.told()
    n.proxy.hold("down")
    token, fetched = n.near.begin(KEY), await n.fetch(KEY)
    await n.write({KEY: b"new"})
    n.keep(token, fetched)
    assert await n.read(KEY) == b"new"
    n.proxy.release()
    await n.told()


async def expiry(n: Nearby) -> None:
    """Drop what has expired in Redis: the push says so, and the clock."""
    await n.foreign.set(KEY, b"old", px=100)
    await n.told()
    assert await n.read(KEY) == b"old"
    while await n.foreign.exists(KEY):
        pass
    await n.told()
    assert n.local(KEY) is None
    await n.foreign.set(KEY, b"old", px=500)
    await n.told()
    await n.read(KEY)
    n.clock.advance(0.5)
    assert n.on
    assert n.local(KEY) is None


async def new_head(n: Nearby) -> None:
    """Use a pattern whose keys are not tracked yet: no entry is kept until tracking covers the pattern."""
    await n.foreign.set("page:1", b"old")
    assert await n.read("page:1") == b"old"
    assert n.local("page:1") is None
    n.heads.update({"page:", "i"})  # the second one overlaps with what is tracked
    await n.clock.asleep()
    n.clock.advance(n.heartbeat / 3)
    await n.near.until(lambda: n.near.begin("page:1") is not None)
    await n.read("page:1")
    assert n.local("page:1") == b"old"
    await n.foreign.set("page:1", b"new")
    await n.told()
    assert await n.read("page:1") == b"new"
    await foreign_write(n)


async def own_and_foreign(n: Nearby) -> None:
    """R18: 200 keys, each written by this process and by another one in the same moment: one push is for both."""
    keys = [f"item:{number}" for number in range(KEYS)]
    await n.foreign.mset(dict.fromkeys(keys, b"old"))
    await n.told()
    for key in keys:
        await n.read(key)
    await n.foreign.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    try:
        own = asyncio.ensure_future(n.write(dict.fromkeys(keys, b"own")))
        await waiting(n, 1)
        foreign = asyncio.ensure_future(set_each(n.foreign, dict.fromkeys(keys, b"foreign")))
        await waiting(n, 2)
    finally:
        await n.foreign.execute_command("CLIENT", "UNPAUSE")
    await asyncio.gather(own, foreign)
    await n.told()
    await diverged(n, keys)


async def waiting(n: Nearby, count: int) -> None:
    """Wait until so many clients stand before the server's pause."""
    while (await n.foreign.info("clients"))["blocked_clients"] < count:
        pass


async def storm(n: Nearby) -> None:
    """Own and foreign writes to the same 200 keys, in any order, and readers: nothing differs in the end."""
    keys = [f"item:{number}" for number in range(KEYS)]
    versions = iter(range(10**9))

    async def own(key: str) -> None:
        await n.write({key: b"%d" % next(versions)})

    async def foreign(key: str) -> None:
        await n.foreign.set(key, b"%d" % next(versions))

    async def reads(key: str) -> None:
        for _ in range(3):
            await n.read(key)

    steps = [step(key) for key in keys for step in (own, foreign, reads, own, foreign, reads)]
    random.shuffle(steps)
    for start in range(0, len(steps), 50):
        await asyncio.gather(*steps[start : start + 50])
    for key in keys[:50]:  # written once more by both, and never again: what is missed now stays
        await n.read(key)
        await own(key)
        await foreign(key)
    await n.told()
    await diverged(n, keys)


async def diverged(n: Nearby, keys: list[str]) -> None:
    """Compare what is kept, and what a read gives, with Redis."""
    truth = dict(zip(keys, await n.foreign.mget(keys), strict=True))
    kept = {key: n.local(key) for key in keys}
    assert {key: value for key, value in kept.items() if value not in (None, truth[key])} == {}
    assert {key: await n.read(key) for key in keys} == truth


async def tracker_id(n: Nearby) -> int:
    """Return the id of the tracking connection, as the server knows it."""
    clients = await n.foreign.client_list()
    return next(int(client["id"]) for client in clients if "t" in client["flags"])


async def again(n: Nearby) -> None:
    """Wait after the connection is gone, for the pause after which another is made."""
    await n.clock.asleep()
    n.clock.advance(1.0)
    await n.opened()


async def given_up(n: Nearby) -> None:
    """Wait after a PING was sent into a black hole, for the time after which the connection is given up."""
    n.proxy.heal()
    await n.clock.asleep()
    n.clock.advance(n.heartbeat * 2.1)
    await again(n)


ALL = (
    foreign_write,
    push_before_reply,
    aba,
    flushed,
    killed,
    cut,
    black_hole_down,
    black_hole_up,
    late_pushes,
    own_write,
    read_during_own_write,
    read_across_own_write,
    expiry,
    new_head,
    own_and_foreign,
    storm,
)
