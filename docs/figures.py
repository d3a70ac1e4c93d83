"""Makes every figure of the README and of docs/, from the committed weights and the papers' equations.

The last one also needs the pictures of Debian's package dataset-fashion-mnist.

    python -m docs.figures                          # all of them: about 3 minutes on one CPU core
    python -m docs.figures --only forward,schedules

The figures of 2015 are made by their own scripts: swiss_roll.py, examples/heartbeat.py.
"""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import data
import ddpm
import evaluate
import noise
import sample
import train
from run import folder, pictures
from run.cli import parse, script

DOCS = Path(__file__).parent
DIGITS = str(DOCS.parent / "weights" / "digits.safetensors")
FASHION = str(DOCS.parent / "weights" / "fashion.safetensors")
SNAPSHOTS = [999, 700, 550, 400, 300, 200, 100, 50, 15, 0]


@dataclass(frozen=True)
class Config:
    """Makes the figures of the README and of docs/."""
    only: str = ""                              # names with commas between; all if empty


def digits(path: Path) -> None:
    """One hundred samples of the committed weights, one column per class."""
    samples = sample.generate(sample.Config(checkpoint=DIGITS))
    pictures.save(pictures.grid(samples.x, *pictures.columns(samples)), path)


def clothes(n: int = 100) -> pictures.Samples:
    """Samples of the committed Fashion-MNIST weights, of all classes in turn."""
    return sample.generate(sample.Config(checkpoint=FASHION, n=n, sampler=FASHION.replace(".safetensors", "-5.csv")))


def fashion(path: Path) -> None:
    """One hundred pieces of clothing that nobody wears, one column per class."""
    samples = clothes()
    save_greys(pictures.grid(samples.x, *pictures.columns(samples)), path)


def real_and_sampled(path: Path) -> None:
    """Held-out pictures and samples beside each other, a row per class, none of them chosen."""
    real, samples = data.load(data.TEST + train.PRESETS["fashion"].data), clothes(50)
    rows = [x for label in range(10) for x in (data.to_unit(real.images[(real.labels == label).nonzero()[:5, 0]]),
                                               samples.x[samples.labels == label][:5])]
    save_greys(pictures.grid(torch.cat(rows), 10, ("real",) * 5 + ("sampled",) * 5), path)


def save_greys(image: Image.Image, path: Path) -> None:
    """Saves a large grid in 32 greys, less than half its size."""
    image.convert("L").quantize(32).save(path, optimize=True)


def reverse(path: Path) -> None:
    """Ten chains of Ho et al. 2020, algorithm 2: x_t at ten times."""
    config = sample.Config(checkpoint=DIGITS, n=10, steps="1000", eta=1.)
    samples = sample.generate(config, keep=lambda times: {*SNAPSHOTS})
    pictures.strip(samples, SNAPSHOTS).save(path)


def forward(path: Path) -> None:
    """The forward process: one picture on its way to noise, and where one of its pixels may be meanwhile."""
    schedule, known = ddpm.linear_schedule(), data.to_unit(data.digits().images)
    seeds = noise.image_seeds(0, torch.arange(4))
    pixel, paths = known[:, 0, 2, 4], [known[:4, :, 2, 4]]                        # (1200,), one pixel of every digit
    chain = [one_digit()]
    for t in range(1, 1001):
        now = torch.full((4,), t)
        paths.append(ddpm.q_step(schedule, paths[-1], now, noise.normal(seeds, t, (1,), noise.TRAIN)))
        chain.append(ddpm.q_step(schedule, chain[-1], now[:1], noise.normal(seeds[:1], t, (1, 8, 8))))
    x = torch.linspace(-3, 3, 241, dtype=torch.float64)[:, None]
    density = torch.stack([mixture(x, pixel.double(), alpha_bar) for alpha_bar in schedule.alpha_bar[5::5]], dim=1)

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 2.4))
    times = [0, 20, 50, 100, 150, 200, 300, 400, 600, 1000]
    for axes, t in zip(top.subplots(1, len(times)), times, strict=True):
        show(axes, chain[t])
        axes.set_title(f"t = {t}", fontsize=9)
        axes.axis("off")
    axes = bottom.subplots()
    axes.imshow(density.sqrt().numpy(), extent=(0, 1000, -3, 3), origin="lower", aspect="auto", cmap="Blues", vmax=1.1)
    for k in range(4):
        axes.plot(torch.stack(paths)[:, k, 0], lw=0.8, color=f"C{k + 1}")
    axes.set(xlabel="t", ylabel="value of one pixel", xlim=(0, 1000), ylim=(-3, 3),
             title="q(x_t) of one pixel over all training digits, and four pictures' own way through it")
    pictures.save_figure(figure, path, dpi=120)


