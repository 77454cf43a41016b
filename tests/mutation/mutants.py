"""What is changed: mutmut's operators on Python, and a table of our own on SQL."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

# What nothing runs: types and protocols. And what mutmut leaves alone as well: whatever else fails at once.
NEVER = (
    m.Annotation()
    | m.Decorator()
    | m.Subscript(value=m.Name("Literal"))
    | m.SimpleStatementLine(
        body=[
            m.Assign(
                value=m.Call(func=m.Name("TypeVar"))
                | m.Subscript(value=m.Name("Literal") | m.Name("Callable") | m.Name("tuple"))
            )
        ]
    )
    | m.ClassDef(bases=[m.ZeroOrMore(), m.Arg(m.Name("Protocol"))])
    | m.Call(func=m.Name("len") | m.Name("isinstance"))
)
SQL = re.compile(
    r"\b(SELECT|INSERT|UPDATE|DELETE|EXISTS|WHERE|PRAGMA|ATTACH|DETACH|BEGIN|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|INDEXED)\b"
)
EQUALS = re.compile(r" = (?=[?:\w'])")
# What is put in the place of what in an SQL text, each time that it occurs. Mutmut only knows upper and lower case.
SQL_SWAPS = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r" < ", " <= "),
        (r" > ", " >= "),
        (r" >= ", " > "),
        (r" <> ", " = "),
        (r" AND (?!\?)", " OR "),
        (r"\bNOT (?=EXISTS|IN\b)", ""),
        (r"(?<!NOT )(?=\b(EXISTS|IN) \()", "NOT "),
        (r"\bIS NULL", "IS NOT NULL"),
        (r"\bIS NOT NULL", "IS NULL"),
        (r" \+ 1\b", " - 1"),
        (r"\bcount - \?", "count + ?"),
        (r"\bmax\(", "min("),
        (r"\bmin\(", "max("),
        (r"\bLEFT JOIN", "JOIN"),
        (r"\bcoalesce\((\w+\.\w+), (\w+\.\w+)\)", r"coalesce(\2, \1)"),
        (r"\bDISTINCT ", ""),
        (r" DESC\b", ""),
        (r"\bORDER BY [\w., ]+?(?= LIMIT|\n|\)|$)", ""),
        (r" LIMIT 1\b", ""),
        (r"'(pending|leased|dead|skipped|retracted|retried)'", "'XX'"),
        (r", \w+ = (excluded\.\w+|\d+)", ""),
        (r"\b0\b", "1"),
        (r"\bINSERT OR REPLACE\b", "INSERT"),
    )
)
# A change: what stands there, what comes in its place, and the lines that run it.
Site = tuple[cst.CSTNode, cst.CSTNode, tuple[int, int]]


@dataclass(frozen=True)
class Mutant:
    """A module with one change."""

    number: int
    lines: tuple[int, int]
    before: str
    after: str
    code: str

    @property
    def label(self) -> str:
        """The change, as the README names it."""
        return f"`{self.before}` → `{self.after}`"


def mutants_of(code: str, chosen: Callable[[int], Collection[int]]) -> Iterator[Mutant]:
    """Make those mutants of a module whose numbers are chosen, given how many there are."""
    wrapper = MetadataWrapper(cst.parse_module(code))
    finder = _Finder()
    wrapper.visit(finder)
    for number in sorted(chosen(len(finder.found))):
        old, new, lines = finder.found[number]
        changed = wrapper.module.deep_replace(old, new).code
        before, after = (_lines_with(sign, code, changed) for sign in "-+")
        yield Mutant(number, lines, before, after, changed)


def _lines_with(sign: str, code: str, changed: str) -> str:
    """Tell the lines that are only in one of the two."""
    lines = difflib.unified_diff(code.splitlines(), changed.splitlines(), n=0)
    return " ".join(line[1:].strip() for line in list(lines)[2:] if line.startswith(sign))


def _sql_operator(node: cst.SimpleString) -> Iterator[cst.SimpleString]:
    """Change one place of an SQL text."""
    text = node.value
    for pattern, new in SQL_SWAPS:
        for found in pattern.finditer(text):
            yield node.with_changes(value=text[: found.start()] + found.expand(new) + text[found.end() :])
    if (where := text.find("WHERE")) >= 0:
        for found in EQUALS.finditer(text, where):
            yield node.with_changes(value=f"{text[: found.start()]} <> {text[found.end() :]}")


def _changes(node: cst.CSTNode) -> Iterable[cst.CSTNode]:
    """Say what may stand in the place of a node."""
    if isinstance(node, cst.SimpleString) and SQL.search(node.value):
        return _sql_operator(node)
    return [new for kind, operator in mutation_operators if isinstance(node, kind) for new in operator(node)]


class _Finder(cst.CSTVisitor):
    """Collects what can be changed, and into what."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self) -> None:
        self.found: list[Site] = []
        self._statement: tuple[int, int] | None = None
        self._lines = (0, 0)

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Collect the changes of a node, and go on to what is in it."""
        if m.matches(node, NEVER):
            return False
        if (position := self.get_metadata(PositionProvider, node, None)) is not None:  # commas have none
            self._lines = (position.start.line, position.end.line)
        if isinstance(node, cst.SimpleStatementLine):
            self._statement = self._lines
        self.found += [(node, changed, self._statement or self._lines) for changed in _changes(node)]
        return True

    def on_leave(self, original_node: cst.CSTNode) -> None:
        """Forget the statement: what follows is the header of another one, and run by its own lines."""
        if isinstance(original_node, cst.SimpleStatementLine):
            self._statement = None
