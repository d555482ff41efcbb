"""What both models share: the rules, the search through all states that can be reached, and parts of states."""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

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
