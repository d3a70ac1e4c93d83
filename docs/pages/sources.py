"""The files that the pages show: cut into the pieces that the notes explain, coloured, their names linked to these."""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES

ROOT = Path(__file__).parents[2]
COLOURED = ("k", "s", "c", "m", "nf", "nc", "nd", "fm", "ow")      # classes of Pygments that site.css has colours for


class Definition(NamedTuple):
    """Lines first..last that define a name, with what stands above them since the statement before."""
    first: int
    last: int
    must: bool                      # whether it must have a note


class Piece(NamedTuple):
    """Lines first..last of a file, counted from 1, which one note explains."""
    names: tuple[str, ...]          # the definitions among them; none for the head of the file
    first: int
    last: int


@functools.cache
def read(source: str) -> str:
    return (ROOT / source).read_text(encoding="utf-8")


@functools.cache
def tree(source: str) -> ast.Module:
    return ast.parse(read(source))


# Cutting

def definitions(source: str) -> dict[str, Definition]:
    """What a note may explain, in order.

    Functions and classes of the file must have a note; its constants and the methods of its classes, as Class.method,
    may.
    """
    found = {}
    for statement, first in with_first_lines(tree(source).body, 1):
        must = isinstance(statement, (ast.FunctionDef, ast.ClassDef))
        for name in [statement.name] if must else assigned(statement):
            found[name] = Definition(first, statement.end_lineno, must)
        if isinstance(statement, ast.ClassDef):
            for part, first in with_first_lines(statement.body, statement.lineno + 1):
                if isinstance(part, ast.FunctionDef):
                    found[f"{statement.name}.{part.name}"] = Definition(first, part.end_lineno, False)
    return found


def with_first_lines(body: list[ast.stmt], line: int) -> Iterator[tuple[ast.stmt, int]]:
    """Statements, each with the line after the one before: comments and decorators go with what is below them."""
    for statement in body:
        yield statement, line
        line = statement.end_lineno + 1


def assigned(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module gives a value."""
    targets = [child for child in ast.iter_child_nodes(statement) if hasattr(child, "ctx")]
    return [node.id for target in targets for node in ast.walk(target)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def cut(source: str, notes: Sequence[tuple[str, ...]]) -> list[Piece]:
    """The pieces of a file, one per note, after its head; together all lines that are not blank.

    notes: the definitions that each note explains, in the order of the file. Raises ValueError for a definition that
    is gone, has no note, or stands in another place.
    """
    known, named = definitions(source), [name for names in notes for name in names]
    if gone := [name for name in named if name not in known]:
        raise ValueError(f"the notes of {source} explain {', '.join(gone)}, which it does not define; remove or rename")
    if missing := [name for name, definition in known.items() if definition.must and name not in named]:
        raise ValueError(f"{source} defines {', '.join(missing)} without a note; give each a heading and a note")
    if named != (order := [name for name in known if name in named]):
        raise ValueError(f"the notes of {source} are not in its order; the order is {', '.join(order)}")
    lines, firsts = read(source).splitlines(), [1]
    for names, before in zip(notes, [None, *notes], strict=False):
        alone = before is None or "." in names[0] or "." in before[-1]
        firsts.append(known[names[0]].first if alone else known[before[-1]].last + 1)   # with what is between the two
    pieces = []
    for names, first, following in zip([(), *notes], firsts, [*firsts[1:], len(lines) + 1], strict=True):
        full = [n for n in range(first, following) if lines[n - 1].strip()]
        pieces.append(Piece(names, full[0], full[-1]))
    return pieces


# Linking

class Names:
    """Where names are explained, found through any number of imports."""

    def __init__(self, anchors: dict[str, str]):
        """anchors: addresses of modules and of what they define, by dotted names, as ddpm and ddpm.q_sample."""
        self.anchors = anchors

    def resolve(self, name: str) -> str | None:
        """Where the dotted name is explained; None if nowhere."""
        module, _, last = name.rpartition(".")
        bound = imports(module).get(last, name)
        return self.resolve(bound) if bound != name else self.anchors.get(name)

    def find(self, module: str, name: str) -> str | None:
        """Where it is explained what `name`, with or without dots, stands for in a module."""
        head, dot, rest = name.partition(".")
        return self.resolve(imports(module).get(head, f"{module}.{head}") + dot + rest)

    def links(self, source: str, module: str) -> Iterator[tuple[int, int, int, str]]:
        """Line, first and last column and target of each name in a module's file that is explained somewhere."""
        def walk(node: ast.AST, local: set[str]) -> Iterator[tuple[ast.AST, str]]:
            match node:
                case ast.FunctionDef() | ast.Lambda():
                    inner = local | bound(node)
                    for field, value in ast.iter_fields(node):
                        for child in value if isinstance(value, list) else [value]:
                            if isinstance(child, ast.AST):
                                yield from walk(child, inner if field == "body" else local)
                    return
                case ast.alias(name=name, asname=alias):
                    target = self.find(module, alias or name)
                case ast.Name(id=name, ctx=ast.Load()) if name not in local:
                    target = self.find(module, name)
                case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name not in local:
                    target = self.find(module, f"{name}.{attribute}")
                case _:
                    target = None
            if target:
                yield node.lineno, node.col_offset, node.end_col_offset, target
            else:
                for child in ast.iter_child_nodes(node):
                    yield from walk(child, local)

        return walk(tree(source), set())


@functools.cache
def imports(module: str) -> dict[str, str]:
    """The dotted names of what the imports of a module's file bind, by the names that they bind."""
    path = module.replace(".", "/")
    source = next((each for each in (f"{path}.py", f"{path}/__init__.py") if (ROOT / each).is_file()), None)
    found = {}
    for node in ast.walk(tree(source)) if source else ():
        if isinstance(node, ast.Import):
            found |= {each.asname or each.name: each.name for each in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    return found


def bound(function: ast.FunctionDef | ast.Lambda) -> set[str]:
    """The names that a function binds for itself: arguments, variables, functions in it."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        if isinstance(node, ast.FunctionDef) and node is not function:
            names.add(node.name)
    return names


# Colouring

def highlight(text: str, links: Iterator[tuple[int, int, int, str]] = ()) -> list[str]:
    """The lines of Python text as HTML, with the classes of Pygments and with these links in them."""
    opens, closes, offsets = defaultdict(str), defaultdict(str), [0]
    for line in text.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    for line, first, last, href in links:
        opens[offsets[line - 1] + first] = f'<a href="{escape(href)}">'
        closes[offsets[line - 1] + last] = "</a>"
    html = ""
    for at, kind, value in PythonLexer(stripnl=False).get_tokens_unprocessed(text):
        parts = (escape(part, quote=False) for part in value.split("\n"))
        if (name := STANDARD_TYPES[kind]).startswith(COLOURED):
            parts = (f'<span class="{name}">{part}</span>' if part.strip() else part for part in parts)
        html += opens[at] + "\n".join(parts) + closes[at + len(value)]
    return html.removesuffix("\n").split("\n")
