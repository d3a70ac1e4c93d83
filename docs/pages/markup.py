"""HTML of the notes: Markdown, equations as MathML beside their tests, code names as links."""

import ast
import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import escape
from typing import NamedTuple

import latex2mathml.converter
from markdown_it import MarkdownIt
from mdit_py_plugins.anchors import anchors_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin

from docs.pages.sources import tree

MATH_AND_STOP = re.compile(r'(<math [^>]*display="inline">(?:(?!</math>).)*</math>)([,.;:)]+)')
TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")


class Equation(NamedTuple):
    """A displayed equation of one line or several: where it stands, its MathML, and the tests of it."""
    href: str
    mathml: str
    tests: tuple[tuple[str, str], ...]          # (file, function)


# Equations

@functools.cache
def mathml(latex: str, display: str) -> str:
    """LaTeX as MathML, display "block" or "inline". Raises ValueError for what would be printed as it is."""
    try:
        html = latex2mathml.converter.convert(latex, display=display)
        html = html.replace("mtext>", "mi>")        # beside mtext an operator has no space around it
        letters = "".join(ET.fromstring(html).itertext())
    except Exception as error:
        raise ValueError(f"the equation {latex} is no LaTeX: {' '.join(str(error).split())}; mend it") from error
    if "\\" in letters or "&" in letters:
        raise ValueError(f"the equation {latex} would show as {letters}; use commands that latex2mathml knows")
    return html


def tests_of(label: str, latex: str) -> tuple[tuple[str, str], ...]:
    """The tests that a label names. Raises ValueError if it names none, or one that is gone."""
    tests = tuple(TEST.findall(label))
    if not tests or TEST.sub("", label).strip(" ,"):
        raise ValueError(f"the equation {latex} has the label ({label}); it must name the tests of it, as "
                         f"(tests/test_ddpm.py::test_clip)")
    for file, name in tests:
        if name not in functions(file):
            raise ValueError(f"the equation {latex} names {file}::{name}, which is gone; name the test of it now")
    return tests


@functools.cache
def functions(file: str) -> dict[str, ast.FunctionDef]:
    """The functions of a file of tests, none if there is no such file."""
    try:
        return {each.name: each for each in tree(file).body if isinstance(each, ast.FunctionDef)}
    except FileNotFoundError:
        return {}


def figure(equation: Equation, caption: str, anchor: str = "") -> str:
    """A displayed equation with its caption; it scrolls by keyboard where it is wider than the page."""
    name = f' id="{anchor}"' if anchor else ""
    return (f'<figure class="equation"{name}><div class="math" tabindex="0">{equation.mathml}</div>'
            f'<figcaption>{caption}</figcaption></figure>')


def test_anchor(file: str, name: str) -> str:
    """The address of a test on the page of tests, within that page."""
    return f"{file.removeprefix('tests/').removesuffix('.py').replace('/', '.')}.{name}"


# Markdown

class Renderer:
    """Markdown of one page to HTML; collects its displayed equations."""

    def __init__(self, page: str, find: Callable[[str], str | None]):
        """find: the address of what a code span names, None for other code."""
        self.page, self.find, self.equations = page, find, []
        self.markdown = MarkdownIt("commonmark", {"html": True, "typographer": True}).enable(["table", "smartquotes"])
        self.markdown.use(anchors_plugin, max_level=3)
        self.markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False, label_normalizer=str.strip)
        self.markdown.renderer.rules |= {
            "math_inline": lambda tokens, at, *_: mathml(tokens[at].content.strip(), "inline"),
            "math_block": lambda tokens, at, *_: self.display(tokens[at].content, tokens[at].info),
            "math_block_label": lambda tokens, at, *_: self.display(tokens[at].content, tokens[at].info),
            "code_inline": lambda tokens, at, *_: self.code(tokens[at].content)}

    def __call__(self, text: str) -> str:
        return MATH_AND_STOP.sub(r'<span class="together">\1\2</span>', self.markdown.render(text))

    def display(self, latex: str, label: str) -> str:
        latex = " ".join(latex.split())
        tests, anchor = tests_of(label, latex), f"equation-{len(self.equations) + 1}"
        lines = "".join(mathml(line.strip(), "block") for line in latex.split(r"\\"))
        self.equations.append(Equation(f"{self.page}.html#{anchor}", lines, tests))
        links = ", ".join(f'<a href="tests.html#{test_anchor(*test)}">{test[1]}</a>' for test in tests)
        number = f'<a class="number" href="#{anchor}">({len(self.equations)})</a>'
        return figure(self.equations[-1], f"{number} tested by {links}", anchor) + "\n"

    def code(self, code: str) -> str:
        html, href = f"<code>{escape(code, quote=False)}</code>", self.find(code)
        return f'<a href="{href}">{html}</a>' if href else html
