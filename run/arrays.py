"""All that sample.py writes: pictures while they are sampled, in constant memory, then their grid.

Pictures are files of their own, or one .npz, which is resumable after a stop: until all of its pictures are there, they
lie in an .npy file, which `finish` packs.
"""

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import to_pixels, to_unit
from data.files import writing
from data.image_files import to_image
from run import folder, pictures, processes
from run.checkpoint import WEIGHTS, Checkpoint
from run.cli import make_parent
from run.pictures import Samples, concatenate

SHOWN = 1000                                    # pictures of a grid or a film, at most


def count_complete(path: Path, n: int, shape: tuple[int, int, int]) -> int:
    """How many of n pictures (C, H, W) an unfinished file holds; 0 if there is none, or it is damaged."""
    C, H, W = shape
    try:
        stored, start = ((), 0) if path.is_symlink() else read_header(path)
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
        start = file.tell()
        file.seek(0)
        if version != (1, 0) or columns_first or dtype != np.uint8 or file.read(start) != header(shape):
            raise ValueError(f"{path} holds no pictures")
        return shape, start


def header(shape: tuple[int, ...]) -> bytes:
    """What an .npy file of uint8 of this shape begins with."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def append(path: Path, n: int, done: int, pixels: Tensor) -> None:
    """Writes pixels, uint8 (B, C, H, W), after the first `done` of n pictures; anything behind those is dropped.

    They reach the disk. Raises OSError, with the mend, if they cannot.
    """
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    try:
        if not done:
            make_parent(path).unlink(missing_ok=True)           # a symbolic link would lead elsewhere
        with path.open("r+b" if done else "xb") as file:
            if done:
                _, start = read_header(path)
                file.truncate(start + done * rows[0].size)
                file.seek(0, os.SEEK_END)
            else:
                file.write(header((n, *rows.shape[1:])))
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; make room, and repeat the command") from error


def read(path: Path, first: int, n: int) -> Tensor:
    """n pictures of an unfinished file, from number `first` on, uint8 (n, C, H, W)."""
    (_, *shape), start = read_header(path)
    size = int(np.prod(shape))
    rows = np.fromfile(path, np.uint8, n * size, offset=start + first * size)
    return torch.from_numpy(rows.reshape(n, *shape)).permute(0, 3, 1, 2)


def finish(path: Path, npz: Path, labels: Tensor | None) -> None:
    """Packs the complete file into an .npz: arr_0 the pictures, arr_1 the labels if there are any.

    The file is removed when the .npz is whole and on the disk.
    """
    with writing(npz) as whole, zipfile.ZipFile(whole, "w", allowZip64=True) as file:
        file.write(path, "arr_0.npy")
        if labels is not None:
            with file.open("arr_1.npy", "w") as entry:
                np.lib.format.write_array(entry, labels.numpy())
    path.unlink()


def digest(settings: Any, last: Checkpoint) -> str:
    """A name for exactly these pictures: a hash of sample.py's settings and of the weights that they depend on."""
    settings = replace(settings, batch=1, snapshots="", gif=False, png=False, npz=False, device="", out="")
    hashed = hashlib.sha256(f"{settings} {last.network} {last.settings} {last.data}".encode(errors="surrogateescape"))
    for w in (last.beta, *getattr(last, WEIGHTS[settings.weights]).values()):
        hashed.update(w.float().contiguous().numpy())
    return hashed.hexdigest()[:12]


def remove_stale(folder: Path, n: int) -> None:
    """Removes pictures of an earlier command beyond the first n, and what a killed one left: files of our names only.
    """
    for path in folder.glob("*.png*"):
        number = re.fullmatch(r"([0-9]{6,})\.png(\.tmp)?", path.name)
        if number and f"{int(number[1]):06d}" == number[1] and (int(number[1]) >= n or number[2]) and path.is_file():
            path.unlink()


def write(batches: Callable[[int], Iterator[Samples]], settings: Any, last: Checkpoint) -> Samples | None:
    """All that sample.py's settings ask for, into a folder that no other process writes to meanwhile.

    batches: how many pictures an earlier run has completed -> the batches. Returns the first SHOWN pictures or so,
    with what all of them cost; None on all processes but the first.
    """
    with folder.lock(Path(settings.out)) as check:
        samples = write_batches(batches, settings, last, check)
        if processes.rank() > 0:
            return None
        pictures.write(samples, settings)
        return samples


def write_batches(batches: Callable[[int], Iterator[Samples]], settings: Any, last: Checkpoint,
                  check: Callable[[], None]) -> Samples:
    """Writes the .npz and the files of the pictures while they are sampled; see `write`.

    Pictures of an .npz are resumed, if there is neither a film nor a strip nor a file of each. check: raises ValueError
    if the folder is another job's meanwhile.
    """
    n, out, png, npz, writes = settings.n, Path(settings.out), settings.png, settings.npz, processes.rank() == 0
    rows = out / f"pictures-{digest(settings, last) if npz else ''}.npy"
    resumable = npz and not (png or settings.gif or settings.snapshots)
    done = processes.broadcast_first(count_complete(rows, n, tuple(last.data["shape"])) if resumable else 0)
    shown, labels, seconds, evaluations, first, new = [], [], 0., 0, 0, 0
    for batch in batches(done):
        check()
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
                pictures.save(to_image(picture), out / "png" / f"{i:06d}.png", sync=False)
        if first < SHOWN:
            shown.append(batch)
        labels, first = [*labels, batch.labels], first + batch.n
    if writes and png:
        remove_stale(out / "png", n)
    if writes and npz:
        finish(rows, out / "pictures.npz", None if labels[0] is None else torch.cat(labels))
    return (concatenate(shown) if writes else shown[0])._replace(n=new, seconds=seconds, evaluations=evaluations)
