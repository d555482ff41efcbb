"""What the options of a decorator become: a policy, a place in the registry, and a wrapper."""

from __future__ import annotations

from typing import Any

from .errors import OptionError
from .invalidation import follows
from .keys import Inspected
from .loading import CachedFunction, Policy
from .options import flag
from .registry import SHORT_S, Registered
from .runtime import Runtime
from .typing import Options
from .wrappers import cached_wrapper

_NOT_OF_POLICY = frozenset({"auto", "depends_on", "ignore", "near", "shared", "never_invalidated", "version"})


def policy_of(owner: str, decorator: str, options: Options, verify: float = 0.0) -> Policy:
    """Return the policy that the options of a decorator make. Raises OptionError for an unknown one."""
    if unknown := options.keys() - Options.__annotations__.keys():
        raise OptionError(f"{owner}: {decorator} has no option {', '.join(sorted(unknown))}")
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name not in _NOT_OF_POLICY}
    verify = 0.0 if options.get("never_invalidated") else verify  # its entries may be old until their time is over
    return Policy.of(owner, **{"exp": 3600.0, "verify": verify, **chosen})


def near_of(owner: str, options: Options, default: bool) -> bool:
    """Return whether this process keeps entries as well. Raises OptionError."""
    near = options.get("near")
    if near is not None and not isinstance(near, bool):
        raise OptionError(f"{owner}: near={near!r} must be True, False or None: its bounds are the cache's")
    return default if near is None else near


def register(
    runtime: Runtime, decorator: str, function: Any, found: Inspected, options: Options, query: CachedFunction
) -> Any:
    """Give a cached function its options and its place in the registry, and return its wrapper."""
    query.declare(options.get("depends_on"), found, decorator)
    query.follows = follows(runtime.follower, found, decorator, options.get("auto"))
    query.tagged = query.tagged or query.follows
    plan, module = query.plan, getattr(function, "__module__", "")
    version = query.codec.version(options.get("version"))
    shared = flag(options.get("shared", False), name="shared", owner=plan.function)
    endless = flag(options.get("never_invalidated", False), name="never_invalidated", owner=plan.function)
    plan.variant.settle(module, found.name, version, shared=shared)
    query.registered = runtime.registry.add(
        Registered(
            plan.function,
            module,
            decorator,
            query.counters,
            {**options},
            plan.pattern,
            query.codec.type,
            of_subclass=plan.function != found.name,
            shared=shared,
            ends=query.tagged or endless or query.policy.exp_ms <= SHORT_S * 1000,
        )
    )
    return cached_wrapper(function, query)
