"""The face of `fastrdb.keys`: from a call to its key, from a template to what it reaches."""

from .call import UNSAID, BoundCall, BoundMany, CallPlan
from .compiled import cannot_change
from .declared import MISSING, filled, members, open_in, type_in, variables
from .encoding import quote
from .pattern import Pattern, Seal, add_pairs, hashed, without_variant
from .prefix import VARIANTS, Prefix, PrefixTemplates, Reached, fingerprint
from .signature import FIXED, Inspected, ResultShape, inspect_function, is_fixed
from .tag import ANYTHING, END, EVERYTHING, Image, Reach, asked, bounded, hiding, row_tag, shown, table_tag, value_text

__all__ = [
    "ANYTHING",
    "END",
    "EVERYTHING",
    "FIXED",
    "MISSING",
    "UNSAID",
    "VARIANTS",
    "BoundCall",
    "BoundMany",
    "CallPlan",
    "Image",
    "Inspected",
    "Pattern",
    "Prefix",
    "PrefixTemplates",
    "Reach",
    "Reached",
    "ResultShape",
    "Seal",
    "add_pairs",
    "asked",
    "bounded",
    "cannot_change",
    "filled",
    "fingerprint",
    "hashed",
    "hiding",
    "inspect_function",
    "is_fixed",
    "members",
    "open_in",
    "quote",
    "row_tag",
    "shown",
    "table_tag",
    "type_in",
    "value_text",
    "variables",
    "without_variant",
]
