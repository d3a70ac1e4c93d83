"""Memorisation made visible: the best denoiser there is for 1200 digits samples those 1200 digits and no other.

    python -m examples.memorise

`ddpm.exact_denoiser` minimises the training loss: its output is the mean of the training pictures, each weighted by
how likely it became x_t. Its samples are copies. A trained network samples *new* digits because it cannot learn
that minimum; whether it does is seen by each sample's nearest neighbour among the training pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import data
import ddpm
import noise
from examples.common import Model, held_out_digits, trained
from run import pictures
from run.cli import check_range, parse, script
from scores import classes


@dataclass(frozen=True)
class Config:
    """Samples digits with the exact denoiser and with the trained one, each beside its nearest training picture."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    n: int = 60                                 # samples of each
    steps: int = 50                             # of DDIM
    seed: int = 0                               # sample i of both begins at the same noise
    out: str = "out/memorise.png"               # the picture


def samples(model: Model, shape: tuple[int, ...], config: Config) -> Tensor:
    """Samples of DDIM, (n, C, H, W)."""
    times = ddpm.timesteps(ddpm.schedule_length(model.schedule), config.steps)
    rows = ddpm.sampler_rows(model.schedule, times, target=model.target)
    seeds = noise.image_seeds(config.seed, torch.arange(config.n, device=rows.device))
    *_, (_, x0, _) = ddpm.sample(model.denoise, rows, shape, seeds)
    return x0


@script
def main(argv: Sequence[str] | None = None) -> list[Tensor]:
    config = parse(Config, argv)
    check_range(config, "n", 1)
    model, digits = trained(config.checkpoint), data.digits()
    training = data.to_unit(digits.images).to(model.schedule.beta.device)
    exact = Model(model.schedule, ddpm.exact_denoiser(model.schedule, training), "eps")
    x = {"the exact denoiser's samples": samples(exact, digits.shape, config),
         "the trained model's samples": samples(model, digits.shape, config),
         "digits held out": held_out_digits(model, config.n)}

    print("distance to the nearest training picture, median and smallest (root mean square per pixel):")
    columns, distances = [], []
    for name, each in x.items():
        distance, index = classes.nearest(each.cpu(), digits.images)
        distances.append(distance[:, 0] / training[0].numel()**0.5)
        columns += [each[:8], training[index[:8, 0]]]
        print(f"  {name:29} {distances[-1].median():.4f}  {distances[-1].min():.4f}")
    heads = ["exact", "nearest", "trained", "nearest", "new digit", "nearest"]
    pictures.save(pictures.side_by_side(columns, heads), config.out)
    print(f"see {config.out}")
    return distances


if __name__ == "__main__":
    main()
