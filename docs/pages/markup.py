"""HTML of the notes: Markdown, equations as MathML, code names as links, and the frame that all pages share."""

import ast
import functools
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html import escape
from typing import NamedTuple

import latex2mathml.converter
from markdown_it import MarkdownIt
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
def mathml(latex: str, display: bool) -> str:
    """LaTeX as MathML. Raises ValueError for what the converter does not understand and would print as it is."""
    try:
        html = latex2mathml.converter.convert(latex, display="block" if display else "inline")
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
    return f"tests.html#{file.removeprefix('tests/').removesuffix('.py').replace('/', '.')}.{name}"


# Markdown

class Renderer:
    """Markdown of one page to HTML; collects its displayed equations."""

    def __init__(self, page: str, find: Callable[[str], str | None]):
        """find: the address of what a code span names, None for other code."""
        self.page, self.find, self.equations = page, find, []
        self.markdown = MarkdownIt("commonmark", {"html": True, "typographer": True}).enable(["table", "smartquotes"])
        self.markdown.use(dollarmath_plugin, allow_space=False, allow_digits=False, label_normalizer=str.strip)
        for rule, render in {"math_inline": self.inline, "math_block": self.display, "math_block_label": self.display,
                             "code_inline": self.code, "heading_open": self.heading}.items():
            self.markdown.renderer.rules[rule] = render

    def render(self, text: str) -> str:
        return MATH_AND_STOP.sub(r'<span class="together">\1\2</span>', self.markdown.render(text))

    def inline(self, tokens, at, options, env) -> str:
        return mathml(tokens[at].content.strip(), False)

    def display(self, tokens, at, options, env) -> str:
        latex = " ".join(tokens[at].content.split())
        tests, anchor = tests_of(tokens[at].info, latex), f"equation-{len(self.equations) + 1}"
        lines = "".join(mathml(line.strip(), True) for line in latex.split(r"\\"))
        self.equations.append(Equation(f"{self.page}.html#{anchor}", lines, tests))
        links = ", ".join(f'<a href="{test_anchor(*test)}">{test[1]}</a>' for test in tests)
        number = f'<a class="number" href="#{anchor}">({len(self.equations)})</a>'
        return figure(self.equations[-1], f"{number} tested by {links}", anchor) + "\n"

    def code(self, tokens, at, options, env) -> str:
        html, href = f"<code>{escape(tokens[at].content, quote=False)}</code>", self.find(tokens[at].content)
        return f'<a href="{href}">{html}</a>' if href else html

    def heading(self, tokens, at, options, env) -> str:
        anchor = re.sub(r"\W+", "-", tokens[at + 1].content.lower()).strip("-")
        return f'<{tokens[at].tag} id="{anchor}">'


# The frame

class Link(NamedTuple):
    page: str
    title: str


def dumps(data) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data).replace("</", "<\\/")


def frame(page: str, title: str, body: str, contents: dict[str, list[Link]], *, scripts=(), data=None) -> str:
    """A whole HTML page, which needs nothing but the files beside it."""
    order = [link for links in contents.values() for link in links]
    here = next((k for k, link in enumerate(order) if link.page == page), None)
    steps = "" if here is None else "".join(
        f'<a rel="{rel}" href="{order[k].page}.html">{word} {order[k].title}</a>' for rel, word, k in
        (("prev", "&larr;", here - 1), ("next", "&rarr;", here + 1)) if 0 <= k < len(order))
    menu = "".join(f"<div><h2>{group}</h2><ul>" + "".join(
        f'<li><a href="{link.page}.html"{" aria-current=page" if link.page == page else ""}>{link.title}</a></li>'
        for link in links) + "</ul></div>" for group, links in contents.items())
    given = "" if data is None else f'<script type="application/json" id="data">{dumps(data)}</script>\n'
    loaded = "".join(f'<script src="{name}.js"></script>\n' for name in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} · Minimal diffusion</title>
<link rel="icon" href="data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E">
<link rel="stylesheet" href="site.css">
</head>
<body>
<a class="skip" href="#page">To the text</a>
<header><a class="home" href="index.html">Minimal diffusion</a>
<details class="menu"><summary>Contents</summary><nav aria-label="Contents">{menu}</nav></details></header>
<main id="page">
{body}
</main>
<footer><nav class="steps" aria-label="Previous and next">{steps}</nav></footer>
{given}{loaded}</body>
</html>
"""
