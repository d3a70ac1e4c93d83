"""Why what the network predicts matters: a curve in a plane, the plane in D dimensions, and eps, v and x0 predicted.

    python -m examples.low_dimension    about ten minutes of one CPU core

x0 lies on a spiral in a plane, however large D is; eps fills all D dimensions, and so does v. A network that is
narrower than D can pass the first on, but not the others: with more dimensions than units, what it predicts of eps is
missing most of it, and the samples leave the plane. Predicting x0, with v's loss, it never has to know them
(Li and He 2025, section 3.4, from which the experiment is taken). In two dimensions all find the spiral, x0 roughly.

The units are rectified: D small inputs leave a smooth unit linear, and the network would not learn to bend. Sampling
begins at t = 980, where the schedule still leaves what eps needs to say where x0 is.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ddpm
import noise
import samplers
from examples.common import minimise
from run.cli import check_range, parse, parse_numbers, script
from run.pictures import figure_path, panels, save_figure
from unet import sinusoid

SCHEDULE, START, TIME, RADIUS = ddpm.cosine_schedule(), 980, 64, 2
PREDICTIONS = {"eps": "", "v": "", "x0": "v"}           # and the space of its loss; empty is its own


@dataclass(frozen=True)
class Config:
    """Trains a small network to predict eps, v or x0 of a spiral that lies in D dimensions, and samples from it."""
    dimensions: str = "2,16,512"                # every D
    width: int = 256                            # units of each hidden layer
    steps: int = 4000                           # updates of each network
    batch: int = 512                            # points per update
    n: int = 500                                # samples of each
    seed: int = 0                               # of the weights, the points and all noise
    out: str = "out/low_dimension.png"          # the picture


def spiral(u: Tensor) -> Tensor:
    """The points (N, 2) of one and a half turns at u in [0, 1], within a circle of that radius."""
    angle = 1.5 * math.pi * (1 + 2 * u)
    return RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1) * (1 + 2 * u)[:, None] / 3


def plane(D: int, seed: int) -> Tensor:
    """Two orthonormal directions of D, (2, D)."""
    directions = noise.normal(noise.image_seeds(seed, torch.arange(2)), 0, (D,), noise.TRAIN)
    return torch.linalg.qr(directions.T)[0].T.contiguous()


class Network(nn.Module):
    """Five hidden layers and their output (B, D) for (xt, t)."""

    def __init__(self, D: int, width: int):
        super().__init__()
        self.first, self.time = nn.Linear(D, width), nn.Linear(TIME, width)
        hidden = [layer for _ in range(4) for layer in (nn.ReLU(), nn.Linear(width, width))]
        self.rest = nn.Sequential(*hidden, nn.ReLU(), nn.Linear(width, D))

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.rest(self.first(xt) + self.time(sinusoid(t, TIME, 0)))


def train(config: Config, D: int, target: str) -> Callable:
    """The denoiser after all updates (Ho et al. 2020, algorithm 1)."""
    torch.manual_seed(config.seed)
    denoise = Network(D, config.width)
    directions, seeds = plane(D, config.seed), noise.image_seeds(config.seed, torch.arange(config.batch))

    def loss(k: int) -> Tensor:
        x0 = spiral(noise.uniform(config.seed, k, config.batch, noise.FLIPS)) @ directions
        u = torch.arange(config.batch) + noise.uniform(config.seed, k, config.batch, noise.TIMES)
        t = (u * 1000 / config.batch).long().clamp(max=999) + 1                   # one of each part, as in train.py
        eps = noise.normal(seeds, k, (D,), noise.TRAIN)
        return ddpm.loss(SCHEDULE, denoise, x0, t, eps, target=target, space=PREDICTIONS[target]).mean()

    minimise(loss, [torch.optim.Adam(denoise.parameters(), lr=2e-3, betas=(0.9, 0.99))], config.steps)
    return torch.no_grad()(denoise)


def sampled(config: Config, D: int, target: str) -> Tensor:
    """Samples (n, D) of a newly trained network, by DPM-Solver++(2M)."""
    times = samplers.timesteps(1000, 50)
    rows = samplers.sampler_rows(SCHEDULE, times[times <= START], sampler="2m", target=target, clip=False)
    seeds = noise.image_seeds(config.seed, torch.arange(config.n))
    *_, (_, x0, _) = samplers.sample(train(config, D, target), rows, (D,), seeds)
    return x0


def distances(x0: Tensor, directions: Tensor) -> tuple[Tensor, float, float]:
    """The samples in the plane (n, 2), their median distance to the spiral in it, and to the plane."""
    flat = x0 @ directions.T
    to_curve = torch.cdist(flat, spiral(torch.linspace(0, 1, 1000))).amin(1)
    return flat, to_curve.median().item(), (x0 - flat @ directions).norm(dim=1).median().item()


def draw(axis, flat: Tensor, title: str) -> None:
    """The samples in the plane (n, 2), and the spiral behind them."""
    edge = 1.3 * RADIUS
    axis.plot(*spiral(torch.linspace(0, 1, 400)).T, color="0.8", lw=4, zorder=0)
    axis.scatter(*flat.T, s=3)
    axis.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
    axis.set_title(title, fontsize=7)


@script
def main(argv: Sequence[str] | None = None) -> dict[tuple[str, int], float]:
    config = parse(Config, argv)
    check_range(config, "width steps batch n", 1, 2**16)
    dimensions = parse_numbers("dimensions", config.dimensions)
    if not dimensions or min(dimensions) < 2 or max(dimensions) > 10**4:
        raise ValueError(f"dimensions is {config.dimensions!r}; it must list numbers from 2 to 10000")
    figure_path(config.out)                                                       # fails now, not at the end
    rows, columns, out_of_plane = len(PREDICTIONS), len(dimensions), {}
    figure, axes = panels(rows, columns, (2.2 * columns, 2.4 * rows), squeeze=False)
    for row, target in zip(axes, PREDICTIONS, strict=True):
        row[0].set_ylabel(f"predicts {target}")
        for axis, D in zip(row, dimensions, strict=True):
            flat, near, away = distances(sampled(config, D, target), plane(D, config.seed))
            print(f"predicts {target:3}, D = {D:4}: median distance to the curve {near:.3f}, to its plane {away:.3f}")
            draw(axis, flat, f"D = {D}: {near:.2f} from the curve,\n{away:.2f} out of the plane")
            out_of_plane[target, D] = away
    save_figure(figure, config.out, dpi=110)
    print(f"see {config.out}")
    return out_of_plane


if __name__ == "__main__":
    main()
