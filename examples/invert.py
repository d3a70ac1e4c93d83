"""DDIM inversion: from a picture to the noise that DDIM turns into it, by the sampler's rows run upwards.

    python -m examples.invert

A row's step t -> s holds for s > t, too (Song, Meng, Ermon 2021, section 4.3: DDIM is the Euler method of an ordinary
differential equation). x at the lowest listed t is taken to be x0. Up and down again misses the picture by an error
that falls with the number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ddpm
from examples.common import HELD_OUT, Model, held_out_digits, rms, run, trained
from run import pictures
from run.cli import check_range, parse, parse_numbers, script
from samplers import COLUMNS, chain_of, ddim_mean


@dataclass(frozen=True)
class Config:
    """Inverts digits that the model has not seen, and samples them again from that noise."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    n: int = 12                                 # pictures
    steps: str = "10,50,250,1000"               # numbers of steps to try
    out: str = "out/invert.png"                 # the picture


def upward_rows(model: Model, times: Sequence[float]) -> Tensor:
    """DDIM's rows from the lowest of the decreasing times to the highest, (S-1, 12) float64 as `ddpm.sampler_rows`."""
    times = chain_of(model.schedule, times).flip(0)
    t, s = times[:-1], times[1:]
    bar_t, bar_s = ddpm.alpha_bar_at(model.schedule, t), ddpm.alpha_bar_at(model.schedule, s)
    a, b = ddpm.x0_coefficients(bar_t, model.target)
    c0, ct = ddim_mean(bar_t, bar_s)
    columns = {"t": t, "s": s, "a": a, "b": b, "clip": torch.full_like(a, torch.inf), "c0": c0, "ct": ct}
    return torch.stack([columns.get(name, torch.zeros_like(a)) for name in COLUMNS], dim=1)


def noise_of(model: Model, x0: Tensor, times: Sequence[float]) -> Tensor:
    """The x at the highest time that DDIM takes to x0."""
    return run(model.denoise, upward_rows(model, times), x0)


def picture_of(model: Model, xt: Tensor, times: Sequence[float]) -> Tensor:
    """The x0 to which DDIM takes x at the highest time; unclipped, so that it can be undone."""
    return run(model.denoise, ddpm.sampler_rows(model.schedule, times, target=model.target, clip=False), xt)


@script
def main(argv: Sequence[str] | None = None) -> list[float]:
    config = parse(Config, argv)
    check_range(config, "n", 1, HELD_OUT)
    model = trained(config.checkpoint)
    x0 = held_out_digits(model, config.n)
    columns, errors = {"original": x0}, []
    for steps in parse_numbers("steps", config.steps):
        times = ddpm.timesteps(ddpm.schedule_length(model.schedule), steps, "linspace")
        xT = noise_of(model, x0, times)
        again = picture_of(model, xT, times)
        errors.append(rms(again - x0))
        print(f"{steps:5} steps up and down: error {errors[-1]:.4f}; the noise has mean {xT.mean():+.3f}, "
              f"standard deviation {xT.std():.3f}")
        columns |= {f"{steps} up": xT / 3, f"{steps} down": again}
    pictures.save(pictures.side_by_side(columns.values(), [*columns]), config.out)
    print(f"see {config.out}")
    return errors


if __name__ == "__main__":
    main()
