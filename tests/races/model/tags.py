"""A model of late tags, small enough to try every interleaving: one row, one key, and one tag of its entry.

The tag is a value of a column. A load turns out to depend on the tag only when the load is done. Writers of the row
reach the tag. Only the first of them has the key, too, and writes it through. `protocol` says how a search proves this.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from operator import le
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tests.races.model.search import (
    FREE,
    NOTHING,
    READ_ENDED,
    Outcome,
    Processes,
    Rule,
    acknowledged,
    broken_by,
    expiry,
    explore,
    hit,
    is_stale,
    released,
    with_reader,
    writer_id,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALONE = -1


class Layout(Enum):
    """The size of one atomic step."""

    SERVER = "a fill looks, writes the tag and stores in one script"
    CLUSTER = "lease, clock of the shard, look and tag, entry: a step each"


class Fault(Enum):
    """An event that may go wrong at any time."""

    __hash__ = object.__hash__
    CANCEL = auto()
    CRASH = auto()
    EXPIRY = auto()


class Column(Enum):
    """The state of the tag's column."""

    __hash__ = object.__hash__  # the one of Enum is slow, and is needed for each state
    UNUSED = auto()
    NEW = auto()  # a barrier stands, or might stand, that was set when the column was unused
    IN_USE = auto()


class Mutant(Enum):
    """A protocol with one thing wrong."""

    NO_BARRIER = "the writer sets no barrier"
    NO_LOOK_AT_BARRIERS = "the fill does not look at barriers"
    NO_STAMP = "the writer leaves no stamp when it ends"
    STAMPS_IGNORED = "the fill does not look at stamps and lapsed barriers"
    LAPSED_FORGOTTEN = "a barrier that has lapsed is removed"
    CLOCK_AFTER_LOAD = "the grant gets its moment when the load is done"
    PUT_WITHOUT_TAG = "the writer does not index the key that it writes through under its tag"
    PUT_WITHOUT_COLUMN = "the writer that writes through does not put the column of the tag into use"
    TAG_NOT_INDEXED = "the fill does not index the entry under its tag"
    ENTRY_BEFORE_TAG = "on a cluster, the entry is stored before it is indexed under its tag"
    LEASES_SURVIVE = "the writer deletes entries, and not their leases"
    FILL_WITHOUT_LEASE = "the reader fills although its lease is gone"
    TOLD_BEFORE_FILL = "callers that asked during the load get its result before the fill is accepted"
    BY_HAND_WITHOUT_STAMP = "an invalidation by hand leaves no stamp"
    SWEPT_BEFORE_STAMP = "an invalidation by hand sweeps, and then leaves its stamp"
    NEW_COLUMN_BELIEVED = "the first fill of a column looks at names of the column only"
    NEW_COLUMN_COUNTS_AT_ONCE = "the first fill of a column looks at the whole table, and the fills behind it do not"


@dataclass(frozen=True)
class Setup:
    """The processes that take part. Programs outside write to the database, and an invalidation by hand follows."""

    layout: Layout
    readers: int = 2
    writers: int = 2
    outside: int = 0
    joining: bool = False  # a reader that finds a lease waits for its holder
    puts: bool = True  # the first writer writes the key through
    unused: bool = False  # nothing is stored yet, and no entry has a tag of this column
    faults: frozenset[Fault] = frozenset(Fault)
    mutant: Mutant | None = None


class Reader(NamedTuple):
    """A read: its next step, its value, what was committed and acknowledged when it began, and what it will look at.

    `named` and `table`: a writer has ended, or its barrier has lapsed, since the grant. The first is such a writer that
    named the column, the second is any. `sure`: all writers that may end after the grant have named the column.
    """

    at: str
    value: int = NOTHING
    committed: int = 0
    acknowledged: int = 0
    named: bool = False
    table: bool = False
    sure: bool = False
    leader: int = ALONE
    early: bool = False


class Writer(NamedTuple):
    """A write: its next step, the version that it makes, and whether it has named the column."""

    at: str
    version: int = 0
    names: bool = False


class World(NamedTuple):
    """The database, what Redis holds for key and tag, and the processes. Leases, barriers and lock name their owner.

    `unsure` are the writers whose barriers stood when the first fill put the column into use.
    """

    committed: int
    acknowledged: int
    entry: int
    lease: int
    tagged: bool
    column: Column
    unsure: frozenset[int]
    barriers: frozenset[int]
    row_lock: int
    readers: tuple[Reader, ...]
    writers: tuple[Writer, ...]


