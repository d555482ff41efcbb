"""The Lua scripts: what has to be one step on a server."""

from collections.abc import Iterable
from importlib import resources

from fastrdb.transport import Script

IN_FRONT = ("common", "matching", "barriers", "tags")
"""Files of functions, each of which may use those before it."""


def load_script(topology: str, name: str) -> Script:
    """Return `<topology>/<name>.lua` with the shared functions in front; topology "" needs the common ones only."""
    paths = [*IN_FRONT, f"{topology}/shared", f"{topology}/{name}"] if topology else [IN_FRONT[0], name]
    return Script.of(name, read(paths))


def read(paths: Iterable[str] = IN_FRONT) -> str:
    """Return the text of some files, one behind the other."""
    return "".join(resources.files(__name__).joinpath(f"{path}.lua").read_text("utf-8") for path in paths)


def scripts() -> list[Script]:
    """Return all scripts, each as it is sent. Some of the two topologies share a name."""
    found = [load_script("", name) for name in ("discard", "renew", "watched")]
    for topology in ("server", "cluster"):
        stems = sorted(each.name.removesuffix(".lua") for each in (resources.files(__name__) / topology).iterdir())
        found += [load_script(topology, stem) for stem in stems if stem != "shared"]
    return found
