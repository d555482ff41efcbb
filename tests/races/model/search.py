"""The common part of both models: rules, the search through all reachable states, the life of a process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

P = TypeVar("P")
R = TypeVar("R", bound=Any)
W = TypeVar("W", bound=Any)
NOTHING = -1
FREE = 0
READ_ENDED = frozenset({"hit", "answered", "stored", "unstored", "cancelled"})
WRITE_ENDED = frozenset({"done", "crashed"})


class Rule(Enum):
    """A condition that must hold in each state."""

    CONVERGED = "when all have ended, the entry is absent or equals the database"
    ACKNOWLEDGED = "a read that starts after a write was acknowledged never gives an older version"
    COMMITTED = "a hit is never older than what was committed when the read began"


class Outcome(NamedTuple):
    """The result of a search: the number of states, and the way to the first violation if there is one."""

    states: int
    rule: Rule | None
    trace: list[Any]

    def __str__(self) -> str:
        """Return how a rule was broken, state by state."""
        return "\n".join(map(str, (self.rule, *self.trace)))


def explore(
    first: W,
    moves: Callable[[W], Iterable[W]],
    broken: Callable[[W], Rule | None],
    rules: Collection[Rule] = frozenset(Rule),
) -> Outcome:
    """Visit every state that `moves` reach from the first one, nearest first, until one breaks one of the rules."""
    came_from: dict[W, W | None] = {first: None}
    queue = deque([first])
    while queue:
        world = queue.popleft()
        rule = broken(world)
        if rule in rules:
            return Outcome(len(came_from), rule, _trace(came_from, world))
        for following in moves(world):
            if following not in came_from:
                came_from[following] = world
                queue.append(following)
    return Outcome(len(came_from), None, [])


class Processes(ABC):
    """The moves of readers and writers, one process at a time. A model has the steps, and what else may happen.

    A step gets the world, a process and its place, and returns the process and the world behind that step. `mutant` is
    what is taken out.
    """

    mutant: Enum | None
    write_steps: dict[str, Any]

    def _has(self, mutant: Enum) -> bool:
        return self.mutant is mutant

    def _process_moves(self, world: W) -> Iterator[W]:
        for place, reader in enumerate(world.readers):
            yield from self._reader_moves(world, place, reader)
        for place, writer in enumerate(world.writers):
            yield from self._writer_moves(world, place, writer)

    @abstractmethod
    def _reader_moves(self, world: Any, place: int, reader: Any) -> Iterator[Any]: ...

    def _start(self, world: W, reader: R, _place: int) -> tuple[R, W]:
        begun: R = reader._replace(at="get", committed=world.committed, acknowledged=world.acknowledged)
        return begun, world if starting(world) > 1 else world._replace(acknowledged=0)  # no other asks

    def _writer_moves(self, world: W, place: int, writer: Any) -> Iterator[W]:
        me = writer_id(place)
        if writer.at == "start":
            if world.row_lock == FREE:  # its UPDATE takes the row's lock, or waits for it
                begun = writer._replace(at=self._first_step(place), version=world.committed + 1)
                yield with_writer(world._replace(row_lock=me), place, begun)
        elif writer.at == "crashed":
            if me in world.barriers:  # its deadline has passed
                yield self._lapsed(world._replace(barriers=world.barriers - {me}), writer)
        elif writer.at != "done":
            after, changed = self.write_steps[writer.at](world, writer, me)
            yield with_writer(changed, place, after)
            if self._may_crash(place):  # before COMMIT the database rolls back
                lock = FREE if world.row_lock == me else world.row_lock
                yield with_writer(world._replace(row_lock=lock), place, self._crashed(writer))

    def _first_step(self, place: int) -> str:
        """Return the step with which a writer begins when it has the row's lock."""
        return "begin"

    def _lapsed(self, world: Any, writer: Any) -> Any:
        """Return the world behind the end of a crashed writer's barrier."""
        return world

    @abstractmethod
    def _may_crash(self, place: int) -> bool: ...

    @abstractmethod
    def _crashed(self, writer: Any) -> Any: ...


def expiry(world: W) -> Iterator[W]:
    """Yield the worlds in which the lease has expired, or the entry."""
    if world.lease != FREE:
        yield world._replace(lease=FREE)
    if world.entry != NOTHING:
        yield world._replace(entry=NOTHING)


def _trace(came_from: dict[W, W | None], last: W) -> list[W]:
    trace = [last]
    while (before := came_from[trace[-1]]) is not None:
        trace.append(before)
    return trace[::-1]


def broken_by(reader: Any) -> Rule | None:
    """Return the rule that an ended read breaks."""
    if reader.at == "hit" and reader.value < reader.committed:
        return Rule.COMMITTED
    if reader.at in READ_ENDED and NOTHING < reader.value < reader.acknowledged:
        return Rule.ACKNOWLEDGED
    return None


def is_stale(world: Any) -> bool:
    """Return True if all have ended, all barriers are gone, and the entry is not what is in the database."""
    stale = world.entry not in (NOTHING, world.committed) and not world.barriers
    return (
        stale
        and all(reader.at in READ_ENDED for reader in world.readers)
        and all(writer.at in WRITE_ENDED for writer in world.writers)
    )


def starting(world: Any) -> int:
    """Return how many readers have not begun: only these ask later what was acknowledged."""
    return sum(reader.at == "start" for reader in world.readers)


def with_reader(world: W, place: int, reader: object) -> W:
    """Return the world with another reader at this place. The last two fields of a world are its processes."""
    *rest, readers, writers = world
    made: W = world._make((*rest, put(readers, place, reader), writers))
    return made


def with_writer(world: W, place: int, writer: object) -> W:
    """Return the world with another writer at this place."""
    *rest, readers, writers = world
    made: W = world._make((*rest, readers, put(writers, place, writer)))
    return made


def put(processes: tuple[P, ...], place: int, process: P) -> tuple[P, ...]:
    """Return the processes with another one at this place."""
    return (*processes[:place], process, *processes[place + 1 :])


def hit(world: W, reader: R) -> tuple[R, W]:
    """Answer a read with the entry."""
    return reader._replace(at="hit", value=world.entry), world


def acknowledged(world: W, version: int) -> W:
    """Note that a write was acknowledged."""
    if not starting(world):
        return world
    noted: W = world._replace(acknowledged=max(world.acknowledged, version))
    return noted


def released(world: Any, token: int) -> int:
    """Return the lease when its holder has given it back."""
    return FREE if world.lease == token else world.lease


def writer_id(place: int) -> int:
    """Return the name of a writer, as leases, barriers and locks have it."""
    return 100 + place
