"""The pairs that a function puts behind all of its keys: the class that inherits it, and the version of its values.

A prefix, and the list of single keys of an invalidation, reach a key with all its variants.
"""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

from .declared import full_name
from .encoding import quote

_OWN_PAIRS = re.compile(r"[?&]%(?:class|v|schema)=")


class Variant:
    """The pairs of one function.

    Two classes that inherit one method may give two results for the same arguments. So only the class that defines
    the method has the keys of the pattern, and each other class has a name in its keys.

    Attributes:
        version: of the values; "" for none.
        shared: all classes that inherit the method use the same keys.
        plain: the classes whose keys are those of the pattern.
        home: module and qualified name of the class that defines the method.
    """

    __slots__ = ("version", "shared", "plain", "home", "_texts")

    def __init__(self) -> None:
        self.version, self.shared, self.home = "", True, ("", "")  # until `settle`
        self.plain: set[type] = set()
        self._texts: WeakKeyDictionary[type, str] = WeakKeyDictionary()

    def settle(self, module: str, function: str, version: str, *, shared: bool) -> None:
        """Take what is known when the function has been inspected. No key may have been made before."""
        self.home, self.version, self.shared = (module, function.rpartition(".")[0]), version, shared

    def belongs_to(self, owner: type) -> None:
        """Note that the function stands in the body of a class: of the first one, if there are several."""
        if not self.plain:
            self.plain.add(owner)

    def of_class(self, instance: Any) -> str:
        """Return the pair of the class of an instance, or of a class itself, with its separator; "" for none."""
        cls = instance if isinstance(instance, type) else type(instance)
        if cls in self.plain:
            return ""
        if (cls.__module__, cls.__qualname__) == self.home:  # defined here, or made anew by a class decorator
            self.plain.add(cls)
            return ""
        text = self._texts.get(cls)
        if text is None:
            text = self._texts[cls] = f"&%class={quote(full_name(cls))}"
        return text

    def of_version(self) -> str:
        """Return the pair of the version, with its separator; "" for none."""
        return f"&%v={quote(self.version)}" if self.version else ""


def without_variant(key: str) -> str:
    """Return the key without the pairs of its function and its session."""
    return _OWN_PAIRS.split(key, maxsplit=1)[0]
