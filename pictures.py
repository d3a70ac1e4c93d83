"""An .npz file of pictures, written as they are drawn: in constant memory, and gone on with after a stop."""

import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cli import parent_made


def begun(path: Path, n: int, shape: tuple[int, int, int]) -> int:
    """How many of n pictures (C, H, W) are whole in a file that `append` began; 0 if it is none or damaged."""
    C, H, W = shape
    try:
        found, start = header(path)
    except Exception:                                   # numpy raises many kinds for damaged files
        return 0
    there = path.stat().st_size - start
    return there // (H * W * C) if found == (n, H, W, C) and there <= n * H * W * C else 0


def header(path: Path) -> tuple[tuple[int, ...], int]:
    """The shape (n, H, W, C) that the file will have, and the byte where its pictures begin; ValueError for others."""
    with path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        if version != (1, 0) or columns_first or dtype != np.uint8:
            raise ValueError(f"{path} holds no pictures")
        return shape, file.tell()


def append(path: Path, n: int, done: int, pixels: Tensor) -> None:
    """Puts pixels, uint8 (B, C, H, W), behind the first `done` of n pictures, and drops what lay there."""
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    with parent_made(path).open("r+b" if done else "wb") as file:
        if done:
            _, start = header(path)
            file.truncate(start + done * rows[0].size)
            file.seek(0, os.SEEK_END)
        else:
            facts = {"descr": "|u1", "fortran_order": False, "shape": (n, *rows.shape[1:])}
            np.lib.format.write_array_header_1_0(file, facts)
        file.write(rows.data)


def read(path: Path, first: int, n: int) -> Tensor:
    """n of the pictures that are there, uint8 (n, C, H, W)."""
    (_, *shape), start = header(path)
    rows = np.fromfile(path, np.uint8, n * int(np.prod(shape)), offset=start + first * int(np.prod(shape)))
    return torch.from_numpy(rows.reshape(n, *shape)).permute(0, 3, 1, 2)


def finish(path: Path, npz: Path, labels: Tensor | None) -> None:
    """Turns the file, all its n pictures there, into an .npz: arr_0 its pictures, arr_1 the labels if there are any."""
    temporary = npz.with_name(f"{npz.name}.tmp")
    with zipfile.ZipFile(temporary, "w", allowZip64=True) as file:
        file.write(path, "arr_0.npy")
        if labels is not None:
            with file.open("arr_1.npy", "w") as entry:
                np.lib.format.write_array(entry, labels.numpy())
    os.replace(temporary, npz)
    path.unlink()
