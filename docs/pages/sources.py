"""The files that the pages show: cut into the pieces that the notes explain, their names linked to those pieces."""

import ast
import functools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

ROOT = Path(__file__).parents[2]
SOURCES = ("schedules.py", "ddpm.py", "samplers.py", "noise.py", "swiss_roll.py", "unet.py", "train.py", "sample.py",
           "kernels/group_norm_silu.py", "kernels/group_norm_silu_triton.py", "kernels/sampling_step.py",
           "kernels/sampling_step_triton.py", "kernels/conv_tail.py", "kernels/conv_tail_triton.py",
           "kernels/compile.py")
STYLES = {String.Doc: "q", String: "s", Comment: "c", Number: "m", Keyword.Constant: "m", Keyword: "k",
          Operator.Word: "k", Name.Function: "f", Name.Class: "f", Name.Decorator: "f"}
DEFINITION = (ast.FunctionDef, ast.ClassDef)


class Piece(NamedTuple):
    """Lines first..last of a file, counted from 1, which one note explains."""
    names: tuple[str, ...]          # the definitions among them; none for the head of the file
    first: int
    last: int


def module_of(source: str) -> str:
    """kernels.compile of kernels/compile.py, also the name of its page."""
    return source.removesuffix(".py").replace("/", ".")


@functools.cache
def read(source: str) -> str:
    return (ROOT / source).read_text(encoding="utf-8")


@functools.cache
def tree(source: str) -> ast.Module:
    return ast.parse(read(source))


# Cutting

def definitions(source: str) -> dict[str, tuple[ast.stmt, bool]]:
    """What a note may explain, in order: its statement, and whether it must have a note.

    Functions and classes of the file must; its constants and the methods of its classes, as Class.method, may.
    """
    found = {}
    for statement in tree(source).body:
        if isinstance(statement, DEFINITION):
            found[statement.name] = statement, True
        for name in assigned(statement):
            found[name] = statement, False
        if isinstance(statement, ast.ClassDef):
            for method in statement.body:
                if isinstance(method, ast.FunctionDef):
                    found[f"{statement.name}.{method.name}"] = method, False
    return found


def assigned(statement: ast.stmt) -> list[str]:
    """The names that a statement of a module gives a value."""
    targets = {ast.Assign: lambda: statement.targets, ast.AnnAssign: lambda: [statement.target]}
    return [node.id for target in targets.get(type(statement), list)() for node in ast.walk(target)
            if isinstance(node, ast.Name)]


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
    if named != sorted(named, key=lambda name: known[name][0].lineno) or len({*named}) < len(named):
        raise ValueError(f"the notes of {source} are not in its order; the order is "
                         f"{', '.join(name for name in known if name in named)}")
    lines = read(source).splitlines()
    starts = [start(known[names[0]][0], lines) for names in notes]
    for k, names in enumerate(notes[1:], 1):
        before = known[notes[k - 1][-1]][0]
        if "." not in names[0] and "." not in notes[k - 1][-1]:
            starts[k] = before.end_lineno + 1                       # with what stands between the two
    ends = [*(first - 1 for first in starts), len(lines)]
    pieces = [Piece((), 1, ends[0])]
    pieces += [Piece(names, first, last) for names, first, last in zip(notes, starts, ends[1:], strict=True)]
    return [Piece(names, *strip(lines, first, last)) for names, first, last in pieces]


def start(statement: ast.stmt, lines: list[str]) -> int:
    """Its first line: a decorator's, or that of a comment right above it."""
    first = min([statement.lineno, *(each.lineno for each in getattr(statement, "decorator_list", ()))])
    while first > 1 and (not lines[first - 2].strip() or lines[first - 2].lstrip().startswith("#")):
        first -= 1
    return first


def strip(lines: list[str], first: int, last: int) -> tuple[int, int]:
    """first..last without blank lines at its ends."""
    full = [n for n in range(first, last + 1) if lines[n - 1].strip()]
    return full[0], full[-1]


# Linking

