"""Repairs pictures: fills holes and removes noise by sampling from the posterior p(x0 | what is seen).

    python -m examples.inpaint

A posterior is the model's chain with a factor for what is seen multiplied into every step (Sohl-Dickstein et al. 2015,
section 2.5). For a hole, the seen pixels are set to q(x_s | x0) after every step; going back up and down again a few
times lets the rest agree with them (Lugmayr et al. 2022, RePaint, algorithm 1). For noise of known strength, the
noisy picture, scaled, *is* an x_t, so the chain begins there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ddpm
import noise
import samplers
from examples.common import HELD_OUT, Model, held_out_digits, rms, run, trained
from run import pictures
from run.cli import check_range, parse, script


@dataclass(frozen=True)
class Config:
    """Fills holes in digits that the model has not seen, and removes noise from them."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    n: int = 8                                  # pictures
    samples: int = 4                            # samples of each posterior
    steps: int = 50                             # of the chain
    rounds: int = 5                             # how often each step is repeated, with noise put back in between
    sigma: float = 0.5                          # standard deviation of the noise to remove
    seed: int = 0                               # of all noise
    out: str = "out/inpaint.png"                # the picture


@torch.no_grad()
def inpaint(model: Model, rows: Tensor, x0: Tensor, seen: Tensor, seeds: Tensor, rounds: int) -> Tensor:
    """x0 (B, ...) with the pixels that are not seen, a mask (B, ...), sampled; the others stay as they are.

    Raises ValueError for rows that read earlier predictions: a repeated step would have those of another visit.
    """
    reads, T, shape = samplers.needs(rows), ddpm.schedule_length(model.schedule), x0.shape[1:]
    if reads.x0_prev:
        raise ValueError("the rows read earlier predictions, which repeated steps do not have; use the sampler ddim, "
                         "ddpm or consistency")
    times = samplers.network_times(rows)
    times = torch.cat([times, times.new_zeros(1)])
    bar, xt = ddpm.alpha_bar_at(model.schedule, times), noise.normal(seeds, times[0], shape)
    for k, (t, s) in enumerate(times.unfold(0, 2, 1)):
        i = torch.tensor([k], device=rows.device)
        for again in range(rounds):
            key = s + (T + 1) * again                                   # every visit has noise of its own
            z = noise.normal(seeds, key, shape)
            output = model.denoise(xt, t.expand(len(xt)))
            ddpm.check_output(output, xt.shape, reads.learned)
            xs, _ = ddpm.step(rows, i, xt, output, z=z)
            known = ddpm.q_sample(model.schedule, x0, s.expand(len(x0)), noise.normal(seeds, key, shape, noise.INPAINT))
            xs = torch.where(seen, known, xs)                           # at s = 0 known is x0 itself
            if again < rounds - 1:                                      # back up: q(x_t | x_s)
                keep = (bar[k] / bar[k + 1]).float()
                xt = keep.sqrt() * xs + (1 - keep).sqrt() * noise.normal(seeds, key + (T + 1) * rounds, shape)
        xt = xs
    return xt


def denoised(model: Model, y: Tensor, sigma: float, seeds: Tensor) -> Tensor:
    """Samples of p(x0 | y) for y = x0 + sigma * noise: y sqrt(alpha_bar_t) is x_t where (1 - bar)/bar = sigma^2."""
    bar = model.schedule.alpha_bar
    t = max(1, int(((1 - bar) / bar - sigma**2).abs().argmin()))
    rows = ddpm.sampler_rows(model.schedule, list(range(t, 0, -1)), target=model.target, eta=1)
    return run(model.denoise, rows, bar[t].sqrt().float() * y, seeds)


@script
def main(argv: Sequence[str] | None = None) -> dict[str, Tensor]:
    config = parse(Config, argv)
    check_range(config, "n", 1, HELD_OUT)
    check_range(config, "samples rounds", 1)
    check_range(config, "sigma", 0, 100)
    model = trained(config.checkpoint)
    original = held_out_digits(model, config.n)
    x0 = original.repeat_interleave(config.samples, dim=0)
    seeds = noise.image_seeds(config.seed, torch.arange(len(x0), device=x0.device))
    seen = torch.ones_like(x0, dtype=torch.bool)
    seen[:, :, x0.shape[2] // 2:] = False                               # the lower half is the hole

    times = ddpm.timesteps(ddpm.schedule_length(model.schedule), config.steps)
    rows = ddpm.sampler_rows(model.schedule, times, target=model.target, eta=1)
    filled = inpaint(model, rows, x0, seen, seeds, config.rounds)
    noisy = original + config.sigma * noise.normal(seeds[::config.samples], 0, x0.shape[1:], noise.INPAINT)
    clean = denoised(model, noisy.repeat_interleave(config.samples, dim=0), config.sigma, seeds)

    heads = ["original", "hole", *["filled"] * config.samples, "noisy", *["denoised"] * config.samples]
    hole = torch.where(seen, x0, 0)[::config.samples]
    columns = [original, hole, *filled.unflatten(0, (config.n, -1)).unbind(1),
               noisy, *clean.unflatten(0, (config.n, -1)).unbind(1)]
    pictures.save(pictures.side_by_side(columns, heads), config.out)
    mean = clean.unflatten(0, (config.n, -1)).mean(1)
    print(f"noise of {config.sigma} leaves an error of {rms(clean - x0):.3f} per sample, {rms(mean - original):.3f} "
          f"for their mean; see {config.out}")
    return {"x0": x0, "seen": seen, "filled": filled, "noisy": noisy, "clean": clean}


if __name__ == "__main__":
    main()
