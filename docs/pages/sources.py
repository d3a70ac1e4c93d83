"""The files that the pages show: cut into the pieces that the notes explain, their names linked to these, coloured."""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import jedi
from pygments.lexers import PythonLexer
from pygments.token import STANDARD_TYPES

ROOT = Path(__file__).parents[2]
COLOURED = ("k", "s", "c", "m", "nf", "nc", "nd", "fm", "ow")      # classes of Pygments that site.css has colours for


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

def definitions(source: str) -> dict[str, tuple[int, bool]]:
    """What a note may explain, in order: where it begins, with what stands above it, and whether it must have a note.

    Functions and classes of the file must; what else it gives a value, and the methods of its classes, as Class.method,
    may.
    """
    known = {}
    for statement, first in with_first_lines(tree(source).body, 1):
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            known[statement.name] = first, True
        else:
            known |= {node.id: (first, False) for node in ast.walk(statement)
                      if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        if isinstance(statement, ast.ClassDef):
            known |= {f"{statement.name}.{part.name}": (line, False)
                      for part, line in with_first_lines(statement.body, statement.lineno + 1)
                      if isinstance(part, ast.FunctionDef)}
    return known


def with_first_lines(body: list[ast.stmt], line: int) -> Iterator[tuple[ast.stmt, int]]:
    """Statements, each with the line after the one before: comments and decorators go with what is below them."""
    for statement in body:
        yield statement, line
        line = statement.end_lineno + 1


def cut(source: str, notes: Sequence[tuple[str, ...]]) -> list[Piece]:
    """The pieces of a file, one per note, after its head; together all lines that are not blank.

    notes: the definitions that each note explains, in the order of the file. Raises ValueError for a definition that
    is gone, has no note, or stands in another place.
    """
    known, named = definitions(source), [name for names in notes for name in names]
    if gone := [name for name in named if name not in known]:
        raise ValueError(f"the notes of {source} explain {', '.join(gone)}, which it does not define; remove or rename")
    if missing := [name for name, (_, must) in known.items() if must and name not in named]:
        raise ValueError(f"{source} defines {', '.join(missing)} without a note; give each a heading and a note")
    if named != (order := [name for name in known if name in named]):
        raise ValueError(f"the notes of {source} are not in its order; the order is {', '.join(order)}")
    lines, firsts = read(source).splitlines(), [1, *(known[names[0]][0] for names in notes)]
    pieces = []
    for names, first, following in zip([(), *notes], firsts, [*firsts[1:], len(lines) + 1], strict=True):
        full = [n for n in range(first, following) if lines[n - 1].strip()]
        pieces.append(Piece(names, full[0], full[-1]))
    return pieces


# Linking

def links(source: str, anchors: dict[str, str]) -> Iterator[tuple[int, int, int, str]]:
    """Line, first and last column and address of each name in a file that stands for something explained.

    anchors: addresses of modules and of what they define, by dotted names, as ddpm and ddpm.q_sample.
    """
    script = jedi.Script(path=ROOT / source, project=jedi.Project(ROOT), environment=jedi.InterpreterEnvironment())
    lines, explained = read(source).splitlines(), {name.rpartition(".")[2] for name in anchors}
    for name in script.get_names(all_scopes=True, references=True):
        inside = lines[name.line - 1][:name.column].endswith(".")
        if name.name not in explained or inside and not is_module(script, name.line, name.column - 2):
            continue
        for target in name.goto(follow_imports=True)[:1]:
            itself = (target.module_path, target.line, target.column) == (ROOT / source, name.line, name.column)
            variable = target.type == "statement" and target.column > 0     # of a comprehension, say
            if target.full_name in anchors and not itself and not variable:
                yield name.line, name.column, name.column + len(name.name), anchors[target.full_name]


def is_module(script: jedi.Script, line: int, column: int) -> bool:
    """Whether the name there stands for a module. Of an object Jedi would have to find the type, which takes long."""
    return any(each.type == "module" for each in script.goto(line, column, follow_imports=True))


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