class Names:
    """Which page and anchor a name of a module stands for, through any number of imports."""

    def __init__(self, anchors: dict[str, dict[str, str]]):
        """anchors: of each module with a page, its explained names and where they are explained."""
        self.anchors = anchors

    def find(self, module: str, name: str, seen: tuple = ()) -> str | None:
        """Where `name`, as used in `module`, is explained; None if nowhere."""
        if name in self.anchors.get(module, {}):
            return self.anchors[module][name]
        found = imports(module).get(name)
        if found is None or found in seen:
            return None
        package, inner = found
        if inner is None:
            return f"{package}.html" if package in self.anchors else None
        nested = f"{package}.{inner}"
        return self.find(package, inner, (*seen, found)) or (f"{nested}.html" if nested in self.anchors else None)

    def module(self, module: str, name: str) -> str | None:
        """The module that `name` stands for in `module`, if it is one with a page."""
        package, inner = imports(module).get(name, (None, None))
        module = package if inner is None else f"{package}.{inner}"
        return module if module in self.anchors else None

    def links(self, source: str) -> Iterator[tuple[int, int, int, str]]:
        """Line, first and last column and target of each name in the file that is explained somewhere."""
        yield from Linker(self, module_of(source)).walk(tree(source), ())


@functools.cache
def imports(module: str) -> dict[str, tuple[str, str | None]]:
    """What the imports of a module's file bind: to a module, or to a name in one."""
    path = module.replace(".", "/")
    source = next((each for each in (f"{path}.py", f"{path}/__init__.py") if (ROOT / each).is_file()), None)
    found = {}
    for node in ast.walk(tree(source)) if source else ():
        if isinstance(node, ast.Import):
            found |= {each.asname or each.name: (each.name, None) for each in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {each.asname or each.name: (node.module, each.name) for each in node.names}
    return found


class Linker:
    """Walks a file, leaving out the names that a function binds for itself."""

    def __init__(self, names: Names, module: str):
        self.names, self.module = names, module

    def walk(self, node: ast.AST, local: tuple) -> Iterator[tuple[int, int, int, str]]:
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield from self.function(node, local)
            return
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from self.imported(node)
            return
        target = self.target(node, local)
        if target:
            yield node.lineno, node.col_offset, node.end_col_offset, target
            return
        for child in ast.iter_child_nodes(node):
            yield from self.walk(child, local)

    def function(self, node: ast.FunctionDef | ast.Lambda, local: tuple) -> Iterator[tuple[int, int, int, str]]:
        """The body with the function's own names, the rest with those around it."""
        own = {each.arg for each in ast.walk(node.args) if isinstance(each, ast.arg)}
        own |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        own |= {each.name for each in ast.walk(node) if isinstance(each, ast.FunctionDef) and each is not node}
        body = node.body if isinstance(node.body, list) else [node.body]
        for child in ast.iter_child_nodes(node):
            yield from self.walk(child, (*local, *own) if child in body else local)

    def imported(self, node: ast.Import | ast.ImportFrom) -> Iterator[tuple[int, int, int, str]]:
        for each in node.names:
            if target := self.names.find(self.module, each.asname or each.name):
                yield each.lineno, each.col_offset, each.end_col_offset, target

    def target(self, node: ast.AST, local: tuple) -> str | None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in local:
            return self.names.find(self.module, node.id)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in local:
            module = self.names.module(self.module, node.value.id)
            return self.names.find(module, node.attr) if module else None
        return None


# Colouring

def style(kind) -> str:
    """The class of a token, or of the kind it belongs to."""
    while kind is not None and kind not in STYLES:
        kind = kind.parent
    return STYLES.get(kind, "")


def highlight(text: str, links: Iterator[tuple[int, int, int, str]] = ()) -> list[str]:
    """The lines of Python text as HTML, coloured, with these links in them."""
    opens, closes, offsets = defaultdict(str), defaultdict(str), [0]
    for line in text.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(line))
    for line, first, last, href in links:
        opens[offsets[line - 1] + first] = f'<a href="{escape(href)}">'
        closes[offsets[line - 1] + last] = "</a>"
    html = ""
    for at, kind, value in PythonLexer(stripnl=False).get_tokens_unprocessed(text):
        name = style(kind)
        parts = [f'<span class="{name}">{escape(part, quote=False)}</span>' if name and part.strip() else
                 escape(part, quote=False) for part in value.split("\n")]
        html += opens[at] + "\n".join(parts) + closes[at + len(value)]
    return html.removesuffix("\n").split("\n")
