"""The dashboard, asked over ASGI and used in a browser."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from redis.asyncio import Redis

from fastrdb import Cache, Inspector, OptionError
from fastrdb.integrations import dashboard
from fastrdb.integrations.dashboard import Dashboard
from fastrdb.testing import EmbeddedServer
from tests.support.programs.browser import browser, wait_for

EVIL, MARKUP, SHOWN = "<img src=x onerror=pwned=1>", "<u>\u202eeve</u>", r"<u>\u{202e}eve</u>"
"""Markup, and a character that turns the direction of what follows: that key looks like another one."""
ASKED = {"x-fastrdb": "invalidate"}


@asynccontextmanager
async def opened(cache: Cache, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Mount a dashboard under /cache, and yield a client of the application."""
    app = FastAPI()
    app.mount("/cache", Dashboard(cache, **options))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop/cache") as http:
        yield http


async def fill(cache: Cache) -> None:
    """Store two entries: one with markup in its key and in its value."""

    @cache.cached("user:{name}", exp=60)
    async def user(name: str) -> str:
        return f"value of {name}"

    for name in ("ann", MARKUP):
        await user(name)


# --- over ASGI


async def test_entries_are_shown_without_values(any_client: Any) -> None:
    """Keys, TTL, size and reasons; a value only with show_values=True. It works on a cluster as well."""
    async with Cache(any_client, namespace="shop") as cache:
        await fill(cache)
        async with opened(cache) as http:
            answered = (await http.get("/keys", params={"prefix": "user:*"})).json()
            listed = answered["keys"]
            assert answered["whole"]
            assert {each["key"] for each in listed} == {"user:ann", f"user:{MARKUP}"}
            answer = await http.get("/entry", params={"key": "user:ann"})
            assert answer.json()["entry"]["size"] == 14
            assert answer.json()["reasons"][0].startswith("there is an entry")
            assert "value of" not in answer.text
            assert (await http.get("/entry", params={"key": "user:none"})).json()["entry"] is None
            refused = await http.get("/keys", params={"prefix": "user:{id}"})
            assert (refused.status_code, "has placeholders" in refused.json()["error"]) == (422, True)
        async with opened(cache, show_values=True) as http:
            assert (await http.get("/entry", params={"key": "user:ann"})).json()["value"] == '"value of ann"'


async def test_the_page_is_read_only_unless_allowed(client: Redis) -> None:
    """Then it says how many keys there are, and deletes; and only the page itself may ask."""
    async with Cache(client) as cache:
        await fill(cache)
        async with opened(cache) as http:
            refused = await http.post("/invalidate", json={"prefix": "user:*"}, headers=ASKED)
            assert (refused.status_code, await Inspector(client).count("user:*")) == (403, 2)
        async with opened(cache, allow_invalidate=True) as http:
            body: Any = {"prefix": "user:*"}
            assert (await http.post("/invalidate", json=body)).status_code == 403
            elsewhere = ASKED | {"sec-fetch-site": "cross-site"}
            assert (await http.post("/invalidate", json=body, headers=elsewhere)).status_code == 403
            assert (await http.post("/invalidate", json={"prefix": ""}, headers=ASKED)).status_code == 422
            assert (await http.post("/invalidate", content=b"x" * 20_000, headers=ASKED)).status_code == 413
            for body_sent in (b"{", b"[" * 9_000):
                assert (await http.post("/invalidate", content=body_sent, headers=ASKED)).status_code == 422
            counted = await http.post("/invalidate", json=body | {"count": True}, headers=ASKED)
            assert counted.json() == {"count": 2}
            assert (await http.post("/invalidate", json=body, headers=ASKED)).json() == {"deleted": 2}
            assert await Inspector(client).keys() == []


async def test_the_page_loads_nothing_from_elsewhere(client: Redis) -> None:
    """The policy of its content allows its own files alone, and no frame around it."""
    async with Cache(client) as cache, opened(cache) as http:
        moved = await http.get("http://shop/cache")
        assert (moved.status_code, moved.headers["location"]) in [(307, "/cache/"), (307, "http://shop/cache/")]
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
            answer = await http.get(path)
            assert answer.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert "http:" not in answer.text.replace("http://www.w3.org/2000/svg", "")
            assert "innerHTML" not in answer.text
        for method, path in (("GET", "/page.css/../x"), ("GET", "/other"), ("DELETE", "/keys"), ("GET", "/invalidate")):
            assert (await http.request(method, path)).status_code == 404


