"""The Lua scripts: what has to be one step on a server."""

from importlib import resources

from fastrdb.transport import Script


def load_script(topology: str, name: str) -> Script:
    """Return `<topology>/<name>.lua` with the shared functions in front; topology "" has none of its own."""
    paths = ["common", *(["tags", f"{topology}/shared", f"{topology}/{name}"] if topology else [name])]
    folder = resources.files(__name__)
    return Script.of(name, "".join(folder.joinpath(f"{path}.lua").read_text("utf-8") for path in paths))


def scripts() -> list[Script]:
    """Return all scripts, each as it is sent. Some of the two topologies share a name."""
    found = [load_script("", name) for name in ("discard", "renew", "watched")]
    for topology in ("server", "cluster"):
        stems = sorted(each.name.removesuffix(".lua") for each in (resources.files(__name__) / topology).iterdir())
        found += [load_script(topology, stem) for stem in stems if stem != "shared"]
    return found
