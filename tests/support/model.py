"""A model of the consistency protocol, small enough to try every interleaving: one row, one key, a few processes.

A process is a chain of steps; each step is one atomic action in one place (a script, a statement, a COMMIT). Whatever
can go wrong is a move too: a reader is cancelled, a writer crashes, a key expires. The search visits every state that
can be reached and asks three questions of each (`Rule`). A `Mutant` takes one mechanism out or changes one order: the
search must then find a violation, else it proves nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

P = TypeVar("P")
NOTHING = -1
FREE = 0


class Rule(Enum):
    """What must hold."""

    CONVERGED = "when all have ended, the entry is absent or equals the database"
    ACKNOWLEDGED = "a read that starts after a write was acknowledged never gives an older version"
    COMMITTED = "a hit is never older than what was committed when the read began"


class Layout(Enum):
    """How much is one atomic step."""

    SCRIPT = "acquire is one script, and begin another"
    CHUNKS = "acquire is one script; begin sets the barriers, sweeps a chunk, takes its leases: a script each"
    SLOTS = "on a cluster: every slot is its own step"


class Fault(Enum):
    """What may go wrong at any time."""

    CANCEL = auto()
    CRASH = auto()
    EXPIRY = auto()
    INDEX_LOSS = auto()
    RESTART = auto()  # the server comes back without barriers; what it has is deleted before it is used


class Mutant(Enum):
    """A protocol with one thing wrong."""

    NO_BARRIER = "the writer sets no barrier"
    NO_BARRIER_CHECK = "the reader does not look for barriers"
    BARRIER_CHECK_FIRST = "the reader looks for barriers before it takes the lease"
    LEASES_SURVIVE = "the writer deletes entries, and not their leases"
    FILL_WITHOUT_LEASE = "the reader fills although its lease is gone"
    BLIND_WRITE_THROUGH = "the writer stores its value although its lease is gone"
    DELETE_AFTER_COMMIT = "the writer deletes nothing before COMMIT"
    WRITE_LEASE_NOT_INDEXED = "the writer does not index the key that it will write through"
    READS_NOT_INDEXED = "the reader does not index the key that it leases"
    NO_SECOND_SWEEP = "the writer does not look whether its barrier stood until the end"
    UNINDEXED_AT_INVALIDATION = "the writer takes the key out of the index in a step of its own"


@dataclass(frozen=True)
class Setup:
    """Who takes part. The first writer writes the key through, the others know only a prefix of it."""

    layout: Layout
    readers: int = 2
    writers: int = 2
    faults: frozenset[Fault] = frozenset({Fault.CANCEL, Fault.CRASH, Fault.EXPIRY})
    mutant: Mutant | None = None


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
    """The database, what Redis holds for the key, and the processes. Leases, barriers and lock name their owner."""

    committed: int
    acknowledged: int
    entry: int
    lease: int
    indexed: bool
    barriers: frozenset[int]
    row_lock: int
    readers: tuple[Reader, ...]
    writers: tuple[Writer, ...]


class Outcome(NamedTuple):
    """What a search found: the number of states, and the way to the first violation if there is one."""

    states: int
    rule: Rule | None
    trace: list[World]


ReadStep: TypeAlias = "Callable[[World, Reader, int], tuple[Reader, World]]"
WriteStep: TypeAlias = "Callable[[World, Writer, int], tuple[Writer, World]]"
# Between putting the key into the index and what justifies its place there lies no time in which a sweep by age
# would find the member dead.
_NEWLY_INDEXED = {"lease", "check first", "lease after check", "delete"}
_READ_ENDED = {"hit", "answered"}
_WRITE_ENDED = {"done", "crashed"}


class Model:
    """All moves of one setup."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.slots = setup.layout is Layout.SLOTS
        self._read_steps: dict[str, ReadStep] = {
            "start": self._start,
            "get": self._get,
            "acquire": self._acquire,
            "index": self._index,
            "lease": self._lease,
            "check": self._check,
            "check first": self._check_first,
            "lease after check": self._lease_after_check,
            "release": self._release,
            "load only": self._load_only,
            "load": self._load,
            "fill": self._fill,
        }
        self._write_steps: dict[str, WriteStep] = {
            "begin": self._begin,
            "sweep": self._sweep,
            "claim": self._claim,
            "index key": self._index_key,
            "range": self._range,
            "delete": self._delete,
            "commit": self._commit,
            "write through": self._write_through,
            "unbar": self._unbar,
            "range again": self._range_again,
            "delete again": self._delete_again,
            "acknowledge": self._acknowledge,
        }

    def explore(self) -> Outcome:
        """Visit every reachable state, nearest first, until one breaks a rule."""
        first = self._first()
        came_from: dict[World, World | None] = {first: None}
        queue = deque([first])
        while queue:
            world = queue.popleft()
            rule = self._broken(world)
            if rule is not None:
                return Outcome(len(came_from), rule, _trace(came_from, world))
            for following in self._moves(world):
                if following not in came_from:
                    came_from[following] = world
                    queue.append(following)
        return Outcome(len(came_from), None, [])

    def _first(self) -> World:
        readers = (Reader("start"),) * self.setup.readers
        writers = (Writer("start"),) * self.setup.writers
        return World(0, 0, 0, FREE, indexed=True, barriers=frozenset(), row_lock=FREE, readers=readers, writers=writers)

    def _broken(self, world: World) -> Rule | None:
        for reader in world.readers:
            # After a restart in the middle of a COMMIT, only the end of that commit puts things right.
            if reader.at == "hit" and reader.value < reader.committed and Fault.RESTART not in self.setup.faults:
                return Rule.COMMITTED
            if reader.at in _READ_ENDED and NOTHING < reader.value < reader.acknowledged:
                return Rule.ACKNOWLEDGED
        stale = world.entry not in (NOTHING, world.committed)
        return Rule.CONVERGED if stale and not world.barriers and _all_ended(world) else None

    def _has(self, mutant: Mutant) -> bool:
        return self.setup.mutant is mutant

    # The moves.

    def _moves(self, world: World) -> Iterator[World]:
        for place, reader in enumerate(world.readers):
            yield from self._reader_moves(world, place, reader)
        for place, writer in enumerate(world.writers):
            yield from self._writer_moves(world, place, writer)
        if Fault.EXPIRY in self.setup.faults:
            yield from _expiry(world)
        if Fault.INDEX_LOSS in self.setup.faults:
            yield world._replace(indexed=False)
        if Fault.RESTART in self.setup.faults and world.barriers:
            yield world._replace(entry=NOTHING, lease=FREE, indexed=False, barriers=frozenset())

    def _reader_moves(self, world: World, place: int, reader: Reader) -> Iterator[World]:
        step = self._read_steps.get(reader.at)
        if step is None:
            return
        after, changed = step(world, reader, place + 1)
        yield changed._replace(readers=_put(world.readers, place, after))
        if Fault.CANCEL in self.setup.faults and reader.at in {"load", "fill"}:  # its lease stays until it expires
            cancelled = reader._replace(at="answered", value=world.committed)
            yield world._replace(readers=_put(world.readers, place, cancelled))

    def _writer_moves(self, world: World, place: int, writer: Writer) -> Iterator[World]:
        me = _writer_id(place)
        if writer.at == "start":
            if world.row_lock == FREE:  # its UPDATE takes the row's lock, or waits for it
                begun = Writer("begin", world.committed + 1)
                yield world._replace(row_lock=me, writers=_put(world.writers, place, begun))
        elif writer.at == "crashed":
            if me in world.barriers:  # its deadline has passed
                yield world._replace(barriers=world.barriers - {me})
        elif writer.at != "done":
            after, changed = self._write_steps[writer.at](world, writer, me)
            yield changed._replace(writers=_put(world.writers, place, after))
            if Fault.CRASH in self.setup.faults:  # before COMMIT the database rolls back
                lock = FREE if world.row_lock == me else world.row_lock
                yield world._replace(row_lock=lock, writers=_put(world.writers, place, writer._replace(at="crashed")))

    # The steps of a reader.

    def _start(self, world: World, _reader: Reader, _me: int) -> tuple[Reader, World]:
        return Reader("get", NOTHING, world.committed, world.acknowledged), world

    def _get(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return _hit(world, reader)
        return reader._replace(at="index" if self.slots else "acquire"), world

    def _acquire(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return _hit(world, reader)
        indexed = world._replace(indexed=self._index_after_read(world))
        if world.lease != FREE or self._barred(world):
            return reader._replace(at="load only"), indexed
        return reader._replace(at="load"), indexed._replace(lease=me)

    def _index(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        at = "check first" if self._has(Mutant.BARRIER_CHECK_FIRST) else "lease"
        return reader._replace(at=at), world._replace(indexed=self._index_after_read(world))

    def _lease(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        if world.entry != NOTHING:
            return _hit(world, reader)
        if world.lease != FREE:
            return reader._replace(at="load only"), world
        return reader._replace(at="check"), world._replace(lease=me)

    def _check(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        return reader._replace(at="release" if self._barred(world) else "load"), world

    def _check_first(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        return reader._replace(at="load only" if self._barred(world) else "lease after check"), world

    def _lease_after_check(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        if world.lease != FREE:
            return reader._replace(at="load only"), world
        return reader._replace(at="load"), world._replace(lease=me)

    def _release(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        return reader._replace(at="load only"), world._replace(lease=_released(world, me))

    def _load_only(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        return reader._replace(at="answered", value=world.committed), world

    def _load(self, world: World, reader: Reader, _me: int) -> tuple[Reader, World]:
        return reader._replace(at="fill", value=world.committed), world

    def _fill(self, world: World, reader: Reader, me: int) -> tuple[Reader, World]:
        answered = reader._replace(at="answered")
        if world.lease != me and not self._has(Mutant.FILL_WITHOUT_LEASE):
            return answered, world
        indexed = world.indexed if self.slots else True
        return answered, world._replace(entry=reader.value, lease=_released(world, me), indexed=indexed)

    def _index_after_read(self, world: World) -> bool:
        return world.indexed if self._has(Mutant.READS_NOT_INDEXED) else True

    def _barred(self, world: World) -> bool:
        return bool(world.barriers) and not self._has(Mutant.NO_BARRIER_CHECK)

    # The steps of a writer.

    def _begin(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        barred = world if self._has(Mutant.NO_BARRIER) else world._replace(barriers=world.barriers | {me})
        if self._has(Mutant.DELETE_AFTER_COMMIT):
            return writer._replace(at="commit"), barred
        if self.slots:
            return writer._replace(at="index key" if _names_key(me) else "range"), barred
        if self.setup.layout is Layout.CHUNKS:
            return writer._replace(at="sweep"), barred
        _, swept = self._sweep(barred, writer, me)
        return self._claim(swept, writer, me)

    def _sweep(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        after = writer._replace(at="claim")
        if not world.indexed:
            return after, world
        return after, world._replace(entry=NOTHING, lease=self._lease_after_delete(world, FREE), indexed=False)

    def _claim(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        after = writer._replace(at="commit")
        if not _names_key(me):
            return after, world
        indexed = world.indexed if self._has(Mutant.WRITE_LEASE_NOT_INDEXED) else True
        return after, world._replace(entry=NOTHING, lease=self._lease_after_delete(world, me), indexed=indexed)

    def _index_key(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        indexed = world.indexed if self._has(Mutant.WRITE_LEASE_NOT_INDEXED) else True
        return writer._replace(at="delete"), world._replace(indexed=indexed)

    def _range(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        if not world.indexed:
            return writer._replace(at="commit"), world
        return writer._replace(at="delete"), world._replace(indexed=not self._has(Mutant.UNINDEXED_AT_INVALIDATION))

    def _delete(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        lease = self._lease_after_delete(world, me if _names_key(me) else FREE)
        return writer._replace(at="commit"), world._replace(entry=NOTHING, lease=lease)

    def _commit(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        at = "write through" if _names_key(me) else "unbar"
        return writer._replace(at=at), world._replace(committed=writer.version, row_lock=FREE)

    def _write_through(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        after = writer._replace(at="unbar")
        if world.lease != me and not self._has(Mutant.BLIND_WRITE_THROUGH):
            return after, world
        return after, world._replace(entry=writer.version, lease=_released(world, me), indexed=True)

    def _unbar(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        stood = me in world.barriers or self._has(Mutant.NO_SECOND_SWEEP) or self._has(Mutant.NO_BARRIER)
        after = "acknowledge" if stood else "range again"
        return writer._replace(at=after), world._replace(barriers=world.barriers - {me})

    def _range_again(self, world: World, writer: Writer, me: int) -> tuple[Writer, World]:
        if not world.indexed:
            return writer._replace(at="acknowledge"), world
        return (writer._replace(at="delete again"), world) if self.slots else self._delete_again(world, writer, me)

    def _delete_again(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        indexed = world.indexed and self.slots
        return writer._replace(at="acknowledge"), world._replace(entry=NOTHING, lease=FREE, indexed=indexed)

    def _acknowledge(self, world: World, writer: Writer, _me: int) -> tuple[Writer, World]:
        return writer._replace(at="done"), world._replace(acknowledged=max(world.acknowledged, writer.version))

    def _lease_after_delete(self, world: World, taken: int) -> int:
        return (world.lease or taken) if self._has(Mutant.LEASES_SURVIVE) else taken


def _expiry(world: World) -> Iterator[World]:
    if world.lease != FREE:
        yield world._replace(lease=FREE)
    if world.entry != NOTHING:
        yield world._replace(entry=NOTHING)
    if world.indexed and world.entry == NOTHING and world.lease == FREE:
        processes: tuple[Reader | Writer, ...] = (*world.readers, *world.writers)
        if all(process.at not in _NEWLY_INDEXED for process in processes):
            yield world._replace(indexed=False)


def _hit(world: World, reader: Reader) -> tuple[Reader, World]:
    return reader._replace(at="hit", value=world.entry), world


def _released(world: World, token: int) -> int:
    return FREE if world.lease == token else world.lease


def _writer_id(place: int) -> int:
    return 100 + place


def _names_key(writer: int) -> bool:
    return writer == _writer_id(0)


def _all_ended(world: World) -> bool:
    readers = all(reader.at in _READ_ENDED for reader in world.readers)
    return readers and all(writer.at in _WRITE_ENDED for writer in world.writers)


def _put(processes: tuple[P, ...], place: int, process: P) -> tuple[P, ...]:
    return (*processes[:place], process, *processes[place + 1 :])


def _trace(came_from: dict[World, World | None], last: World) -> list[World]:
    trace = [last]
    while (before := came_from[trace[-1]]) is not None:
        trace.append(before)
    return trace[::-1]
