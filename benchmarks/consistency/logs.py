"""What processes write down of what they did: fixed records in files of their own, which outlive a SIGKILL."""

from __future__ import annotations

import logging
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Literal, NamedTuple, Self

from benchmarks.consistency.rules import Read, Write

_READ = struct.Struct("<BBBIIQQQ")  # source, kind, part, row, version, attempt, started, ended
_STEP = struct.Struct("<BQQ")  # step, attempt, moment
_CHUNK = 64 * 1024

SOURCES = ("hit", "near", "join", "load", "bypass", "unavailable", "audit")
KINDS = ("row", "block", "place", "labels", "labelled", "card")
"""What an answer can be of."""
Step = Literal["begun", "told", "committed", "acked"]
STEPS: tuple[Step, ...] = ("begun", "told", "committed", "acked")


class Answer(NamedTuple):
    """The rows of one answer, where it came from, and what it is of."""

    source: str
    kind: str
    reads: list[Read]


@dataclass(frozen=True, slots=True)
class Committed:
    """A version of a row as the database has it at the end."""

    row: int
    version: int
    attempt: int
    place: int | None = None


class Said(NamedTuple):
    """What a process said in its log, and when (ns)."""

    moment: int
    process: int
    text: str


class Formatter(logging.Formatter):
    """A line of a log that can be laid beside what happened in other processes."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the moment, and what is said, in one line."""
        said = super().format(record).replace("\n", " | ")
        return f"{monotonic_ns()} {record.levelname} {record.name}: {said}"


def said(path: Path, process: int) -> Iterator[Said]:
    """Give what a process said, in its order."""
    with path.open() as file:
        for line in file:
            moment, _, text = line.rstrip("\n").partition(" ")
            yield Said(int(moment), process, text)


class Log:
    """Appends records to a file. Unbuffered, for a process that may be killed: what was appended is in the file."""

    def __init__(self, path: Path, *, buffered: bool) -> None:
        self._file = path.open("ab", buffering=_CHUNK if buffered else 0)

    def answer(self, source: str, kind: str, rows: Sequence[tuple[int, int, int]], started: int, ended: int) -> None:
        """Append an answer: (row, version, attempt) each, moments in ns."""
        codes = SOURCES.index(source), KINDS.index(kind)
        for part, row in enumerate(rows):
            self._file.write(_READ.pack(*codes, part, *row, started, ended))

    def step(self, step: Step, attempt: int, moment: int) -> None:
        """Append how far a write has come."""
        self._file.write(_STEP.pack(STEPS.index(step), attempt, moment))

    def close(self) -> None:
        """Let all of it be in the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def answers(path: Path, process: int) -> Iterator[Answer]:
    """Give the answers of a process, one after the other."""
    current: Answer | None = None
    for source, kind, part, *fields in _records(path, _READ):
        row, version, attempt, started, ended = fields
        read = Read(row, version, attempt, started, ended, process)
        if part == 0 or current is None:
            if current is not None:
                yield current
            current = Answer(SOURCES[source], KINDS[kind], [read])
        else:
            current.reads.append(read)
    if current is not None:
        yield current


def writes(paths: Iterable[Path], committed: Iterable[Committed]) -> Iterator[Write]:
    """Put together what the processes wrote down of their writes and what the database has of them."""
    steps: dict[int, dict[Step, int]] = {}
    for path in paths:
        for step, attempt, moment in _records(path, _STEP):
            steps.setdefault(attempt, {}).setdefault(STEPS[step], moment)
    for each in committed:
        known = steps.get(each.attempt, {})
        begun = known.get("begun", 0)
        others = {step: moment for step, moment in known.items() if step != "begun"}  # a write may have many rows
        yield Write(each.row, each.version, each.attempt, begun, place=each.place, **others)


def _records(path: Path, record: struct.Struct) -> Iterator[tuple[int, ...]]:
    """Give whole records; the last may have been cut short by the end of its process."""
    with path.open("rb") as file:
        left = b""
        while chunk := file.read(_CHUNK):
            data = left + chunk
            whole = len(data) - len(data) % record.size
            yield from record.iter_unpack(data[:whole])
            left = data[whole:]
