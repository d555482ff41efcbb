"""The lowest versions that pyproject.toml admits, as constraints: `python -m tests.support.source.lowest > FILE`."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

from tests.support import ROOT

NOT_TESTED = {"bench"}
_BOUND = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,]+\])?>=(?P<version>[\d.]+)")


def lowest() -> Iterator[str]:
    """Return `name==version` for each bound of the project and of its extras, but for those that tests do not need.

    Raises:
        ValueError: a requirement has no lower bound.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    extras = [each for extra in optional if extra not in NOT_TESTED for each in optional[extra]]
    for requirement in [*project["dependencies"], *extras]:
        if requirement.startswith(f"{project['name']}["):
            continue
        if (found := _BOUND.match(requirement)) is None:
            raise ValueError(f"{requirement!r} of pyproject.toml has no lower bound: write it as name>=version")
        yield f"{found['name']}=={found['version']}"


if __name__ == "__main__":
    print(*dict.fromkeys(lowest()), sep="\n")
