"""A model of the consistency protocol, small enough to try every interleaving: one row, one key, a few processes.

A process is a chain of steps; each step is one atomic action in one place (a script, a statement, a COMMIT). Whatever
can go wrong is a move too: a reader is cancelled, a writer crashes, a key expires. The search visits every state that
can be reached and asks three questions of each (`Rule`). A `Mutant` takes one mechanism out or changes one order: the
search must then find a violation, else it proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
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

LOST = -1  # among the barriers: there may have been others


class Layout(Enum):
    """The size of one atomic step."""

    SCRIPT = "acquire is one script, and begin another"
    CHUNKS = "acquire is one script; begin sets the barriers, sweeps a chunk, takes its leases: a script each"
    SLOTS = "on a cluster: every slot is its own step, and two commands on one key are two steps"
    SCAN = "one server that has no index at all: a sweep looks at all keys, at the leases first"


class Fault(Enum):
    """An event that may go wrong at any time."""

    __hash__ = object.__hash__  # the one of Enum is slow, and is needed for each state
    CANCEL = auto()
    CRASH = auto()
    EXPIRY = auto()
    INDEX_LOSS = auto()  # and others look at all keys, whose writes do not reach this one
    RESTART = auto()  # the server comes back without barriers; what it has is deleted before it is used
    BARRIER_LOSS = auto()  # one goes before its time: lapsed, lost with one of the servers
    BARRIERS_EVICTED = auto()  # all go before their time, which can be seen


class Mutant(Enum):
    """A protocol with one thing wrong."""

    NO_BARRIER = "the writer sets no barrier"
    NO_BARRIER_CHECK = "the reader does not look for barriers"
    BARRIER_CHECK_FIRST = "the reader enters the index and looks for barriers before it takes the lease"
    LEASES_SURVIVE = "the writer deletes entries, and not their leases"
    FILL_WITHOUT_LEASE = "the reader fills although its lease is gone"
    BLIND_WRITE_THROUGH = "the writer stores its value although its lease is gone"
    DELETE_AFTER_COMMIT = "the writer deletes nothing before COMMIT"
    WRITE_LEASE_NOT_INDEXED = "the writer does not index the key that it will write through"
    READS_NOT_INDEXED = "the reader does not index the key that it leases"
    UNINDEXED_AT_INVALIDATION = "the writer takes the key out of the index in a step of its own"
    ENTRY_BEFORE_LEASE = "the writer deletes the entry, and then its lease"
    BURIED_BLINDLY = "who found a member of the index dead takes it out, whoever has entered it again since"
    NO_SECOND_SWEEP = "the writer does not look whether its barrier stood until the end"
    NO_LOOK_AT_THE_INDEX = "the writer believes the index whatever has become of it"
    WHOLE_THOUGH_LOST = "who has looked at all keys takes the index for whole, though it was lost once more meanwhile"
    LEASES_OVERLOOKED = "who looks at all keys for others puts entries into the index, and lets leases be"
    INDEXED_ONCE = "on a cluster that evicts, the writer puts the key into the index before it takes the lease, only"
    NO_LOOK_AT_BARRIERS = "nobody notices that barriers were lost"


@dataclass(frozen=True)
class Setup:
    """The processes that take part. The first writer writes the key through, the others know only a prefix of it."""

    layout: Layout
    readers: int = 2
    writers: int = 2
    faults: frozenset[Fault] = frozenset({Fault.CANCEL, Fault.CRASH, Fault.EXPIRY})
    mutant: Mutant | None = None
    rules: frozenset[Rule] = frozenset(Rule)


class Reader(NamedTuple):
    """A read: its next step, its value, and what was committed and acknowledged when it began."""

    at: str
    value: int = NOTHING
    committed: int = 0
    acknowledged: int = 0


class Writer(NamedTuple):
    """A write: its next step and the version that it makes."""

    at: str
    version: int = 0


class World(NamedTuple):
    """The database, what Redis holds for the key, and the processes. Leases, barriers and lock name their owner.

    `whole` says that the index is known to have all keys. `search` is the place of a process that looks at all keys,
    for a write that does not reach this one. `noted` says that the index is still the one that this search began with.

    `burying` is what a process has seen of the key before it takes a dead key out of the index. On a cluster that is
    a step of its own, and a writer or reader that puts the key into the index again ends it.
    """

    committed: int
    acknowledged: int
    entry: int
    lease: int
    indexed: bool
    barriers: frozenset[int]
    row_lock: int
    burying: str
    whole: bool
    search: str
    noted: bool
    readers: tuple[Reader, ...]
    writers: tuple[Writer, ...]


ReadStep: TypeAlias = "Callable[[World, Reader, int], tuple[Reader, World]]"
WriteStep: TypeAlias = "Callable[[World, Writer, int], tuple[Writer, World]]"
_ENDED = Reader("answered", 0)


class Model(Processes):
    """All moves of one setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.mutant = setup, setup.mutant
        self.slots = setup.layout is Layout.SLOTS
        self.scans = setup.layout is Layout.SCAN
        self._read_steps: dict[str, ReadStep] = {
            "start": self._start,
            "get": self._get,
            "acquire": self._acquire,
            "lease": self._lease,
            "enter": self._enter,
            "release": self._release,
            "load only": self._load_only,
            "load": self._load,
            "fill": self._fill,
        }
        self.write_steps: dict[str, WriteStep] = {
            "begin": self._begin,
            "sweep": self._sweep,
            "claim": self._claim,
            "unlease": self._unlease,
            "delete": self._delete,
            "commit": self._commit,
            "write through": self._write_through,
            "unbar": self._unbar,
            "unlease again": self._unlease,
            "delete again": self._delete,
            "acknowledge": self._acknowledge,
        }

    def explore(self) -> Outcome:
        """Visit every reachable state, nearest first, until one breaks a rule."""
        return explore(self._first(), self._moves, self._broken, self.setup.rules)

    def _first(self) -> World:
        readers = (Reader("start"),) * self.setup.readers
        writers = (Writer("start"),) * self.setup.writers
        return World(0, 0, 0, FREE, True, frozenset(), FREE, "", True, "", False, readers, writers)

    def _broken(self, world: World) -> Rule | None:
        for reader in world.readers:
            if (rule := broken_by(reader)) is not None:
                return rule
        return Rule.CONVERGED if is_stale(world) else None

    # The moves.

    def _moves(self, world: World) -> Iterator[World]:
        yield from self._process_moves(world)
        if Fault.EXPIRY in self.setup.faults:
            yield from expiry(world)
            yield from self._burial(world)
        if Fault.INDEX_LOSS in self.setup.faults:
            yield world._replace(indexed=False, whole=False, noted=False)
            if not self.scans:
                yield from self._search(world)
        if Fault.RESTART in self.setup.faults and world.barriers:
            yield world._replace(entry=NOTHING, lease=FREE, indexed=False, barriers=frozenset())
        if Fault.BARRIERS_EVICTED in self.setup.faults:
            unseen = self._has(Mutant.NO_LOOK_AT_BARRIERS)
            yield world._replace(barriers=frozenset() if unseen else frozenset({LOST}))
            if not any(writer.at in self._barring for writer in world.writers):  # all of them would have lapsed
                yield world._replace(barriers=world.barriers - {LOST})
        if Fault.BARRIER_LOSS in self.setup.faults:
            yield from (world._replace(barriers=world.barriers - {barrier}) for barrier in world.barriers)

    @property
    def _barring(self) -> set[str]:
        """The steps before which a writer has set its barrier."""
        return self.write_steps.keys() - {"begin"}

    def _search(self, world: World) -> Iterator[World]:
        """Look at all keys, at the leases first. A key that has come since the look began may be missed, or not."""
        if world.search == "":
            if not world.whole:
                yield world._replace(search="old lease" if world.lease else "no lease", noted=True)
        elif world.search.endswith("lease"):
            after = world._replace(search="no entry" if world.entry == NOTHING else "old entry")
            if world.search == "no lease" or self._has(Mutant.LEASES_OVERLOOKED):
                yield after
            yield after if self._has(Mutant.LEASES_OVERLOOKED) else after._replace(lease=FREE)
        else:
            after = world._replace(search="", noted=False, whole=self._made_whole(world))
            if world.search == "no entry":
                yield after
            if self.slots:  # there nothing is spared
                yield after._replace(entry=NOTHING)
            else:
                yield after._replace(indexed=world.indexed or world.entry != NOTHING)

    def _made_whole(self, world: World) -> bool:
        return world.whole or world.noted or self._has(Mutant.WHOLE_THOUGH_LOST)

    def _burial(self, world: World) -> Iterator[World]:
        """Take a dead key out of the index: at once, or on a cluster when first its lease, then the key was missing."""
        dead = world.entry == NOTHING and world.lease == FREE
        if not self.slots:
            if world.indexed and dead:
                yield world._replace(indexed=False)
        elif world.burying == "":
            # Not due before the barrier that it was put there with has lapsed: one script, one clock.
            if world.indexed and not any(map(_names_key, world.barriers)):
                yield world._replace(burying="due")
        elif world.burying == "due":
            yield world._replace(burying="no lease" if world.lease == FREE else "")
        elif world.burying == "no lease":
            yield world._replace(burying="dead" if world.entry == NOTHING else "")
        else:
            yield world._replace(burying="", indexed=False)

    def _put_in_index(self, world: World) -> World:
        blindly = self._has(Mutant.BURIED_BLINDLY)
        return world._replace(indexed=True, burying=world.burying if blindly else "")

    def _reader_moves(self, world: World, place: int, reader: Reader) -> Iterator[World]:
        step = self._read_steps.get(reader.at)
        if step is None:
            return
        after, changed = step(world, reader, place + 1)
        yield with_reader(changed, place, _settled(after))
        if Fault.CANCEL in self.setup.faults and reader.at in {"load", "fill"}:  # its lease stays until it expires
            cancelled = reader._replace(at="answered", value=world.committed)
            yield with_reader(world, place, _settled(cancelled))

    def _may_crash(self, place: int) -> bool:
        return Fault.CRASH in self.setup.faults

    def _crashed(self, writer: Writer) -> Writer:
        return Writer("crashed")

    # The steps of a reader.

    def _get(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return hit(world, reader)
        at = "acquire"
        if self.slots:
            at = "enter" if self._has(Mutant.BARRIER_CHECK_FIRST) else "lease"
        return reader._replace(at=at), world

    def _acquire(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return hit(world, reader)
        if world.lease != FREE or self._barred(world):
            return reader._replace(at="load only"), world
        return reader._replace(at="load"), self._indexed_by_reader(world)._replace(lease=me)

    def _lease(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return hit(world, reader)
        if world.lease != FREE:
            return reader._replace(at="load only"), world
        at = "load" if self._has(Mutant.BARRIER_CHECK_FIRST) else "enter"
        return reader._replace(at=at), world._replace(lease=me)

    def _enter(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        first = self._has(Mutant.BARRIER_CHECK_FIRST)
        if self._barred(world):
            return reader._replace(at="load only" if first else "release"), world
        return reader._replace(at="lease" if first else "load"), self._indexed_by_reader(world)

    def _release(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        return reader._replace(at="load only"), world._replace(lease=released(world, me))

    def _load_only(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        return reader._replace(at="answered", value=world.committed), world

    def _load(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        return reader._replace(at="fill", value=world.committed), world

    def _fill(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        answered = reader._replace(at="answered")
        if world.lease != me and not self._has(Mutant.FILL_WITHOUT_LEASE):
            return answered, world
        indexed = world.indexed if self.slots else True
        return answered, world._replace(entry=reader.value, lease=released(world, me), indexed=indexed)

    def _indexed_by_reader(self, world: World) -> World:
        return world if self._has(Mutant.READS_NOT_INDEXED) else self._put_in_index(world)

    def _barred(self, world: World) -> bool:
        return bool(world.barriers) and not self._has(Mutant.NO_BARRIER_CHECK)

    # The steps of a writer.

    def _begin(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        barred = world if self._has(Mutant.NO_BARRIER) else world._replace(barriers=world.barriers | {me})
        if self._has(Mutant.DELETE_AFTER_COMMIT):
            return writer._replace(at="commit"), barred
        if self.scans:
            return writer._replace(at=self._first_deletion), barred
        if self.slots:
            return self._fence(barred, writer, me)
        if self.setup.layout is Layout.CHUNKS:
            return writer._replace(at="sweep"), barred
        after, swept = self._sweep(barred, writer, me)
        return self._claim(swept, writer, me) if after.at == "claim" else (after, swept)

    def _sweep(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        after = writer._replace(at="claim")
        if not world.whole and not self._has(Mutant.NO_LOOK_AT_THE_INDEX):
            return writer._replace(at=self._first_deletion), world
        if not world.indexed:
            return after, world
        return after, world._replace(entry=NOTHING, lease=self._lease_after_delete(world, FREE), indexed=False)

    def _claim(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        after = writer._replace(at="commit")
        if not _names_key(me):
            return after, world
        if self.slots:  # once more, now that it has the lease: the index may have been lost in between
            return after, world if self._has(Mutant.INDEXED_ONCE) else self._put_in_index(world)
        indexed = world.indexed if self._has(Mutant.WRITE_LEASE_NOT_INDEXED) else True
        return after, world._replace(entry=NOTHING, lease=self._lease_after_delete(world, me), indexed=indexed)

    def _fence(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        """Put the own key into the index and see what is in it: on a cluster one script, beside the barrier."""
        after = writer._replace(at=self._first_deletion)
        if _names_key(me):
            not_indexed = self._has(Mutant.WRITE_LEASE_NOT_INDEXED)
            return after, world if not_indexed else self._put_in_index(world)
        if not world.indexed and (world.whole or self._has(Mutant.NO_LOOK_AT_THE_INDEX)):
            return writer._replace(at="commit"), world
        return after, world._replace(indexed=world.indexed and not self._has(Mutant.UNINDEXED_AT_INVALIDATION))

    @property
    def _first_deletion(self) -> str:
        return "delete" if self._has(Mutant.ENTRY_BEFORE_LEASE) else "unlease"

    def _unlease(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        """Delete the lease, or take it where the key is to be written through."""
        again = writer.at.endswith("again")
        at = "acknowledge" if again else self._after_sweep(me)
        if not self._has(Mutant.ENTRY_BEFORE_LEASE):
            at = "delete again" if again else "delete"
        taken = me if self.slots and _names_key(me) and not again else FREE
        return writer._replace(at=at), world._replace(lease=self._lease_after_delete(world, taken))

    def _delete(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        again = writer.at.endswith("again")
        at = "acknowledge" if again else self._after_sweep(me)
        if self._has(Mutant.ENTRY_BEFORE_LEASE):
            at = "unlease again" if again else "unlease"
        return writer._replace(at=at), world._replace(entry=NOTHING)

    def _after_sweep(self, me: int) -> str:
        return "commit" if self.slots and not (_names_key(me) and Fault.INDEX_LOSS in self.setup.faults) else "claim"

    def _commit(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        at = "write through" if _names_key(me) else "unbar"
        return writer._replace(at=at), world._replace(committed=writer.version, row_lock=FREE)

    def _write_through(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        after = writer._replace(at="unbar")
        if world.lease != me and not self._has(Mutant.BLIND_WRITE_THROUGH):
            return after, world
        indexed = world.indexed if self.slots else True
        return after, world._replace(entry=writer.version, lease=released(world, me), indexed=indexed)

    def _unbar(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        if me in world.barriers or self._has(Mutant.NO_SECOND_SWEEP) or self._has(Mutant.NO_BARRIER):
            return writer._replace(at="acknowledge"), world._replace(barriers=world.barriers - {me})
        # Gone before its time: a reader may have stored what was there before the COMMIT. Once more.
        if self.slots or self.scans:
            unknown = not world.whole and not self._has(Mutant.NO_LOOK_AT_THE_INDEX)
            found = world.indexed or unknown or self.scans or _names_key(me)
            return writer._replace(at="unlease again" if found else "acknowledge"), world
        after, swept = self._sweep(world, writer, me)
        return writer._replace(at="acknowledge" if after.at == "claim" else f"{after.at} again"), swept

    def _acknowledge(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        return Writer("done"), acknowledged(world, writer.version)

    def _lease_after_delete(self, world: World, taken: int) -> int:
        return (world.lease or taken) if self._has(Mutant.LEASES_SURVIVE) else taken


def _settled(reader: Reader) -> Reader:
    """Return all ended readers that break no rule as one: what each was answered changes nothing any more."""
    return _ENDED if reader.at in READ_ENDED and broken_by(reader) is None else reader


def _names_key(writer: int) -> bool:
    return writer == writer_id(0)
