"""The commands on one server and on a cluster, through a pipe and on a terminal."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pyte
import pytest
import redis
from redis.asyncio import Redis, RedisCluster
from rich.console import Console
from typer.testing import CliRunner, Result

from fastrdb import Cache, Inspector
from fastrdb import cli as command
from fastrdb.cli import pages, show
from fastrdb.cli.commands import cli
from fastrdb.testing import EmbeddedServer
from tests.support import ROOT
from tests.support.servers.cluster import Cluster
from tests.support.waiting import until_found

LIMIT_S = 30.0


@pytest.fixture(params=["server", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    """Return the address of each kind in turn: empty but for three entries, of a namespace."""
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.flush()
        port = cluster.masters[0].port
    else:
        server: EmbeddedServer = request.getfixturevalue("server")
        port = server.port
        with redis.Redis(port=port) as admin:
            admin.flushall()
    asyncio.run(_fill(port, cluster=request.param == "cluster"))
    return f"redis://127.0.0.1:{port}"


async def _fill(port: int, *, cluster: bool) -> None:
    client: Any = RedisCluster(host="127.0.0.1", port=port) if cluster else Redis(port=port)
    async with client, Cache(client, namespace="shop", timeout=5) as cache:

        @cache.cached("user:{number}", exp=60, jitter=0)
        async def user(number: int) -> dict[str, str]:
            return {"name": "[red]Ann\x1b[2J"}

        for number in (1, 2, 30):
            await user(number)
        record = {"host": "web1", "pid": 7, "pending": False}
        function = {"function": "user", "pattern": "user:{number}"}
        stats = {"hits": 3, "misses": 1, "loads": 1}
        gone = {"user:{number}:*": 4}
        counts = {"functions": [function | {"stats": stats, "times": {"load": [2, 0.5]}, "dropped": gone}]}
        drops = [{"at": 1.0, "function": "rename", "key": "user:9", "count": 4}]
        for process in ("one", "two"):
            await Inspector(client, "shop").publish(process, record | counts | {"drops": drops})


def call(*arguments: str, status: int = 0) -> Result:
    """Run a command on the namespace; it has to end with this status."""
    done = CliRunner().invoke(cli, [*arguments], env={"FASTRDB_NAMESPACE": "shop"})
    assert done.exit_code == status, (done.output, done.exception)
    return done


def found(*arguments: str, status: int = 0) -> Any:
    """Run a command with `--json`, and return what it prints."""
    return json.loads(call(*arguments, "--json", status=status).stdout)


def test_keys_are_listed(url: str) -> None:
    """Keys come without the namespace, with TTL and size; a limit is said."""
    listed = found("keys", "user:*", "--url", url)
    assert {each["key"] for each in listed} == {"user:1", "user:2", "user:30"}
    assert all(50 < each["ttl"] <= 60 for each in listed)
    assert [each["key"] for each in found("keys", "user:3", "--url", url)] == ["user:30"]
    assert "the first 1; --limit shows more" in call("keys", "--limit", "1", "--url", url).stdout
    assert "0 entries" in call("keys", "page:*", "--url", url).stdout


def test_a_long_key_stays_in_one_line_of_a_pipe(server: EmbeddedServer) -> None:
    """Another program reads it, such as grep."""
    with redis.Redis(port=server.port) as admin:
        admin.flushall()

    async def fill() -> None:
        client = Redis(port=server.port)
        async with client, Cache(client, namespace="shop") as cache:
            await cache.cached("user:{name}")(_named)("x" * 300)

    asyncio.run(fill())
    assert f"user:{'x' * 300} " in call("keys", "--url", server.url).stdout


async def _named(name: str) -> str:
    return name


def test_an_entry_is_shown_without_what_a_terminal_would_obey(url: str) -> None:
    """The value is JSON; control characters are escaped, and markup is text."""
    shown = call("get", "user:1", "--url", url).stdout
    assert "[red]Ann" in shown
    assert "\x1b[2J" not in shown
    assert found("get", "user:1", "--url", url)["value"] == {"name": "[red]Ann\x1b[2J"}
    assert "no entry under user:9" in call("get", "user:9", "--url", url, status=1).output


def test_json_has_nothing_that_a_terminal_would_obey_or_cannot_write(server: EmbeddedServer) -> None:
    """Another program's value may be a control character that JSON leaves as it is, or half of a character."""
    with redis.Redis(port=server.port) as admin:
        admin.set("shop:user:1", json.dumps("\x9b31m\ud800"))
    shown = call("get", "user:1", "--url", server.url, "--json").stdout
    assert shown.isascii()
    assert json.loads(shown)["value"] == "\x9b31m\ud800"


