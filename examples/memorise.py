"""Memorisation made visible: the best denoiser there is for 1200 digits samples those 1200 digits and no other.

    python -m examples.memorise

`ddpm.exact_denoiser` minimises the training loss: its output is the mean of the training pictures, each weighted by
how likely it became x_t. Its samples are copies. A trained network samples *new* digits because it cannot learn
that minimum; whether it does is seen by each sample's nearest neighbour among the training pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import data
import ddpm
import noise
from examples.common import trained
from run import pictures
from run.cli import check_range, parse, script


@dataclass(frozen=True)
class Config:
    """Samples digits with the exact denoiser and with the trained one, each beside its nearest training picture."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    n: int = 60                                 # samples of each
    steps: int = 50                             # of DDIM
    seed: int = 0                               # sample i of both begins at the same noise
    out: str = "out/memorise.png"               # the picture


def nearest(x: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture's distance to its nearest training picture, root mean square per pixel, (N,), and that picture."""
    distance, index = torch.cdist(x.flatten(1), training.flatten(1)).min(dim=1)
    return distance / x[0].numel()**0.5, training[index]


def samples(schedule: ddpm.Schedule, denoise: Callable, target: str, config: Config, shape) -> Tensor:
    """Samples of DDIM, (n, C, H, W)."""
    times = ddpm.timesteps(ddpm.schedule_length(schedule), config.steps)
    rows = ddpm.sampler_rows(schedule, times, target=target)
    seeds = noise.image_seeds(config.seed, torch.arange(config.n, device=rows.device))
    *_, (_, x0, _) = ddpm.sample(denoise, rows, shape, seeds)
    return x0


@script
def main(argv: Sequence[str] | None = None) -> dict[str, Tensor]:
    config = parse(Config, argv)
    check_range(config, "n", 1)
    schedule, denoise, target = trained(config.checkpoint)
    device, shape = schedule.beta.device, data.digits().shape
    training, held_out = (data.to_unit(data.digits(held_out=h).images).to(device) for h in (False, True))
    x = {"exact": samples(schedule, ddpm.exact_denoiser(schedule, training), "eps", config, shape),
         "trained": samples(schedule, denoise, target, config, shape), "new": held_out[:config.n]}
    neighbours = {name: nearest(each, training) for name, each in x.items()}

    print("distance to the nearest training picture, median and smallest (root mean square per pixel):")
    for name, what in (("exact", "the exact denoiser's samples"), ("trained", "the trained model's samples"),
                       ("new", "digits held out")):
        print(f"  {what:29} {neighbours[name][0].median():.4f}  {neighbours[name][0].min():.4f}")
    k = min(8, config.n)
    columns = [each[:k] for name in x for each in (x[name], neighbours[name][1])]
    heads = ["exact", "nearest", "trained", "nearest", "new digit", "nearest"]
    pictures.save(pictures.grid(torch.stack(columns, dim=1).flatten(0, 1), len(heads), heads), config.out)
    print(f"see {config.out}")
    return {name: distance for name, (distance, _) in neighbours.items()}


if __name__ == "__main__":
    main()
