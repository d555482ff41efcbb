"""The consistency run: its rules against histories written by hand, its parts, and short runs that must be clean."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.consistency import faults, report, seeded_bugs
from benchmarks.consistency.__main__ import main, verdict
from benchmarks.consistency.address import HOST, Address
from benchmarks.consistency.control import Control
from benchmarks.consistency.logs import Answer, Committed, Log, answers, writes
from benchmarks.consistency.peers import SUBJECTS
from benchmarks.consistency.rules import ABSENT, PRESENT, PROCESS_BITS, History, Kind, Outage, Read, Rules, Write
from benchmarks.consistency.run import Outcome
from benchmarks.consistency.settings import Settings, SettingsError
from benchmarks.consistency.subjects import noting, source_of
from benchmarks.consistency.tally import EDGES, Tally
from benchmarks.consistency.workload import BLOCK, STYLES, Workload
from tests.support.servers.databases import ServerDatabase
from tests.support.source.checkers import run

ONE, TWO, THREE = ((process << PROCESS_BITS) + 1 for process in (1, 2, 3))
"""Attempts of process 1, 2 and 3."""
ZERO = Write(7, 0, 0, 0)
FIRST = Write(7, 1, ONE, begun=100, told=110, committed=120, acked=130)
SECOND = Write(7, 2, TWO, begun=200, told=210, committed=220, acked=230)


def read(version: int, attempt: int, started: int, ended: int = 10_000, *, process: int = 9) -> Read:
    """Return a read of row 7."""
    return Read(7, version, attempt, started, ended, process)


def kind(history: History, seen: Read) -> Kind:
    """Say what is wrong with it."""
    return history.judge(seen).kind


# --- the rules


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        pytest.param(read(0, 0, 119), Kind.FINE, id="nothing newer known yet"),
        pytest.param(read(0, 0, 120), Kind.BEHIND, id="COMMIT answered, not acknowledged"),
        pytest.param(read(0, 0, 129), Kind.BEHIND, id="the last moment before it is acknowledged"),
        pytest.param(read(0, 0, 130), Kind.STALE, id="acknowledged"),
        pytest.param(read(1, ONE, 219), Kind.FINE, id="the newest there is"),
        pytest.param(read(2, TWO, 0), Kind.FINE, id="newer than need be"),
        pytest.param(read(1, ONE, 230), Kind.STALE, id="two versions on"),
        pytest.param(read(1, THREE, 50), Kind.FUTURE, id="of a write that was rolled back"),
        pytest.param(read(2, ONE, 150), Kind.FUTURE, id="a version that its write did not make"),
        pytest.param(read(1, ONE, 50, 99), Kind.FUTURE, id="seen before its COMMIT was sent"),
        pytest.param(read(1, ONE, 50, 100), Kind.FINE, id="seen when its COMMIT was sent"),
    ],
)
def test_one_read(seen: Read, found: Kind) -> None:
    """A read is judged by what was known before it began, and by what was committed before it ended."""
    assert kind(History([ZERO, FIRST, SECOND]), seen) is found


def test_age_is_counted_from_the_first_newer_version() -> None:
    """Version 0 is out of date since version 1 was acknowledged, whatever came later."""
    history = History([ZERO, FIRST, SECOND])
    assert history.judge(read(0, 0, 330)).age == 200
    assert history.judge(read(1, ONE, 330)).age == 100
    assert history.judge(read(0, 0, 125)).age == 5  # of the COMMIT's answer, where nothing is acknowledged


def test_acknowledgements_out_of_order() -> None:
    """Version 2 was acknowledged before version 1: version 1 is stale from there on."""
    history = History([ZERO, replace(FIRST, acked=500), SECOND])
    assert kind(history, read(1, ONE, 229)) is Kind.BEHIND
    assert kind(history, read(1, ONE, 230)) is Kind.STALE
    assert kind(history, read(2, TWO, 600)) is Kind.FINE
    assert history.judge(read(0, 0, 600)).age == 370


def test_a_write_that_nobody_was_told_of() -> None:
    """Its writer was cancelled in COMMIT: it may be seen or not; nothing is stale because of it."""
    history = History([ZERO, replace(FIRST, committed=None, acked=None)])
    assert kind(history, read(0, 0, 9_000)) is Kind.FINE
    assert kind(history, read(1, ONE, 100)) is Kind.FINE


def test_a_writer_that_was_killed_after_its_commit() -> None:
    """Nothing was acknowledged, but COMMIT was answered: a hit that is older breaks the contract all the same."""
    history = History([ZERO, replace(FIRST, acked=None)])
    assert kind(history, read(0, 0, 119)) is Kind.FINE
    assert kind(history, read(0, 0, 9_000)) is Kind.BEHIND


def test_rows_are_judged_one_by_one() -> None:
    """A write to one row makes no other row stale."""
    other = Write(8, 0, 0, 0)
    assert History([ZERO, other, FIRST]).judge(Read(8, 0, 0, 900, 901)).kind is Kind.FINE


def test_the_worst_row_counts_for_the_answer() -> None:
    """An answer of several rows is as wrong as its worst row, and as old as the oldest of these."""
    history = History([ZERO, FIRST, SECOND, Write(8, 0, 0, 0), Write(8, 1, THREE, 100, 110, 120, 140)])
    fine, stale, older = read(2, TWO, 300), Read(8, 0, 0, 300, 301), read(0, 0, 300)
    assert history.answer([fine]).kind is Kind.FINE
    assert history.answer([fine, stale]) == (Kind.STALE, 160)
    assert history.answer([fine, stale, older]) == (Kind.STALE, 170)
    assert history.answer([stale, read(5, 5, 300)]).kind is Kind.FUTURE


HERE, AWAY = 4, 5
"""Two places."""
MOVES = [replace(ZERO, place=HERE), replace(FIRST, place=AWAY), replace(SECOND, place=HERE)]


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        pytest.param(read(HERE, 0, 119), Kind.FINE, id="in its place"),
        pytest.param(read(AWAY, ONE, 230), Kind.STALE, id="in a place that it has left"),
        pytest.param(read(AWAY, TWO, 230), Kind.FUTURE, id="in a place where this version is not"),
        pytest.param(read(HERE, ABSENT, 130), Kind.FINE, id="not where it is no more"),
        pytest.param(read(HERE, ABSENT, 0, 99), Kind.FUTURE, id="gone before its COMMIT was sent"),
        pytest.param(read(HERE, ABSENT, 230), Kind.STALE, id="not where it has come back"),
        pytest.param(read(HERE, PRESENT, 130, 199), Kind.STALE, id="still where it is no more"),
        pytest.param(read(HERE, PRESENT, 130, 200), Kind.FINE, id="back, perhaps, when COMMIT was sent"),
        pytest.param(read(AWAY, PRESENT, 230), Kind.STALE, id="where it was once"),
        pytest.param(read(9, PRESENT, 230), Kind.FUTURE, id="where it never was"),
    ],
)
def test_rows_that_move(seen: Read, found: Kind) -> None:
    """An answer that says only where a row is, or is not, means the newest version that it fits."""
    assert kind(History(MOVES), seen) is found


def test_the_end_of_rows_that_move() -> None:
    """Compared with the last version of all."""
    history = History(MOVES)
    right = read(HERE, TWO, 0), read(HERE, PRESENT, 0), read(AWAY, ABSENT, 0)
    wrong = read(AWAY, ONE, 0), read(HERE, ABSENT, 0), read(AWAY, PRESENT, 0)
    assert [history.diverges(each) for each in (*right, *wrong)] == [False] * 3 + [True] * 3


OUTAGE = Rules(outages=[Outage(105, 150)], repair=50)


@pytest.mark.parametrize(
    ("rules", "seen", "found"),
    [
        pytest.param(OUTAGE, read(0, 0, 140), Kind.MISSED, id="during the outage"),
        pytest.param(OUTAGE, read(0, 0, 125), Kind.MISSED, id="not acknowledged"),
        pytest.param(OUTAGE, read(0, 0, 200), Kind.MISSED, id="the repair may take so long"),
        pytest.param(OUTAGE, read(0, 0, 201), Kind.STALE, id="and no longer"),
        pytest.param(OUTAGE, read(0, 0, 140, process=1), Kind.STALE, id="by the process that knows of the commit"),
        pytest.param(Rules(), read(0, 0, 140), Kind.STALE, id="no outage"),
        pytest.param(Rules([Outage(111, 150)], 50), read(0, 0, 140), Kind.STALE, id="Redis had been told before"),
        pytest.param(Rules([Outage(0, 99)], 9_000), read(0, 0, 140), Kind.STALE, id="over before the commit began"),
        pytest.param(Rules([Outage(0, 100)], 9_000), read(0, 0, 140), Kind.MISSED, id="just not over"),
        pytest.param(Rules([Outage(0, 95)], 9_000, 0, 5), read(0, 0, 140), Kind.MISSED, id="not noticed to be over"),
        pytest.param(Rules([Outage(0, 95)], 9_000, 0, 4), read(0, 0, 140), Kind.STALE, id="noticed to be over"),
        pytest.param(Rules([Outage(205, 300)], 50), read(0, 0, 310), Kind.STALE, id="of the second commit only"),
        pytest.param(Rules([Outage(205, 300)], 50), read(1, ONE, 310), Kind.MISSED, id="of the one newer commit"),
        pytest.param(Rules([Outage(99, 300)], 50), read(0, 0, 310), Kind.MISSED, id="of both commits"),
        pytest.param(OUTAGE, read(1, THREE, 140), Kind.FUTURE, id="no excuse for the future"),
    ],
)
def test_what_redis_missed(rules: Rules, seen: Read, found: Kind) -> None:
    """An old answer is excused while Redis lacks each newer commit, of another process, and may be unrepaired."""
    assert kind(History([ZERO, FIRST, SECOND], rules), seen) is found


def test_what_is_told_afterwards_may_be_missed_until_it_is_acknowledged() -> None:
    """A cache that deletes after COMMIT has the excuse for an outage that began in between."""
    write = replace(FIRST, told=None)
    assert kind(History([ZERO, write], Rules([Outage(125, 150)], 50)), read(0, 0, 140)) is Kind.MISSED
    assert kind(History([ZERO, write], Rules([Outage(131, 150)], 50)), read(0, 0, 140)) is Kind.STALE


def test_a_near_cache_may_be_late_by_the_heartbeat() -> None:
    """A near answer of another process's commit is excused up to the heartbeat; all else is stale."""
    history = History([ZERO, FIRST], Rules(heartbeat=1_000))
    assert history.judge(read(0, 0, 1_130), near=True).kind is Kind.NEAR
    assert history.judge(read(0, 0, 1_131), near=True).kind is Kind.STALE
    assert history.judge(read(0, 0, 1_130)).kind is Kind.STALE
    assert history.judge(read(0, 0, 1_130, process=1), near=True).kind is Kind.STALE
    assert History([ZERO, FIRST]).judge(read(0, 0, 130), near=True).kind is Kind.STALE
    assert not Kind.NEAR.wrong


