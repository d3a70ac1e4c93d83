"""The pages and their order: from the notes, the sources and the exhibits to the files of the site."""

import functools
from collections import defaultdict
from pathlib import Path

from docs.pages import TEMPLATES, exhibits, notes, unet_picture
from docs.pages.markup import Equation, Renderer, figure, functions, test_anchor
from docs.pages.sources import ROOT, Piece, cut, highlight, links, read
from kernels.equivalence import SIDES
from unet import CONFIGS

HERE, DOCS = Path(__file__).parent, Path(__file__).parents[1]
WALK = {                            # groups of the contents; all pages in the order of a first walk
    "A picture": ("index", "sample_here"),
    "What is x_t?": ("x_t", "schedules", "ddpm"),
    "The way back": ("reverse", "swiss_roll"),
    "Samplers": ("table", "samplers", "guidance"),
    "Noise": ("philox", "noise"),
    "The network": ("network", "unet"),
    "Training, sampling": ("train", "sample"),
    "Kernels": ("kernels.group_norm_silu", "kernels.group_norm_silu_triton", "kernels.sampling_step",
                "kernels.sampling_step_triton", "kernels.compile"),
    "More": ("gallery", "tests"),
}
PAGES = [page for group in WALK.values() for page in group]
FILES = {page: page.replace(".", "/") + ".py" for page in PAGES}
SOURCES = {page: file for page, file in FILES.items() if (ROOT / file).is_file()}      # the others are prose
CHAIN = ("noise", "schedules", "samplers", "ui", "unet", "chain")
SCRIPTS = {"index": (*CHAIN, "index"), "sample_here": (*CHAIN, "sample_here"),
           "x_t": ("noise", "schedules", "ui", "x_t"), "reverse": ("ui", "reverse"),
           "table": ("noise", "schedules", "samplers", "ui", "table"), "philox": ("noise", "ui", "philox"),
           "network": ("ui", "network")}


def build(steps: int) -> dict[str, bytes]:
    """Every file of the site by its name. steps: of training the swiss roll of the reverse chain.

    Raises ValueError for a definition without a note, a note without its definition, an equation without a test.
    """
    texts = {page: notes.read(page) for page in PAGES if page != "tests"}
    titles = {page: f"{text.title}, {Path(SOURCES[page]).name}" if page in SOURCES else text.title
              for page, text in texts.items()} | {"tests": "The tests behind the equations"}
    anchors = {f"{page}.{name}": f"{page}.html#{name}" for page in SOURCES for names, _ in texts[page].notes
               for name in names} | {page: f"{page}.html" for page in SOURCES}
    bodies, equations = {}, []
    for page, text in texts.items():
        render = Renderer(page, functools.partial(find, anchors, page))
        bodies[page] = source(page, text, render, anchors) if page in SOURCES else prose(page, text, render)
        equations += render.equations
    bodies["tests"] = tests(equations)
    data = {"index": exhibits.sampling(), "sample_here": exhibits.sampling(), "x_t": exhibits.forward(),
            "reverse": exhibits.reverse(steps), "table": exhibits.table(), "philox": exhibits.philox(),
            "network": {}}                                  # made last: what is slow waits for what may fail
    files = {}
    for page, (template, body) in bodies.items():
        title = texts[page].title if page in texts else titles[page]
        html = TEMPLATES.get_template(template).render(
            body, page=page, title=title, titles=titles, walk=WALK, neighbours=neighbours(page),
            scripts=SCRIPTS.get(page, ()), data=data.get(page))
        files[f"{page}.html"] = html.encode()
    files |= {f"model.{name}.js": exhibits.model(name).encode() for name in exhibits.KEPT}
    static = [*sorted((HERE / "static").iterdir()), *sorted(DOCS.glob("*.png"))]
    return files | {path.name: path.read_bytes() for path in static}


def neighbours(page: str) -> list[tuple[str, str, str]]:
    """What links lead on from a page: rel, arrow, page."""
    at = PAGES.index(page)
    before = [("prev", "←", PAGES[at - 1])] if at else []
    return before + [("next", "→", each) for each in PAGES[at + 1:at + 2]]


def find(anchors: dict[str, str], page: str, code: str) -> str | None:
    """Where that is explained which a code span in the notes of a page names: q_sample, ddpm.q_sample, ddpm.py."""
    name = code.removesuffix(".py").replace("/", ".")
    around = [module for module in SOURCES if "." not in module or "." in page or page not in SOURCES]
    places = [f"{page}.{name}", name, f"kernels.{name}", *(f"{module}.{name}" for module in around)]
    return next((anchors[place] for place in places if place in anchors), None)


# What the templates show

def source(page: str, text: notes.Notes, render: Renderer, anchors: dict[str, str]) -> tuple[str, dict]:
    """The notes of a source, each beside its lines."""
    file = SOURCES[page]
    return "source.html", {"source": file, "pieces": cut(file, [names for names, _ in text.notes]),
                           "notes": [render(note) for note in [text.head, *(note for _, note in text.notes)]],
                           "lines": highlight(read(file), links(file, anchors))}


def prose(page: str, text: notes.Notes, render: Renderer) -> tuple[str, dict]:
    """The text, and for some pages what is made of the code."""
    if text.notes and page != "gallery":
        raise ValueError(f"the notes of {page} have headings of definitions, but it is no source; use ### there")
    html = render(text.head.replace("\n### ", "\n## "))             # the second level here
    html = html.replace("<!-- networks -->", networks()) if page == "network" else html
    return "prose.html", {"text": html, "figures": [(name, render(note)) for (name,), note in text.notes]}


def networks() -> str:
    """The picture of every named network, all but the first hidden."""
    return "".join(f'<section class="network" id="{name}"{"" if name == "digits" else " hidden"}><h2>{name}</h2>'
                   f'{unet_picture.picture(config, SIDES[name], SIDES[name])}</section>\n'
                   for name, config in CONFIGS.items())


def tests(equations: list[Equation]) -> tuple[str, dict]:
    """Every test that an equation names: its lines, and the equations that it proves."""
    proved, coloured = defaultdict(list), functools.cache(lambda file: highlight(read(file)))
    for equation in equations:
        for test in equation.tests:
            proved[test].append(equation)
    shown = []
    for (file, name), those in sorted(proved.items()):
        node = functions(file)[name]
        first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
        figures = [figure(each, f'<a href="{each.href}">{each.href.replace(".html#equation-", " (")})</a>')
                   for each in those]
        shown.append({"file": file, "name": name, "anchor": test_anchor(file, name), "figures": "".join(figures),
                      "piece": Piece((name,), first, node.end_lineno), "lines": coloured(file)})
    return "tests.html", {"tests": shown, "equations": len(equations)}
