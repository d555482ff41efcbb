"""What `==` does not see, and a hit would lose: such a value is not stored."""

from __future__ import annotations

from collections import defaultdict, deque
from datetime import time
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import ImportString

from fastrdb import SchemaError
from fastrdb.values import Codec

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (time, time(12, tzinfo=BERLIN)),
        (deque[int], deque([1, 2], maxlen=2)),
        (defaultdict[str, list[int]], defaultdict(lambda: [1], {"a": [2]})),
    ],
    ids=["time zone", "maxlen", "default_factory"],
)
def test_a_value_that_loses_something_is_not_stored(annotation: Any, value: Any) -> None:
    """The codec says that another value comes back."""
    codec = Codec(annotation, owner="f")
    assert codec.verify(codec.encode(value), value) is not None


@pytest.mark.parametrize("annotation", [ImportString, list[ImportString[int]]])
def test_types_that_import_what_they_read_are_refused(annotation: Any) -> None:
    """Nothing that Redis holds is executed."""
    with pytest.raises(SchemaError, match="ImportString"):
        Codec(annotation, owner="f")
