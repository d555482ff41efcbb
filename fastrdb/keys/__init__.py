"""The face of `fastrdb.keys`: from a call to its key, from a template to what it reaches."""

from .call import UNSAID, BoundCall, BoundMany, CallPlan
from .encoding import quote
from .pattern import Pattern, add_pairs, hashed
from .prefix import VARIANTS, Prefix, PrefixTemplates, Reached, fingerprint
from .signature import MISSING, ResultShape, inspect_function

__all__ = [
    "MISSING",
    "UNSAID",
    "VARIANTS",
    "BoundCall",
    "BoundMany",
    "CallPlan",
    "Pattern",
    "Prefix",
    "PrefixTemplates",
    "Reached",
    "ResultShape",
    "add_pairs",
    "fingerprint",
    "hashed",
    "inspect_function",
    "quote",
]
