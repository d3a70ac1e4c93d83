"""Data sets in their authors' own file formats: MNIST's IDX and CIFAR's binary version, as (pixels, labels, names)."""

import gzip
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from data.files import reading
from data.folders import visible

Arrays = tuple[np.ndarray, np.ndarray, Sequence[str]]   # uint8 (N, C, H, W), labels (N,), the classes' names, if known


def read_idx(path: Path) -> np.ndarray:
    """The bytes of an IDX file, packed by gzip or not: 0, 0, 8, its dimensions, their big-endian sizes, the bytes."""
    with reading(path, "fetch it anew"), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        *kind, dimensions = file.read(4)
        if kind != [0, 0, 8]:
            raise ValueError("it is no IDX file of bytes")
        shape = np.frombuffer(file.read(4 * dimensions), ">u4").tolist()
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def read_mnist(folder: Path, held_out: bool) -> Arrays | None:
    """MNIST's or Fashion-MNIST's images and labels, (1, 28, 28); None if they are not there."""
    files = visible(folder, f"{'t10k' if held_out else 'train'}-images*idx3-ubyte*")
    if not files:
        return None
    images = read_idx(files[0])
    labels = read_idx(files[0].with_name(files[0].name.replace("images", "labels").replace("idx3", "idx1")))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(f"{files[0]} has pictures {images.shape}, and the labels beside it are {labels.shape}; "
                         f"fetch both anew")
    return images[:, None], labels, ()


def read_cifar(folder: Path, held_out: bool, *, train: Sequence[str], test: Sequence[str], names: str,
               label_bytes: int) -> Arrays | None:
    """CIFAR's binary version, (3, 32, 32): of each picture the labels, the last of which counts, then the pixels."""
    parts = test if held_out else train
    files = visible(folder, parts[0])
    if not files:
        return None
    folder, records = files[0].parent, []
    for part in parts:
        with reading(folder / part, "fetch it anew"):
            raw, record = np.fromfile(folder / part, np.uint8), label_bytes + 3 * 32 * 32
            if not raw.size or raw.size % record:
                raise ValueError(f"it has {raw.size} bytes, which is not a whole number of pictures of {record}")
            records.append(raw.reshape(-1, record))
    records = np.concatenate(records)
    listed = (folder / names).read_text(errors="replace").split() if (folder / names).is_file() else ()
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, label_bytes - 1], listed


FORMATS = {
    "mnist": read_mnist,
    "fashion-mnist": read_mnist,
    "cifar10": partial(read_cifar, train=[f"data_batch_{k}.bin" for k in range(1, 6)], test=["test_batch.bin"],
                       names="batches.meta.txt", label_bytes=1),
    "cifar100": partial(read_cifar, train=["train.bin"], test=["test.bin"], names="fine_label_names.txt",
                        label_bytes=2),
}
