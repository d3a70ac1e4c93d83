"""Data sets in their authors' own file formats: MNIST's IDX, CIFAR's binary version. Nothing is unpickled."""

import gzip
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data import image_files, sets
from data.files import reading
from data.sets import Data


class Format(NamedTuple):
    """How a set's own files are found and read."""
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], Data]
    says: str                           # what to look for


def read_bytes(path: Path) -> bytes:
    """All of a file, unpacked if its name ends in .gz, up to sets.IN_MEMORY."""
    opened = gzip.open if path.suffix == ".gz" else open
    with reading(path, "fetch it anew"), opened(image_files.require_file(path), "rb") as file:
        raw = file.read(sets.IN_MEMORY + 1)
        if len(raw) > sets.IN_MEMORY:
            raise ValueError(f"it holds more than {sets.IN_MEMORY} bytes")
        return raw


def read_idx(path: Path, ndim: int) -> Tensor:
    """The array of bytes that an IDX file holds: 0, 0, 8, ndim, the big-endian sizes, the bytes."""
    raw = read_bytes(path)
    shape = np.frombuffer(raw[4:4 + 4 * ndim], ">u4" if len(raw) >= 4 + 4 * ndim else "u1").tolist()
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != 4 + 4 * ndim + math.prod(shape) or not all(shape):
        raise ValueError(f"{path} is not an IDX file of bytes in {ndim} dimensions, or is cut short; fetch it anew")
    return torch.frombuffer(bytearray(raw[4 + 4 * ndim:]), dtype=torch.uint8).view(shape)


def idx_format(part: str) -> Format:
    """MNIST's or Fashion-MNIST's images and labels, gz or not: (1, 28, 28). part: what their names begin with."""
    def files(path: Path) -> list[Path]:
        return image_files.visible(path, f"{part}-images*idx3-ubyte*")

    def read(path: Path) -> Data:
        file = files(path)[0]
        images = read_idx(file, 3)[:, None]
        labels = read_idx(file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1")), 1).long()
        if len(images) != len(labels):
            raise ValueError(f"{file} has {len(images)} pictures but {len(labels)} labels stand beside it; "
                             f"fetch both anew")
        return Data("", images, labels, sets.number_classes(labels), tuple(images.shape[1:]))

    return Format(files, read, f"{part}-images-idx3-ubyte and {part}-labels-idx1-ubyte, gz or not")


def cifar_format(names: Sequence[str], label_bytes: int, classes: str, says: str) -> Format:
    """CIFAR's binary version: of each picture the labels, the last of which counts, then 3 x 32 x 32 bytes."""
    def files(path: Path) -> list[Path]:
        return image_files.visible(path, names[0])

    def read(path: Path) -> Data:
        folder = files(path)[0].parent
        records = torch.cat([read_records(folder / name, label_bytes + 3072) for name in names])
        labels, images = records[:, label_bytes - 1].long(), records[:, label_bytes:].reshape(-1, 3, 32, 32)
        listed = read_bytes(folder / classes).decode(errors="replace").split() if (folder / classes).is_file() else ()
        return Data("", images, labels, tuple(listed) if labels.max() < len(listed) else sets.number_classes(labels),
                    (3, 32, 32))

    return Format(files, read, says)


def read_records(path: Path, record: int) -> Tensor:
    """A file of records of this many bytes, uint8 (N, record)."""
    raw = read_bytes(path)
    if not raw or len(raw) % record:
        raise ValueError(f"{path} has {len(raw)} bytes, which is not a whole number of pictures of {record}; "
                         f"fetch it anew")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, record)


CIFAR10 = 1, "batches.meta.txt", "the binary version, cifar-10-binary.tar.gz"
CIFAR100 = 2, "fine_label_names.txt", "the binary version, cifar-100-binary.tar.gz"

FORMATS = {
    "mnist": idx_format("train"),
    "fashion-mnist": idx_format("train"),
    "cifar10": cifar_format([f"data_batch_{k}.bin" for k in range(1, 6)], *CIFAR10),
    "cifar100": cifar_format(["train.bin"], *CIFAR100),
}
HELD_OUT = {
    "mnist": idx_format("t10k"),
    "fashion-mnist": idx_format("t10k"),
    "cifar10": cifar_format(["test_batch.bin"], *CIFAR10),
    "cifar100": cifar_format(["test.bin"], *CIFAR100),
}
