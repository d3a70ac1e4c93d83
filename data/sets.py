"""Data sets as uint8 pixels, batches as a function of (seed, step), and pictures out.

A batch depends on (seed, step) alone, not on earlier batches or on the number of processes.
"""

import functools
import hashlib
import math
import os
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import noise
from data.files import reading
from data.image_files import (
    MODES,
    SUFFIXES,
    damage_counted,
    fit_to_size,
    read_header,
    read_image,
    to_image,
    to_tensor,
    visible,
)
from data.workers import from_workers

IN_MEMORY = 2**30                                       # bytes of pixels up to which a set is read at once
ENDLESS = 2**32                                         # pictures of a set without end: as many as noise has keys
PACKED = 100                                            # times that an array of more than IN_MEMORY may be packed
CLASSES = 10**6                                         # labels are below


class Data(NamedTuple):
    """A data set. images[indices] is a uint8 tensor (len(indices), C, H, W), whatever stands behind it."""
    name: str
    images: Any                     # a uint8 tensor (N, C, H, W), or what indexes like one, as a Folder
    labels: Tensor | None           # int64 (N,), or what indexes like it
    classes: tuple[str, ...]        # the name of each label; empty without labels
    shape: tuple[int, int, int]     # C, H, W


# Pixels

def to_unit(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(x: Tensor) -> Tensor:
    """Floats -> uint8, what lies outside [-1, 1] clipped; undoes `to_unit` exactly."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


# Data sets

def digits(held_out: bool = False) -> Data:
    """scikit-learn's handwritten digits, (1, 8, 8), 10 classes: 1200 to train on, or the 597 held out."""
    from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    order = order[1200:] if held_out else order[:1200]
    images = torch.from_numpy(pixels * 255 / 16).round().to(torch.uint8).view(-1, 1, 8, 8)
    labels = torch.from_numpy(labels).long()
    return Data("digits", images[order], labels[order], tuple("0123456789"), (1, 8, 8))


def read_npz(path: Path) -> Data:
    """Pictures arr_0, uint8 (N, H, W) or (N, H, W, C), and labels arr_1 (N,) if there; never unpickles."""
    with reading(path, "it must hold uint8 pictures under arr_0"), load_arrays(path) as arrays:
        images, labels = arrays["arr_0"], arrays.get("arr_1")
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size or images.shape[-1] not in MODES:
        raise ValueError(f"arr_0 of {path} is {images.dtype} {images.shape}; it must be uint8 (N, H, W) "
                         f"or (N, H, W, C) with 1, 3 or 4 channels")
    if labels is not None:
        if (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0
                or labels.max() >= CLASSES):
            raise ValueError(f"arr_1 of {path} is {labels.dtype} {labels.shape}; "
                             f"it must be {len(images)} whole numbers from 0 to {CLASSES - 1}")
        labels = torch.from_numpy(labels.astype(np.int64))
    images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    return Data(path.name, images, labels, () if labels is None else number_classes(labels), tuple(images.shape[1:]))


def load_arrays(path: Path) -> np.lib.npyio.NpzFile:
    """The arrays of an .npz file, each read when it is asked for. Raises many kinds of error for damaged files."""
    with zipfile.ZipFile(path) as file:
        if bombs := [e for e in file.infolist() if e.file_size > max(IN_MEMORY, PACKED * e.compress_size)]:
            raise ValueError(f"{bombs[0].filename} would unpack to {bombs[0].file_size} bytes, more than {PACKED} "
                             f"times what is there")
    return np.load(path, allow_pickle=False)


def number_classes(labels: Tensor) -> tuple[str, ...]:
    """Names for classes that have none: 0, 1, and so on. Raises ValueError for labels that cannot be meant."""
    if int(labels.max()) >= CLASSES:
        raise ValueError(f"the labels go up to {int(labels.max())}; they must be below {CLASSES}")
    return tuple(str(k) for k in range(int(labels.max()) + 1))


@dataclass(frozen=True)
class Folder:
    """Image files read as they are asked for; indexes like the tensor they would make."""
    paths: list[Path]
    shape: tuple[int, int, int]
    fit: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([read_image(self.paths[i], self.shape, self.fit) for i in indices])


def read_folder(path: Path, size: tuple[int, int] | None, fit: str) -> Data:
    """A folder of images, their labels the names of its subfolders, if it has any.

    Channels are those of the richest picture (grey, colour, colour with alpha), so nothing is dropped; what is hidden,
    and macOS's __MACOSX folders, are left out. Up to 1 GiB is read at once, which finds damaged files before training;
    more is read as needed.
    """
    paths = [p for p in visible(path, "*") if p.suffix.lower() in SUFFIXES and not p.is_dir()]
    if not paths:
        raise ValueError(f"no images under {path}; it takes {' '.join(sorted(SUFFIXES))}, or, with a name before it, "
                         f"other files: cifar10:{path}")
    names = [p.relative_to(path).parts[0] if p.parent != path else "" for p in paths]
    classes = tuple(sorted(set(names)))
    if "" in classes and len(classes) > 1:
        raise ValueError(f"{path} has images beside subfolders such as {classes[1]!r}; put every image into a "
                         f"subfolder to label them, or none")
    with damage_counted(str(path)):
        facts = [read_header(p) for p in paths]
        sizes = sorted({size for _, size in facts})
        if size is None and len(sizes) > 1:
            raise ValueError(f"the images under {path} have {len(sizes)} sizes, {sizes[0][0]}x{sizes[0][1]} to "
                             f"{sizes[-1][0]}x{sizes[-1][1]}; choose one with --size")
        shape = (max(channels for channels, _ in facts), *(size or sizes[0]))
        images = Folder(paths, shape, fit)
        if len(paths) * math.prod(shape) <= IN_MEMORY:
            images = images[range(len(paths))]
    if classes == ("",):
        return Data(path.name, images, None, (), shape)
    return Data(path.name, images, torch.tensor([classes.index(name) for name in names]), classes, shape)


def resize(data: Data, size: tuple[int, int] | None, fit: str) -> Data:
    """The data set with all its pictures at this size."""
    if size is None or size == data.shape[1:]:
        return data
    images = data.images.new_empty(len(data.images), data.shape[0], *size)        # fails at once if it is too large
    for k, x in enumerate(data.images):
        images[k] = to_tensor(fit_to_size(to_image(x), size, fit))
    return data._replace(images=images, shape=(data.shape[0], *size))


def evenly_spaced(data: Data, n: int) -> Tensor:
    """n pictures spread over the set, all if there are no more; of a stream its first ones."""
    if hasattr(data.images, "first"):
        return data.images.first(n)
    return data.images[even_indices(len(data.images), n)]


def even_indices(N: int, n: int) -> Tensor:
    """n of 0..N-1, evenly spaced from 0; all if there are no more."""
    n = min(n, N)
    return torch.arange(n) * N // n


def first(data: Data, n: int) -> Data:
    """Its first n pictures, all for 0. Raises ValueError for all of a set without end."""
    N = len(data.images)
    if not n and N == ENDLESS:
        raise ValueError(f"{data.name} has no end; say how many of its pictures to take")
    return data if not n or n >= N else take(data, torch.arange(n))


def spread(data: Data, n: int) -> Data:
    """n pictures spread over the set, all for 0; of a set without end its first ones, or ValueError for all."""
    N = len(data.images)
    if N == ENDLESS:
        return first(data, n)
    return data if not n or n >= N else take(data, even_indices(N, n))


def take(data: Data, index: Tensor) -> Data:
    """The set of these pictures of it."""
    return data._replace(images=data.images[index], labels=None if data.labels is None else data.labels[index])


def digest(data: Data) -> str:
    """A hash that tells whether a data set changed: of its labels, and of its pixels where they lie in memory.

    Of a folder that is read as needed it is the hash of the files' names and sizes, of other sets that of 16 pictures.
    """
    hashed = hashlib.sha256(repr((len(data.images), tuple(data.shape), data.classes)).encode(errors="surrogateescape"))
    if isinstance(data.images, Folder):
        for path in data.images.paths:
            hashed.update(os.fsencode(f"{path} {path.stat().st_size}\n"))
    else:
        pixels = data.images if isinstance(data.images, Tensor) else evenly_spaced(data, 16)
        hashed.update(pixels.contiguous().numpy())
    if isinstance(data.labels, Tensor):
        hashed.update(data.labels.numpy())
    return hashed.hexdigest()


# Batches

def batch_indices(n: int, batch: int, seed: int, step: int) -> Tensor:
    """Which of n pictures make up the batch of this step, 1 the first: epoch after epoch, each shuffled anew.

    Those of a set without end come one after the other, each once.
    """
    start = (step - 1) * batch
    if n == ENDLESS:
        return torch.arange(start, start + batch) % n
    epochs = range(start // n, (start + batch - 1) // n + 1)
    return torch.cat([permutation(n, seed, epoch) for epoch in epochs])[start % n:][:batch]


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The shuffle of an epoch."""
    return noise.uniform(seed, epoch, n, noise.SHUFFLE).argsort(stable=True)


@dataclass(frozen=True)
class Batches:
    """The batch of every step: steps[k] is (pixels uint8 (B, C, H, W), labels int64 (B,) or empty), or a share."""
    data: Data
    batch: int
    seed: int
    flip: bool
    share: slice = field(default_factory=lambda: slice(None))      # what this process takes of a batch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = batch_indices(len(self.data.images), self.batch, self.seed, step)[self.share]
        pixels = self.data.images[chosen]
        if self.flip:
            coin = noise.uniform(self.seed, step, self.batch, noise.FLIPS)[self.share] < 0.5
            pixels = torch.where(coin[:, None, None, None], pixels.flip(-1), pixels)
        return pixels, chosen[:0] if self.data.labels is None else self.data.labels[chosen]


def batches(data: Data, batch: int, seed: int, steps: range, flip: bool = False, workers: int = 0,
            share: slice = slice(None)) -> Iterable[tuple[Tensor, Tensor]]:
    """The batches of these steps, or a share of each, in order, prepared by `workers` processes (0: this one).

    Raises ValueError for what cannot be read, and for workers that die.
    """
    if workers and hasattr(data.images, "first"):
        raise ValueError(f"workers is {workers}; a stream is read by one process, leave it at 0")
    wanted, cuda = Batches(data, batch, seed, flip, share), torch.cuda.is_available()
    settings = {"sampler": steps, "batch_size": None, "generator": torch.Generator()}
    if workers:
        return from_workers(wanted, workers, cuda, **settings)
    return DataLoader(wanted, pin_memory=cuda, **settings)
