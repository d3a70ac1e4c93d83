"""All that sample.py writes: pictures while they are sampled, in constant memory, then their grid.

Pictures are files of their own, or one .npz, which is resumable after a stop: until all of its pictures are there,
their bytes lie one after the other in a .raw file, which `finish` packs. (Writing to a mapped array would be less code,
but on a full disk it ends the process without a word.)
"""

import hashlib
import math
import os
import re
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
    """How many of n pictures (C, H, W) an unfinished file holds; 0 if there is none."""
    return min(n, path.stat().st_size // math.prod(shape)) if path.is_file() else 0


def append(path: Path, done: int, pixels: Tensor) -> None:
    """Writes pixels, uint8 (B, C, H, W), after the first `done` pictures; anything behind those is dropped.

    They reach the disk. Raises OSError, with the remedy, if they cannot.
    """
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    try:
        with make_parent(path).open("r+b" if done else "wb") as file:
            file.truncate(done * rows[0].size)
            file.seek(0, os.SEEK_END)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; make room, and repeat the command") from error


def read(path: Path, n: int, shape: tuple[int, int, int]) -> np.memmap:
    """The first n pictures (C, H, W) of an unfinished file: uint8 (n, H, W, C), read when they are used."""
    C, H, W = shape
    return np.memmap(path, np.uint8, "r", shape=(n, H, W, C))


def finish(path: Path, npz: Path, n: int, shape: tuple[int, int, int], labels: Tensor | None) -> None:
    """Packs the complete file into an .npz: arr_0 the pictures, arr_1 the labels if there are any.

    The file is removed when the .npz is whole and on the disk.
    """
    with writing(npz) as file:
        np.savez(file, read(path, n, shape), *([] if labels is None else [labels.numpy()]))
    path.unlink()


def digest(settings: Any, checkpoint: Checkpoint) -> str:
    """A name for exactly these pictures: a hash of sample.py's settings and of the weights that they depend on."""
    settings = replace(settings, batch=1, snapshots="", gif=False, png=False, npz=False, device="", out="")
    hashed = hashlib.sha256(f"{settings} {checkpoint.network} {checkpoint.settings} {checkpoint.data}".encode(
        errors="surrogateescape"))
    for w in (checkpoint.beta, *getattr(checkpoint, WEIGHTS[settings.weights]).values()):
        hashed.update(w.float().contiguous().numpy())
    return hashed.hexdigest()[:12]


def remove_stale(folder: Path, n: int) -> None:
    """Removes pictures of an earlier command beyond the first n, and what a killed one left: files of our names only.
    """
    for path in folder.glob("*.png*"):
        number = re.fullmatch(r"([0-9]{6,})\.png(\.tmp)?", path.name)
        if number and f"{int(number[1]):06d}" == number[1] and (int(number[1]) >= n or number[2]) and path.is_file():
            path.unlink()


def write(batches: Callable[[int], Iterator[Samples]], settings: Any, checkpoint: Checkpoint) -> Samples | None:
    """All that sample.py's settings ask for, into a folder that no other process writes to meanwhile.

    batches: how many pictures an earlier run has completed -> the batches. Returns the first SHOWN pictures or so,
    with what all of them cost; None on all processes but the first.
    """
    with folder.lock(Path(settings.out)) as check:
        samples = write_batches(batches, settings, checkpoint, check)
        if processes.rank() > 0:
            return None
        pictures.write(samples, settings)
        return samples


def write_batches(batches: Callable[[int], Iterator[Samples]], settings: Any, checkpoint: Checkpoint,
                  check: Callable[[], None]) -> Samples:
    """Writes the .npz and the files of the pictures while they are sampled; see `write`.

    Pictures of an .npz are resumed, if there is neither a film nor a strip nor a file of each. check: raises ValueError
    if the folder is another job's meanwhile.
    """
    n, out, png, npz, writes = settings.n, Path(settings.out), settings.png, settings.npz, processes.rank() == 0
    shape, unfinished = checkpoint.data["shape"], out / f"pictures-{digest(settings, checkpoint) if npz else ''}.raw"
    resumable = npz and not (png or settings.gif or settings.snapshots)
    done = processes.broadcast_first(count_complete(unfinished, n, shape) if resumable else 0)
    shown, labels, seconds, evaluations, first, new = [], [], 0., 0, 0, 0
    for batch in batches(done):
        check()
        seconds, evaluations = seconds + batch.seconds, evaluations + batch.evaluations
        new += batch.n if batch.x is not None else 0
        if writes and batch.x is None and first < SHOWN:
            rows = np.array(read(unfinished, first + batch.n, shape)[first:])
            x = to_unit(torch.from_numpy(rows).permute(0, 3, 1, 2))
            batch = batch._replace(x=x, states={0: x})
        elif writes and batch.x is not None:
            pixels = to_pixels(batch.x)
            if npz:
                append(unfinished, first, pixels)
            for i, picture in enumerate(pixels if png else (), first):
                pictures.save(to_image(picture), out / "png" / f"{i:06d}.png", sync=False)
        if first < SHOWN:
            shown.append(batch)
        labels, first = [*labels, batch.labels], first + batch.n
    if writes and png:
        remove_stale(out / "png", n)
    if writes and npz:
        finish(unfinished, out / "pictures.npz", n, shape, None if labels[0] is None else torch.cat(labels))
    return (concatenate(shown) if writes else shown[0])._replace(n=new, seconds=seconds, evaluations=evaluations)
