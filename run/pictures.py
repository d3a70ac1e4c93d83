"""Pictures for people to look at: grids, strips of the reverse chain, and the chain as a film."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data import to_pixels
from data.image_files import to_image

FRAMES, GREYS = 40, 16              # of a film, at most: 100 digits then take under 2 MB


class Samples(NamedTuple):
    """Sampled pictures, and what is known of them."""
    n: int                          # how many pictures
    x: Tensor | None                # (n, C, H, W) in [-1, 1]; None for pictures that an earlier run sampled
    labels: Tensor | None           # (n,) int64; the null class is the last
    classes: tuple[str, ...]        # the name of every class but the null class
    states: dict[int, Tensor]       # x_t at the times kept, and x_0
    seconds: float                  # without compilation
    evaluations: int                # network evaluations (NFE)


def concatenate(batches: Sequence[Samples]) -> Samples:
    """All batches as one."""
    first = batches[0]
    states = {t: torch.cat([batch.states[t] for batch in batches]) for t in first.states}
    labels = None if first.labels is None else torch.cat([batch.labels for batch in batches])
    return Samples(len(states[0]), states[0], labels, first.classes, states,
                   sum(batch.seconds for batch in batches), sum(batch.evaluations for batch in batches))


def enlarge(image: Image.Image, least: int = 64) -> Image.Image:
    """A small picture, smoothly enlarged by a whole factor until its shorter side has `least` pixels."""
    factor = math.ceil(least / min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC)


def grid(x: Tensor, columns: int, heads: Sequence[str] = ()) -> Image.Image:
    """Pictures (N, C, H, W) in [-1, 1] row by row on white; `heads` are written above the columns."""
    tiles = [enlarge(to_image(p)) for p in to_pixels(x)]
    gap, top = 4, 24 if heads else 4
    w, h = tiles[0].width + gap, tiles[0].height + gap
    rows = math.ceil(len(tiles) / columns)
    sheet = Image.new("RGBA" if tiles[0].mode == "RGBA" else "RGB", (columns * w + gap, top + rows * h), "white")
    for k, tile in enumerate(tiles):
        sheet.paste(tile, (gap + k % columns * w, top + k // columns * h))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for k, head in enumerate(heads[:columns]):
        draw.text((gap + k * w + tiles[0].width // 2, top // 2), head, fill="black", font=font, anchor="mm")
    return sheet


def columns(samples: Samples) -> tuple[int, tuple[str, ...]]:
    """Columns of the samples' grid, and their heads: one per class, if every row repeats the same labels."""
    distinct = len(samples.labels.unique()) if samples.labels is not None else 1
    if distinct == 1:
        return math.ceil(len(samples.x) ** 0.5), ()
    names = (*samples.classes, "none")
    return distinct, tuple(names[label] for label in samples.labels[:distinct])


def nearest(t: int, times: Sequence[int]) -> int:
    """The one of these times that is nearest to t."""
    return min(times, key=lambda visited: abs(visited - t))


def strip(samples: Samples, times: Sequence[int]) -> Image.Image:
    """The first samples, one per row, at these times of the reverse chain."""
    rows = min(len(samples.x), max(1, len(samples.classes)))
    x = torch.stack([samples.states[t][:rows] for t in times], dim=1).flatten(0, 1)
    return grid(x, len(times), [f"t = {t:.6g}" for t in times])


def film_times(times: Sequence[int]) -> Sequence[int]:
    """The times of a film's frames: evenly spaced among those that the chain visits, x_0 not counted."""
    return times[::math.ceil(len(times) / FRAMES)]


def film(samples: Samples, path: Path) -> None:
    """The reverse chain of all samples as a GIF at half the grid's size, its last frame held for two seconds.

    Few greys or colours a frame keep the file small: noise does not compress. Pillow merges equal frames.
    """
    frames = []
    for t in sorted(samples.states, reverse=True):
        sheet = grid(samples.states[t], columns(samples)[0], [f"t = {t:.6g}"]).convert("RGB").reduce(2)
        frames.append(sheet.quantize(GREYS if samples.x.shape[1] == 1 else 4 * GREYS, dither=Image.Dither.NONE))
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0, duration=[150] * (len(frames) - 1) + [2000])


def channel_statistics(name: str, x: Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of x (N, C, H, W), by name: a colour cast shows here."""
    channels = x.transpose(0, 1).flatten(1)
    return {f"{name}_mean": channels.mean(1).tolist(), f"{name}_std": channels.std(1).tolist()}
