"""The pages and their order: from the notes, the sources and the exhibits to the files of the site."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable
from html import escape
from pathlib import Path

from docs.figures import DOCS, FIGURES
from docs.pages import exhibits, notes, unet_picture
from docs.pages.markup import Equation, Link, Renderer, figure, frame, functions, test_anchor
from docs.pages.sources import SOURCES, Names, Piece, cut, definitions, highlight, module_of, read
from kernels.equivalence import SIDES
from unet import CONFIGS

TESTED = "The tests behind the equations"
STATIC = Path(__file__).parent / "static"
WALK = {                            # groups of the contents; all pages in the order of a first walk
    "What is x_t?": ("index", "x_t", "schedules", "ddpm"),
    "The way back": ("reverse", "swiss_roll"),
    "Samplers": ("table", "samplers"),
    "Noise": ("philox", "noise"),
    "The network": ("network", "unet"),
    "Training, sampling": ("train", "sample"),
    "Kernels": ("kernels.group_norm_silu", "kernels.group_norm_silu_triton", "kernels.sampling_step",
                "kernels.sampling_step_triton", "kernels.conv_tail", "kernels.conv_tail_triton", "kernels.compile"),
    "More": ("gallery", "tests"),
}
SCRIPTS = {"x_t": ("noise", "ddpm", "ui", "x_t"), "reverse": ("ui", "reverse"),
           "table": ("noise", "ddpm", "samplers", "ui", "table"), "philox": ("noise", "ui", "philox"),
           "network": ("ui", "network")}


def build(steps: int) -> dict[str, bytes]:
    """Every file of the site by its name. steps: of training the swiss roll of the reverse chain.

    Raises ValueError for a definition without a note, a note without its definition, an equation without a test, a
    figure without its command.
    """
    sources = {module_of(source): source for source in SOURCES}
    texts = {page: notes.read(page) for group in WALK.values() for page in group if page != "tests"}
    titles = {page: text.title for page, text in texts.items()} | {"tests": TESTED}
    titles |= {page: f"{titles[page]}, {Path(source).name}" for page, source in sources.items()}
    contents = {group: [Link(page, titles[page]) for page in pages] for group, pages in WALK.items()}
    anchors = {module: {name: f"{module}.html#{name}" for names, _ in texts[module].notes for name in names}
               for module in sources}
    names, bodies, equations = Names(anchors), {}, []
    for page, text in texts.items():
        renderer = Renderer(page, finder(names, page, sources))
        body = (source_body(sources[page], text, renderer, names) if page in sources else
                prose_body(page, text, renderer))
        bodies[page] = f'<article class="{"source" if page in sources else "prose"}">{body}</article>'
        equations += renderer.equations
    given = {"x_t": exhibits.forward, "reverse": lambda: exhibits.reverse(steps), "table": exhibits.table,
             "philox": exhibits.philox, "network": dict}            # made last: what is slow waits for what may fail
    files = {f"{page}.html": frame(page, texts[page].title, body, contents, scripts=SCRIPTS.get(page, ()),
                                   data=given[page]() if page in given else None) for page, body in bodies.items()}
    files["tests.html"] = frame("tests", TESTED, tests_body(equations), contents)
    files = {name: text.encode() for name, text in files.items()}
    files |= {path.name: path.read_bytes() for path in sorted(STATIC.iterdir())}
    files["site.css"] += unet_picture.STYLE.encode()
    return files | {path.name: path.read_bytes() for path in sorted(DOCS.glob("*.png"))}


def finder(names: Names, page: str, sources: dict[str, str]) -> Callable[[str], str | None]:
    """Where the thing is explained that a code span in the notes of a page names: q_sample, ddpm.q_sample, ddpm.py."""
    def find(code: str) -> str | None:
        module, _, name = code.rpartition(".")
        for source, file in sources.items():
            if code in (file, source):
                return f"{source}.html"
            if name and (module == source or source.endswith(f".{module}")) and names.find(source, name):
                return names.find(source, name)
        modules = [page] if page in sources else sources            # a page of prose may name what any of them explains
        return next((href for each in modules if (href := names.find(each, code))), None)
    return find


# A source

def source_body(source: str, text: notes.Notes, renderer: Renderer, names: Names) -> str:
    """The notes of a source, each beside its lines."""
    pieces = cut(source, [names for names, _ in text.notes])
    lines = highlight(read(source), names.links(source))
    listed = " ".join(f'<a href="#{name}">{name}</a>' for piece in pieces for name in piece.names)
    parts = [f'<h1><code>{source}</code> {escape(text.title)}</h1>\n',
             f'<nav class="names" aria-label="Definitions of this file">{listed}</nav>\n']
    for piece, note in zip(pieces, [text.head, *(note for _, note in text.notes)], strict=True):
        parts.append(f'<section class="piece"><div class="note">{heading(source, piece)}{renderer.render(note)}</div>\n'
                     f'{code(source, piece, lines)}</section>\n')
    return "".join(parts)


def heading(source: str, piece: Piece) -> str:
    if not piece.names:
        return ""
    known = definitions(source)
    kinds = " ".join(f'<a id="{name}" href="#{name}">{breakable(name)}</a>' for name in piece.names if name in known)
    return f"<h2>{kinds}</h2>\n"


def breakable(name: str) -> str:
    """A long name, which may go on in another line behind an underscore."""
    return name.replace("_", "_<wbr>")


def code(source: str, piece: Piece, lines: list[str]) -> str:
    """The lines of a piece, numbered as in their file."""
    rows = "".join(f'<span class="row" id="L{n}" data-n="{n}">{lines[n - 1]}\n</span>'
                   for n in range(piece.first, piece.last + 1))
    return (f'<pre class="code" tabindex="0" role="region" aria-label="{source}, lines {piece.first} to {piece.last}">'
            f'<code>{rows}</code></pre>')


# Pages of prose

def prose_body(page: str, text: notes.Notes, renderer: Renderer) -> str:
    """The text, whose ### headings are the second level here, and for some pages what is made of the code."""
    body = f"<h1>{escape(text.title)}</h1>\n{renderer.render(re.sub('^### ', '## ', text.head, flags=re.M))}"
    if page == "gallery":
        return body + gallery(text, renderer)
    if text.notes:
        raise ValueError(f"the notes of {page} have headings of definitions, but it is no source; use ### there")
    return body.replace("<!-- networks -->", networks()) if page == "network" else body