ReadStep: TypeAlias = "Callable[[World, Reader, int], tuple[Reader, World]]"
WriteStep: TypeAlias = "Callable[[World, Writer, int], tuple[Writer, World]]"
_GRANTED = {"enter", "load", "loaded", "tag", "fill"}
_SEEN = {
    "loaded",
    "tag",
    "fill",
    "unstored",
}  # the load has read, and its result is not refused or accepted, or refused
_NEVER_LEADING = {"hit", "answered"}
_ENDED = Reader("answered", 0)
_DELETING = {"unlease", "delete", "unlease by hand", "delete by hand"}


class Model(Processes):
    """All moves of one setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.mutant = setup, setup.mutant
        self.cluster = setup.layout is Layout.CLUSTER
        self._read_steps: dict[str, ReadStep] = {
            "start": self._start,
            "get": self._get,
            "acquire": self._acquire,
            "enter": self._enter,
            "load": self._load,
            "loaded": self._loaded,
            "tag": self._tag,
            "fill": self._fill,
            "load only": self._load_only,
        }
        self.write_steps: dict[str, WriteStep] = {
            "begin": self._begin,
            "unlease": self._unlease,
            "delete": self._delete,
            "commit": self._commit,
            "write through": self._write_through,
            "end": self._end,
            "acknowledge": self._acknowledge,
            "commit outside": self._commit_outside,
            "stamp": self._stamp,
            "sweep": self._sweep,
            "unlease by hand": self._unlease,
            "delete by hand": self._delete,
        }

    def explore(self) -> Outcome:
        """Visit every reachable state, nearest first, until one breaks a rule."""
        return explore(self._first(), self._moves_in_order, self._broken)

    def _first(self) -> World:
        readers = (Reader("start"),) * self.setup.readers
        writers = (Writer("start"),) * (self.setup.writers + self.setup.outside)
        unused = self.setup.unused
        entry, column = (NOTHING, Column.UNUSED) if unused else (0, Column.IN_USE)
        return World(0, 0, entry, FREE, not unused, column, frozenset(), frozenset(), FREE, readers, writers)

    def _broken(self, world: World) -> Rule | None:
        # What a program outside commits is stale until its invalidation.
        for reader in world.readers if not self.setup.outside else ():
            if (rule := broken_by(reader)) is not None:
                return rule
        return Rule.CONVERGED if is_stale(world) else None

    # The moves.

    def _moves_in_order(self, world: World) -> Iterator[World]:
        """Yield the next states, of those that differ in the places of readers only one."""
        return map(_in_order, self._moves(world)) if self.setup.readers > 1 else self._moves(world)

    def _moves(self, world: World) -> Iterator[World]:
        yield from self._process_moves(world)
        if world.column is Column.NEW and not world.unsure & world.barriers:  # the last of them would have lapsed
            yield world._replace(column=Column.IN_USE, unsure=frozenset())
        if Fault.EXPIRY in self.setup.faults:
            yield from _expiry(world)

    def _settled(self, reader: Reader) -> Reader:
        """Return all ended readers that break no rule as one, unless others may wait for this one's result."""
        over = reader.at in (_NEVER_LEADING if self.setup.joining else READ_ENDED) and broken_by(reader) is None
        return _ENDED if over else reader

    def _reader_moves(self, world: World, place: int, reader: Reader) -> Iterator[World]:
        if reader.at == "waiting":
            after = self._wait(world, reader)
            if after is not None:
                yield with_reader(world, place, self._settled(after))
            return
        step = self._read_steps.get(reader.at)
        if step is None:
            return
        after, changed = step(world, reader, place)
        yield with_reader(changed, place, self._settled(after))
        if Fault.CANCEL in self.setup.faults and reader.at in _GRANTED:  # its lease stays until it expires
            cancelled = Reader("cancelled", NOTHING, reader.committed, reader.acknowledged)
            yield with_reader(world, place, self._settled(cancelled))

    def _first_step(self, place: int) -> str:
        return "commit outside" if self._is_outside(place) else "begin"

    def _lapsed(self, world: World, writer: Writer) -> World:
        return world if self._has(Mutant.LAPSED_FORGOTTEN) else _reach_readers(world, writer.names)

    def _may_crash(self, place: int) -> bool:
        return Fault.CRASH in self.setup.faults and not self._is_outside(place)

    def _crashed(self, writer: Writer) -> Writer:
        return writer._replace(at="crashed")

    def _is_outside(self, place: int) -> bool:
        return place >= self.setup.writers

    # The steps of a reader.

    def _get(self, world: World, reader: Reader, _place: int) -> tuple[Reader, World]:
        return hit(world, reader) if world.entry != NOTHING else (reader._replace(at="acquire"), world)

    def _acquire(self, world: World, reader: Reader, place: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return hit(world, reader)
        holder = world.lease - 1
        if world.lease != FREE:
            if not self.setup.joining or holder >= self.setup.readers:
                return reader._replace(at="load only"), world
            early = world.readers[holder].at in {"enter", "load"}
            return reader._replace(at="waiting", leader=holder, early=early), world
        granted = self._granted(world, reader)._replace(at="enter" if self.cluster else "load")
        return granted, world._replace(lease=place + 1)

    def _granted(self, world: World, reader: Reader) -> Reader:
        """Note the moment of a grant: what ends from now on is seen by the fill."""
        return reader._replace(named=False, table=False, sure=world.column is Column.IN_USE)

    def _enter(self, world: World, reader: Reader, _place: int) -> tuple[Reader, World]:
        return self._granted(world, reader)._replace(at="load"), world

    def _load(self, world: World, reader: Reader, _place: int) -> tuple[Reader, World]:
        return reader._replace(at="loaded", value=world.committed), world

    def _loaded(self, world: World, reader: Reader, _place: int) -> tuple[Reader, World]:
        if self._has(Mutant.CLOCK_AFTER_LOAD):
            reader = self._granted(world, reader)
        return reader._replace(at="tag" if self.cluster else "fill"), world

    def _tag(self, world: World, reader: Reader, place: int) -> tuple[Reader, World]:
        """Look, and index the entry under its tag: on a cluster one script, in another slot than the entry."""
        if self._has(Mutant.ENTRY_BEFORE_TAG):
            return reader._replace(at="fill"), self._store(world, reader, place)
        refused, world = self._refused(world, reader), self._used(world)
        if refused:
            return self._unstored(world, reader, place)
        return reader._replace(at="fill"), world._replace(tagged=True)

    def _fill(self, world: World, reader: Reader, place: int) -> tuple[Reader, World]:
        if self.cluster:
            return self._fill_on_cluster(world, reader, place)
        mine = world.lease == place + 1 or self._has(Mutant.FILL_WITHOUT_LEASE)
        if not mine:
            return self._unstored(world, reader, place)
        refused, world = self._refused(world, reader), self._used(world)
        if refused:
            return self._unstored(world, reader, place)
        stored = self._store(world, reader, place)
        return reader._replace(at="stored"), stored._replace(
            tagged=world.tagged or not self._has(Mutant.TAG_NOT_INDEXED)
        )

    def _fill_on_cluster(self, world: World, reader: Reader, place: int) -> tuple[Reader, World]:
        if self._has(Mutant.ENTRY_BEFORE_TAG):
            if self._refused(world, reader):
                return self._unstored(world, reader, place)
            return reader._replace(at="stored"), self._used(world)._replace(tagged=True)
        if world.lease != place + 1 and not self._has(Mutant.FILL_WITHOUT_LEASE):
            return self._unstored(world, reader, place)
        return reader._replace(at="stored"), self._store(world, reader, place)

    def _store(self, world: World, reader: Reader, place: int) -> World:
        mine = world.lease == place + 1
        if not mine and not self._has(Mutant.FILL_WITHOUT_LEASE):
            return world
        return world._replace(entry=reader.value, lease=FREE if mine else world.lease)

    def _unstored(self, world: World, reader: Reader, place: int) -> tuple[Reader, World]:
        return reader._replace(at="unstored"), world._replace(lease=released(world, place + 1))

    def _used(self, world: World) -> World:
        """Put the column into use. Each barrier that stands now may belong to a writer that has not named it."""
        if world.column is not Column.UNUSED:
            return world
        return world._replace(column=Column.NEW, unsure=world.barriers)

    def _refused(self, world: World, reader: Reader) -> bool:
        standing = [world.writers[barrier - writer_id(0)].names for barrier in world.barriers]
        table, named = reader.table, reader.named
        if self._has(Mutant.STAMPS_IGNORED):
            table = named = False
        if self._has(Mutant.NO_LOOK_AT_BARRIERS):
            standing = []
        if self._looks_at_table(world, reader):
            return table or bool(standing)
        return named or any(standing)

    def _looks_at_table(self, world: World, reader: Reader) -> bool:
        if self._has(Mutant.NEW_COLUMN_BELIEVED):
            return False
        if self._has(Mutant.NEW_COLUMN_COUNTS_AT_ONCE):
            return world.column is Column.UNUSED
        return not reader.sure

    def _wait(self, world: World, reader: Reader) -> Reader | None:
        """Return what a waiting caller does next, or None while it waits."""
        leader = world.readers[reader.leader]
        told = reader.early or (self._has(Mutant.TOLD_BEFORE_FILL) and leader.at != "loaded")
        if leader.at == "stored" or (told and leader.at in _SEEN):
            return reader._replace(at="answered", value=leader.value, leader=ALONE, early=False)
        if leader.at in {"unstored", "cancelled"} or world.lease != reader.leader + 1:
            return reader._replace(at="acquire", leader=ALONE, early=False)
        return None

    def _load_only(self, world: World, reader: Reader, _place: int) -> tuple[Reader, World]:
        return reader._replace(at="answered", value=world.committed), world

    # The steps of a writer.

    def _begin(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        """Set the barrier and sweep what lies under the tag. On a cluster, leases and entries are deleted later."""
        writer = writer._replace(names=world.column is not Column.UNUSED)
        if not self._has(Mutant.NO_BARRIER):
            world = world._replace(barriers=world.barriers | {me})
        found = (world.tagged and writer.names) or self._puts(me)
        put_tagged = self._puts(me) and not self._has(Mutant.PUT_WITHOUT_TAG)
        if put_tagged and not self._has(Mutant.PUT_WITHOUT_COLUMN):
            world = self._used(world)
        if self.cluster:
            return writer._replace(at="unlease" if found else "commit"), world._replace(
                tagged=put_tagged or world.tagged
            )
        after = writer._replace(at="commit")
        if not found:
            return after, world
        lease = world.lease if self._has(Mutant.LEASES_SURVIVE) else self._taken(me)
        return after, world._replace(tagged=put_tagged, entry=NOTHING, lease=lease)

    def _unlease(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        by_hand = writer.at.endswith("by hand")
        lease = world.lease if self._has(Mutant.LEASES_SURVIVE) else self._taken(me)
        return writer._replace(at="delete by hand" if by_hand else "delete"), world._replace(lease=lease)

    def _delete(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        at = self._after_sweep if writer.at.endswith("by hand") else "commit"
        return writer._replace(at=at), world._replace(entry=NOTHING)

    def _commit(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        at = "write through" if self._puts(me) else "end"
        return writer._replace(at=at), world._replace(committed=writer.version, row_lock=FREE)

    def _write_through(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        after = writer._replace(at="end")
        return after, world._replace(entry=writer.version, lease=FREE) if world.lease == me else world

    def _end(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        """Leave the stamp and remove the barrier in one script."""
        ended = world._replace(barriers=world.barriers - {me})
        if not self._has(Mutant.NO_STAMP):
            ended = _reach_readers(ended, writer.names)
        return writer._replace(at="acknowledge"), ended

    def _acknowledge(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        return Writer("done"), acknowledged(world, writer.version)

    def _puts(self, me: int) -> bool:
        return self.setup.puts and me == writer_id(0) and self.setup.writers > 0

    def _taken(self, me: int) -> int:
        return me if self._puts(me) else FREE

    # The steps of a program outside, and of the invalidation by hand that follows.

    def _commit_outside(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        at = "sweep" if self._has(Mutant.SWEPT_BEFORE_STAMP) else "stamp"
        return writer._replace(at=at), world._replace(committed=writer.version, row_lock=FREE)

    def _stamp(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        """Leave the stamp, under all columns in use and the table. The script that stamps reads the columns, too."""
        at = "done" if self._has(Mutant.SWEPT_BEFORE_STAMP) else "sweep"
        if self._has(Mutant.BY_HAND_WITHOUT_STAMP):
            return writer._replace(at=at), world
        return writer._replace(at=at), _reach_readers(world, names=world.column is not Column.UNUSED)

    def _sweep(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        if not world.tagged:
            return writer._replace(at=self._after_sweep), world
        if self.cluster:
            return writer._replace(at="unlease by hand"), world
        return writer._replace(at=self._after_sweep), world._replace(entry=NOTHING, lease=FREE, tagged=False)

    @property
    def _after_sweep(self) -> str:
        return "stamp" if self._has(Mutant.SWEPT_BEFORE_STAMP) else "done"


def _in_order(world: World) -> World:
    """Return the state with its readers in order: all begin alike, so a state and its permutations have one fate."""
    readers = world.readers
    if all(map(le, readers, readers[1:])):
        return world
    order = sorted(range(len(readers)), key=readers.__getitem__)
    places = {old: new for new, old in enumerate(order)}
    moved = [readers[old] for old in order]
    named = [each if each.leader == ALONE else each._replace(leader=places[each.leader]) for each in moved]
    holder = world.lease - 1
    return world._replace(readers=tuple(named), lease=places[holder] + 1 if holder in places else world.lease)


def _reach_readers(world: World, names: bool) -> World:
    """Return a world whose loads under way have been reached: by name of the column, or only by that of the table."""
    reached = (
        reader._replace(named=reader.named or names, table=True) if reader.at in _GRANTED else reader
        for reader in world.readers
    )
    return world._replace(readers=tuple(reached))


def _expiry(world: World) -> Iterator[World]:
    yield from expiry(world)
    deleting = any(writer.at in _DELETING for writer in world.writers)
    if world.entry == NOTHING and world.tagged and world.lease == FREE and not deleting:
        yield world._replace(tagged=False)
