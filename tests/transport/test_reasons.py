"""What may be said of an error: its own words, and nothing that it quotes."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

from fastrdb.transport.reasons import hushed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ResponseError("OOM command not allowed"), "OOM command not allowed"),
        (RedisConnectionError("Error 111 connecting to host:1."), "Error 111 connecting to host:1."),
        (ResponseError("unknown command 'GET', with args beginning with: 'a@b.c' "), "unknown command 'GET'"),
        (ResponseError("Command # 1 (GET a\n@b.c) of pipeline caused error: WRONGTYPE x"), "WRONGTYPE x"),
        (InvalidResponse("Protocol Error: b'a@b.c'"), "InvalidResponse"),
        (TimeoutError(), "TimeoutError"),
        (OSError(32, "Broken pipe"), "[Errno 32] Broken pipe"),
        (ResponseError("x" * 1000), "x" * 200),
    ],
)
def test_an_error_says_what_is_its_own(error: Exception, said: str) -> None:
    """From then on, too, wherever it is printed."""
    assert hushed(error) == said
    assert str(error) in ("", said)