async def test_a_list_from_a_lost_index_is_not_all(client: Redis) -> None:
    """The page says so beside the number."""
    async with Cache(client) as cache, opened(cache) as http:
        await fill(cache)
        await client.delete("fastrdb:index")
        assert (await http.get("/keys")).json() == {"keys": [], "most": 200, "whole": False}


@pytest.mark.parametrize("path", ["/", "/page.js", "/options", "/keys", "/events", "/other"])
async def test_head_is_answered_as_get_without_a_body(
    client: Redis, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A monitor may ask so. The stream is at its end at once."""
    monkeypatch.setattr(dashboard, "_STREAM_S", 0.0)
    async with Cache(client) as cache, opened(cache) as http:
        found, asked = await http.head(path), await http.get(path)
    assert (found.status_code, dict(found.headers), found.content) == (asked.status_code, dict(asked.headers), b"")
    assert asked.content


async def test_a_websocket_is_closed() -> None:
    """Without an answer, a client would wait for one."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await Dashboard(Cache(Redis()))({"type": "websocket", "path": "/events"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


async def test_redis_away_is_an_answer(client: Redis) -> None:
    """The page says so, and names no address."""
    with EmbeddedServer() as server:
        gone = Redis(port=server.port, socket_connect_timeout=1)
    async with gone, Cache(client) as cache, opened(cache, redis=gone) as http:
        answer = await http.get("/keys")
    assert (answer.status_code, answer.json()) == (503, {"error": "Redis does not do this: ConnectionError"})


def test_a_cache_without_client_is_refused() -> None:
    """The message says where to give one."""
    with pytest.raises(OptionError, match="give it redis="):
        Dashboard(Cache())


async def test_the_stream_has_what_processes_publish_and_ends_with_its_reader(client: Redis) -> None:
    """Played as a server plays it: the second message comes after the first, and a disconnect ends the stream."""
    record = {"host": "web1", "pid": 7, "pending": True, "at": 5.0}
    function = {"function": "user", "pattern": "user:{id}", "stats": {"hits": 3}, "times": {"load": [1, 0.5]}}
    drop = {"at": 1.0, "function": "rename", "key": "user:9", "count": 4}
    inspector = Inspector(client)
    for process in ("one", "two"):
        await inspector.publish(process, record | {"functions": [function], "drops": [drop]})
    sent: asyncio.Queue[Any] = asyncio.Queue()
    received: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "http", "method": "GET", "path": "/events", "query_string": b"", "headers": []}
    running = asyncio.create_task(Dashboard(Cache(client))(scope, received.get, sent.put))
    assert (await sent.get())["status"] == 200
    assert (await sent.get())["body"] == b"retry: 1000\n\n"
    message = json.loads((await sent.get())["body"].removeprefix(b"data: "))
    assert message["functions"]["user"]["stats"] == {"hits": 6}
    assert message["functions"]["user"]["times"] == {"load": [2, 1.0]}
    assert [each["host"] for each in message["processes"]] == ["web1", "web1"]
    assert message["drops"] == [drop, drop]
    received.put_nowait({"type": "http.disconnect"})
    await running


# --- in a browser


