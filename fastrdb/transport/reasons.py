"""What an error of Redis says, without the keys and values that it may quote: it ends up in logs."""

from __future__ import annotations

import re

from redis.exceptions import InvalidResponse

_MOST = 200  # characters; what is longer quotes something
_PIPELINE = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
_ARGUMENTS = re.compile(r",? *with args beginning with:.*", re.DOTALL)


def hushed(error: Exception) -> str:
    """What the error says, as far as these are its own words; its name if it has none. From now on it says no more.

    A deadline that has passed has no words.
    """
    if isinstance(error, InvalidResponse):  # quotes what came instead: somebody's value, perhaps
        text = type(error).__name__
    else:
        text = _ARGUMENTS.sub("", _PIPELINE.sub("", str(error)))[:_MOST] or type(error).__name__
    if str(error) not in ("", text):  # it is the cause of another error, and stands in its traceback
        error.args = (text,)
    return text
