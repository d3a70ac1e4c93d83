"""What a network evaluation buys: the error of every sampler against their number, on three problems.

    python -m bench.work_precision --out docs/samplers.png      # about ten minutes of one CPU core

1. A mixture in one dimension. The probability-flow ODE keeps the rank of every state: x_s is the quantile of q(x_s)
   that x_t is of q(x_t), so the error of a state is known to rounding.
2. A Gaussian. x and the x0_hat's that a row reads stay jointly Gaussian, so the variance of a chain with noise is
   known without sampling, and so is what it should be.
3. A trained model, every sampler at the spacing that suits it best, and the tables learned for it
   (examples/learn_sampler.py): the distance of its pictures to those of a fine chain from the same noise, and the
   Frechet distance to held-out pictures.

In 1 and 2 the times are even in log sigma from sigma = 20 to 0.05, and the last step to 0 is left out: log-SNR is
infinite there, and every method is of first order. tests/test_order.py asserts the orders.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from torch import Tensor

import ddpm
import sample
from run.checkpoint import load
from run.cli import check_range, parse, parse_numbers, script
from run.markdown import table
from run.pictures import figure_path, panels, save_figure
from samplers import NOISE_SPACINGS, column, sampler_rows, step
from schedules import alpha_bar_at, time_at
from scores import classes, classifier
from scores.pictures import HELD_OUT, load_pictures

SCHEDULE = ddpm.linear_schedule()
MEANS, SHARES = torch.tensor([-0.6, 0.1, 0.8]).double(), torch.tensor([0.25, 0.5, 0.25]).double()
DEVIATIONS = torch.tensor([0.15, 0.1, 0.2]).double()
ODE = {"DDIM": {}, "2M": {"sampler": "2m"}, "Heun": {"sampler": "heun"}, "UniPC": {"sampler": "unipc"},
       "UniPC, B1": {"sampler": "unipc-bh1"}}
SDE = {"DDPM": {"eta": 1.}, "2M, eta 1": {"sampler": "2m", "eta": 1.},
       "Heun, churn 5": {"sampler": "heun", "churn": 5.}}
GRID, FINE, NEAR = (8, 16, 32, 64, 128, 256), 100, 128      # steps of 1 and 2; of the fine chain, and its pictures


@dataclass(frozen=True)
class Config:
    """Measures every sampler's error against its network evaluations, and plots it."""
    checkpoint: str = "weights/digits.safetensors"  # a model of a labelled set
    steps: str = "1,2,3,4,5,6,8,10,15,20"       # network evaluations of the model's chains
    n: int = 1000                               # pictures of each
    seed: int = 0                               # of the pictures
    out: str = "out/work_precision.png"         # the picture


def times(steps: int) -> Tensor:
    """The start and the end of these steps, even in log sigma."""
    return time_at(SCHEDULE, torch.linspace(math.log(20.), math.log(0.05), steps + 1, dtype=torch.float64))


# A mixture of three Gaussians, or of three points

