"""The benchmarks run, answer every question, and catch a contestant that does not do what is measured.

How fast anything is depends on the machine, and is no test.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from redis.asyncio import Redis

from benchmarks import plots
from benchmarks.__main__ import QUESTIONS, main
from benchmarks.catalogue import Query, Task, database, one_user
from benchmarks.comparison import Case, enter, hits, idle_sessions, misses
from benchmarks.contestants import field as fields_of
from benchmarks.contestants.base import Contestant
from benchmarks.contestants.by_hand import Bare
from benchmarks.contestants.field import KINDS, NOT_INSTALLED, NOT_YET, Field, absence, opened
from benchmarks.contestants.ours import Ours
from benchmarks.copies import copies, entry_key
from benchmarks.harness import SIZES, Known, Timings, Unused, interleaved
from benchmarks.machine import installed
from benchmarks.questions import near, versions
from benchmarks.report import Limit, Ratio, Report, Row, Unit, absent, duration
from fastrdb.testing.server import EmbeddedServer
from tests.support import ROOT
from tests.support.source.checkers import run

LIMIT = Limit("ratio", bar=2)
REASONS = {NOT_INSTALLED, NOT_YET, "has no invalidation by prefix"}


class Forgetful(Contestant):
    """One that never stores anything."""

    package = "fastrdb"

    def cached(self, head: str, task: Task) -> Query:
        return task.query


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "questions",
    [
        pytest.param({"hit", "miss", "stampede", "invalidation", "slowlog"}, id="those with limits"),
        pytest.param(set(QUESTIONS), id="all", marks=pytest.mark.slow),
    ],
)
def test_a_tiny_run_answers_its_questions(questions: set[str], tmp_path: Path) -> None:
    """`python -m benchmarks --smoke` has a figure for each row, or says why not; and hits were hits."""
    only = ("--only", ",".join(name for name in QUESTIONS if name in questions))
    done = run("benchmarks", "--smoke", "--json", *only, "--out", str(tmp_path / "plots"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["question"] for row in report["rows"]} == questions
    assert [row for row in report["rows"] if row["value"] is None and row["note"] not in REASONS] == []
    assert {"machine", "Python", "server", "redis", "pydantic", "cashews", "dogpile.cache"} <= report["machine"].keys()
    asked = {row["question"] for row in report["rows"] if row["limit"] is not None}
    assert {"hit", "miss", "stampede", "invalidation", "slowlog"} <= asked
    for row in report["rows"]:
        if row["question"] in {"hit", "lists", "concurrent"} and row["value"] is not None:
            assert row["void"] or row["loads"].startswith("0 of ")


def test_one_question_is_a_table_in_markdown(tmp_path: Path) -> None:
    """`--only` puts one question, and `--markdown` prints what a README takes."""
    done = run("benchmarks", "--smoke", "--only", "lists", "--markdown", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith("| hit, list of 10 | fastrdb |")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "hit,nonsense"], "no such question: nonsense"),
        (["versions"], "need each other"),
        (["versions", "--against", "tests/typing"], "no folder `fastrdb`"),
    ],
)
def test_wrong_arguments_are_refused(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is measured: an unknown question, a comparison with nothing, a folder without a package."""
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(list(versions.CASES)[:2], id="two"),
        pytest.param(list(versions.CASES), id="all", marks=pytest.mark.slow),
    ],
)
def test_two_versions_are_compared_in_one_run(cases: list[str], tmp_path: Path) -> None:
    """Each case of `versions` has a figure of both sides and a ratio; here both are the same version."""
    arguments = ("versions", "--against", str(ROOT), "--cases", ",".join(cases), "--smoke", "--json")
    done = run("benchmarks", *arguments, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["case"] for row in rows[::2]] == [text for name, (text, _) in versions.CASES.items() if name in cases]
    assert all(row["value"] for row in rows)
    assert all(row["ratio"] for row in rows[1::2])


def test_sizes_grow() -> None:
    """The full run has what the issue asks for."""
    assert SIZES["full"].keyspaces == (1_000, 10_000, 100_000, 1_000_000)
    assert (SIZES["full"].processes, SIZES["full"].callers) == (8, 200)
    assert (SIZES["full"].crowds, SIZES["full"].bulk, SIZES["full"].entries) == ((64, 1_000), 1_000, 100_000)
    assert SIZES["smoke"].rounds < SIZES["quick"].rounds < SIZES["full"].rounds


async def test_rounds_are_interleaved() -> None:
    """All sides run in every round, each begins as often as the others, and no number comes twice."""
    seen: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        async def calls(numbers: Sequence[int]) -> None:
            seen.extend((name, number) for number in numbers)
            await asyncio.sleep(0)

        return calls

    timings = await interleaved({name: side(name) for name in "abc"}, rounds=6, calls=1, draw=Unused().take)
    rounds = ["".join(name for name, _ in seen[start : start + 3]) for start in range(0, 18, 3)]
    assert rounds == ["abc", "bca", "cab", "cba", "acb", "bac"]
    assert sorted(number for _, number in seen) == list(range(18))
    assert {name: len(times) for name, times in timings.times.items()} == timings.calls == dict.fromkeys("abc", 6)


