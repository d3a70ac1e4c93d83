"""Between two pictures: both are turned into noise, the noise is rotated from one to the other, and sampled from.

    python -m examples.interpolate

DDIM maps noise to pictures one to one, so a path through noise is a path through pictures. It runs along the great
circle: halfway along the straight line Gaussian noise has only 0.7 of its length, which no picture comes from (Song,
Meng, Ermon 2021, section 5.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import ddpm
from examples.common import HELD_OUT, held_out_digits, trained
from examples.invert import noise_of, picture_of
from run import pictures
from run.cli import check_range, parse, script


@dataclass(frozen=True)
class Config:
    """Samples the path from digits to other digits through the model's noise; below, plain mixtures of pixels."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    pairs: int = 5                              # how many paths
    stops: int = 9                              # pictures on each, both ends among them
    steps: int = 250                            # of DDIM, up and down
    out: str = "out/interpolate.png"            # the picture


def slerp(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """From x (B, ...) at w = 0 to y at w = 1 along the great circle, at an even pace; w (S,) -> (S, B, ...).

    Along the line where the two are so near, or so opposite, that rounding would choose the circle.
    """
    cosine = torch.cosine_similarity(x.flatten(1), y.flatten(1), dim=1)
    angle = cosine.clamp(-1, 1).acos().view(-1, *[1] * (x.ndim - 1))
    w = w.view(-1, *[1] * x.ndim)
    circle = (((1 - w) * angle).sin() * x + (w * angle).sin() * y) / angle.sin()
    return torch.where(angle.sin() < 1e-3, torch.lerp(x, y, w), circle)


@script
def main(argv: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    config = parse(Config, argv)
    check_range(config, "pairs", 1, HELD_OUT // 2)
    check_range(config, "stops", 1)
    model = trained(config.checkpoint)
    times = ddpm.timesteps(ddpm.schedule_length(model.schedule), config.steps, "linspace")
    ends = held_out_digits(model, 2 * config.pairs)
    w = torch.linspace(0, 1, config.stops, device=ends.device)

    path = slerp(*noise_of(model, ends, times).chunk(2), w)             # S B C H W
    sampled = picture_of(model, path.flatten(0, 1), times).view(path.shape)
    mixed = torch.lerp(*ends.chunk(2), w.view(-1, 1, 1, 1, 1))

    rows = torch.stack([sampled, mixed], dim=2).flatten(1, 2)           # sampled and mixed in turn
    pictures.save(pictures.side_by_side(rows, [f"{v:.2g}" for v in w.tolist()]), config.out)
    print(f"pixels near black or white: {decided(sampled):.0%} of the samples, {decided(mixed):.0%} of the mixtures, "
          f"{decided(ends):.0%} of the original digits; see {config.out}")
    return sampled, ends


def decided(x: Tensor) -> float:
    """The share of pixels within a quarter of the range from black or white; mixtures are grey."""
    return (x.abs() > 0.5).float().mean().item()


if __name__ == "__main__":
    main()
