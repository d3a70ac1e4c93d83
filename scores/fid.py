"""Frechet Inception distance (Heusel et al. 2017) of saved pictures to a data set, through pytorch-fid's network.

    pip install pytorch-fid
    python sample.py --checkpoint runs/cifar10/last.pt --n 50000 --npz --out out/cifar10
    python evaluate.py fid --pictures out/cifar10/pictures.npz --data cifar10

The features are those of the Inception network that published figures use; its weights are downloaded once by
pytorch-fid. The distance falls as N grows, so N stands beside it, and so does the distance between two halves of the
real pictures: no model can be told from the data below that. Statistics are cached under the hash of the pixels.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import data
from run.cli import check_range, choose_device, make_parent, parse

Features = Callable[[Tensor], Tensor]           # uint8 (B, 3, H, W) -> (B, D)


@dataclass(frozen=True)
class Config:
    """Frechet Inception distance of pictures to a data set; needs pip install pytorch-fid."""
    pictures: str = "out/pictures.npz"          # what sample.py --npz or --png wrote, or any data set
    data: str = "cifar10"                       # the real pictures, as for train.py, at the pictures' size
    fit: str = "crop"                           # how the real ones get there: crop or pad
    n: int = 0                                  # real pictures, the first; 0 is all
    batch: int = 50                             # pictures at once; changes no figure
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    cache: str = "out/fid"                      # folder of the statistics


class Statistics(NamedTuple):
    """What the distance knows of n pictures."""
    n: int
    mean: Tensor                    # (D,) float64
    scatter: Tensor                 # (D, D) float64, the sum of outer products of deviations from the mean

    def __add__(self, other: "Statistics") -> "Statistics":
        """Those of both together (Chan et al. 1979), without the cancellation of a sum of squares."""
        n, gap = self.n + other.n, other.mean - self.mean
        return Statistics(n, self.mean + gap * other.n / n,
                          self.scatter + other.scatter + gap.outer(gap) * self.n * other.n / n)


def statistics(features: Tensor) -> Statistics:
    """Of features (N, D)."""
    x = features.double()
    mean = x.mean(0)
    return Statistics(len(x), mean, (x - mean).T @ (x - mean))


def frechet(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), A and B the covariances (Heusel et al. 2017, eq. 6)."""
    A, B = (s.scatter / (s.n - 1) for s in (a, b))
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T                       # A^1/2, so that all stays symmetric
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()      # tr (A B)^1/2
    return ((a.mean - b.mean).square().sum() + A.trace() + B.trace() - 2 * cross).clamp(min=0).item()


def inception(device: torch.device) -> Features:
    """The 2048 features of pytorch-fid's network. Raises ValueError where it is not installed."""
    try:
        from pytorch_fid.inception import InceptionV3
    except ImportError:
        raise ValueError("the distance needs pytorch-fid; install it with: pip install pytorch-fid") from None
    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).to(device).eval()

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        return network(pixels.to(device).float() / 255)[0].flatten(1).cpu()

    return features


def halves(found: data.Data, features: Features, batch: int, cache: Path) -> tuple[Statistics, Statistics]:
    """Statistics of every other picture, and of the rest; from the cache, if these pixels have been seen."""
    n, digest = len(found.images), hashlib.sha256(repr(found.shape).encode())
    chunks = torch.arange(n).split(batch)
    for chunk in chunks:
        digest.update(found.images[chunk].numpy().tobytes())
    path = cache / f"{n}-{digest.hexdigest()[:16]}.npz"
    if not path.is_file():
        x = torch.cat([features(colour(found.images[chunk])) for chunk in tqdm(chunks, unit=" batches", leave=False)])
        both = {k: statistics(x[k::2])._asdict() for k in (0, 1)}
        np.savez(make_parent(path), **{f"{name}{k}": value for k in both for name, value in both[k].items()})
    with np.load(path, allow_pickle=False) as kept:
        return tuple(Statistics(int(kept[f"n{k}"]), *(torch.from_numpy(kept[f"{name}{k}"])
                                                     for name in ("mean", "scatter"))) for k in (0, 1))


def colour(pixels: Tensor) -> Tensor:
    """Grey or colour pixels (B, C, H, W) as colour. Raises ValueError for transparency."""
    if pixels.shape[1] == 4:
        raise ValueError("the pictures have an alpha channel, which Inception does not know; give pictures without")
    return pixels.expand(-1, 3, -1, -1)


def fid(argv: Sequence[str], network: Callable[[torch.device], Features] = inception) -> None:
    """Prints the distance of the pictures, beside that of real pictures to real ones."""
    config = parse(Config, argv)
    check_range(config, "n", 0)
    check_range(config, "batch", 1)
    drawn = data.load(config.pictures)
    C, H, W = drawn.shape
    real = data.first(data.load(config.data, f"{H}x{W}", config.fit), config.n)
    for name, found in ((config.pictures, drawn), (config.data, real)):
        if len(found.images) < 4:
            raise ValueError(f"{name} has {len(found.images)} pictures; it takes thousands, and at least 4")
    features = network(choose_device(config.device))
    (a, b), (c, d) = (halves(found, features, config.batch, Path(config.cache)) for found in (drawn, real))
    print(f"FID {frechet(a + b, c + d):.3f}   N = {a.n + b.n} pictures of {config.pictures}, {c.n + d.n} of "
          f"{config.data} at {H} x {W}")
    print(f"FID {frechet(c, d):.3f}   real to real: {c.n} pictures of {config.data} to the other {d.n}")
    if min(a.n + b.n, c.n + d.n) < 10000:
        print("below 10,000 pictures the distance is mostly the lack of pictures; compare it at equal N alone")