def test_a_ratio_is_the_median_over_rounds() -> None:
    """One bad round does not matter, and what slows a whole round hits both sides."""
    assert Ratio.of([2.0, 20.0, 90.0], [1.0, 10.0, 1.0]).value == 2.0
    timings = Timings(["one", "other"])
    timings.times = {"one": [2.0, 4.0], "other": [1.0, 1.0]}
    assert timings.ratio("one", "other") == Ratio(3.0, 2.5, 3.5)
    assert timings.median("one") == 3.0


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(Ratio(1.25, 1.0, 2.0), "1.25x slower (1.00-2.00)"), (Ratio(0.05, 0.04, 0.1), "20.0x faster (10.0-25.0)")],
)
def test_a_ratio_reads_as_one_says_it(ratio: Ratio, text: str) -> None:
    """So many times slower or faster, and between what half of the rounds lie."""
    assert ratio.text == text


@pytest.mark.parametrize(
    ("limit", "asked", "text"),
    [
        (Limit("ratio", bar=0.6), "bar", "<= 0.6x met"),
        (Limit("ratio", aim=0.4), "aim", "<= 0.4x MISSED"),
        (Limit("speed", bar=2), "bar", ">= 2x met"),
        (Limit("speed", bar=3), "bar", ">= 3x MISSED"),
        (Limit("value", bar=0.005), "bar", "<= 5 ms met"),
        (Limit("value", aim=1e-6), "aim", "<= 1 µs MISSED"),
        (Limit("value", aim=1e-6), "bar", ""),
        (None, "bar", ""),
    ],
)
def test_a_verdict_says_what_is_asked_and_whether_it_is_reached(
    limit: Limit | None, asked: Literal["bar", "aim"], text: str
) -> None:
    """Of a row of 5 ms, half of the time of another."""
    assert Row("q", "case", "peer", 0.005, ratio=Ratio(0.5, 0.5, 0.5), limit=limit).verdict(asked) == text


@pytest.mark.parametrize("row", [Row("q", "c", "p", 1.0, ratio=Ratio(1, 1, 1), void=True), absent("q", "c", "p", "no")])
def test_a_void_row_reaches_nothing(row: Row) -> None:
    """Neither a row whose calls did something else, nor one without a figure, meets or misses a bar."""
    assert replace(row, limit=LIMIT).verdict("bar") == "<= 2x not measured"


def test_known_numbers_come_in_turn() -> None:
    """A round of hits has no key twice, as long as there are as many keys."""
    known = Known(3)
    assert [known.take(3), known.take(2), known.take(3)] == [[0, 1, 2], [0, 1], [2, 0, 1]]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0000015, "s", "1.5 µs"), (0.25, "s", "250 ms"), (1234.0, "/s", "1,234/s"), (1.0, "loads", "1 load")],
)
def test_figures_are_readable(value: float, unit: Unit, text: str) -> None:
    """With their units."""
    assert Row("q", "c", "p", value, unit).figure == text


def test_durations_below_a_microsecond_keep_their_decimals() -> None:
    """0.25 µs is not 0."""
    assert duration(2.5e-7) == "0.25 µs"


async def test_hits_that_load_are_void(server: EmbeddedServer, client: Redis) -> None:
    """A contestant that runs the function is not measured as if it had answered from a cache."""
    field = Field(client, {"fastrdb": Ours(server.port, client), "bare": Forgetful(server.port, client)}, {})
    case = Case("q", "hit", {"bare": LIMIT})
    ours, forgetful = await hits(case, field, one_user, rounds=2, calls=3, keys=2)
    assert (ours.loads, ours.void) == ("0 of 6", False)
    assert (forgetful.loads, forgetful.void, forgetful.verdict("bar")) == ("6 of 6", True, "<= 2x not measured")


async def test_misses_that_store_nothing_are_void(server: EmbeddedServer, client: Redis) -> None:
    """A miss without its SET would be cheap."""
    field = Field(client, {"fastrdb": Ours(server.port, client), "bare": Forgetful(server.port, client)}, {})
    async with database() as db:
        ours, forgetful = await misses(Case("q", "miss"), field, db.selected_user, db, rounds=2, calls=3)
    assert (ours.loads, ours.void) == ("6 of 6", False)
    assert (forgetful.loads, forgetful.void) == ("6 of 6", True)


async def test_a_wrong_answer_is_not_timed(server: EmbeddedServer, client: Redis) -> None:
    """A contestant must give what the function gives."""

    class Wrong(Bare):
        def cached(self, head: str, task: Task) -> Query:
            async def get(db: object, redis: object, number: int) -> dict[str, int]:
                return {"id": number}

            return get

    with pytest.raises(AssertionError, match="instead of"):
        await hits(
            Case("q", "hit"),
            Field(client, {"bare": Wrong(server.port, client)}, {}),
            one_user,
            rounds=1,
            calls=1,
            keys=1,
        )


