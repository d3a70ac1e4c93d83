"""DDIM inversion: from a picture to the noise that DDIM turns into it, by the sampler's rows run upwards.

    python -m examples.invert

A row's step t -> s holds for s > t, too (Song, Meng, Ermon 2021, section 4.3: DDIM is the Euler method of an ordinary
differential equation). x at the lowest listed t is taken to be x0. Up and down again misses the picture by an error
that falls with the number of steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import data
import ddpm
from examples.common import run, trained
from run import pictures
from run.cli import check_range, parse, parse_integers, script


@dataclass(frozen=True)
class Config:
    """Inverts digits that the model has not seen, and samples them again from that noise."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    n: int = 12                                 # pictures
    steps: str = "10,50,250,1000"               # numbers of steps to try
    out: str = "out/invert.png"                 # the picture


def upward_rows(schedule: ddpm.Schedule, times: Sequence[int], target: str) -> Tensor:
    """DDIM's rows from the lowest of the decreasing times to the highest, (S-1, 12) float64 as `ddpm.sampler_rows`."""
    times = torch.as_tensor(times, device=schedule.beta.device).flip(0)
    t, s = times[:-1], times[1:]
    bar_t, bar_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    a, b = ddpm.x0_coefficients(bar_t, target)
    ct = ((1 - bar_s) / (1 - bar_t)).sqrt()
    c0 = bar_s.sqrt() - ct * bar_t.sqrt()
    nothing = torch.zeros_like(a)
    return torch.stack([t, s, a, b, torch.full_like(a, torch.inf), c0, ct, *[nothing] * 5], dim=1)


def noise_of(schedule: ddpm.Schedule, denoise: Callable, x0: Tensor, times: Sequence[int], target: str) -> Tensor:
    """The x at the highest time that DDIM takes to x0."""
    return run(denoise, upward_rows(schedule, times, target), x0)


def picture_of(schedule: ddpm.Schedule, denoise: Callable, xt: Tensor, times: Sequence[int], target: str) -> Tensor:
    """The x0 to which DDIM takes x at the highest time; unclipped, so that it can be undone."""
    return run(denoise, ddpm.sampler_rows(schedule, times, target=target, clip=False), xt)


@script
def main(argv: Sequence[str] | None = None) -> list[float]:
    config = parse(Config, argv)
    check_range(config, "n", 1, 597)                                    # so many digits are held out
    schedule, denoise, target = trained(config.checkpoint)
    x0 = data.to_unit(data.digits(held_out=True).images[:config.n]).to(schedule.beta.device)
    shown, heads, errors = [x0], ["original"], []
    for steps in parse_integers("steps", config.steps):
        times = ddpm.timesteps(ddpm.schedule_length(schedule), steps, "linspace")
        xT = noise_of(schedule, denoise, x0, times, target)
        again = picture_of(schedule, denoise, xT, times, target)
        errors.append((again - x0).square().mean().sqrt().item())
        print(f"{steps:5} steps up and down: error {errors[-1]:.4f}; the noise has mean {xT.mean():+.3f}, "
              f"standard deviation {xT.std():.3f}")
        shown, heads = [*shown, xT / 3, again], [*heads, f"{steps} up", f"{steps} down"]
    pictures.save(pictures.grid(torch.stack(shown, dim=1).flatten(0, 1), len(shown), heads), config.out)
    print(f"see {config.out}")
    return errors


if __name__ == "__main__":
    main()
