"""The site without a browser: complete, consistent, and refused when it is not."""

import ast
import base64
import html
import json
import re
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.testing import assert_close

import data
import ddpm
import noise
import sample
import samplers
from docs.pages import __main__ as command
from docs.pages import exhibits, markup, notes, sources, unet_picture
from docs.pages.site import PAGES, SOURCES
from kernels.equivalence import SIDES
from run import checkpoint
from run.tensors import with_tuples
from unet import CONFIGS, UNet, UNetConfig


def check_nesting(text):
    """Raises ParseError unless what is opened is closed, in order: as XML, with HTML's own abbreviations undone."""
    text = re.sub(r"<((?:br|img|input|link|meta|wbr)\b[^>]*?)/?>", r"<\1/>", text.replace("<!doctype html>", ""))
    ET.fromstring(re.sub(r" (selected|hidden)(?=[ >])", r' \1=""', text))


@pytest.fixture(scope="module")
def texts(pages):
    """The HTML of every page by its name, without scripts."""
    return {path.stem: re.sub("<script.*?</script>", "", path.read_text(), flags=re.S) for path in pages.glob("*.html")}


def values(text, attribute, tag=r"\w+"):
    return re.findall(rf'<{tag} (?:[^<>]* )?{attribute}="([^"]*)"', text)


# The sources

@pytest.mark.parametrize("page", SOURCES)
def test_a_source_is_there_line_by_line_with_a_note_for_every_definition(texts, page):
    source, written = (sources.ROOT / SOURCES[page]).read_text(), notes.read(page)
    rows = re.findall(r'<span class="row" id="L\d+" data-n="(\d+)">(.*?\n)</span>', texts[page], re.S)
    code = {int(n): html.unescape(re.sub("<.*?>", "", row)) for n, row in rows}
    lines = {n: line + "\n" for n, line in enumerate(source.splitlines(), 1)}
    assert list(code) == sorted(code) and {n for n in lines if lines[n].strip()} <= {*code}
    assert code == {n: lines[n] for n in code}
    defined = {each.name for each in ast.parse(source).body if isinstance(each, (ast.FunctionDef, ast.ClassDef))}
    assert defined <= {*values(texts[page], "id")}
    assert all(len(note.split()) > 3 for note in [written.head, *(note for _, note in written.notes)])


NAMES = [each for each, _ in notes.read("noise").notes]


def render(markdown):
    return markup.Renderer("ddpm", lambda code: None)(markdown)


