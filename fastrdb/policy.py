"""The options of a decorated function, checked once and frozen; what they mean for an entry. Pure.

All durations are seconds, `float` or `timedelta`, as they come in; milliseconds, as Redis wants them, when kept here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from .errors import OptionError

Seconds = float | timedelta
_LONGEST = 10 * 365 * 86_400.0  # ten years: more is a mistake in the unit


def seconds(value: Seconds, *, name: str, owner: str, least: float = 0.0) -> float:
    """`value` as seconds. OptionError naming `owner`, `name` and the value unless `least` < value <= ten years."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise OptionError(f"{owner}: {name}={value!r} must be seconds: a number or a timedelta")
    if not least < number <= _LONGEST:
        raise OptionError(f"{owner}: {name}={value!r} must be more than {least:g} seconds and at most ten years")
    return float(number)


def at_least_one(value: object, *, name: str, owner: str) -> int:
    """`value`. OptionError naming `owner`, `name` and the value unless it is a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{owner}: {name}={value!r} must be a whole number of at least 1")
    return value


@dataclass(frozen=True, slots=True)
class Policy:
    """How long the results of one function live, and which of them are stored."""

    exp_ms: int
    jitter: float = 0.0
    negative_ms: int | None = None
    wait: float = 5.0
    cache_if: Callable[[Any], bool] | None = None

    @classmethod
    def of(
        cls,
        owner: str,
        *,
        exp: Seconds,
        jitter: float = 0.0,
        negative_exp: Seconds | None = None,
        wait: Seconds = 5.0,
        cache_if: Callable[[Any], bool] | None = None,
    ) -> Policy:
        """Check the options of `owner`. Raises OptionError."""
        fraction: object = jitter
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
            raise OptionError(f"{owner}: jitter={jitter!r} must be a fraction of exp: 0 <= jitter < 1")
        if cache_if is not None and not callable(cache_if):
            raise OptionError(f"{owner}: cache_if={cache_if!r} must be a function of the result")
        return cls(
            exp_ms=_ms(seconds(exp, name="exp", owner=owner)),
            jitter=float(jitter),
            negative_ms=None if negative_exp is None else _ms(seconds(negative_exp, name="negative_exp", owner=owner)),
            wait=seconds(wait, name="wait", owner=owner, least=-1e-9),
            cache_if=cache_if,
        )

    def ttl_ms(self, *, negative: bool, random: float) -> int:
        """Milliseconds that an entry lives; `random` in [0, 1) spreads it over `jitter` of its length, downwards."""
        whole = self.negative_ms if negative and self.negative_ms is not None else self.exp_ms
        return max(1, round(whole * (1 - self.jitter * random)))


def _ms(number: float) -> int:
    return max(1, round(number * 1000))
