"""The site in a real browser: no errors, nothing loaded, readable, usable by keyboard, and its numbers are Python's."""

import base64
import itertools
import math
import shlex
import shutil
import time
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save
from torch.testing import assert_close

import data
import ddpm
import noise
import sample
import samplers
import schedules
from docs.pages import exhibits
from docs.pages.site import PAGES
from docs.pages.sources import ROOT
from run import checkpoint
from run.cli import parse
from unet import UNet, UNetConfig

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium is installed (apt-get install chromium)", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
pytestmark = pytest.mark.slow

FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
LOOKS = [(1440, "light"), (390, "dark")]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"], "resultTypes": ["violations"],
         "preload": False}                                              # else it asks for the style sheet once more
LOOK = r"""() => {
    const style = getComputedStyle, seen = [...document.querySelectorAll('main *')].filter(e => e.checkVisibility());
    const size = e => parseFloat(style(e).fontSize) * (e.ownerSVGElement ? e.getScreenCTM().a : 1);
    const says = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const names = list => list.map(e => e.outerHTML.slice(0, 80));
    return {width: document.documentElement.scrollWidth, headings: document.querySelectorAll('h1').length,
            small: names(seen.filter(e => !e.closest('math') && says(e) && size(e) < (e.ownerSVGElement ? 10 : 11))),
            cut: names(seen.filter(e => e.matches('.math, .code') && e.scrollWidth > e.clientWidth + 1)),
            paper: style(document.body).backgroundColor.match(/\d+/g).map(Number)};
}"""
# Lines of code are all alike, and so are tests and formulas: a few stand for all others before the slow checker.
FEW = """for (const e of document.querySelectorAll('.code .row:nth-child(n+9), .tests .piece:nth-of-type(n+9), math'))
    e.replaceChildren();"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(browser, pages):
    """A page, and what it said on the console or asked for that is no file of the site."""
    page, said = browser.new_page(), []
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"{page.url}: {error}"))
    page.on("requestfailed", lambda request: None if request.failure == "net::ERR_ABORTED" else     # the page was left
            said.append(f"{page.url}: {request.url} failed, {request.failure}"))
    page.on("request", lambda request: None if request.url.startswith(("file://" + str(pages), "data:")) else
            said.append(f"{page.url}: asks for {request.url}"))
    yield page, said
    page.close()


@pytest.fixture
def visit(window, pages):
    """page name -> the open page; fails in the end if one said anything on the console or asked for another file."""
    page, said = window

    def visit(name, width=1440, scheme="light"):
        show(page, width, scheme)
        page.goto(f"file://{pages}/{name}.html")
        return page

    said.clear()
    yield visit
    assert not said


def show(page, width, scheme):
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")     # plots follow


def functions_of(name):
    """A fixture: this page, for its functions."""
    @pytest.fixture(scope="module", name=name)
    def page(browser, pages):
        page = browser.new_page()
        page.goto(f"file://{pages}/{name}.html")
        yield page
        page.close()

    return page


table, sample_here = functions_of("table"), functions_of("sample_here")


def picture_of(page, canvas):
    return page.evaluate("id => document.getElementById(id).toDataURL()", canvas)


# Every page

@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_readable_and_accessible(name, visit):
    page, looks = visit(name), {}
    for look in LOOKS:
        show(page, *look)
        looks[look] = page.evaluate(LOOK)
    page.evaluate(FEW)
    for (width, scheme), seen in looks.items():
        assert seen["headings"] == 1 and seen["width"] <= width and not seen["small"]
        assert not [each for each in seen["cut"] if width == 1440 or "math" in each[:20]]  # a phone scrolls code alone
        assert (sum(seen["paper"]) < 150) == (scheme == "dark")
        show(page, width, scheme)
        violations = axe.Axe().run(page, options=RULES).response["violations"]
        assert not [(each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in violations]


@pytest.mark.parametrize("name", ["index", "sample_here", "x_t", "table", "reverse", "philox", "network", "noise"])
def test_the_keyboard_reaches_everything_in_sight(name, visit):
    page = visit(name, 390)
    wanted = page.evaluate("""() => {
        window.reached = new Set();
        document.addEventListener('focusin', ({target}) => {
            const ring = target.matches(':focus-visible') && getComputedStyle(target).outlineStyle !== 'none';
            if (ring) reached.add(target);
        });
        const all = document.querySelectorAll('a[href], button, input, select, summary, [tabindex]');
        window.wanted = [...all].filter(e => e.checkVisibility() && !e.disabled);
        return wanted.length;
    }""")
    for _ in range(wanted + 5):
        page.keyboard.press("Tab")
    assert wanted > 5 and not page.evaluate("wanted.filter(e => !reached.has(e)).map(e => e.outerHTML.slice(0, 80))")


# Sliders

@pytest.mark.parametrize("name, slider, key, output, canvases", [
    ("x_t", "t", "ArrowRight", "t-value", ["xt"]),
    ("reverse", "roll-step", "ArrowRight", "roll-t", ["roll-xt", "roll-x0"]),
    ("reverse", "digits-step", "ArrowLeft", "digits-t", ["digits-xt", "digits-x0"]),
    ("table", "step", "ArrowLeft", "step-value", ["points"]),
])
def test_a_slider_moves_by_keyboard_and_the_picture_with_it(name, slider, key, output, canvases, visit):
    page = visit(name)
    before = [page.locator(f"#{output}").inner_text(), *(picture_of(page, each) for each in canvases)]
    page.locator(f"#{slider}").focus()
    page.keyboard.press(key)
    after = [page.locator(f"#{output}").inner_text(), *(picture_of(page, each) for each in canvases)]
    assert all(a != b for a, b in zip(before, after, strict=True))


def test_play_runs_to_the_end_and_can_be_stopped(visit):
    page = visit("reverse")
    page.locator("#roll-step").fill("38")
    page.locator("#roll-play").click()
    page.wait_for_function("document.getElementById('roll-t').value === 't = 0'")
    assert page.locator("#roll-play").inner_text() == "play"
    page.locator("#roll-play").click()                                  # from the start
    page.wait_for_function("document.getElementById('roll-step').value > 0")
    page.locator("#roll-play").click()
    assert page.locator("#roll-play").inner_text() == "play" and page.locator("#roll-t").inner_text() != "t = 0"


@pytest.mark.parametrize("kind", ddpm.SCHEDULES)
def test_the_mixture_is_q_sample(kind, visit):
    page, schedule = visit("x_t"), ddpm.SCHEDULES[kind]()
    page.locator("#kind").select_option(kind)
    page.locator("#t").fill("600")
    page.locator("#digit").fill("5")
    x0 = torch.tensor(exhibits.forward()["digits"][5]).view(1, 64) / 127.5 - 1
    eps = noise.normal(noise.image_seeds(0, torch.zeros(1, dtype=torch.int64)), 0, (64,), noise.TRAIN)
    xt = ddpm.q_sample(schedule, x0, torch.tensor([600]), eps)[0]
    limit = 1 + 2 * math.sqrt(1 - schedule.alpha_bar[600])
    pixels = page.evaluate("""[...document.getElementById('xt').getContext('2d').getImageData(0, 0, 8, 8).data]
                              .filter((_, k) => k % 4 === 0)""")
    assert_close(torch.tensor(pixels).float(), ((xt / limit + 1) * 127.5).clamp(0, 255), rtol=0, atol=1)


def test_only_the_settings_of_a_schedule_are_shown(visit):
    page = visit("x_t")
    page.locator("#kind").select_option("sigmoid")
    assert page.locator("#tau").is_visible() and not page.locator("#s").is_visible()
    before = page.locator("#facts").inner_text()
    page.locator("#tau").fill("0.5")
    assert page.locator("#facts").inner_text() != before
    page.locator("#T").fill("")                                         # on the way to another number
    assert "of 1000" in page.locator("#t-value").inner_text()


def test_the_chosen_network_is_shown(visit):
    page = visit("network")
    page.locator("#name").select_option("cifar10")
    assert page.locator("section.network:visible h2").inner_text() == "cifar10"
    assert page.locator("svg:visible").count() == 1
    assert "35.7 M parameters" in page.locator("svg:visible").text_content()


# The numbers

@pytest.mark.parametrize("kind, arguments", [
    ("linear", []), ("linear", [1e-3, 0.2]), ("quadratic", [1e-4, 0.05]), ("cosine", []), ("cosine", [0.02]),
    ("sigmoid", []), ("sigmoid", [-4, 2, 0.7]), ("flow", []),
])
@pytest.mark.parametrize("T", [2, 10, 1000])
def test_schedules_are_those_of_ddpm(kind, arguments, T, table):
    schedule = ddpm.SCHEDULES[kind](T, *arguments)
    mine = table.evaluate("([kind, T, more]) => SCHEDULES[kind](T, ...more)", [kind, T, arguments])
    for name, expected in zip(("beta", "alpha", "alphaBar", "betaTilde"), schedule, strict=True):
        assert_close(torch.tensor(mine[name], dtype=torch.float64), expected, rtol=1e-9, atol=1e-13)
    if schedule.alpha_bar[-1] > 0:
        bits = table.evaluate("bar => bitsLeft(bar)", schedule.alpha_bar.tolist())
        assert bits == pytest.approx(ddpm.schedule_check(schedule), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("spacing", samplers.SPACINGS)
def test_times_are_those_of_timesteps(spacing, table):
    for T, stride in ((10, 1), (251, 1), (1000, 13)):
        counts = list(range(1, T + 1, stride))
        mine = table.evaluate("([T, counts, kind]) => counts.map(n => timesteps(T, n, kind))", [T, counts, spacing])
        assert mine == [samplers.timesteps(T, steps, spacing).tolist() for steps in counts]


@pytest.mark.parametrize("kind", ddpm.SCHEDULES)
@pytest.mark.parametrize("spacing, shift", [("karras", 1), ("logsnr", 1), ("flow", 1), ("flow", 3)])
def test_times_between_are_those_of_spaced_times(kind, spacing, shift, table):
    schedule = ddpm.SCHEDULES[kind]()
    arguments = [kind, spacing, shift]
    run = "([kind, spacing, shift]) => [1, 2, 7, 50].map(n => spacedTimes(tables[kind], n, spacing, shift))"
    if spacing != "flow" and schedule.alpha_bar[-1] == 0:
        with pytest.raises(playwright.Error, match="alpha_bar is 0"):
            table.evaluate(run, arguments)
        return
    for mine, steps in zip(table.evaluate(run, arguments), (1, 2, 7, 50), strict=True):
        expected = samplers.spaced_times(schedule, steps, spacing, shift)
        assert_close(torch.tensor(mine, dtype=torch.float64), expected.double(), rtol=0, atol=1.5e-11)


VALUES = {"eta": (0., 0.3, 1.), "variance": schedules.VARIANCES, "churn": (0., 5., 200.),
          "s_tmin": (0., 0.1), "s_tmax": (5., math.inf), "s_noise": (1., 1.007)}
CHOICES = [{"sampler": sampler, **dict(zip(options, values, strict=True))} for sampler in samplers.SAMPLERS
           for options in [samplers.options_of(sampler)]
           for values in itertools.product(*(VALUES[name] for name in options))]


@pytest.mark.parametrize("kind", ddpm.SCHEDULES)
def test_rows_are_those_of_sampler_rows(kind, table):
    schedule = ddpm.SCHEDULES[kind]()
    lists = [samplers.spaced_times(schedule, n, spacing).tolist() for n in (1, 2, 3, 10, 50)
             for spacing in ("trailing", "leading", "linspace", "flow", *(["karras"] if kind != "flow" else []))]
    styles = itertools.cycle(itertools.product(schedules.TARGETS, (True, False)))
    asked = [(times, {"target": target, "clip": clip, **choice}) for choice in CHOICES
             for times, (target, clip) in zip(lists, styles, strict=False)
             if target != "eps" or schedule.alpha_bar[int(times[0])] > 0]
    packed = table.evaluate("""([kind, asked]) => {
        const rows = asked.flatMap(([times, choice]) => samplerRows(tables[kind], times, choice));
        const numbers = Float64Array.from(rows.flatMap(row => COLUMNS.map(name => row[name])));
        return btoa(Array.from(new Uint8Array(numbers.buffer), c => String.fromCharCode(c)).join(''));
    }""", [kind, asked])
    made = torch.frombuffer(bytearray(base64.b64decode(packed)), dtype=torch.float64).view(-1, len(samplers.COLUMNS))
    expected = [samplers.sampler_rows(schedule, times, **choice) for times, choice in asked]
    for mine, rows, (times, choice) in zip(made.split(list(map(len, expected))), expected, asked, strict=True):
        assert torch.allclose(mine, rows, rtol=1e-12, atol=1e-12), (choice, times, mine - rows)
    assert len(asked) > 200


def test_what_cannot_be_is_said_and_can_be_left_again(visit):
    page = visit("table")
    page.locator("#kind").select_option("flow")
    assert "needs a finite sigma" in page.locator("#refused").inner_text()
    page.locator("#spacing").select_option("trailing")
    page.locator("#target").select_option("eps")
    assert "use target v" in page.locator("#refused").inner_text()
    page.locator("#target").select_option("flow")
    assert page.locator("#refused").inner_text() == "" and page.locator("#rows tr").count() == 11
    assert page.locator("#eta").is_enabled() and page.locator("#churn").is_disabled()
    page.locator("#sampler").select_option("heun")
    assert page.locator("#churn").is_enabled() and page.locator("#rows tr").count() == 20
    assert page.locator("#eta").is_disabled() and page.locator("#variance").is_disabled()


def mixture_denoiser(xt, alpha_bar):
    """E[x0 | x_t] of the page's mixture, by autograd: Tweedie's formula on the density."""
    means, weights = (torch.tensor(exhibits.MIXTURE[name]).double() for name in ("means", "weights"))
    spread = alpha_bar * exhibits.MIXTURE["std"]**2 + 1 - alpha_bar
    xt = xt.detach().requires_grad_()
    log_p = (weights.log() - (xt[:, None] - alpha_bar.sqrt() * means).square().sum(2) / (2 * spread)).logsumexp(1)
    [score] = torch.autograd.grad(log_p.sum(), xt)
    return ((xt + (1 - alpha_bar) * score) / alpha_bar.sqrt()).detach()


@pytest.mark.parametrize("choice", [
    {"sampler": "ddim", "eta": 0.}, {"sampler": "ddim", "eta": 1.}, {"sampler": "2m", "eta": 0.}, {"sampler": "unipc"},
    {"sampler": "heun", "churn": 3.}, {"sampler": "consistency"}, {"sampler": "ddim", "eta": 1., "variance": "learned"},
])
def test_a_chain_in_the_browser_is_the_chain_here(choice, table):
    schedule, target = ddpm.cosine_schedule(), "v"
    rows = samplers.sampler_rows(schedule, samplers.spaced_times(schedule, 9, "karras"), target=target, clip=False,
                                 **choice)
    states = table.evaluate("""([rows, target]) => chain('cosine', rows.map(row => (
        {...Object.fromEntries(COLUMNS.map((name, k) => [name, row[k]])), clip: Infinity})), target, 30)""",
                            [rows.nan_to_num(posinf=0.).tolist(), target])
    seeds = noise.image_seeds(0, torch.arange(30))
    xt, x0_hat, before = noise.normal(seeds, rows[0, 0], (2,)).double(), None, None
    for k, (t, s) in enumerate(rows[:, :2]):
        alpha_bar = ddpm.alpha_bar_at(schedule, t)
        x0 = mixture_denoiser(xt, alpha_bar)
        v = alpha_bar.sqrt() * (xt - alpha_bar.sqrt() * x0) / (1 - alpha_bar).sqrt() - (1 - alpha_bar).sqrt() * x0
        output = torch.cat([v, 0 * v], dim=1) if choice.get("variance") == "learned" else v
        xs, x0 = samplers.step(rows, torch.tensor([k]), xt, output, x0_hat, x0_prev2=before,
                               z=noise.normal(seeds, s, (2,)).double())
        xt, x0_hat, before = xs, x0, x0_hat
        assert_close(torch.tensor(states[k + 1]).view(30, 2), xt, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_the_error_falls_as_the_order_says(table):
    lines = table.evaluate("""errors({kind: 'linear', spacing: 'logsnr', shift: 1, sampler: 'ddim', target: 'v',
        variance: 'beta_tilde', eta: 0, churn: 0, clip: false})""")
    points = {line["name"]: dict(map(tuple, line["points"])) for line in lines}
    assert [*points] == ["ddim", "2m", "heun", "unipc"] and [line["strong"] for line in lines] == [True] + 3 * [False]
    assert 1.8 < points["ddim"][32] / points["ddim"][64] < 2.2
    for name, few, twice in (("2m", 32, 64), ("heun", 39, 79), ("unipc", 25, 50)):
        assert 3 < points[name][few] / points[name][twice] < 12, name


@pytest.mark.parametrize("seed, index, s, stream", [
    (0, 0, 0, 0), (0, 7, 1000, 0), (5, 123456789, 17, 1), (2**31 - 1, 2**32 - 1, 999, 5), (1, 2, 3.25, 0),
    (1, 2, 731.123456789, 0),
])
def test_noise_is_that_of_noise_py(seed, index, s, stream, table):
    words, normals = table.evaluate("""([seed, index, s, stream]) => [words(imageKey(seed, index), s, 1001, stream),
                                    normal(imageKey(seed, index), s, 1001, stream)]""", [seed, index, s, stream])
    key = noise.image_seeds(seed, torch.tensor(index))
    assert words == torch.stack(noise.words(key, s, 1001, stream), dim=-1).flatten()[:1001].tolist()
    assert_close(torch.tensor(normals), noise.normal(key, s, (1001,), stream), rtol=0, atol=1e-6)


def test_the_page_checks_its_noise_and_would_see_a_wrong_word(visit):
    page = visit("philox")
    said = page.locator("#check.good").inner_text()
    assert "3 of 3 known blocks" in said and "192 of 192 words equal" in said
    assert page.evaluate("data.cases[1].words[5] ^= 1, compare().equal") == 191
    before = picture_of(page, "noise"), page.locator("#words").inner_text()
    page.locator("#index").fill("8")
    assert picture_of(page, "noise") != before[0] and page.locator("#words").inner_text() != before[1]


# The network

SMALL = {"res": UNetConfig(2, 4, D=8, widths=(8, 16), blocks=1, heads=(2, 0, 4), classes=3, scale_shift=True,
                           resample="res", groups=4, norm_eps=1e-5, freq_shift=0, time_scale=0.25, patch=2),
         "conv_end": UNetConfig(D=8, widths=(8, 8, 16), heads=(0, 1, 0, 0), resample="conv_end", groups=4),
         "no blocks": UNetConfig(D=8, widths=(8, 8), blocks=0, heads=(0, 1, 0), resample="conv", groups=8)}
RUN = """async ([config, weights, shape, xt, t, label]) => {
    const [C, H, W] = shape, network = {config, weights: readWeights(unpack(weights, Uint8Array).buffer)};
    const run = unet(network, {C, H, W, x: Float32Array.from(xt)}, t, label);
    for (let next = run.next(); ; next = run.next()) if (next.done) return Array.from(next.value.x);
}"""
TABLES = sorted((ROOT / "weights").glob("*-*.csv"))
FLAGS_OF = {"model": "checkpoint", "label": "labels"}       # what samplePicture and sample.py call differently


def pixels_of(**flags):
    """What sample.py writes, (n, H W), int64."""
    flags |= {"checkpoint": f"weights/{flags['checkpoint']}.safetensors", "steps": str(flags.get("steps", 50))}
    return data.to_pixels(sample.generate(sample.Config(**flags)).x).flatten(1).long()


@pytest.mark.parametrize("name", ["digits", "fashion", *SMALL])
def test_the_network_here_is_unet_py(name, sample_here):
    if name in SMALL:
        unet, shape = UNet(SMALL[name]), (SMALL[name].in_channels, 8, 12)
        for weight in unet.parameters():
            torch.nn.init.normal_(weight, std=0.2)
        weights = unet.state_dict()
    else:
        trained = checkpoint.load(f"weights/{name}.safetensors")
        unet, shape, weights = checkpoint.load_unet(trained), trained.data["shape"], trained.ema
    for t, label in ((1, 0), (1000, 2), (613.7, 1)):
        xt, labels = torch.randn(1, *shape), torch.tensor([label]) if unet.config.classes else None
        with torch.no_grad():
            expected = unet(xt, torch.tensor([t]), labels).flatten()
        mine = sample_here.evaluate(RUN, [asdict(unet.config), base64.b64encode(save(weights)).decode(), shape,
                                          xt.flatten().tolist(), t, label])
        assert_close(torch.tensor(mine), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("model", exhibits.KEPT)
def test_ten_pictures_are_those_of_sample_py(model, sample_here, capsys):
    expected = pixels_of(checkpoint=model, n=10, **exhibits.KEPT[model])
    began = time.perf_counter()
    mine = torch.tensor([sample_here.evaluate("async given => Array.from(await samplePicture(given))",
                                              {"model": model, "label": k, "index": k}) for k in range(10)])
    apart = (mine - expected).abs()
    with capsys.disabled():
        print(f"\n{model}: {(apart > 0).sum()} of {apart.numel()} pixels differ from sample.py's, "
              f"{(time.perf_counter() - began) / 10:.2f} s per picture")
    assert apart.max() <= 1 and (apart > 0).float().mean() < 0.01 and expected.float().std() > 50


@pytest.mark.parametrize("choice", [
    *({"sampler": name} for name in samplers.SAMPLERS),
    *({"model": path.stem.partition("-")[0], "sampler": path.stem} for path in TABLES),
    {"sampler": "ddim", "eta": 1, "spacing": "linspace"},
    {"sampler": "2m", "eta": 0.5, "guidance": 2}, {"sampler": "heun", "churn": 5, "spacing": "logsnr"},
    {"sampler": "unipc", "spacing": "flow", "seed": 2**31 - 1}, {"label": 10, "spacing": "karras", "index": 2**32 - 1},
    {"model": "fashion", "sampler": "2m", "guidance": 1.5, "steps": 4, "label": 9, "seed": 5, "index": 3},
    {"model": "fashion", "sampler": "ddpm", "guidance": -1, "steps": 3, "spacing": "leading"},
])
def test_every_sampler_draws_what_sample_py_draws(choice, sample_here, monkeypatch):
    choice = {"model": "digits", "label": 3, "index": 0, "steps": 6, **choice}
    mine = sample_here.evaluate("async given => Array.from(await samplePicture(given))", choice)
    index = choice.pop("index")
    monkeypatch.setattr(sample, "image_seeds", lambda seed, _: noise.image_seeds(seed, torch.tensor([index])))
    flags = {FLAGS_OF.get(name, name): value for name, value in choice.items()}
    if choice.get("sampler") in [path.stem for path in TABLES]:
        flags |= {"sampler": f"weights/{choice['sampler']}.csv", "steps": sample.Config.steps}
    label = "none" if choice["label"] == 10 else f":{choice['label']}"
    expected = pixels_of(n=1, **flags | {"labels": label})
    assert (torch.tensor(mine) - expected).abs().max() <= 1 and expected.float().std() > 30


@pytest.mark.parametrize("choice, words", [
    ({"label": 11}, "label is 11; it must be 0 to 10"), ({"label": 1.5}, "label is 1.5"),
    ({"sampler": "euler"}, "sampler is euler; it must be one of ddim, ddpm"), ({"model": "cats"}, "model is cats"),
    ({"steps": 1001}, "steps is 1001; it must be 1 to 1000"), ({"spacing": "even"}, "spacing is even")])
def test_what_cannot_be_sampled_is_refused(choice, words, sample_here):
    with pytest.raises(playwright.Error, match=words):
        sample_here.evaluate("given => samplePicture(given)", choice)


@pytest.fixture(scope="module")
def with_table(browser, pages, tmp_path_factory):
    """The page of a site whose only table for the digits is UniPC's of five rows, and these rows."""
    folder, made = tmp_path_factory.mktemp("weights"), ddpm.cosine_schedule()
    rows = samplers.sampler_rows(made, samplers.spaced_times(made, 5, "logsnr"), sampler="unipc", target="v")
    samplers.write_table(folder / "digits-5.csv", rows)
    shutil.copy("weights/digits.safetensors", folder)
    site = shutil.copytree(pages, folder / "site")
    (site / "model.digits.js").write_text(exhibits.model("digits", folder))
    page = browser.new_page()
    page.goto(f"file://{site}/sample_here.html")
    yield page, rows
    page.close()