@pytest.mark.parametrize("value", ['{"a":NaN}', "[1e999]", "-Infinity"])
def test_what_only_python_reads_as_json_is_shown_as_text(server: EmbeddedServer, value: str) -> None:
    """A script's parser refuses NaN and Infinity, which another program may have stored."""
    with redis.Redis(port=server.port) as admin:
        admin.set("shop:user:1", value)
    assert found("get", "user:1", "--url", server.url)["value"] == value


@pytest.mark.parametrize("command", ["get", "why"])
def test_a_key_of_another_program_is_told(server: EmbeddedServer, command: str) -> None:
    """The address is right: the advice is about the namespace."""
    with redis.Redis(port=server.port) as admin:
        admin.hset("shop:cart", "item", 1)
    shown = call(command, "cart", "--url", server.url, status=2).output
    assert "that key is another program's, and no entry. Give the cache a namespace of its own" in shown


def test_why_says_what_there_is(url: str) -> None:
    """An entry, or none and what to ask then."""
    assert found("why", "user:1", "--url", url)["reasons"][0].startswith("there is an entry of 28 bytes")
    assert "there is no entry" in call("why", "user:9", "--url", url).stdout


def test_invalidate_counts_and_asks(url: str) -> None:
    """Without a terminal to ask on, nothing is deleted unless `--yes` says so."""
    assert "3 keys under user:*: give --yes" in call("invalidate", "user:*", "--url", url, status=1).output
    assert len(found("keys", "--url", url)) == 3
    assert found("invalidate", "user:1", "--yes", "--url", url) == {"deleted": 1}
    assert "1 key under user:2: give --yes" in call("invalidate", "user:2", "--url", url, status=1).output
    assert "1 entry deleted" in call("invalidate", "user:2", "-y", "--url", url).stdout
    assert "1 entry deleted" in call("invalidate", "user:*", "-y", "--url", url).stdout
    assert found("keys", "--url", url) == []


def test_an_index_that_was_lost_is_told(server: EmbeddedServer) -> None:
    """Fewer entries are listed and counted than there are, and a deletion reaches the rest."""
    with redis.Redis(port=server.port) as admin:
        admin.flushall()
        asyncio.run(_fill(server.port, cluster=False))
        admin.delete("fastrdb:shop:index")
        options = ["--url", server.url, "-n", "shop"]
        note = "the index is not whole: there may be entries that it does not have"
        assert note in CliRunner().invoke(cli, ["keys", *options]).output
        assert note in CliRunner().invoke(cli, ["invalidate", "user:*", *options]).output
        assert "3 entries deleted" in CliRunner().invoke(cli, ["invalidate", "user:*", "-y", *options]).output
        assert note not in CliRunner().invoke(cli, ["keys", *options]).output


def test_stats_add_up_processes(url: str) -> None:
    """Two processes have published the same counts; `top` without a terminal prints once."""
    stats = found("stats", "--url", url)
    assert stats["functions"]["user"]["stats"] == {"hits": 6, "misses": 2, "loads": 2}
    assert stats["functions"]["user"]["times"] == {"load": [4, 1.0]}
    assert stats["functions"]["user"]["dropped"] == {"user:{number}:*": 8}
    for name in ("stats", "top"):
        shown = call(name, "--url", url).stdout
        assert "75.0%" in shown
        assert "250.0 ms" in shown
        assert "2 processes" in shown
        assert ["user:{number}:*", "user", "8"] in [line.split() for line in shown.splitlines()]
    assert "user:9" in shown
    assert "rename" in shown


def test_a_narrow_terminal_shows_which_function_it_is() -> None:
    """The columns of numbers wrap as well, and do not take all of the width."""
    written, name = io.StringIO(), "get_the_user_of_a_name"
    counts = {"functions": [{"function": name, "pattern": "", "stats": {"hits": 3}, "times": {}, "dropped": {}}]}
    Console(file=written, width=60).print(show.functions({"one": {"host": "web1", "pid": 7, **counts}}))
    shown = "".join(line.split()[0] for line in written.getvalue().splitlines())
    assert shown.startswith(f"function{name}")


@pytest.mark.parametrize("width", [40, 60])
def test_a_narrow_terminal_shows_whole_numbers(width: int) -> None:
    """A number goes on in the next line: one that is cut off reads as another."""
    written = io.StringIO()
    stats = {"hits": 123_456, "misses": 4, "loads": 654_321, "unstored": 777_888, "deleted": 999_111}
    counts = {"functions": [{"function": "f", "pattern": "", "stats": stats, "times": {}, "dropped": {}}]}
    drops = [{"at": 1.0, "function": "rename_a_customer", "key": "customer:of:an:international:firm", "count": 555_444}]
    published = {"one": {"host": "web1", "pid": 7, "drops": drops, **counts}}
    Console(file=written, width=width).print(show.functions(published), show.drops(published, 5))
    assert "…" not in written.getvalue()


