"""All that sample.py writes: pictures while they are sampled, in constant memory, then their grid.

Pictures are files of their own, with their labels in metadata.csv, or one .npz, which is resumable after a stop: until
all of its pictures are there, their bytes lie one after the other in a .raw file, which is then packed. (Writing to a
mapped array would be less code, but on a full disk it ends the process without a word.)
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import samplers
from data import to_pixels, to_unit
from data.files import writing
from data.image_files import blacken_hidden, to_image
from run import folder, pictures, processes
from run.checkpoint import WEIGHTS, Checkpoint
from run.cli import parse_numbers
from run.labels import NONE
from run.pictures import Samples, concatenate

SHOWN = 1000                                    # pictures of a grid or a film, at most


def append(path: Path, done: int, pixels: Tensor) -> None:
    """Writes pixels, uint8 (B, C, H, W), after the first `done` pictures; anything behind those is dropped."""
    rows = pixels.permute(0, 2, 3, 1).contiguous().numpy()
    try:
        with path.open("r+b" if done else "wb") as file:
            file.truncate(done * rows[0].size)
            file.seek(0, os.SEEK_END)
            file.write(rows.data)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; make room, and repeat the command") from error


def digest(settings: Any, checkpoint: Checkpoint) -> str:
    """A name for exactly these pictures: a hash of sample.py's settings and of the weights that they depend on."""
    settings = replace(settings, batch=1, snapshots="", gif=False, png=False, npz=False, device="", out="", table="")
    hashed = hashlib.sha256(f"{settings} {checkpoint.network} {checkpoint.settings} {checkpoint.data}".encode(
        errors="surrogateescape"))
    if samplers.is_file(settings.sampler):
        hashed.update(Path(settings.sampler).read_bytes())
    if settings.start:
        hashed.update(Path(settings.start).read_bytes())
    for w in (checkpoint.beta, *getattr(checkpoint, WEIGHTS[settings.weights]).values()):
        hashed.update(w.float().contiguous().numpy())
    return hashed.hexdigest()[:12]


def append_labels(path: Path, first: int, batch: Samples) -> None:
    """Adds the names of a batch's labels to metadata.csv, which begins anew with the first picture.

    So a stop leaves no labels of other pictures. There is no file for pictures without labels.
    """
    if first == 0:
        path.unlink(missing_ok=True)
    if not path.exists() and (batch.labels is None or (batch.labels == len(batch.classes)).all()):
        return
    names, lines = (*batch.classes, NONE), io.StringIO()
    csv.writer(lines).writerows([("file_name", "label")] * (not path.exists()) + [
        (f"{k:06d}.png", names[label]) for k, label in enumerate(batch.labels, first)])
    try:
        with path.open("ab") as file:
            file.write(lines.getvalue().encode(errors="surrogateescape"))
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}; make room, and repeat the command") from error


def write(batches: Callable[[int], Iterator[Samples]], settings: Any, checkpoint: Checkpoint) -> Samples | None:
    """All that sample.py's settings ask for, into a folder that no other process writes to meanwhile.

    batches: how many pictures an earlier run has completed -> the batches. Returns the first SHOWN pictures or so,
    with what all of them cost; None on all processes but the first.
    """
    with folder.lock(Path(settings.out)) as check:
        samples = write_batches(batches, settings, checkpoint, check)
        if processes.rank() > 0:
            return None
        out, snapshots = Path(settings.out), parse_numbers("snapshots", settings.snapshots)
        pictures.save(pictures.grid(samples.x, *pictures.columns(samples)), out / "grid.png")
        if snapshots:
            times = [pictures.nearest(t, list(samples.states)) for t in snapshots]
            pictures.save(pictures.strip(samples, times), out / "strip.png")
        if settings.gif:
            pictures.film(samples, out / "reverse.gif")
        return samples


def write_batches(batches: Callable[[int], Iterator[Samples]], settings: Any, checkpoint: Checkpoint,
                  check: Callable[[], None]) -> Samples:
    """Writes the .npz and the files of the pictures while they are sampled; see `write`.

    Pictures of an .npz are resumed, if there is neither a film nor a strip nor a file of each. check: raises ValueError
    if the folder is another job's meanwhile.
    """
    n, out, png, npz, (C, H, W) = settings.n, Path(settings.out), settings.png, settings.npz, checkpoint.data["shape"]
    writes, raw = processes.rank() == 0, out / f"pictures-{digest(settings, checkpoint) if npz else ''}.raw"
    resumable = npz and not (png or settings.gif or settings.snapshots)
    done = raw.stat().st_size // (C * H * W) if resumable and raw.is_file() else 0
    shown, labels, seconds, evaluations, first, new = [], [], 0., 0, 0, 0
    for batch in batches(processes.broadcast_first(done)):
        check()
        sampled = batch.x is not None
        if writes and sampled:
            pixels = blacken_hidden(to_pixels(batch.x))
            if npz:
                append(raw, first, pixels)
            for i, picture in enumerate(pixels if png else (), first):
                pictures.save(to_image(picture), out / "png" / f"{i:06d}.png", sync=False)
            if png:
                append_labels(out / "png" / "metadata.csv", first, batch)
        elif writes and first < SHOWN:
            rows = np.fromfile(raw, np.uint8, batch.n * C * H * W, offset=first * C * H * W).reshape(-1, H, W, C)
            x = to_unit(torch.from_numpy(rows).permute(0, 3, 1, 2))
            batch = batch._replace(x=x, states={0: x})
        if first < SHOWN:
            shown.append(batch)
        labels.append(batch.labels)
        first, new = first + batch.n, new + batch.n * sampled
        seconds, evaluations = seconds + batch.seconds, evaluations + batch.evaluations
    for path in (out / "png").glob("*.png") if writes and png else ():
        if re.fullmatch("[0-9]{6,}", path.stem) and int(path.stem) >= n:          # of an earlier command
            path.unlink()
    if writes and npz:
        arr_1 = [] if labels[0] is None else [torch.cat(labels).numpy()]
        with writing(out / "pictures.npz") as file:
            np.savez(file, np.memmap(raw, np.uint8, "r", shape=(n, H, W, C)), *arr_1)
        raw.unlink()
    return (concatenate(shown) if writes else shown[0])._replace(n=new, seconds=seconds, evaluations=evaluations)