def test_a_learned_table_is_one_more_sampler(with_table):
    page, rows = with_table
    trained = checkpoint.load("weights/digits.safetensors")
    unet, seeds = checkpoint.load_unet(trained), noise.image_seeds(7, torch.tensor([4]))
    *_, (_, x, _) = ddpm.sample(lambda xt, t: unet(xt, t, torch.tensor([8])), rows, (1, 8, 8), seeds)
    mine = page.evaluate("async given => Array.from(await samplePicture(given))",
                         {"sampler": "digits-5", "label": 8, "index": 4, "seed": 7})
    assert (torch.tensor(mine) - data.to_pixels(x).flatten().long()).abs().max() <= 1
    page.locator("#sampler").select_option(label="learned, 5 steps")
    page.wait_for_function("drawn.every(each => each) && states.length === 6")
    assert page.locator("#learned").is_visible()
    assert all(page.locator(f"#{each}").is_disabled() for each in ("steps", "spacing", "eta", "churn"))
    assert "--sampler weights/digits-5.csv" in page.locator("#command").inner_text()


# The pages that sample

DONE = "drawn.length === 10 && drawn.every(each => each)"


@pytest.mark.parametrize("model", exhibits.KEPT)
def test_the_page_draws_ten_pictures_beside_those_of_sample_py(model, visit):
    page = visit("sample_here")
    page.locator("#model").select_option(model)
    page.wait_for_function(f"model?.name === '{model}' && {DONE}", timeout=120000)
    said = page.locator("#same.good").inner_text()
    assert f"of {10 * (64 if model == 'digits' else 784)} pixels differ" in said
    assert "pictures per second" in page.locator("#speed").inner_text()
    assert page.locator("#cells canvas:visible").count() == 20
    last = picture_of(page, "xt")
    page.locator("#step").focus()
    page.keyboard.press("ArrowLeft")
    assert picture_of(page, "xt") != last and "t = " in page.locator("#step-value").inner_text()
    page.evaluate("drawn[3][5] ^= 64, compare()")               # it would see a wrong pixel
    assert "Largest difference: 64 of 255" in page.locator("#same.bad").inner_text()