# --- adding up


def test_a_tally_counts_answers_by_their_worst_row() -> None:
    """Figures, ages in their classes, where wrong answers came from, and the bound that a clean run gives."""
    tally, history = Tally(), History([ZERO, FIRST, SECOND])
    for _ in range(3):
        tally.take(history, [read(2, TWO, 300)], "hit")
    assert tally.bound == 1_000_000
    tally.take(history, [read(2, TWO, 300), read(0, 0, 130 + 3_000_000)], "hit")
    tally.take(history, [read(9, 9, 1)], "load")
    assert (tally.answers, tally.rows) == (5, 6)
    assert tally.kinds == {Kind.STALE: 1, Kind.FUTURE: 1}
    assert tally.per_million(Kind.STALE) == 200_000
    assert tally.sources == {"hit": 4, "load": 1}
    assert tally.wrong_sources == {"hit": 1, "load": 1}
    assert tally.ages[Kind.STALE] == {EDGES.index(0.005): 1}
    assert tally.oldest[Kind.STALE] == 3_000_000
    assert tally.examples[0] == (Kind.STALE, 3_000_000, "hit", read(0, 0, 130 + 3_000_000), [FIRST, SECOND])


# --- what is written down


def test_answers_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Rows and blocks, in their order, with the process that read them."""
    path = tmp_path / "3.reads"
    rows = [(row, 1, ONE) for row in range(BLOCK)]
    with Log(path, buffered=True) as log:
        log.answer("hit", "block", rows, 10, 20)
        log.answer("load", "row", [(1, 2, TWO)], 30, 40)
        log.answer("join", "row", [(2, 2, TWO)], 50, 60)
        log.answer("hit", "block", rows, 70, 80)
    whole = [Read(*row, 10, 20, 3) for row in rows], [Read(*row, 70, 80, 3) for row in rows]
    assert list(answers(path, 3)) == [
        Answer("hit", "block", whole[0]),
        Answer("load", "row", [Read(1, 2, TWO, 30, 40, 3)]),
        Answer("join", "row", [Read(2, 2, TWO, 50, 60, 3)]),
        Answer("hit", "block", whole[1]),
    ]


def test_the_history_is_what_the_database_has(tmp_path: Path) -> None:
    """Steps are joined to versions that are committed; others are left out, and so is a record cut short."""
    path = tmp_path / "1.writes"
    with Log(path, buffered=False) as log:
        for step, moment in (("begun", 100), ("told", 110), ("committed", 120), ("acked", 130)):
            log.step(step, ONE, moment)  # type: ignore[arg-type]
        log.step("begun", THREE, 140)
        log.step("begun", TWO, 200)
        log.step("committed", TWO, 220)
    path.write_bytes(path.read_bytes()[:-1])
    committed = [Committed(7, 0, 0), Committed(7, 1, ONE), Committed(7, 2, TWO)]
    assert list(writes([path], committed)) == [ZERO, FIRST, Write(7, 2, TWO, begun=200)]


def test_a_source_is_the_farthest_that_a_call_went() -> None:
    """A bypass that loads is a bypass, and a call without an event was a hit."""
    with noting() as notes:
        pass
    assert source_of(notes) == "hit"
    assert source_of({"miss", "load", "fill"}) == "load"
    assert source_of({"bypass", "load"}) == "bypass"


def test_a_process_whose_commit_is_on_its_way_is_not_ended() -> None:
    """The guarantees leave that case open: what was loaded since a restart of Redis would stay."""
    control = Control(get_context(), Settings())
    control.condemn(1, "kill")
    assert control.sentence(1) == "kill"
    control.late(math.inf)
    control.unwell(0.0)
    assert control.sentence(1) is None
    control.condemn(1, "stall")
    assert control.sentence(1) == "stall"


# --- what is read and written


def test_cold_rows_are_left_alone_when_they_are_old() -> None:
    """Hot rows are written all the time, each cold row in its youth only, and all of both are read."""
    workload, chance = Workload.of(60, 120, spread=False), Random(1)
    early = {workload.write(chance, 1.0) for _ in range(3_000)}
    late = {workload.write(chance, 50.0) for _ in range(3_000)}
    assert early & late == set(range(workload.hot))
    assert len(early) == len(late) == workload.hot + workload.young
    old = early - late
    assert {workload.read(chance, 50.0) for _ in range(60_000)} >= old | late
    assert max(workload.write(chance, 1e9) for _ in range(3_000)) == workload.total - 1
    assert workload.total % BLOCK == 0
    assert len(workload.blocks()) * BLOCK == workload.total


def test_spread_rows_are_all_alike() -> None:
    """10,000 rows, from the beginning to the end."""
    workload, chance = Workload.of(60, 100, spread=True), Random(1)
    for pick in (workload.read, workload.write):
        assert len({pick(chance, 3.0) // 100 for _ in range(5_000)}) == 100
    for world, styles in STYLES.items():
        assert {workload.style(chance, world) for _ in range(500)} == set(styles)


# --- settings, faults and bugs


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seconds", "0"], "--seconds 0"),
        (["--readers", "0"], "--readers 0"),
        (["--faults", "fire"], "'fire'"),
        (["--faults", "slow-commit", "--database", "mariadb"], "slow-commit"),
        (["--faults", "late-commit", "--database", "sqlite"], "late-commit"),
        (["--faults", "late-commit", "--barrier", "3"], "--barrier 3"),
        (["--faults", "stall", "--barrier", "0.5"], "--barrier 0.5"),
        (["--seed-bug", "beetle"], "--seed-bug beetle"),
        (["--protocol", "naive", "--seed-bug", "no-barrier"], "--seed-bug no-barrier"),
        (["--protocol", "naive", "--near"], "--near"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    arguments: Sequence[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Status 2 and one line that names the option, before anything is started."""
    monkeypatch.setattr("benchmarks.consistency.__main__.run", pytest.fail)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error


