"""A check of docstrings, comments, messages and pages: `python -m tests.support.source.prose PATH...` lists faults.

A function's docstring begins with a verb in the imperative, a class's with a noun, and a test's says what is so. What
is described has a name: a caller, a server, an entry. Sentences are short.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support import ROOT

MOST_WORDS = 25
"""In a sentence."""

CLAUSES = {"what", "who", "whoever", "whose", "whether", "how", "by", "have", "let", "tell", "tells", "give", "gives"}
"""Neither a function's docstring nor a test's begins with one of these."""
NOT_VERBS = CLAUSES | {
    *("a", "an", "the", "this", "that", "these", "those", "it", "its", "one", "each", "every", "all", "any", "some"),
    *(
        "in",
        "on",
        "at",
        "to",
        "of",
        "for",
        "from",
        "with",
        "without",
        "as",
        "so",
        "such",
        "if",
        "when",
        "where",
        "while",
    ),
    *(
        "and",
        "or",
        "not",
        "no",
        "nothing",
        "likewise",
        "same",
        "there",
        "here",
        "is",
        "are",
        "has",
        "had",
        "only",
        "true",
    ),
    *("those", "both", "other", "many", "also", "while", "because", "true", "false", "none", "how", "why"),
}
"""Nor does a function's with one of these, since its first word is a verb in the imperative."""
NOT_NOUNS = (CLAUSES - {"let"}) | {"return", "raise", "is", "has", "it", "likewise", "so", "as", "if", "when"}
"""A class's docstring begins with a noun, which may have an article or an adjective."""
BANNED = re.compile(
    r"\b(who|whom|whoever|nobody|somebody|anybody|they|owe[sd]?|believe[sd]?|hears?|heard|tells?|told|untold|hushed)\b",
    re.IGNORECASE,
)
"""A subject has a name, and objects do not talk."""
OF_THE_LIBRARY = re.compile(r"\b(knows?|said)\b", re.IGNORECASE)
"""In the library and its pages, an index has a key, and a log has a message: neither knows, and nothing is said."""
TALKING = {"tell", "tells", "told", "untold", "hear", "hears", "heard", "say", "says", "said", "owe", "owes", "knows"}
"""Nor has a function, an argument, a variable or an attribute of the library such a word in its name."""
_LIBRARY_ONLY = "in the library, "
_CODE = re.compile(r"``.+?``|`[^`]*`|\"[^\"]*\"")
_END = re.compile(r"[.!?:;](?:\s|$)|\n\s*\n|\n\s*(?:[-*]|\w+:) ")
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\[([^\]]*)\]\([^)\s]+\)")
_FIRST = re.compile(r"[A-Za-z']+")
_THIRD_PERSON = re.compile(r"[a-z]*[^s]s")
"""A first word such as `returns`; an imperative ends in `ss`, if it ends in an `s` at all."""


Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Fault(NamedTuple):
    """A place that breaks a rule."""

    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}"


def faults(path: Path) -> list[Fault]:
    """Return what is wrong in one file of Python, Lua or Markdown, or in all below a folder, in the order of lines."""
    if path.is_dir():
        kinds = (".py", ".lua", ".md")
        return [fault for each in sorted(path.rglob("*")) if each.suffix in kinds for fault in faults(each)]
    text, name = path.read_text("utf-8"), str(path.relative_to(ROOT))
    is_library = name.startswith("fastrdb/")
    if path.suffix == ".py":
        found = list(_of_python(text, messages=is_library))
    else:
        found = list(_of_lua(text) if path.suffix == ".lua" else _of_page(text))
    return sorted(Fault(name, line, what) for line, what in found if is_library or not what.startswith(_LIBRARY_ONLY))


def _of_page(text: str) -> Iterator[tuple[int, str]]:
    """Check each paragraph, each item of a list and each cell of a table: a line of the source is one of these."""
    text = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for number, line in enumerate(text.splitlines(), start=1):
        for cell in re.split(r"(?<!\\)\|", line) if line.startswith("|") else [line]:
            plain = _CODE.sub("x", _LINK.sub(r"\1", cell))
            yield from _words(number, plain)
            yield from _long_sentences(number, plain)


def _of_lua(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        yield from _words(number, line.partition("--")[2])


def _of_python(text: str, *, messages: bool) -> Iterator[tuple[int, str]]:
    tree, docstrings = ast.parse(text), set()
    for node in ast.walk(tree):
        if isinstance(node, Documented) and node.body and (docstring := _text(node.body[0])) is not None:
            docstrings.add(id(docstring))
            yield from _of_docstring(node, docstring)
    for node in ast.walk(tree):
        if (docstring := _text(node)) is not None and id(docstring) not in docstrings:
            docstrings.add(id(docstring))  # of a constant or an attribute
            yield from _words(docstring.lineno, str(docstring.value))
    if messages:
        yield from _of_messages(tree, docstrings)
        yield from _of_names(tree)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield from _words(token.start[0], token.string)


def _text(node: ast.AST) -> ast.Constant | None:
    """Return the string that stands by itself as a statement."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value
    return None


def _of_messages(tree: ast.Module, docstrings: set[int]) -> Iterator[tuple[int, str]]:
    """Check other strings; one of a single word may be a name of the interface."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield from _words(node.lineno, node.value if " " in node.value.strip() else "")


def _of_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Check the names that a module of the library gives."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name, lineno=line) | ast.AsyncFunctionDef(name=name, lineno=line):
                pass
            case ast.arg(arg=name, lineno=line) | ast.Name(id=name, ctx=ast.Store(), lineno=line):
                pass
            case ast.Attribute(attr=name, ctx=ast.Store(), lineno=line):
                pass
            case _:
                continue
        if TALKING.intersection(name.lower().split("_")):
            yield line, f"the name {name!r} talks"


def _of_docstring(node: ast.AST, docstring: ast.Constant) -> Iterator[tuple[int, str]]:
    line, text = docstring.lineno, str(docstring.value)
    match = _FIRST.search(text)
    first = match[0] if match else ""
    if isinstance(node, ast.ClassDef):
        wrong = NOT_NOUNS
    elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        wrong = set()
    elif node.name.startswith("test_") or any("property" in ast.unparse(each) for each in node.decorator_list):
        wrong = CLAUSES
    else:
        wrong = NOT_VERBS
    if first.lower() in wrong or (wrong is NOT_VERBS and _THIRD_PERSON.fullmatch(first.lower())):
        yield line, f"a docstring begins with {first!r}"
    yield from _words(line, text)
    yield from _long_sentences(line, _CODE.sub("x", text))


def _long_sentences(line: int, text: str) -> Iterator[tuple[int, str]]:
    for sentence in _END.split(text):
        if (count := len(sentence.split())) > MOST_WORDS:
            yield line, f"a sentence has {count} words, at most {MOST_WORDS}: {' '.join(sentence.split()[:8])} ..."


def _words(line: int, text: str) -> Iterator[tuple[int, str]]:
    for banned, where in ((BANNED, ""), (OF_THE_LIBRARY, _LIBRARY_ONLY)):
        for match in banned.finditer(_CODE.sub("", text)):
            yield line, f"{where}{match[0]!r} in: {text[max(0, match.start() - 30) : match.end() + 20].strip()!r}"


if __name__ == "__main__":
    wrong = [fault for name in sys.argv[1:] for fault in faults((ROOT / name).resolve())]
    print(*wrong, f"{len(wrong)} faults", sep="\n")
    sys.exit(bool(wrong))