@contextmanager
def serving(port: int) -> Iterator[str]:
    """Run an application with a dashboard in a thread, and yield the address of the page."""
    app, started, address = FastAPI(), threading.Event(), list[str]()
    client = Redis(port=port)
    cache = Cache(client, publish=True, timeout=5)

    @cache.cached("user:{name}", exp=600)
    async def get_user(name: str) -> dict[str, str]:
        return {"name": name, "markup": EVIL}

    @cache.invalidates("user:{name}")
    async def rename(name: str) -> None:
        """Change nothing."""

    app.get("/user")(get_user)
    app.get("/rename")(rename)
    app.mount("/cache", Dashboard(cache, allow_invalidate=True, show_values=True))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))

    async def run() -> None:
        async with client, cache:
            await server._serve()

    def watch() -> None:
        asyncio.run(run())

    original = server.startup

    async def startup(sockets: Any = None) -> None:
        await original(sockets)
        address.append(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert started.wait(30)
        yield address[0]
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def page(server: EmbeddedServer, client: Redis, tmp_path: Path) -> Iterator[tuple[Any, str]]:
    """Open the page in a browser, after a few calls; yield the driver and the application's address."""
    with browser(tmp_path) as driver, serving(server.port) as address, httpx.Client(base_url=address) as http:
        for name in ("ann", "ann", "bob", MARKUP, "bob"):
            http.get("/user", params={"name": name}).raise_for_status()
        http.get("/rename", params={"name": "bob"}).raise_for_status()
        http.get("/user", params={"name": "bob"}).raise_for_status()
        driver.get(f"{address}/cache")
        yield driver, address
        driver.get("about:blank")  # the stream ends, and the server need not wait for it
        loud = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert not loud


@pytest.mark.timeout(240)
def test_the_page_in_a_browser(page: tuple[Any, str], tmp_path: Path) -> None:
    """It is used by keyboard alone, shows markup as text, deletes after asking, and fits a small screen."""
    from selenium.webdriver.common.by import By  # noqa: PLC0415  # needed only where there is a browser
    from selenium.webdriver.common.keys import Keys  # noqa: PLC0415

    driver, _ = page

    def text(selector: str) -> str:
        return str(driver.find_element(By.CSS_SELECTOR, selector).text)

    wait_for(driver, lambda _: "get_user" in text("#table") and "1" in text("#dropped-table tbody"))
    row = next(each for each in driver.find_elements(By.CSS_SELECTOR, "#table tbody tr") if "get_user" in each.text)
    assert "user:{name}" in row.text
    assert "33.3 %" in row.text
    assert "rename" in text("#dropped-table")
    writer = next(each for each in driver.find_elements(By.CSS_SELECTOR, "#table tbody tr") if "rename" in each.text)
    assert "user:{name} 1" in writer.text
    assert text("#state") == "live, 1 process"
    driver.save_screenshot(str(tmp_path / "wide.png"))

    # By keyboard: the prefix, the first entry, its details.
    driver.find_element(By.ID, "prefix").send_keys("user:*", Keys.ENTER)
    wait_for(driver, lambda _: text("#count") == "3 entries")
    assert SHOWN in text("#list")
    driver.find_element(By.ID, "prefix").send_keys(Keys.TAB, Keys.TAB)
    active = driver.switch_to.active_element
    assert active.get_attribute("id") == "drop"
    active.send_keys(Keys.TAB)
    button = driver.switch_to.active_element
    key = button.find_element(By.CSS_SELECTOR, "span").text
    button.send_keys(Keys.ENTER)
    wait_for(driver, lambda _: text("#entry") == key)
    assert driver.switch_to.active_element.get_attribute("id") == "entry"
    assert EVIL in text("#value")
    assert "there is an entry" in text("#reasons")
    strangers = "document.querySelectorAll('main img, main u').length"
    assert driver.execute_script(f"return typeof window.pwned + {strangers}") == "undefined0"

    # On a small screen nothing is cut off, and what is asked for is asked twice.
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
    driver.save_screenshot(str(tmp_path / "small.png"))
    one = "user:ann", "1 key", "1 entry", Keys.ESCAPE
    rest = "user:*", "3 keys", "3 entries", Keys.TAB + Keys.ENTER
    for (prefix, keys, entries, choice), said in ((one, ""), (rest, " deleted")):
        driver.find_element(By.ID, "prefix").clear()
        driver.find_element(By.ID, "prefix").send_keys(prefix, Keys.ENTER)
        wait_for(driver, lambda _, left=entries: text("#count") == left)
        driver.find_element(By.ID, "drop").send_keys(Keys.ENTER)
        wait_for(driver, lambda _, asked=f"Delete {keys} under {prefix}?": text("#question") == asked)
        driver.switch_to.active_element.send_keys(choice)
        wait_for(driver, lambda _, left=f"{entries}{said}": text("#count") == left and not text("#question"))
    assert text("#list") == ""
