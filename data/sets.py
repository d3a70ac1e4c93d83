"""Data sets as uint8 pixels: the digits, .npz files, and parts of a set."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from torch import Tensor

from data.files import reading, say
from data.image_files import MODES, fit_to_size, to_image, to_tensor, with_channels

IN_MEMORY = 2**30                                       # bytes of pixels up to which a set is read at once
ENDLESS = 2**32                                         # pictures of a set without end: as many as noise has keys
DARK = 64                                               # of 255: no pictures as bright as that are odd
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

def say_if_dark(name: str, images: Tensor | np.ndarray) -> None:
    """Says so if all the pictures are nearly black: values of 0 to 1, or of fewer bits, that were never scaled."""
    if images.max() < DARK:
        say(f"the values of {name} are {images.min()} to {images.max()} of 255; scale them if that is not meant")


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray | None, names: Sequence[str] = ()) -> Data:
    """The data set of uint8 images (N, C, H, W) and labels (N,), if it has any."""
    images = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    if labels is None:
        return Data(name, images, None, (), tuple(images.shape[1:]))
    labels = torch.from_numpy(labels.astype(np.int64))
    return Data(name, images, labels, name_classes(name, labels, names), tuple(images.shape[1:]))


def name_classes(name: str, labels: Tensor, names: Sequence[str] = ()) -> tuple[str, ...]:
    """The classes' names, numbers if the set has more classes. Raises ValueError for labels that cannot be meant."""
    if labels.is_floating_point() or not len(labels) or labels.min() < 0 or labels.max() >= CLASSES:
        raise ValueError(f"{name} has no labels, or some that are not whole numbers from 0 to {CLASSES - 1}; choose "
                         f"another set")
    top = int(labels.max())
    return tuple(names) if top < len(names) else tuple(str(k) for k in range(top + 1))


def digits(held_out: bool = False) -> Data:
    """scikit-learn's handwritten digits, (1, 8, 8), 10 classes: 1200 to train on, or the 597 held out."""
    from sklearn.datasets import load_digits
    pixels, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).numpy()
    order = order[1200:] if held_out else order[:1200]
    images = (pixels * 255 / 16).round().astype(np.uint8).reshape(-1, 1, 8, 8)
    return from_arrays("digits", images[order], labels[order])


def read_npz(path: Path) -> Data:
    """Pictures arr_0, uint8 (N, H, W) or (N, H, W, C), and labels arr_1 (N,) if there; never unpickles."""
    with reading(path, "it must hold uint8 pictures under arr_0"), NpzFile(path, allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays.get("arr_1")
    images = images[..., None] if images.ndim == 3 else images
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size or images.shape[-1] not in MODES:
        raise ValueError(f"arr_0 of {path} is {images.dtype} {images.shape}; it must be uint8 (N, H, W) "
                         f"or (N, H, W, C) with 1, 3 or 4 channels")
    if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in "iu"):
        raise ValueError(f"arr_1 of {path} is {labels.dtype} {labels.shape}; it must be {len(images)} whole "
                         f"numbers from 0 to {CLASSES - 1}")
    say_if_dark(str(path), images)
    return from_arrays(path.name, images.transpose(0, 3, 1, 2), labels)


def count_pictures(data: Data) -> tuple[int, ...]:
    """How many pictures each class has; () without labels, and for a stream, whose labels are not known."""
    counted = isinstance(data.labels, Tensor)
    return tuple(data.labels.bincount(minlength=len(data.classes)).tolist()) if counted else ()


# Parts of a set, and other sizes

def resize(data: Data, size: tuple[int, int] | None, fit: str, channels: int = 0) -> Data:
    """The data set with all its pictures at this size, and of these channels, 0 for their own."""
    shape = (channels or data.shape[0], *(size or data.shape[1:]))
    if shape == data.shape:
        return data
    images = data.images.new_empty(len(data.images), *shape)                      # fails at once if it is too large
    for k, x in enumerate(data.images):
        images[k] = to_tensor(fit_to_size(with_channels(to_image(x), shape[0]), shape[1:], fit))
    return data._replace(images=images, shape=shape)


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

    Of a folder that is read as needed it is the hash of the files' names in it and sizes, of other sets that of 16
    pictures.
    """
    hashed = hashlib.sha256(repr((len(data.images), tuple(data.shape), data.classes)).encode(errors="surrogateescape"))
    if hasattr(data.images, "paths"):
        for path in data.images.paths:
            hashed.update(os.fsencode(f"{path.relative_to(data.images.root)} {path.stat().st_size}\n"))
    else:
        pixels = data.images if isinstance(data.images, Tensor) else evenly_spaced(data, 16)
        hashed.update(pixels.contiguous().numpy())
    if isinstance(data.labels, Tensor):
        hashed.update(data.labels.numpy())
    return hashed.hexdigest()
