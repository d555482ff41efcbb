"""The face of `fastrdb.keys`."""

from .call import MISSING, UNSAID, CallPlan
from .elements import Elements, elements_of, shape_of
from .filling import mark
from .pattern import Template, quote
from .prefix import Prefix, prefixes_of
from .reaches import RESULT
from .sealing import seal_of
from .signature import Inspected, inspect_function

__all__ = [
    "MISSING",
    "RESULT",
    "UNSAID",
    "CallPlan",
    "Elements",
    "Inspected",
    "Prefix",
    "Template",
    "elements_of",
    "inspect_function",
    "mark",
    "prefixes_of",
    "quote",
    "seal_of",
    "shape_of",
]