def test_a_peer_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said, with what to install."""
    monkeypatch.setitem(sys.modules, "cashews", None)
    assert main(["--protocol", "cashews"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_faults_by_name() -> None:
    """`all` has what this database can have; `none` nothing; names are taken as given."""
    every = faults.chosen("all", "postgresql")
    assert {"kill", "evict", "restart", "black-hole", "slow-commit"} <= set(every)
    assert set(every) - set(faults.chosen("all", "mariadb")) == {"slow-commit"}
    assert faults.chosen("none", "sqlite") == ()
    assert faults.chosen("cut,kill", "sqlite") == ("cut", "kill")


@pytest.mark.parametrize("name", seeded_bugs.BUGS)
def test_bugs_still_have_a_place(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug changes something of this fastrdb, and the settings that it needs are settings."""
    changed = []

    def put(owner: Any, attribute: str, new: Any) -> None:
        changed.append(attribute)
        monkeypatch.setattr(owner, attribute, new)

    seeded_bugs.seed(name, put)
    assert changed
    needs = seeded_bugs.BUGS[name].needs
    assert set(needs) <= asdict(replace(Settings(), **needs)).keys()
    assert set(needs.get("faults", ())) <= faults.FAULTS.keys()


def test_bugs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each."""
    assert main(["--list-bugs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(seeded_bugs.BUGS)


# --- the report


def outcome_of(*seen: Read, **changes: Any) -> Outcome:
    """Return the outcome of a run with these reads."""
    tally, history = Tally(), History([ZERO, FIRST, SECOND])
    for each in seen:
        tally.take(history, [each], "hit")
    outcome = Outcome(Settings(**changes), tally, [faults.Happened("kill", 100, 200)], [], keys=3, committed=2)
    outcome.stats.update({"hits": 96, "misses": 2, "bypasses": 2})
    return outcome


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (outcome_of(read(2, TWO, 300)), 0),
        (outcome_of(read(0, 0, 300)), 1),
        (outcome_of(read(9, 9, 300)), 1),
        (outcome_of(read(0, 0, 125)), 1),
        (outcome_of(read(0, 0, 300), protocol="naive"), 0),
        (outcome_of(read(0, 0, 300), bug="no-barrier"), 0),
        (outcome_of(read(2, TWO, 300), bug="no-barrier"), 1),
    ],
)
def test_exit_status(outcome: Outcome, status: int) -> None:
    """fastrdb must give no wrong answer, a seeded bug must be caught, and what others do is a figure."""
    assert verdict(outcome)[1] == status


def test_keys_that_differ_and_errors_of_the_cache_are_wrong_too() -> None:
    """A key that is not as the database has it at the end, and a call that fails because of the cache."""
    diverged, failed, refused = (outcome_of(read(2, TWO, 300)) for _ in range(3))
    diverged.diverged.append("row 1")
    failed.counts["cache: ConnectionError"] = 1
    refused.counts.update({"database: DBAPIError": 1, "refused": 1})
    assert [verdict(each)[1] for each in (diverged, failed, refused)] == [1, 1, 0]


def test_a_report_has_the_figures(tmp_path: Path) -> None:
    """As text, as JSON, and drawn."""
    clean, stale = outcome_of(read(2, TWO, 300)), outcome_of(read(0, 0, 5_000_130), read(2, TWO, 300))
    text = "\n".join(report.lines(clean))
    for part in ("reads 1 of 1 rows", "none of 1: with 95 % confidence fewer than 3e+06", "bypassed reads 2.000%"):
        assert part in text
    text = "\n".join(report.lines(stale))
    for part in ("1 = 500,000.0 per million", "<= 5 ms", "stale by 5.000 ms, hit: Read(", "kill -5.0 ms", "process 2"):
        assert part in text
    facts = json.loads(json.dumps(report.facts(stale)))
    assert facts["found"]["stale"] == 1
    assert facts["ages"]["stale"] == [{"up_to": "<= 5 ms", "answers": 1}]
    assert (facts["bound_per_million"], report.facts(clean)["bound_per_million"]) == (None, 3e6)
    pytest.importorskip("matplotlib")
    for number, outcome in enumerate((clean, stale)):
        report.plot(outcome, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


# --- whole runs


def consistency(*arguments: str) -> tuple[int, str]:
    """Run it, and give its status and what it said."""
    done = run("benchmarks.consistency", *arguments)
    return done.returncode, done.stdout + done.stderr


SHORT = ("--database", "sqlite", "--barrier", "1.5", "--timeout", "2")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [[], ["--auto"]], ids=["by hand", "followed"])
def test_a_short_run_is_clean(world: list[str], tmp_path: Path) -> None:
    """A few seconds on SQLite, writers killed, keys evicted, reads cancelled: nothing is wrong."""
    file = tmp_path / "run.json"
    chosen = "cancel,cancel-writes,kill,stall,evict,script-flush,slow-load"
    for seconds in ("6", "12", "24", "48"):  # a busy machine needs longer for as many
        status, said = consistency("--seconds", seconds, "--faults", chosen, "--json", str(file), *SHORT, *world)
        assert status == 0, said
        facts = json.loads(file.read_text())
        assert facts["verdict"] == "nothing wrong"
        if facts["reads"] > 200 and facts["committed"] > 20 and facts["keys"] > 100:
            break
    assert facts["reads"] > 200
    assert facts["sources"]["hit"] > 0
    assert facts["committed"] > 20
    assert facts["keys"] > 100
    assert facts["found"]["missed"] == 0


@pytest.mark.timeout(600)
def test_a_short_run_catches_a_bug() -> None:
    """Without barriers a reader stores what is about to be old, within seconds: of a machine that has them to spare."""
    for seconds in ("2", "4", "8", "16", "32"):
        status, said = consistency("--seconds", seconds, "--faults", "slow-load", "--seed-bug", "no-barrier", *SHORT)
        if status == 0:
            break
    assert status == 0, said
    assert "the bug was caught" in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", [[], ["--auto"], ["--auto", "--cluster"]], ids=" ".join)
@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"])
def test_a_long_run_with_all_faults_is_clean(database: str, world: list[str], request: pytest.FixtureRequest) -> None:
    """A minute on each database, one with its default level and one with snapshots."""
    if database != "sqlite":
        made: ServerDatabase = request.getfixturevalue(f"{database}_server")
        assert made.url
    status, said = consistency("--seconds", "60", "--database", database, *world)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_that_refuses_commits_has_no_excuse(postgresql_server: ServerDatabase) -> None:
    """With on_error="raise" nothing is committed that Redis lacks."""
    status, said = consistency("--seconds", "60", "--on-error", "raise")
    assert status == 0, said
    assert "while Redis missed" not in said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", seeded_bugs.BUGS)
def test_every_bug_is_caught(name: str, postgresql_server: ServerDatabase) -> None:
    """With its mechanism taken out, fastrdb gives wrong answers, and the run finds them."""
    status, said = consistency("--seconds", "20", "--barrier", "2", "--faults", "none", "--seed-bug", name)
    assert status == 0, said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("protocol", ["naive", "cashews"])
def test_peers_are_stale(protocol: str, tmp_path: Path, postgresql_server: ServerDatabase) -> None:
    """The run finds stale answers in a cache without leases and barriers."""
    if protocol == "cashews":
        pytest.importorskip("cashews")
    file = tmp_path / "run.json"
    status, said = consistency("--seconds", "20", "--faults", "none", "--protocol", protocol, "--json", str(file))
    assert status == 0, said
    assert json.loads(file.read_text())["found"]["stale"] > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_few_reads_are_bypassed(tmp_path: Path, postgresql_server: ServerDatabase) -> None:
    """100 writes a second over 10,000 narrow prefixes: less than 1 % of the reads find a barrier."""
    file = tmp_path / "run.json"
    status, said = consistency("--spread", "--faults", "none", "--seconds", "20", "--json", str(file))
    assert status == 0, said
    assert json.loads(file.read_text())["bypassed"] < 0.01


async def test_addresses() -> None:
    """A client goes through the proxy where there is one, on a cluster also to what the cluster says of itself."""
    client = Address((1,), detours={1: 2}).connect()
    assert client.connection_pool.connection_kwargs["port"] == 2
    cluster = Address((1, 3), cluster=True, detours={1: 2, 3: 4})
    assert cluster._remap(("elsewhere", 3)) == (HOST, 4)
    assert [node.port for node in cluster.connect().startup_nodes] == [2, 4]


def test_every_protocol_has_a_subject() -> None:
    """The names of the command line."""
    assert list(SUBJECTS) == ["fastrdb", "naive", "cashews"]
    with pytest.raises(SettingsError, match="--near"):
        Settings(protocol="naive", near=True)