def test_a_new_choice_ends_the_chain_that_runs(visit):
    page = visit("sample_here")
    page.wait_for_function("states.length > 3")
    page.locator("#steps").fill("1000")
    page.wait_for_function("$('step').max === '1000' && states.length > 3")
    page.locator("#label").select_option("4")
    page.locator("#steps").fill("5")
    page.wait_for_function(DONE)
    assert page.evaluate("states.length") == 6 and page.locator("#cells canvas:visible").count() == 10
    before = page.evaluate("turn")
    page.locator("#cells button").nth(6).click()
    page.wait_for_function("states.length === 6 && watched === 6")
    assert page.evaluate("turn") == before + 1 and page.locator("#cells [aria-pressed=true]").count() == 1
    page.locator("#sampler").select_option("consistency")
    assert page.locator("#eta").is_disabled() and page.locator("#churn").is_disabled()


@pytest.mark.parametrize("given", [
    {}, {"model": "fashion", "label": "9", "sampler": "heun", "spacing": "logsnr", "steps": "3", "seed": "8"},
    {"label": "10", "sampler": "ddim", "steps": "7"}, {"sampler": "2m", "guidance": "1.5", "steps": "6", "seed": "1"}])
def test_the_command_on_the_page_makes_its_pictures(given, visit):
    page = visit("sample_here")
    for id, value in given.items():
        control = page.locator(f"#{id}")
        control.select_option(value) if control.evaluate("each => each.tagName") == "SELECT" else control.fill(value)
        page.wait_for_function("model && model.name === $('model').value")
    page.wait_for_function(f"choice.label === $('label').value && {DONE}", timeout=120000)
    script, name, *flags = shlex.split(page.locator("#command").inner_text())
    assert (script, name) == ("python", "sample.py")
    expected = data.to_pixels(sample.generate(parse(sample.Config, flags)).x).flatten(1).long()
    mine = torch.tensor(page.evaluate("drawn.map(each => Array.from(each))"))
    assert (mine - expected).abs().max() <= 1 and len(mine) == 10