def networks() -> str:
    """The picture of every named network, all but the first hidden."""
    return "".join(f'<section class="network" id="{name}"{"" if name == "digits" else " hidden"}><h2>{name}</h2>'
                   f'{unet_picture.picture(config, SIDES[name], SIDES[name])}</section>\n'
                   for name, config in CONFIGS.items())


def gallery(text: notes.Notes, renderer: Renderer) -> str:
    """Every figure of docs/ with its note. Raises ValueError for a figure without a note or with another command."""
    shown, there = [name for names, _ in text.notes for name in names], {path.name for path in DOCS.glob("*.png")}
    if {*shown} != there or len(shown) > len(there):
        raise ValueError(f"the gallery and docs/ differ in {', '.join(sorted({*shown} ^ there))}; it must show each "
                         f"figure once, with a note and the command that made it")
    parts = []
    for (name,), note in text.notes:
        stem = Path(name).stem
        if "python " not in note or stem in FIGURES and f"python -m docs.figures --only {stem}" not in note:
            raise ValueError(f"the gallery's note of {name} does not say the command that makes it; add it")
        parts.append(f'<section class="figure" id="{stem}"><h2>{escape(name)}</h2>{renderer.render(note)}'
                     f'<img src="{name}" alt="{escape(name)}" loading="lazy"></section>\n')
    return "".join(parts)


def tests_body(equations: list[Equation]) -> str:
    """Every test that an equation names: its lines, and the equations that it proves."""
    proved, coloured = defaultdict(list), functools.cache(lambda file: highlight(read(file)))
    for equation in equations:
        for test in equation.tests:
            proved[test].append(equation)
    parts = []
    for (file, name), those in sorted(proved.items()):
        node = functions(file)[name]
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        anchor = test_anchor(file, name).partition("#")[2]
        note = "".join(figure(each, f'<a href="{each.href}">{each.href.replace(".html#equation-", " (")})</a>')
                       for each in those)
        rows = code(file, Piece((name,), first, node.end_lineno), coloured(file))
        title = f'<h2><a id="{anchor}" href="#{anchor}">{breakable(name)}</a></h2>'
        parts.append(f'<section class="piece"><div class="note">{title}<p><code>{file}</code></p>{note}</div>\n'
                     f'{rows.replace(" id=", " data-id=")}</section>\n')
    return (f'<article class="source tests"><h1>{TESTED}</h1><p class="lead">Every displayed equation of these pages '
            f'names its tests. These are they: {len(proved)}, for {len(equations)} equations. <code>pytest</code> runs '
            f'them, and the pages are not built if one is gone.</p>\n{"".join(parts)}</article>')