async def test_peers_that_are_not_installed_are_said_to_be(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing peers have a row with the reason, and the others are measured."""
    monkeypatch.setattr(fields_of, "installed", lambda package: None if package == "cashews" else "1")
    async with opened(server.port, ["fastrdb", "cashews"]) as field:
        assert list(field.contestants) == ["fastrdb"]
        assert field.absent == {"cashews": NOT_INSTALLED}
    assert absence("bare") is None


class NearStub:
    """A cache with the interface of one that has a near one; `reads` says whether it asks Redis all the same."""

    reads = False

    def __init__(self, client: Redis, *, near: bool) -> None:
        assert near
        self._client = client

    def cached(self, pattern: str, *, exp: float) -> Any:
        def decorate(function: Any) -> Any:
            known: dict[Any, Any] = {}

            async def call(*args: Any) -> Any:
                if args not in known or self.reads:
                    await self._client.get(pattern)
                    known[args] = await function(*args) if args not in known else known[args]
                return known[args]

            return call

        return decorate

    async def aclose(self) -> None:
        pass


class ReadingStub(NearStub):
    reads = True


@pytest.mark.parametrize(("cache", "void"), [(NearStub, False), (ReadingStub, True)])
async def test_a_near_cache_that_asks_the_server_is_void(
    cache: type[NearStub], void: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A near hit is one of which the server's own counters know nothing."""
    monkeypatch.setattr(near, "Cache", cache)
    monkeypatch.setattr(near, "installed", lambda package: None)  # a peer is not what is tested
    monkeypatch.setattr(near, "PATIENCE", 3)
    found = {row.contestant: row for row in await near.rows(SIZES["smoke"]) if row.case == "near hit, f(number)"}
    assert (found["fastrdb"].void, found["fastrdb"].loads) == (void, "0 of 300")
    assert found[near.DECODED].ratio is not None
    assert found[near.DECODED].verdict("aim").endswith("not measured") is void
    assert found[near.CASHEWS].note == NOT_INSTALLED


async def test_copied_entries_are_entries(server: EmbeddedServer) -> None:
    """An entry that fastrdb stored for one key is copied for others: a prefix takes all copies."""
    async with opened(server.port, ["fastrdb"]) as field, idle_sessions(1) as [db]:
        [entrant] = enter(field, "copied", one_user)
        await entrant.call(db, field.client, 0)
        key = await entry_key(field.client, entrant.head, 0)
        last = await copies(field.client, key, 5)
        assert last == key[:-1] + "5"
        assert await field.client.get(last) == await field.client.get(key)
        await entrant.contestant.forget(entrant.head)
        assert [each async for each in field.client.scan_iter(match=f"*{entrant.head}*", _type="string")] == []


async def test_copies_know_no_layout(client: Redis) -> None:
    """Whatever holds the key as a member holds its copies, with the same score or value; what does not stays alone."""
    await client.set("k:0", "value", px=60_000)
    await client.zadd("scores", {"k:0": 7.5, "other": 1})
    await client.sadd("members", "k:0")
    await client.hset("fields", "k:0", "x")
    await client.sadd("strangers", "z")
    assert await copies(client, "k:0", 2) == "k:2"
    assert await client.get("k:2") == b"value"
    assert 0 < await client.pttl("k:2") <= 60_000
    assert await client.zscore("scores", "k:1") == 7.5
    assert await client.smembers("members") == {b"k:0", b"k:1", b"k:2"}
    assert await client.hget("fields", "k:2") == b"x"
    assert await client.smembers("strangers") == {b"z"}


def test_a_report_sums_up() -> None:
    """Bars and aims are counted; what is not measured is not met; the JSON has the verdicts."""
    limit = Limit("ratio", bar=2, aim=1)
    rows = [
        Row("q", "case", "fastrdb", 1.0),
        Row("q", "case", "bare", 1.0, ratio=Ratio(1.5, 1, 2), limit=limit),
        Row("q", "case", "cashews", note=NOT_INSTALLED, limit=limit),
    ]
    report = Report("smoke", {"Python": "3"}, rows, 1.0)
    assert report.summary == "1 of 2 bars met, 0 of 2 aims met"
    assert [row["bar"] for row in json.loads(report.as_json())["rows"]] == ["", "<= 2x met", "<= 2x not measured"]
    assert report.legend == [f"{name}: {KINDS[name].about}" for name in ("fastrdb", "bare")]
    assert "|  | cashews |" in report.as_markdown()


def test_plots_are_drawn_where_they_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars and lines, as SVG and PNG; none, and no error, without matplotlib."""
    rows = [Row("hit", "case", name, 1.0) for name in ("fastrdb", "bare")]
    rows += [Row("hit", "grown", "fastrdb", float(size), at=size) for size in (10, 100)]
    if installed("matplotlib") is not None:
        names = {f"{name}.{kind}" for name in ("hit", "hit-growth") for kind in ("svg", "png")}
        assert {path.name for path in plots.draw(rows, tmp_path) if path.stat().st_size} == names
    monkeypatch.setattr(plots, "installed", lambda package: None)
    assert plots.draw(rows, tmp_path) == []
