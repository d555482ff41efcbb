"""The Lua scripts: what has to be one step on a server."""

import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

from fastrdb.transport import Script

IN_FRONT = ("common", "matching", "barriers", "tags")
"""Files of functions, each of which may use those before it. An empty line ends a block, such as a function."""
_NAMES = re.compile(r"^local (?:function )?(\w+(?:, \w+)*)", re.MULTILINE)
_COMMENT = re.compile(r"--.*")


@cache
def load_script(topology: str, name: str) -> Script:
    """Return `<topology>/<name>.lua` with the functions in front that the script uses; "" is for both topologies."""
    shared = [f"{topology}/shared"] if topology else []
    script = read([f"{topology}/{name}" if topology else name])
    return Script.of(name, _used(read([*IN_FRONT, *shared]), script) + script)


def read(paths: Iterable[str] = IN_FRONT) -> str:
    """Return the text of some files, one behind the other."""
    return "\n".join(resources.files(__name__).joinpath(f"{path}.lua").read_text("utf-8") for path in paths)


@cache
def scripts() -> tuple[Script, ...]:
    """Return all scripts, each as it is sent. Some of the two topologies share a name."""
    found = [load_script("", name) for name in ("discard", "renew", "watched")]
    for topology in ("server", "cluster"):
        stems = sorted(each.name.removesuffix(".lua") for each in (resources.files(__name__) / topology).iterdir())
        found += [load_script(topology, stem) for stem in stems if stem != "shared"]
    return tuple(found)


def _used(front: str, script: str) -> str:
    """Return the blocks of `front` that the script uses: a server builds each function anew in each run."""
    kept, words = list[str](), _words(script)
    for block in reversed(front.split("\n\n")):
        names = {name for match in _NAMES.findall(block) for name in match.split(", ")}
        if names & words:
            kept.insert(0, f"{block}\n\n")
            words |= _words(block)
    return "".join(kept)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", _COMMENT.sub("", text)))
