"""The site without a browser: complete, consistent, and refused when it is not."""

import ast
import base64
import html.parser
import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import data
import ddpm
import noise
from docs.pages import __main__ as command
from docs.pages import exhibits, markup, notes, site, sources, unet_picture
from docs.pages.site import PAGES, SOURCES
from kernels.equivalence import SIDES
from unet import CONFIGS, UNet, UNetConfig

VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


class Page(html.parser.HTMLParser):
    """What a page holds: ids, links, resources, displayed equations, and its code by line number."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.hrefs, self.resources, self.captions, self.code, self.open = [], [], [], [], {}, []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if "id" in a:
            self.ids.append(a["id"])
        if tag == "a":
            self.hrefs.append(a["href"])
        self.resources += [a[name] for name in ("src", "data", "poster") if name in a]
        self.resources += [a["href"]] if tag == "link" else []
        if "data-n" in a:
            self.line = int(a["data-n"])
            self.code[self.line] = ""
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append((tag, a.get("class", "")))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, text):
        if ("span", "row") in self.open:
            self.code[self.line] += text

    line = 0


@pytest.fixture(scope="module")
def parsed(pages):
    return {path.name: Page(path.read_text()) for path in pages.glob("*.html")}


def fails(words):
    return pytest.raises(ValueError, match=words)


# The sources

@pytest.mark.parametrize("page", SOURCES)
def test_a_source_is_there_line_by_line_with_a_note_for_every_definition(parsed, page):
    text = (sources.ROOT / SOURCES[page]).read_text()
    lines, code, written = text.splitlines(), parsed[f"{page}.html"].code, notes.read(page)
    assert list(code) == sorted(code) and {n for n, line in enumerate(lines, 1) if line.strip()} <= {*code}
    assert all(code[n] == lines[n - 1] + "\n" for n in code)
    defined = {each.name for each in ast.parse(text).body if isinstance(each, (ast.FunctionDef, ast.ClassDef))}
    assert defined <= {*parsed[f"{page}.html"].ids}
    assert all(len(note.split()) > 3 for note in [written.head, *(note for _, note in written.notes)])


@pytest.mark.parametrize("change, words", [
    (lambda names: names[1:], r"defines \w+.* without a note"),
    (lambda names: [*names, ("nowhere",)], "nowhere, which it does not define"),
    (lambda names: names[::-1], "not in its order"),
    (lambda names: [names[0], *names], "not in its order"),
])
def test_notes_that_do_not_fit_stop_the_build(change, words):
    names = [each for each, _ in notes.read("noise").notes]
    with fails(words):
        sources.cut("noise.py", change(names))


def test_a_missing_or_untitled_file_of_notes_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "FOLDER", tmp_path)
    with fails("no notes .*ddpm.md"):
        notes.read("ddpm")
    (tmp_path / "ddpm.md").write_text("no title\n")
    with fails("begins with 'no title'"):
        notes.read("ddpm")


def test_what_stands_between_definitions_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "between.py").write_text(
        '"""Head."""\nA = 1\n\n# Part\n\n@cache\ndef f():\n    pass\n\nB = 2\n\ndef g(): pass\n'
        "\nclass C:\n    x = 1\n\n    def m(self): pass\n\n    def n(self): pass\n\nD = 3\n")
    assert [tuple(piece) for piece in sources.cut("between.py", [("f",), ("g",), ("C",), ("C.n", "D")])] == [
        ((), 1, 2), (("f",), 4, 8), (("g",), 10, 12), (("C",), 14, 17), (("C.n", "D"), 19, 21)]


def test_names_are_links_unless_they_are_the_function_s_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "linked_a.py").write_text("def f(): pass\n")
    (tmp_path / "linked_b.py").write_text(
        "import linked_a\nfrom linked_a import f as h\n\ndef g(x, step=h):\n    h()\n    return linked_a.f(x.f)\n\n"
        "def own(x, h=h):\n    linked_a = x\n    return h(linked_a.f), [g for g in x]\n")
    names = sources.Names({name: name.replace(".", "#") for name in ("linked_a", "linked_a.f", "linked_b.g")})
    lines = (tmp_path / "linked_b.py").read_text().splitlines()
    found = [(line, lines[line - 1][first:last], href)
             for line, first, last, href in names.links("linked_b.py", "linked_b")]
    assert found == [(1, "linked_a", "linked_a"), (2, "f as h", "linked_a#f"), (4, "h", "linked_a#f"),
                     (5, "h", "linked_a#f"), (6, "linked_a.f", "linked_a#f"), (8, "h", "linked_a#f")]


def test_code_is_linked_across_files(parsed):
    assert "ddpm.html#q_sample" in parsed["ddpm.html"].hrefs and "noise.html#normal" in parsed["samplers.html"].hrefs
    assert "schedules.html#Schedule" in parsed["train.html"].hrefs
    assert "samplers.html#sampler_rows" in parsed["sample.html"].hrefs      # by way of ddpm, which imports it


# Equations

@pytest.mark.parametrize("latex, words", [
    (r"\left( a", "is no LaTeX"), (r"\begin{aligned} a &= b \end{aligned}", "is no LaTeX|would show as"),
    (r"\nonsense x", "would show as"), (r"\text{time\_scale}", "would show as"),
])
def test_equations_that_would_show_their_source_stop_the_build(latex, words):
    with fails(words):
        markup.mathml(latex, "block")


@pytest.mark.parametrize("label, words", [
    ("", "it must name the tests"), (" (see below)", "it must name the tests"),
    (" (tests/test_ddpm.py::test_nothing)", "test_nothing, which is gone"),
    (" (tests/nowhere.py::test_clip)", "tests/nowhere.py::test_clip, which is gone"),
])
def test_an_equation_without_its_test_stops_the_build(label, words):
    with fails(words):
        markup.Renderer("ddpm", lambda code: None)(f"$$ x = y $${label}")


def test_an_equation_names_its_test_and_the_test_its_equations(pages):
    proved = defaultdict(set)
    for page in PAGES:
        text = (pages / f"{page}.html").read_text()
        for number, caption in re.findall(r'id="(equation-\d+)".*?<figcaption>(.*?)</figcaption>', text, re.S):
            for test in re.findall(r'href="tests.html#([\w.]+)"', caption):
                proved[test].add(f"{page}.html#{number}")
    text = (pages / "tests.html").read_text()
    assert len(proved) > 40
    for section in re.findall(r'<section class="piece">.*?</section>', text, re.S):
        name = re.search(r'<a id="([\w.]+)"', section)[1]
        assert {*re.findall(r'href="(\w[\w.]*html#equation-\d+)"', section)} == proved.pop(name)
        assert f'def</span> <span class="nf">{name.rpartition(".")[2]}</span>' in section
    assert not proved


def test_every_equation_is_mathml(pages):
    found = [each for path in pages.glob("*.html") for each in re.findall(r"<math.*?</math>", path.read_text(), re.S)]
    assert len(found) > 250
    for each in {*found}:
        assert not re.search(r"[\\$&]", "".join(ET.fromstring(each).itertext()))
    prose = re.sub(r"<(pre|script|math).*?</\1>", "", "".join(p.read_text() for p in pages.glob("*.html")), flags=re.S)
    assert "$" not in prose and "`" not in prose                            # no markup was left as it is


# The whole site

def test_every_page_is_there_once_and_every_link_leads_somewhere(parsed, pages):
    assert {f"{page}.html" for page in PAGES} == {*parsed} and len({*PAGES}) == len(PAGES)
    wrong = []
    for name, page in parsed.items():
        wrong += [f"{name}: {each} twice" for each in page.ids if page.ids.count(each) > 1]
        for href in page.hrefs:
            file, _, anchor = href.partition("#")
            target = parsed.get(file or name)
            wrong += [f"{name}: {href}"] if not target or anchor and anchor not in target.ids else []
        wrong += [f"{name}: {each}" for each in page.resources
                  if not each.startswith("data:") and not (pages / each).is_file()]
    assert not wrong


def test_the_site_is_small_and_loads_nothing_from_elsewhere(pages):
    assert sum(path.stat().st_size for path in pages.iterdir()) < 5e6
    for path in pages.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text().replace("http://www.w3.org/", "")       # names of XML, not addresses
            text = re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
            assert not re.search(r"https?://|//\w+\.\w+/|@import|\burl\(|\bfetch\(|XMLHttpRequest", text), path.name


def test_the_walk_goes_from_page_to_page(parsed, pages):
    for page, following in zip(PAGES, PAGES[1:], strict=False):
        text = (pages / f"{page}.html").read_text()
        assert f'rel="next" href="{following}.html"' in text
        words = re.sub("<pre.*?</pre>", "", text[text.index("<main"):text.index("</main>")], flags=re.S)
        assert f'href="{following}.html' in words or page in ("kernels.compile", "gallery"), page  # where it ends
    assert {f"{page}.html" for page in PAGES} - {"index.html"} <= {*parsed["index.html"].hrefs}


def test_the_command_writes_the_site(tmp_path, monkeypatch, capsys, refused):
    monkeypatch.setattr(command, "build", lambda steps: {"index.html": b"x" * steps})
    command.main(["--out", str(tmp_path / "new"), "--steps", "7"])
    assert (tmp_path / "new" / "index.html").read_bytes() == b"x" * 7 and "1 files" in capsys.readouterr().out
    assert "steps is 0" in refused(command.main, ["--steps", "0"])


@pytest.mark.parametrize("change, words", [
    (lambda notes: notes[1:], "fashion.png"), (lambda notes: [*notes, (("cat.png",), "python x.py")], "cat.png"),
    (lambda notes: [*notes[:-1], (notes[-1][0], "by hand")], "does not say the command"),
    (lambda notes: [(notes[0][0], "`python -m docs.variants`"), *notes[1:]], "does not say the command"),
])
def test_a_gallery_that_does_not_fit_stops_the_build(change, words):
    text = notes.read("gallery")
    with fails(words):
        site.check_gallery(text._replace(notes=change(text.notes)))


# The exhibits

def unpack(text, dtype, *shape):
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy()).view(*shape).double()


def test_the_chain_of_the_roll_begins_with_its_noise_and_ends_on_its_prediction():
    chain = exhibits.roll_chain(2, points=7)
    xt, x0 = (unpack(chain[name], "<i2", 41, 7, 2) / 4096 for name in ("xt", "x0"))
    seeds = noise.image_seeds(0, torch.arange(7))
    assert chain["times"] == list(range(40, -1, -1)) and chain["points"] == 7
    assert_close(xt[0], noise.normal(seeds, 40, (2,)).double(), rtol=0, atol=2 / 4096)
    assert_close(xt[-1], x0[-1], rtol=0, atol=0)


def test_predicted_x0_is_the_one_in_the_mean():
    schedule, xt, x0 = ddpm.linear_schedule(10, 0.01, 0.3), torch.randn(5, 2), torch.randn(1, 5, 2)
    model = lambda schedule, xt, t: ddpm.q_posterior(schedule, x0, xt, t)                       # noqa: E731
    assert_close(exhibits.predicted_x0(model, schedule, xt, 4), x0[0])


def test_the_chain_of_the_digits_ends_on_digits_of_their_classes(pages):
    chain = json.loads(re.search('id="data">(.*?)</script>', (pages / "reverse.html").read_text())[1])["digits"]
    xt, x0 = unpack(chain["xt"], "i1", 51, 10, 64) * 4 / 127, unpack(chain["x0"], "i1", 51, 10, 64) / 127
    assert chain["times"] == list(range(1000, -1, -20))
    assert_close(xt[0], noise.normal(noise.image_seeds(0, torch.arange(10)), 1000, (64,)).clamp(-4, 4).double(),
                 rtol=0, atol=0.016)
    assert_close(xt[-1], x0[-1], rtol=0, atol=0.016 + 0.004)                # the last step lands on its prediction
    real = data.digits()
    nearest = torch.cdist(x0[-1].float(), data.to_unit(real.images).flatten(1)).argmin(1)
    assert real.labels[nearest].tolist() == list(range(10))


# Pictures of networks

@pytest.mark.parametrize("name, GMAC", [("cifar10", 6.222), ("lsun256", 248.5)])
def test_costs_are_those_of_the_whole_network(name, GMAC):
    blocks = unet_picture.measure(CONFIGS[name], SIDES[name], SIDES[name])
    whole = blocks.pop("")
    assert whole.flops == pytest.approx(2e9 * GMAC, rel=1e-3)
    with torch.device("meta"):
        unet = UNet(CONFIGS[name])
    assert whole.parameters == sum(w.numel() for w in unet.parameters())
    shared = sum(w.numel() for part in (unet.time_in, unet.time_out, unet.time, unet.norm) for w in part.parameters())
    assert sum(block.parameters for block in blocks.values()) + shared == whole.parameters
    assert sum(block.flops for block in blocks.values()) == pytest.approx(whole.flops, rel=2e-3)  # but the time's


@pytest.mark.parametrize("change", [
    {}, {"blocks": 1}, {"blocks": 3, "resample": "res"}, {"widths": (32,), "heads": (2, 0)},
    {"scale_shift": True, "classes": 7, "heads": (1, 2, 0, 0, 4)}, {"patch": 2, "widths": (32, 64), "heads": (0, 0, 1)},
])
def test_a_picture_shows_every_block_once_and_every_skip(change):
    config = replace(UNetConfig(), **change)
    blocks, svg = unet_picture.measure(config, 16, 32), unet_picture.picture(config, 16, 32)
    for name, (taker, *up) in unet_picture.pairs(blocks):               # a skip is straight, an Up above it
        assert blocks[taker].size == blocks[name].size
        assert [blocks[each].size for each in up] == [tuple(2 * side for side in blocks[name].size)] * len(up)
    root = ET.fromstring(svg)
    drawn = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    expected = [f"{block.name}, {block.size[0]} x {block.size[1]}: " for name, block in blocks.items() if name]
    assert sorted(title[:title.index(":") + 2] for title in drawn) == sorted(expected)
    classes = [each.get("class") for each in root.iter()]
    with torch.device("meta"):
        unet = UNet(config)
    assert classes.count("skip") == 1 + len(unet.downs)
    assert classes.count("attention") == 1 + sum("attention of" in title for title in drawn)
    assert sum("attention of" in title for title in drawn) == sum(
        hasattr(each, "heads") for each in unet.modules())
    assert classes.count("time") == 1 + sum(width > 0 for width in unet.time_widths)
    places = [(each.get("x"), each.get("y")) for each in root.iter() if each.get("class") == "box"]
    assert len({*places}) == len(places)


def test_a_picture_of_any_network_by_flag(tmp_path, capsys, refused):
    out = tmp_path / "new" / "unet.svg"
    unet_picture.main(["--network", "cifar10", "--change", "blocks=1 widths=(64, 128) heads=(0, 2, 4) resample='res'",
                       "--size", "16x24", "--out", str(out)])
    text = out.read_text()
    for words in ("8 × 12", "down, res 64", "up, res 128", "attention of 4 heads", "<style>"):
        assert words in text, words
    for flags, said in [(["--change", "blocks"], "change is 'blocks'"), (["--change", "cats=3"], "change is 'cats=3'"),
                        (["--change", "widths=64"], "change is"), (["--change", "widths=(64, 128)"], "heads is"),
                        (["--network", "cats"], "network is 'cats'"), (["--size", "30"], "30 x 30 pixels")]:
        assert said in refused(unet_picture.main, flags)
