"""One-dimensional signals: telegraph waves learned, sampled and denoised by the core that samples pictures.

    python -m examples.denoise_1d       about 20 seconds of one CPU core

x (B, 1, L) jumps between -1 and 1 at random places. The denoiser is any function of (xt, t): here four convolutions
that see the noise level as a second channel. A noisy signal, scaled, is an x_t, and the reverse chain from there
samples p(x0 | signal) (Sohl-Dickstein et al. 2015, section 2.5); no linear filter keeps edges so sharp.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool1d

import ddpm
import noise
from examples.common import Model, minimise, rms
from examples.inpaint import denoised
from run.cli import check_range, parse, script
from run.pictures import panels, save_figure

L, JUMPS, SCHEDULE = 64, 0.06, ddpm.cosine_schedule(200)


@dataclass(frozen=True)
class Config:
    """Telegraph signals (B, 1, L): trains a denoiser, samples signals with it, and removes noise from others."""
    steps: int = 1500                           # updates
    batch: int = 64                             # signals per update
    sigma: float = 0.7                          # standard deviation of the noise to remove
    seed: int = 0                               # of the weights, the signals and all noise
    out: str = "out/denoise_1d.png"             # the picture


def signals(seed: int, k: int, n: int) -> Tensor:
    """The k-th n signals, (n, 1, L) of -1 and 1: a fair coin, then jumps with chance JUMPS per place."""
    jump = noise.uniform(seed, k, n * L, noise.TIMES).view(n, 1, L) < JUMPS
    jump[:, :, 0] = noise.uniform(seed, k, n, noise.FLIPS)[:, None] < 0.5
    return 1. - 2 * (jump.cumsum(-1) % 2)


class Denoiser(nn.Sequential):
    """(xt, t) -> an estimate of x0: four convolutions."""

    def __init__(self):
        super().__init__(nn.Conv1d(2, 32, 5, padding=2), nn.SiLU(), nn.Conv1d(32, 32, 5, padding=4, dilation=2),
                         nn.SiLU(), nn.Conv1d(32, 32, 5, padding=8, dilation=4), nn.SiLU(),
                         nn.Conv1d(32, 1, 5, padding=2))

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        level = SCHEDULE.alpha_bar[t].sqrt().float().view(-1, 1, 1)
        return super().forward(torch.cat([xt, level.expand_as(xt)], dim=1))


def train(config: Config) -> Callable:
    """The denoiser after `steps` updates (Ho et al. 2020, algorithm 1)."""
    torch.manual_seed(config.seed)
    denoise = Denoiser()
    seeds = noise.image_seeds(config.seed, torch.arange(config.batch))

    def loss(k: int) -> Tensor:
        t = (noise.uniform(config.seed, k, config.batch, noise.LABELS) * 200).long() + 1
        eps = noise.normal(seeds, k, (1, L), noise.TRAIN)
        return ddpm.loss(SCHEDULE, denoise, signals(config.seed, k, config.batch), t, eps, target="x0").mean()

    minimise(loss, [torch.optim.Adam(denoise.parameters(), lr=3e-3)], config.steps)
    return torch.no_grad()(denoise)


@script
def main(argv: Sequence[str] | None = None) -> dict[str, Tensor]:
    config = parse(Config, argv)
    check_range(config, "steps batch", 1)
    check_range(config, "sigma", 0, 100)
    denoise = train(config)
    seeds = noise.image_seeds(config.seed, torch.arange(64))
    rows = ddpm.sampler_rows(SCHEDULE, ddpm.timesteps(200, 200), target="x0", eta=1)
    *_, (_, sampled, _) = ddpm.sample(denoise, rows, (1, L), seeds, ahead=50)

    x0 = signals(config.seed, 0, 64)
    noisy = x0 + config.sigma * noise.normal(seeds, 0, (1, L), noise.INPAINT)
    clean = denoised(Model(SCHEDULE, denoise, "x0"), noisy, config.sigma, seeds)
    smooth = min((avg_pool1d(noisy, w, 1, w // 2, count_include_pad=False) for w in (1, 3, 5, 7, 9, 11)),
                 key=lambda y: rms(y - x0))
    print(f"error: noisy {rms(noisy - x0):.3f}, the best moving average {rms(smooth - x0):.3f}, samples of the "
          f"posterior {rms(clean - x0):.3f}")
    print(f"jumps per signal: {jumps(x0):.2f} in the data, {jumps(sampled):.2f} in the samples")
    plot(config.out, {"original": x0, "noisy": noisy, "moving average": smooth, "denoised": clean, "sampled": sampled})
    return {"x0": x0, "noisy": noisy, "smooth": smooth, "clean": clean, "sampled": sampled}


def jumps(x: Tensor) -> float:
    """How often a signal changes its sign, on average."""
    return (x > 0).int().diff(dim=-1).abs().sum(-1).float().mean().item()


def plot(out: str, columns: dict[str, Tensor]) -> None:
    """The first four signals, one per row."""
    figure, axes = panels(4, len(columns), (2.6 * len(columns), 5), sharex=True, sharey=True)
    for column, (name, x) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name)
        for axis, signal in zip(column, x[:4, 0], strict=True):
            axis.plot(signal, lw=1)
    save_figure(figure, out, dpi=100)
    print(f"see {out}")


if __name__ == "__main__":
    main()
