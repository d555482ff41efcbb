"""The TCP proxy: what it holds, swallows, cuts, refuses and answers in the server's place."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, RedisError

from fastrdb.testing import EmbeddedServer, TcpProxy
from tests.support.waiting import until


def single(proxy: TcpProxy) -> redis.asyncio.Redis:
    """Return a client through the proxy that does not try again."""
    return redis.asyncio.Redis(host=proxy.host, port=proxy.port, retry=Retry(NoBackoff(), 0))


async def test_proxy_passes_everything_on(server: EmbeddedServer, client: redis.asyncio.Redis) -> None:
    """A healthy proxy is the server."""
    async with TcpProxy(server.port) as proxy, single(proxy) as through:
        await through.set("key", "x" * 300_000)
        assert await client.strlen("key") == 300_000
        assert proxy.connections == 1


async def test_proxy_holds_a_reply(server: EmbeddedServer, client: redis.asyncio.Redis) -> None:
    """Held bytes arrive when the proxy releases them."""
    async with TcpProxy(server.port) as proxy, single(proxy) as through:
        await through.ping()
        proxy.hold("down")
        task = asyncio.ensure_future(through.set("key", "value"))
        await proxy.held("down")
        assert await client.get("key") == b"value"
        assert not task.done()
        proxy.release()
        assert await task


async def test_proxy_swallows(server: EmbeddedServer, client: redis.asyncio.Redis) -> None:
    """A dropped reply never comes, though the command was done."""
    async with TcpProxy(server.port) as proxy, single(proxy) as through:
        await through.ping()
        proxy.drop("down")
        proxy.hold("down")
        task = asyncio.ensure_future(through.set("key", "value"))
        await proxy.held("down")
        proxy.release("down")
        assert await client.get("key") == b"value"
        proxy.cut()
        with pytest.raises(RedisError):
            await task


async def test_proxy_cuts_in_the_middle(server: EmbeddedServer, client: redis.asyncio.Redis) -> None:
    """A reply that is cut off is an error, and the next connection works."""
    await client.set("key", "0123456789")
    async with TcpProxy(server.port) as proxy, single(proxy) as through:
        await through.ping()
        proxy.cut_after(8, "down")
        with pytest.raises(RedisError):
            await through.get("key")
        proxy.heal()
        assert await through.get("key") == b"0123456789"


async def test_proxy_refuses_and_accepts_again(server: EmbeddedServer) -> None:
    """A refusing proxy is a dead port; it comes back on the same one."""
    async with TcpProxy(server.port) as proxy:
        port = proxy.port
        await proxy.refuse()
        with pytest.raises(RedisError):
            await single(proxy).ping()
        await proxy.accept()
        assert proxy.port == port
        async with single(proxy) as through:
            assert await through.ping()


async def test_held_bytes_arrive_although_their_client_is_gone(
    server: EmbeddedServer, client: redis.asyncio.Redis
) -> None:
    """A command whose sender has given up and closed its connection is done when it is released."""
    async with TcpProxy(server.port) as proxy:
        async with single(proxy) as through:
            await through.ping()
            proxy.hold()
            task = asyncio.ensure_future(through.set("key", "late"))
            await proxy.held("up")
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert await client.get("key") is None
        proxy.release()

        async def arrived() -> bool:
            return await client.get("key") is not None

        await until(arrived)


async def test_stranded_bytes_wait_while_new_connections_pass(
    server: EmbeddedServer, client: redis.asyncio.Redis
) -> None:
    """Only connections that were open before are kept back."""
    async with TcpProxy(server.port) as proxy, single(proxy) as old, single(proxy) as new:
        await old.ping()
        stranded = proxy.strand()
        task = asyncio.ensure_future(old.set("key", "old"))
        await stranded.held()
        assert await new.set("key", "new")
        assert await client.get("key") == b"new"
        stranded.release()
        assert await task
        assert await client.get("key") == b"old"


async def test_refused_proxy_keeps_what_is_open_until_it_is_cut(server: EmbeddedServer) -> None:
    """`refuse` is about new connections, `cut` about open ones."""
    async with TcpProxy(server.port) as proxy, single(proxy) as through:
        await through.ping()
        await proxy.refuse()
        assert await through.ping()
        proxy.cut()
        with pytest.raises(RedisError):
            await through.ping()
        await proxy.accept()
        assert await through.ping()


async def test_answered_commands_do_not_reach_the_server(server: EmbeddedServer, client: redis.asyncio.Redis) -> None:
    """Each command, alone or in a pipeline, in one piece or several, gets the error."""
    async with TcpProxy(server.port) as proxy, single(proxy) as through:
        await through.ping()
        proxy.answer_with("OOM no room")
        with pytest.raises(OutOfMemoryError):
            await through.set("key", "x" * 300_000)
        pipeline = through.pipeline(transaction=False)
        pipeline.set("key", "value")
        pipeline.get("key")
        replies = await pipeline.execute(raise_on_error=False)
        assert [type(reply) for reply in replies] == [OutOfMemoryError] * 2
        assert proxy.answered == 3
        proxy.heal()
        assert await through.get("key") is None