def test_the_page_stays_alive_while_it_computes(sample_here):
    """Timers go on between the slices of one picture of clothes, which takes longer than all of them."""
    ticks = sample_here.evaluate("""async () => {
        let ticks = 0, done = false;
        const tick = () => { ticks++; if (!done) setTimeout(tick); };
        setTimeout(tick);
        await samplePicture({model: 'fashion', steps: 15});
        done = true;
        return ticks;
    }""")
    assert ticks >= 10


def test_the_site_opens_with_digits_that_come_out_of_noise(visit, capsys):
    began = time.perf_counter()
    page = visit("index")
    page.wait_for_function("$('t').textContent.includes('evaluations')")
    with capsys.disabled():
        print(f"\nindex: ten digits {time.perf_counter() - began:.1f} s after the page was asked for")
    shown = torch.tensor(page.evaluate("""[...$('xt').getContext('2d').getImageData(0, 0, 89, 8).data]
                                          .filter((_, k) => k % 4 === 0)""")).view(8, 89)
    digits = torch.stack([shown[:, 9 * k:9 * k + 8] for k in range(10)]).flatten(1)
    assert (digits - pixels_of(checkpoint="digits", n=10, sampler="2m", steps=20)).abs().max() <= 1
    before = picture_of(page, "xt")
    page.locator("#another").click()
    page.wait_for_function("$('t').textContent.includes('t = ')")
    page.wait_for_function("$('t').textContent.includes('evaluations')")
    assert picture_of(page, "xt") != before and page.locator("#seed").input_value() == "1"