def one_digit() -> Tensor:
    """A clear 2, (1, 1, 8, 8): the one nearest to the mean of its kind."""
    digits = data.digits()
    twos = data.to_unit(digits.images[digits.labels == 2])
    return twos[(twos - twos.mean(0)).square().flatten(1).sum(1).argmin()][None]


def show(axes, x: Tensor) -> None:
    """Draws a grey picture (1, 1, H, W)."""
    axes.imshow(data.to_pixels(x)[0, 0].numpy(), cmap="gray", vmin=0, vmax=255)


def mixture(x: Tensor, points: Tensor, alpha_bar: Tensor) -> Tensor:
    """The density of q(x_t) at x (n, 1), of data at these points (N,): (n,)."""
    normal = torch.distributions.Normal(alpha_bar.sqrt() * points, (1 - alpha_bar).sqrt())
    return normal.log_prob(x).exp().mean(1)


def schedules(path: Path) -> None:
    """The named schedules: signal left, log signal to noise, and noise added per step."""
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.9, 1))
    signal, ratio, added = top.subplots(1, 3)
    for name, make in ddpm.SCHEDULES.items():
        schedule = make()
        t, alpha_bar = torch.arange(1, 1001), schedule.alpha_bar[1:]
        signal.plot(t, alpha_bar, label=f"{name}: {ddpm.schedule_check(schedule):.1g} bits/dim left at T")
        ratio.plot(t, alpha_bar.logit() / math.log(10))
        added.plot(t, schedule.beta[1:])
    signal.set(title="signal left, alpha_bar", xlabel="t")
    ratio.set(title="log10 of signal over noise", xlabel="t")
    added.set(title="noise added per step, beta", xlabel="t", yscale="log")
    top.legend(*signal.get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    for axes in (signal, ratio, added):
        axes.grid(alpha=0.3)
    x0, times = one_digit(), torch.linspace(0, 1000, 11).long()
    eps = noise.normal(noise.image_seeds(1, torch.zeros(1).long()), 0, (1, 8, 8))
    rows = bottom.subplots(2, len(times))
    for row, name in zip(rows, ("linear", "cosine"), strict=True):
        schedule = ddpm.SCHEDULES[name]()
        for axes, t in zip(row, times, strict=True):
            show(axes, ddpm.q_sample(schedule, x0, t.view(1), eps))
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"t = {t}" if name == "linear" else "", fontsize=8)
        row[0].set_ylabel(name, fontsize=9)
    pictures.save_figure(figure, path, dpi=120)


def loss(path: Path) -> None:
    """The log of 600 steps with a learned variance: loss, its two parts, and its quarters of 1..T."""
    with tempfile.TemporaryDirectory() as out:
        train.main(["--steps", "600", "--log_every", "20", "--loss", "hybrid", "--out", out, "--sample_every", "10000"])
        folder.plot_log(Path(out), path)


def evaluation(command: str, path: Path) -> None:
    """The picture of a command of evaluate.py."""
    evaluate.main([command, "--checkpoint", DIGITS, "--out", str(path)])


FIGURES = {"fashion": fashion, "digits": digits, "reverse": reverse, "forward": forward, "schedules": schedules,
           "loss": loss, "likelihood": partial(evaluation, "nll"), "neighbours": partial(evaluation, "neighbours"),
           "real_and_sampled": real_and_sampled}


@script
def main(argv: Sequence[str] | None = None) -> None:
    only = parse(Config, argv).only
    names = only.split(",") if only else [*FIGURES]
    for name in names:
        ddpm.check_choice("only", name, FIGURES)
    for name in names:
        FIGURES[name](DOCS / f"{name}.png")
        print(f"docs/{name}.png")


if __name__ == "__main__":
    main()
