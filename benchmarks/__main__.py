"""`python -m benchmarks`: measures on private servers, prints one table, and draws plots."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Container, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.harness import SIZES, Sizes
from benchmarks.machine import load, surroundings
from benchmarks.plots import draw
from benchmarks.questions import (
    bulk,
    concurrent,
    endpoint,
    followed,
    hit,
    invalidation,
    lists,
    loops,
    memory,
    metrics,
    miss,
    near,
    outage,
    outside,
    response,
    rivals,
    slowlog,
    stampede,
    versions,
)
from benchmarks.report import Report, Row

Question = Callable[[Sizes], Awaitable[list[Row]]]
QUESTIONS: dict[str, Question] = {
    "hit": hit.rows,
    "concurrent": concurrent.rows,
    "lists": lists.rows,
    "near": near.rows,
    "miss": miss.rows,
    "stampede": stampede.rows,
    "invalidation": invalidation.rows,
    "slowlog": slowlog.rows,
    "bulk": bulk.rows,
    "memory": memory.rows,
    "endpoint": endpoint.rows,
    "response": response.rows,
    "outage": outage.rows,
    "loops": loops.rows,
    "followed": followed.rows,
    "metrics": metrics.rows,
    "outside": outside.rows,
    "rivals": rivals.rows,
}
FOLDER = Path("build") / "benchmarks"


async def measure(size: str, questions: Mapping[str, Question]) -> Report:
    """Put these questions, one after the other."""
    start, machine = perf_counter(), await surroundings()
    found: list[Row] = []
    for name, question in questions.items():
        began = perf_counter()
        found += await question(SIZES[size])
        print(f"{name}: {perf_counter() - began:.0f} s", file=sys.stderr)
    return Report(size, machine | {"load after": load()}, found, perf_counter() - start)


def main() -> None:
    """Read the command line, measure, print, draw."""
    parser = _parser()
    options = parser.parse_args()
    if (options.question is None) != (options.against is None):
        parser.error("`versions` and `--against CHECKOUT` need each other")
    questions = {name: QUESTIONS[name] for name in options.only}
    if options.against is not None:
        questions = {"versions": partial(versions.rows, against=options.against, cases=options.cases)}
    with loops.runner(options.loop) as runner:
        report = runner.run(measure(options.size, questions))
    if options.json:
        print(report.as_json())
    elif options.markdown:
        print(report.as_markdown())
    else:
        report.show()
    pictures = draw(report.rows, options.out)
    print(
        f"{len(pictures)} plots in {options.out}" if pictures else "no plots: matplotlib not installed", file=sys.stderr
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "question", nargs="?", choices=["versions"], help="compare with another version of fastrdb instead"
    )
    parser.add_argument("--against", type=_checkout, metavar="CHECKOUT", help="the folder that has its `fastrdb`")
    parser.add_argument(
        "--cases",
        type=partial(_names, known=versions.CASES),
        default=list(versions.CASES),
        metavar="NAME[,NAME]",
        help=f"of the comparison: {', '.join(versions.CASES)}",
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size", help="less than two minutes")
    size.add_argument("--smoke", action="store_const", const="smoke", dest="size", help="a few seconds: does it run?")
    parser.set_defaults(size="full")
    parser.add_argument(
        "--only",
        type=partial(_names, known=QUESTIONS),
        default=list(QUESTIONS),
        metavar="NAME[,NAME]",
        help=f"of {', '.join(QUESTIONS)}",
    )
    parser.add_argument("--loop", choices=loops.LOOPS, default=loops.LOOPS[0], help="the event loop of all questions")
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="DIR", help=f"for the plots; by default {FOLDER}")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON instead of a table")
    form.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")
    return parser


def _names(text: str, known: Container[str]) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        raise argparse.ArgumentTypeError(f"no such question: {', '.join(unknown)}")
    return names


def _checkout(text: str) -> Path:
    if not (Path(text) / "fastrdb" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"{text} has no folder `fastrdb` with a package")
    return Path(text)


if __name__ == "__main__":
    main()
