"""Frechet Inception distance (Heusel et al. 2017) between saved pictures and a data set.

    pip install pytorch-fid
    python sample.py --checkpoint runs/cifar10/last.safetensors --n 50000 --npz --out out/cifar10
    python evaluate.py fid --pictures out/cifar10/pictures.npz --data cifar10

The features are those of pytorch-fid's Inception network, as in published results; pytorch-fid downloads its weights
once. Grey pictures become RGB, and transparent ones lie on white. The estimate decreases as N grows, so N is printed
with it, and so is the distance between two halves of the real pictures, the floor for any model. Statistics are cached
under a hash of the pixels.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import data
from data.files import reading
from run import tensors
from run.cli import check_range, choose_device, parse

Features = Callable[[Tensor], Tensor]           # uint8 (B, 3, H, W) -> (B, D)


@dataclass(frozen=True)
class Config:
    """Frechet Inception distance between pictures and a data set; needs pip install pytorch-fid."""
    pictures: str = "out/pictures.npz"          # output of sample.py --npz or --png, or any data set
    data: str = "cifar10"                       # the real pictures, as for train.py, resized to the samples' size
    fit: str = "crop"                           # how the real pictures are resized: crop or pad
    n: int = 0                                  # number of real pictures, from the first; 0 is all
    batch: int = 50                             # pictures per batch; does not change the results
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    cache: str = "out/fid"                      # folder for cached statistics


class Statistics(NamedTuple):
    """Number, mean and scatter matrix of n feature vectors."""
    n: int
    mean: Tensor                    # (D,) float64
    scatter: Tensor                 # (D, D) float64, the sum of outer products of deviations from the mean

    def __add__(self, other: "Statistics") -> "Statistics":
        """Statistics of the union, without the cancellation of sums of squares (Chan et al. 1979)."""
        n, delta = self.n + other.n, other.mean - self.mean
        return Statistics(n, self.mean + delta * other.n / n,
                          self.scatter + other.scatter + delta.outer(delta) * self.n * other.n / n)


def statistics(features: Tensor) -> Statistics:
    """Statistics of features (N, D)."""
    x = features.double()
    mean = x.mean(0)
    return Statistics(len(x), mean, (x - mean).T @ (x - mean))


def frechet(a: Statistics, b: Statistics) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^1/2), with covariances A, B (Heusel et al. 2017, eq. 6)."""
    A, B = (s.scatter / (s.n - 1) for s in (a, b))
    values, vectors = torch.linalg.eigh(A)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T                       # A^1/2: A^1/2 B A^1/2 is symmetric
    cross = torch.linalg.eigvalsh(root @ B @ root).clamp(min=0).sqrt().sum()      # tr (A B)^1/2
    return ((a.mean - b.mean).square().sum() + A.trace() + B.trace() - 2 * cross).clamp(min=0).item()


def inception(device: torch.device) -> Features:
    """pytorch-fid's network with its 2048 pooled features. Raises ValueError if it is not installed."""
    try:
        from pytorch_fid.inception import InceptionV3
    except ImportError:
        raise ValueError("the FID needs pytorch-fid; install it with: pip install pytorch-fid") from None
    network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).to(device).eval()

    @torch.no_grad()
    def features(pixels: Tensor) -> Tensor:
        return network(pixels.to(device).float() / 255)[0].flatten(1).cpu()

    return features


def halves(pictures: data.Data, features: Features, batch: int, cache: Path) -> tuple[Statistics, Statistics]:
    """Statistics of the even-numbered and of the odd-numbered pictures, kept in the cache under a hash of the pixels.

    Where the cache cannot be written there is a warning, and the statistics all the same.
    """
    n, digest = len(pictures.images), hashlib.sha256(repr(pictures.shape).encode())
    chunks = torch.arange(n).split(batch)
    for chunk in chunks:
        digest.update(pictures.images[chunk].numpy().tobytes())
    path = cache / f"{n}-{digest.hexdigest()[:16]}.safetensors"
    if path.is_file():
        with reading(path, "remove it"):
            kept, _ = tensors.load(path, remedy="remove it")
            D = len(kept["mean0"])
            shapes = {"mean0": (D,), "mean1": (D,), "scatter0": (D, D), "scatter1": (D, D)}
            if {name: (*x.shape,) for name, x in kept.items()} != shapes or not all(
                    x.dtype == torch.float64 and x.isfinite().all() for x in kept.values()):
                raise ValueError("it holds no statistics")
            return tuple(Statistics((n + 1 - k) // 2, kept[f"mean{k}"], kept[f"scatter{k}"]) for k in (0, 1))
    x = torch.cat([features(pictures.images[c]) for c in tqdm(chunks, unit=" batches", leave=False)])
    both = statistics(x[::2]), statistics(x[1::2])
    try:
        named = {f"{name}{k}": getattr(both[k], name) for k in (0, 1) for name in ("mean", "scatter")}
        tensors.save(path, named, {"pictures": n})
    except OSError as error:
        print(f"warning: {error}")
    return both


def fid(argv: Sequence[str], network: Callable[[torch.device], Features] = inception) -> None:
    """Prints the FID of the pictures, then that of one half of the real pictures to the other."""
    config = parse(Config, argv)
    check_range(config, "n", 0)
    check_range(config, "batch", 1)
    samples = data.first(data.load(config.pictures, channels=3), 0)
    _, H, W = samples.shape
    real = data.first(data.load(config.data, f"{H}x{W}", config.fit, 3), config.n)
    for name, pictures in ((config.pictures, samples), (config.data, real)):
        if len(pictures.images) < 4:
            raise ValueError(f"{name} has {len(pictures.images)} pictures; the FID needs at least 4, better thousands")
    features = network(choose_device(config.device))
    (a, b), (c, d) = (halves(x, features, config.batch, Path(config.cache)) for x in (samples, real))
    print(f"FID {frechet(a + b, c + d):.3f}   N = {a.n + b.n} pictures of {config.pictures}, {c.n + d.n} of "
          f"{config.data} at {H} x {W}")
    print(f"FID {frechet(c, d):.3f}   real to real: {c.n} pictures of {config.data} to its other {d.n}")
    if min(a.n + b.n, c.n + d.n) < 10000:
        print("below 10,000 pictures the bias of the estimate dominates; compare it only at equal N")