def components(alpha_bar: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations of q(x_t), each (3,); deviations: those of x0."""
    return alpha_bar.sqrt() * MEANS, (alpha_bar * deviations**2 + 1 - alpha_bar).sqrt()


def rank(x: Tensor, alpha_bar: Tensor, deviations: Tensor) -> Tensor:
    """The share of q(x_t) that lies below x (n,)."""
    means, widths = components(alpha_bar, deviations)
    return (SHARES * torch.special.ndtr((x[:, None] - means) / widths)).sum(1)


def transported(x: Tensor, bar_t: Tensor, bar_s: Tensor, deviations: Tensor) -> Tensor:
    """x_s of the same rank as x_t, by bisection."""
    target, low, high = rank(x, bar_t, deviations), torch.full_like(x, -20), torch.full_like(x, 20)
    for _ in range(100):
        middle = (low + high) / 2
        below = rank(middle, bar_s, deviations) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


def x0_mean(x: Tensor, t: Tensor, deviations: Tensor) -> Tensor:
    """E[x0 | x_t] for x (n, 1)."""
    alpha_bar = alpha_bar_at(SCHEDULE, t)
    means, widths = components(alpha_bar, deviations)
    weights = (SHARES.log() - widths.log() - ((x - means) / widths)**2 / 2).softmax(1)
    posterior = MEANS + alpha_bar.sqrt() * deviations**2 / widths**2 * (x - means)
    return (weights * posterior).sum(1, keepdim=True)


def state_error(steps: int, deviations: Tensor = DEVIATIONS, **choice) -> tuple[int, float]:
    """Network evaluations, and the largest error at the end of nine states that begin from -2 to 2."""
    t = times(steps)
    rows, start = sampler_rows(SCHEDULE, t, target="x0", clip=False, **choice)[:-1], torch.linspace(-2, 2, 9).double()
    x, past = start[:, None], [None, None]
    for k, time in enumerate(column(rows, "t")):
        x, x0_hat = step(rows, torch.tensor([k]), x, x0_mean(x, time, deviations), past[-1], x0_prev2=past[-2])
        past.append(x0_hat)
    exact = transported(start, *alpha_bar_at(SCHEDULE, t[[0, -1]]), deviations)
    return len(rows), (x[:, 0] - exact).abs().max().item()


# A Gaussian

def variance_error(steps: int, var: float = 0.25, **choice) -> tuple[int, float]:
    """Network evaluations, and |Var[x_s] - exact| at the end, for data N(0, var)."""
    rows = sampler_rows(SCHEDULE, times(steps), target="x0", clip=False, **choice)[:-1]
    alpha_bar = alpha_bar_at(SCHEDULE, torch.cat([column(rows, "t"), column(rows[-1:], "s")]))
    marginal = alpha_bar * (var - 1) + 1                                          # of every x_t
    covariance = torch.zeros(3, 3, dtype=torch.float64)                           # of x, x0_prev and x0_prev2
    covariance[0, 0], identity = marginal[0], torch.eye(3, dtype=torch.float64)
    columns = [column(rows, name) for name in ("c0", "ct", "cp", "cp2", "cz")]
    for c0, ct, cp, cp2, cz, gain in zip(*columns, (alpha_bar.sqrt() * var / marginal)[:-1], strict=True):
        move = torch.stack([torch.stack([c0 * gain + ct, cp, cp2]), gain * identity[0], identity[1]])
        covariance = move @ covariance @ move.T                                   # E[x0 | x_t] = gain x_t
        covariance[0, 0] += cz**2
    return len(rows), (covariance[0, 0] - marginal[-1]).abs().item()


# A trained model

def chains(config: Config) -> Iterator[tuple[str, int, list[sample.Config]]]:
    """Every sampler's name, network evaluations, and chains to choose from: the spacings of one without noise."""
    base = sample.Config(checkpoint=config.checkpoint, n=config.n, batch=250, seed=config.seed)
    for name, choice in (ODE | SDE).items():
        for evaluations in parse_numbers("steps", config.steps):
            heun = "heun" in choice.values()
            if heun and evaluations % 2 == 0:                                     # it takes two a step, at last one
                continue
            steps = (evaluations + 1) // 2 if heun else evaluations
            spacings = ("trailing", *NOISE_SPACINGS) if name in ODE and steps > 1 else ("trailing",)
            yield name, evaluations, [
                replace(base, steps=str(steps), spacing=spacing, **choice) for spacing in spacings]
    tables = Path(config.checkpoint).with_suffix("")
    for path in sorted(tables.parent.glob(f"{tables.name}-*.csv")):
        yield "learned", len(path.read_text().split()) - 1, [replace(base, sampler=str(path))]


def model(config: Config) -> dict[str, dict[str, list]]:
    """By sampler, (network evaluations, distance) to a fine chain, (..., FD) and (..., spacing), the nearest one."""
    checkpoint, curves = load(config.checkpoint), {kind: defaultdict(list) for kind in ("distance", "FD", "spacing")}
    weights = classifier.load_fitting(classifier.trained_on(checkpoint)).weights
    score = classes.score_against(weights, load_pictures(checkpoint, HELD_OUT))

    def first(choice: sample.Config) -> Tensor:
        return sample.generate(replace(choice, n=min(NEAR, config.n))).x

    def distance(x: Tensor) -> float:
        return (x[:len(fine)] - fine).square().mean().sqrt().item()

    fine = first(sample.Config(checkpoint=config.checkpoint, n=config.n, batch=250, seed=config.seed, sampler="unipc",
                               steps=str(FINE), spacing="flow"))
    for name, evaluations, choices in chains(config):
        choice = min(choices, key=lambda each: distance(first(each))) if len(choices) > 1 else choices[0]
        x = sample.generate(choice).x
        if name not in SDE:
            curves["distance"][name].append((evaluations, distance(x)))
        curves["FD"][name].append((evaluations, score(x, None)["FD"]))
        curves["spacing"][name].append((evaluations, choice.spacing))
    return curves


# The picture

def plot(out: str, plots: dict[str, tuple[str, dict[str, list]]]) -> None:
    """A panel for each title: its y label, and by sampler (network evaluations, error)."""
    figure, axes = panels(2, 2, (10, 7.6))
    colours = {name: f"C{k}" for k, name in enumerate(ODE | SDE)} | {"learned": "black"}
    for axis, (title, (label, curves)) in zip(axes.flat, plots.items(), strict=True):
        for name, points in curves.items():
            axis.plot(*zip(*points, strict=True), marker="o", ms=3, color=colours[name], label=name,
                      ls="--" if name in SDE else "-", lw=4 if name == "2M" else 1.5)       # UniPC may lie on it
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=label, title=title)
        axis.xaxis.set(major_locator=LogLocator(2), major_formatter=ScalarFormatter(), minor_formatter=NullFormatter())
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7)
    save_figure(figure, out, dpi=110)
    print(f"see {out}")


@script
def main(argv: Sequence[str] | None = None) -> dict[str, list]:
    config = parse(Config, argv)
    check_range(config, "n", classes.K + 1)                                       # a sample needs K neighbours
    figure_path(config.out)                                                       # fails now, not at the end
    state = {name: [state_error(steps, **choice) for steps in GRID] for name, choice in ODE.items()}
    variance = {name: [variance_error(steps, **choice) for steps in GRID] for name, choice in (ODE | SDE).items()}
    curves, name = model(config), Path(config.checkpoint).stem
    plot(config.out, {"a mixture in one dimension": ("error of the state", state),
                      "a Gaussian": ("error of the variance", variance),
                      f"{name}, best spacing": ("rms distance to the fine chain", curves["distance"]),
                      f"{name}, that spacing": ("FD to held-out pictures", curves["FD"])})
    columns = sorted({evaluations for points in curves["FD"].values() for evaluations, _ in points})
    print(table(["sampler", *map(str, columns)], [
        [name, *(f"{fd[k]:.2f} {spacing[k] if name in ODE else ''}" if k in fd else "" for k in columns)]
        for name in curves["FD"] for fd, spacing in [(dict(curves["FD"][name]), dict(curves["spacing"][name]))]]))
    return curves["FD"]


if __name__ == "__main__":
    main()