@pytest.mark.parametrize("build, words", [
    (lambda: notes.read("nowhere"), "no notes .*nowhere.md"),
    (lambda: sources.cut("noise.py", NAMES[1:]), r"defines \w+.* without a note"),
    (lambda: sources.cut("noise.py", [*NAMES, ("nowhere",)]), "nowhere, which it does not define"),
    (lambda: sources.cut("noise.py", NAMES[::-1]), "not in its order"),
    (lambda: markup.mathml(r"\left( a", "block"), "is no LaTeX"),
    (lambda: markup.mathml(r"\text{time\_scale}", "block"), "would show as"),
    (lambda: render("$$ x = y $$ (see below)"), "it must name the tests"),
    (lambda: render("$$ x = y $$ (tests/test_ddpm.py::test_nothing)"), "test_nothing, which is gone"),
    (lambda: render("$$ x = y $$ (tests/nowhere.py::test_clip)"), "tests/nowhere.py::test_clip, which is gone"),
])
def test_what_does_not_fit_stops_the_build(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_code_is_linked_across_files(texts):
    links = {page: values("".join(re.findall("<pre.*?</pre>", text, re.S)), "href") for page, text in texts.items()}
    assert "ddpm.html#q_sample" in links["ddpm"] and "noise.html#normal" in links["samplers"]
    assert "schedules.html#Schedule" in links["train"]
    assert "samplers.html#sampler_rows" in links["sample"]                  # by way of ddpm, which imports it


# Equations

def test_an_equation_names_its_test_and_the_test_its_equations(texts):
    proved = defaultdict(set)
    for page in PAGES:
        for number, caption in re.findall(r'id="(equation-\d+)".*?<figcaption>(.*?)</figcaption>', texts[page], re.S):
            for test in re.findall(r'href="tests.html#([\w.]+)"', caption):
                proved[test].add(f"{page}.html#{number}")
    assert len(proved) > 40
    for section in re.findall(r'<section class="piece">.*?</section>', texts["tests"], re.S):
        name = re.search(r'<a id="([\w.]+)"', section)[1]
        assert {*re.findall(r'href="(\w[\w.]*html#equation-\d+)"', section)} == proved.pop(name)
        assert f'def</span> <span class="nf">{name.rpartition(".")[2]}</span>' in section
    assert not proved


def test_every_equation_is_mathml(texts):
    equations = {each for text in texts.values() for each in re.findall(r"<math.*?</math>", text, re.S)}
    assert len(equations) > 150
    for each in equations:
        assert not re.search(r"[\\$&]", "".join(ET.fromstring(each).itertext()))
    prose = re.sub(r"<(pre|math).*?</\1>", "", "".join(texts.values()), flags=re.S)
    assert "$" not in prose and "`" not in prose                            # no markup was left as it is


# The whole site

def test_every_page_is_there_once_and_every_link_leads_somewhere(texts, pages):
    assert {*PAGES} == {*texts} and len({*PAGES}) == len(PAGES)
    ids, wrong = {page: values(text, "id") for page, text in texts.items()}, []
    for page, text in texts.items():
        check_nesting(text)
        wrong += [f"{page}: {each} twice" for each in {*ids[page]} if ids[page].count(each) > 1]
        for href in values(text, "href", "a"):
            file, _, anchor = href.partition("#")
            target = file.removesuffix(".html") or page
            wrong += [f"{page}: {href}"] if target not in ids or anchor and anchor not in ids[target] else []
        files = values((pages / f"{page}.html").read_text(), "src") + values(text, "href", "link")
        wrong += [f"{page}: {each}" for each in files if not each.startswith("data:") and not (pages / each).is_file()]
    assert not wrong


def test_the_site_is_small_and_loads_nothing_from_elsewhere(pages):
    assert sum(path.stat().st_size for path in pages.iterdir()) < 1e7
    for path in pages.iterdir():
        if path.suffix in (".html", ".css", ".js"):
            text = path.read_text().replace("http://www.w3.org/", "")       # names of XML, not addresses
            text = re.sub(r"<pre.*?</pre>", "", text, flags=re.S)
            assert not re.search(r"https?://|//\w+\.\w+/|@import|\burl\(|\bfetch\(|XMLHttpRequest", text), path.name


def test_the_walk_goes_from_page_to_page(texts):
    for page, following in zip(PAGES, PAGES[1:], strict=False):
        assert f'rel="next" href="{following}.html"' in texts[page]
        words = re.sub("<pre.*?</pre>", "", re.search("<main.*</main>", texts[page], re.S)[0], flags=re.S)
        assert f'href="{following}.html' in words or page in ("kernels.compile", "gallery"), page   # where it ends
    assert {f"{page}.html" for page in PAGES} - {"index.html"} <= {*values(texts["index"], "href")}


def test_the_command_writes_the_site(tmp_path, monkeypatch, capsys, refused):
    monkeypatch.setattr(command, "build", lambda steps: {"index.html": b"x" * steps})
    command.main(["--out", str(tmp_path / "new"), "--steps", "7"])
    assert (tmp_path / "new" / "index.html").read_bytes() == b"x" * 7 and "1 files" in capsys.readouterr().out
    assert "steps is 0" in refused(command.main, ["--steps", "0"])


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


def test_a_model_is_its_weights_and_pictures_of_sample_py(pages):
    script = (pages / "model.digits.js").read_text()
    facts = json.loads(script.removeprefix("files.digits = ").removesuffix(";\n"))
    trained = checkpoint.load("weights/digits.safetensors")
    weights = safetensors.torch.load(base64.b64decode(facts["weights"]))
    assert weights.keys() == trained.ema.keys()
    assert all(torch.equal(weight, trained.ema[name]) for name, weight in weights.items())
    assert UNetConfig(**with_tuples(facts["config"])) == trained.network
    assert {*facts["tables"]} == {path.stem for path in sources.ROOT.glob("weights/digits-*.csv")}
    expected = sample.generate(sample.Config(n=10, **facts["choice"] | {"steps": str(facts["choice"]["steps"])}))
    assert torch.equal(unpack(facts["pixels"], "u1", 10, 1, 8, 8), data.to_pixels(expected.x).double())


def test_tables_are_read_by_the_names_of_their_columns(tmp_path):
    schedule, expected = ddpm.cosine_schedule(), {}
    for steps in (10, 4):
        expected[f"digits-{steps}"] = ddpm.sampler_rows(schedule, ddpm.timesteps(1000, steps), sampler="2m", target="v",
                                                        clip=False)
        samplers.write_table(tmp_path / f"digits-{steps}.csv", expected[f"digits-{steps}"])
    tables = exhibits.tables(tmp_path.iterdir(), schedule, "v")
    assert [*tables] == ["digits-4", "digits-10"]
    for name, rows in tables.items():
        assert all(tuple(row) == samplers.COLUMNS for row in rows)
        assert [[*row.values()] for row in rows] == expected[name].tolist()


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
    {"blocks": 3, "resample": "res"}, {"blocks": 1, "widths": (32,), "heads": (2, 0)},
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


def test_a_picture_of_any_network_by_flag(tmp_path):
    out = tmp_path / "new" / "unet.svg"
    unet_picture.main(["--network", "cifar10", "--change", "blocks=1 widths=(64, 128) heads=(0, 2, 4) resample='res'",
                       "--size", "16x24", "--out", str(out)])
    text = out.read_text()
    for words in ("8 × 12", "down, res 64", "up, res 128", "attention of 4 heads", "<style>"):
        assert words in text, words