def test_deps_and_who_read_tags(url: str) -> None:
    """Of an entry without tags, both say so."""
    assert "no tags" in call("deps", "user:1", "--url", url).stdout
    assert found("deps", "user:1", "--url", url) == []
    assert "no entry has the tag orders" in call("who", "orders", "--url", url).stdout


@pytest.mark.parametrize("command", [("keys",), ("invalidate",), ("invalidate", "--yes")])
def test_a_prefix_with_placeholders_is_refused(url: str, command: tuple[str, ...]) -> None:
    """It would reach nothing, and the answer would be that there is nothing."""
    assert "has placeholders" in call(*command, "user:{id}", "--url", url, status=2).output


@pytest.mark.parametrize("command", ["get", "why", "deps", "who"])
def test_an_argument_that_is_no_text_is_told(server: EmbeddedServer, command: str) -> None:
    """A shell hands on any bytes."""
    assert "is not UTF-8" in found(command, "user:\udcff", "--url", server.url, status=2)["error"]


def test_an_empty_prefix_deletes_nothing_and_counts_nothing(url: str) -> None:
    """As in Python, where it reaches no key."""
    assert "'*' is all entries" in found("invalidate", "", "--url", url, status=2)["error"]


@pytest.mark.parametrize(("command", "status"), [("stats", 130), ("top", 0)])
def test_an_interrupted_command_has_not_succeeded(command: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `top` ends by Ctrl-C; of another one, such as `doctor`, 0 would say that all is well."""

    def interrupted(work: Coroutine[Any, Any, int]) -> int:
        work.close()
        raise KeyboardInterrupt

    monkeypatch.setattr("fastrdb.cli.commands.asyncio.run", interrupted)
    call(command, status=status)


def test_docs_show_a_page() -> None:
    """Without a page, the list; an unknown one is named."""
    assert "operations" in call("docs").stdout.split()
    assert call("docs", "keys").stdout.startswith("# Keys")
    assert "no page nothing; there are: " in call("docs", "nothing", status=1).output


@pytest.mark.parametrize("name", pages.names())
def test_eighty_columns_hold_a_page(name: str) -> None:
    """No line is longer than the terminal is wide, and no word of a table is cut."""
    text = pages.read(name)
    assert text is not None
    written = io.StringIO()
    terminal = Console(file=written, width=80, height=100_000, force_terminal=True, color_system=None)
    pages.show(terminal, text)
    shown = written.getvalue()
    lines = re.sub(r"\x1b\]8;[^\x1b]*\x1b\\\\|\x1b\[[\d;]*m", "", shown).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert shown.count("…") == text.count("…")
    assert not [line for line in lines if line.startswith("|")]


def test_the_tools_that_are_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message has the extra to install."""
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["fastrdb", "doctor"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == 'Not installed: typer, rich. Install them: pip install -e ".[cli]"\n'


# --- on a terminal


class Terminal:
    """A terminal of 90 columns and 24 lines, on which a program runs: the command, where no other is given."""

    def __init__(self, *arguments: str, program: Sequence[str] = ("-m", "fastrdb")) -> None:
        self.screen = pyte.Screen(90, 24)
        self._stream = pyte.ByteStream(self.screen)
        self._own, its = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "90", "LINES": "24"}
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            env=environment,
            # A job in the background of a shell ignores Ctrl-C, and so do the programs that it starts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  # takes no lock
        )
        os.close(its)

    def until(self, text: str) -> str:
        """Read until the screen shows `text`; return the whole screen."""
        while text not in (shown := "\n".join(self.screen.display)):
            ready, _, _ = select.select([self._own], [], [], LIMIT_S)
            assert ready, shown
            try:
                self._stream.feed(os.read(self._own, 65_536))
            except OSError as error:  # the command has ended
                raise AssertionError(shown) from error
        return shown

    def write(self, text: str) -> None:
        """Press keys."""
        os.write(self._own, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C when the program waits for a key. Python would let a signal just before that wait for one."""
        status = Path(f"/proc/{self.process.pid}/status")
        until_found(lambda: not status.exists() or "\nState:\tS" in status.read_text(), "a program that waits")
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read on until the command has ended; return its status. A command whose output is not read does not end."""
        end = monotonic() + LIMIT_S
        with suppress(OSError):  # raised when the command has ended
            while monotonic() < end and select.select([self._own], [], [], LIMIT_S)[0] and os.read(self._own, 65_536):
                pass
        status = self.process.wait(LIMIT_S)
        os.close(self._own)
        return status


def test_top_renews_its_screen(server: EmbeddedServer) -> None:
    """It shows what processes publish meanwhile, in place, and ends by Ctrl-C without a traceback."""
    with redis.Redis(port=server.port) as admin:
        admin.flushall()
    terminal = Terminal("top", "--url", server.url, "--namespace", "shop", "--every", "0.1")
    assert "no process publishes its counts" in terminal.until("no process publishes")
    asyncio.run(_fill(server.port, cluster=False))
    terminal.until("2 processes")
    shown = terminal.until("75.0%")
    assert shown.count("hit ratio") == 1
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.end() == 0


def test_top_goes_on_while_redis_is_away() -> None:
    """A server that restarts does not end it."""
    with EmbeddedServer() as server:
        terminal = Terminal("top", "--url", server.url, "--every", "0.1")
        terminal.until("no process publishes")
        server.kill()
        terminal.until("Redis does not answer: ConnectionError")
        server.start()
        terminal.until("no process publishes")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 0


def test_invalidate_asks_on_a_terminal(server: EmbeddedServer) -> None:
    """The answer `n` deletes nothing, `y` deletes."""
    with redis.Redis(port=server.port) as admin:
        admin.flushall()
        asyncio.run(_fill(server.port, cluster=False))
        for answer, status, left in (("n", 1, 1), ("y", 0, 0)):
            terminal = Terminal("invalidate", "user:*", "--url", server.url, "-n", "shop")
            terminal.until("Delete 3 keys under user:*? [y/N]")
            terminal.write(f"{answer}\n")
            if answer == "y":
                terminal.until("3 entries deleted")
            assert terminal.end() == status
            assert admin.exists("shop:user:1") == left


def test_invalidate_is_interrupted_while_it_asks(server: EmbeddedServer) -> None:
    """Ctrl-C does not wait for an answer, and deletes nothing."""
    with redis.Redis(port=server.port) as admin:
        admin.flushall()
        asyncio.run(_fill(server.port, cluster=False))
        terminal = Terminal("invalidate", "user:*", "--url", server.url, "-n", "shop")
        terminal.until("Delete 3 keys under user:*? [y/N]")
        terminal.interrupt()
        assert terminal.end() == 130
        assert admin.exists("shop:user:1")


def test_docs_are_turned_over_page_by_page_without_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pager is `less`, which by itself shows the codes of colours as text."""
    monkeypatch.delenv("PAGER", raising=False)
    monkeypatch.setenv("LESS", "M")
    terminal = Terminal("docs", "options")
    assert "ESC[" not in terminal.until("Of a function")
    terminal.write("q")
    assert terminal.end() == 0


ONE_AFTER_ANOTHER = """
import json, sys
from fastrdb.cli import main

for number, arguments in enumerate(json.loads(sys.argv[1])):
    sys.argv = ["fastrdb", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(f"command {number} ended with {ended.code}", flush=True)
    sys.stdin.readline()  # until the screen has been read
"""
"""Runs commands in one process: to start one takes longer than any of the commands."""
ON_A_TERMINAL = [
    (["keys", "user:*"], "3 entries"),
    (["get", "user:1"], "Ann"),
    (["why", "user:1"], "there is an entry of"),
    (["deps", "user:1"], "no tags"),
    (["who", "users"], "no entry"),
    (["stats"], "2 processes"),
    (["top", "--times", "1"], ""),
    (["invalidate", "user:1", "-y"], "deleted"),
    (["docs"], "operations"),
]


def test_commands_on_a_terminal(url: str) -> None:
    """Each ends with 0, shows what was asked for, and writes nothing that the terminal would obey."""
    options = ["--url", url, "--namespace", "shop"]
    given = [[*each, *(() if each == ["docs"] else options)] for each, _ in ON_A_TERMINAL]
    terminal = Terminal(json.dumps(given), program=("-c", ONE_AFTER_ANOTHER))
    for number, (_, text) in enumerate(ON_A_TERMINAL):
        if text:
            assert "Traceback" not in terminal.until(text)
        terminal.until(f"command {number} ended with 0")
        terminal.write("\n")
    assert terminal.end() == 0
    assert found("get", "user:2", "--url", url)


def test_doctor_fits_a_terminal(server: EmbeddedServer) -> None:
    """Each finding has a line."""
    terminal = Terminal("doctor", server.url)
    shown = terminal.until("processes")
    assert shown.split()[:2] == ["ok", "version"]
    assert terminal.end() == 0
