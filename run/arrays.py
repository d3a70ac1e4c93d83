"""Pictures written while they are sampled: as files, and as one .npz, in constant memory and resumable after a stop.

Until all of the .npz's pictures are there they lie in an .npy file of their own, which `finish` packs.
"""

import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data import to_pixels, to_unit
from data.image_files import to_image
from run import processes
from run.cli import make_parent
from run.pictures import Samples, concatenate

SHOWN = 1000                                    # pictures of a grid or a film, at most


def count_complete(path: Path, n: int, shape: tuple[int, int, int]) -> int:
    """How many of n pictures (C, H, W) an unfinished file holds; 0 if there is none, or it is damaged."""
    C, H, W = shape
    try:
        stored, start = read_header(path)
    except Exception:                                   # numpy raises many kinds for damaged files
        return 0
    size = path.stat().st_size - start
    return size // (H * W * C) if stored == (n, H, W, C) and size <= n * H * W * C else 0


def read_header(path: Path) -> tuple[tuple[int, ...], int]:
    """The shape (n, H, W, C) of the finished file, and the byte where its pictures begin.

    Raises ValueError for a file that `append` did not write.
    """
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        if version != (1, 0) or columns_first or dtype != np.uint8:
            raise ValueError(f"{path} holds no pictures")
        return shape, file.tell()


def append(path: Path, n: int, done: int, pixels: Tensor) -> None:
    """Writes pixels, uint8 (B, C, H, W), after the first `done` of n pictures; anything behind those is dropped."""
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    with make_parent(path).open("r+b" if done else "wb") as file:
        if done:
            _, start = read_header(path)
            file.truncate(start + done * rows[0].size)
            file.seek(0, os.SEEK_END)
        else:
            header = {"descr": "|u1", "fortran_order": False, "shape": (n, *rows.shape[1:])}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(rows.data)


def read(path: Path, first: int, n: int) -> Tensor:
    """n pictures of an unfinished file, from number `first` on, uint8 (n, C, H, W)."""
    (_, *shape), start = read_header(path)
    size = int(np.prod(shape))
    rows = np.fromfile(path, np.uint8, n * size, offset=start + first * size)
    return torch.from_numpy(rows.reshape(n, *shape)).permute(0, 3, 1, 2)


def finish(path: Path, npz: Path, labels: Tensor | None) -> None:
    """Packs the complete file into an .npz: arr_0 the pictures, arr_1 the labels if there are any."""
    temporary = npz.with_name(f"{npz.name}.tmp")
    with zipfile.ZipFile(temporary, "w", allowZip64=True) as file:
        file.write(path, "arr_0.npy")
        if labels is not None:
            with file.open("arr_1.npy", "w") as entry:
                np.lib.format.write_array(entry, labels.numpy())
    os.replace(temporary, npz)
    path.unlink()


def write_batches(batches: Callable[[int], Iterator[Samples]], out: Path, n: int, shape: tuple[int, int, int], *,
                  png: bool, npz: str, resumable: bool) -> Samples:
    """Writes n pictures (C, H, W) while they are sampled; returns the first SHOWN or so, and what all of them cost.

    batches: how many pictures an earlier run has completed -> the batches. png: a file for each picture. npz: a name
    for exactly these pictures, or "" for no array; if resumable, pictures found under this name are kept.
    """
    rows, writes = out / f"pictures-{npz}.npy", processes.rank() == 0
    done = processes.broadcast_first(count_complete(rows, n, shape) if npz and resumable else 0)
    shown, labels, seconds, evaluations, first, new = [], [], 0., 0, 0, 0
    for batch in batches(done):
        seconds, evaluations = seconds + batch.seconds, evaluations + batch.evaluations
        new += batch.n if batch.x is not None else 0
        if writes and batch.x is None and first < SHOWN:
            x = to_unit(read(rows, first, batch.n))
            batch = batch._replace(x=x, states={0: x})
        elif writes and batch.x is not None:
            pixels = to_pixels(batch.x)
            if npz:
                append(rows, n, first, pixels)
            for i, picture in enumerate(pixels if png else (), first):
                to_image(picture).save(make_parent(out / "png" / f"{i:06d}.png"))
        if first < SHOWN:
            shown.append(batch)
        labels, first = [*labels, batch.labels], first + batch.n
    if writes and npz:
        finish(rows, out / "pictures.npz", None if labels[0] is None else torch.cat(labels))
    return (concatenate(shown) if writes else shown[0])._replace(n=new, seconds=seconds, evaluations=evaluations)
