"""Data sets as uint8 pixels, found by name, and their batches as a function of (seed, step)."""

import importlib
import re
from pathlib import Path

from data.files import say, some
from data.folders import read_folder
from data.image_files import MODES
from data.loader import Batches, batch_indices, batches
from data.published import SETS, TEST, load_named, parse_name
from data.sets import (
    ENDLESS,
    Data,
    count_pictures,
    digest,
    digits,
    even_indices,
    evenly_spaced,
    first,
    read_npz,
    resize,
    spread,
    to_pixels,
    to_unit,
)

__all__ = ["ENDLESS", "TEST", "Batches", "Data", "batch_indices", "batches", "check_outside", "count_pictures",
           "describe", "digest", "digits", "even_indices", "evenly_spaced", "first", "load", "parse_size",
           "read_folder", "read_npz", "resize", "spread", "to_pixels", "to_unit"]

EXAMPLES = dict.fromkeys(["dead-leaves", "dead-leaves-grey"], "examples.dead_leaves")         # imported when asked for


def load(name: str, size: str = "", fit: str = "crop", channels: int = 0) -> Data:
    """The data set `name`: "digits", a name of published.py's, dead leaves, a folder of images, or an .npz file.

    "test:" before digits or a name of published.py's: the pictures held out of it.
    size: "", the pictures' own; or "64", or "48x64" (H x W), reached by fit: "crop" resizes and crops at the
    centre, "pad" shrinks what is larger and adds black all round. channels: 0 for the pictures' own, or 1, 3, 4. Raises
    ValueError for what cannot be read, naming it; what is left out or looks odd is said on stderr.
    """
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit is {fit!r}; it must be crop or pad")
    if channels not in (0, *MODES):
        raise ValueError(f"channels is {channels}; it must be 1 (grey), 3 (colour), 4 (with transparency), or 0, the "
                         f"pictures' own")
    data = find(name, parse_size(size), fit, channels)
    if empty := [data.classes[k] for k, count in enumerate(count_pictures(data)) if not count]:
        say(f"{len(empty)} of the {len(data.classes)} classes of {name} have no pictures: {some(empty)}")
    return data


def find(name: str, size: tuple[int, int] | None, fit: str, channels: int) -> Data:
    """The data set of this name, of this size and of so many channels."""
    held_out, name = name.startswith(TEST), name.removeprefix(TEST)
    path = Path(name).expanduser()
    if name in ("digits", *SETS, *EXAMPLES) and path.exists():
        raise ValueError(f"data is {name!r}, the name of a set, and also of a file or folder here; ./{name} is yours, "
                         f"and the set is read from any other folder")
    if name == "digits":
        return resize(digits(held_out), size, fit, channels)
    if parse_name(name)[1] in SETS:
        return load_named(name, size, fit, held_out, channels)
    if held_out:
        raise ValueError(f"no held-out pictures of {name!r} are known; name the folder or the .npz file that has them, "
                         f"as --held_out of evaluate.py")
    if name in EXAMPLES:
        leaves = importlib.import_module(EXAMPLES[name]).load(name, size)
        if channels not in (0, leaves.shape[0]):
            raise ValueError(f"channels is {channels}, and {name} has {leaves.shape[0]}; use {' or '.join(EXAMPLES)}")
        return leaves
    if path.is_dir():
        return read_folder(path, size, fit, channels)
    if path.suffix.lower() == ".npz" and path.is_file():
        return resize(read_npz(path), size, fit, channels)
    if path.is_file():
        raise ValueError(f"{path} is a file, but no .npz; name a folder of pictures, unpacked if need be")
    raise ValueError(f"no data set {name!r}; it must be an existing folder of images, an .npz file, digits, "
                     f"{', '.join([*SETS, *EXAMPLES])}, or one of the published sets with files of your own, as "
                     f"mnist:FOLDER")


def describe(data: Data) -> str:
    """A set in one line: how many pictures, of which shape, and the first classes with the number of their pictures."""
    (C, H, W), n, classes = data.shape, len(data.images), data.classes
    if counts := count_pictures(data):
        classes = [f"{name} ({count})" for name, count in zip(classes, counts, strict=True)]
    return (f"{'endless' if n == ENDLESS else n} pictures of {C} x {H} x {W}"
            + (f", {len(classes)} classes: {some(classes, 10)}" if classes else ", no classes"))


def check_outside(name: str, out: str) -> None:
    """Raises ValueError for an output folder that lies in the folder of a data set: it would be read as pictures."""
    folder = Path(name).expanduser()
    if folder.is_dir() and Path(out).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"out is {out}, inside of {folder}, where its pictures would be read as training data; choose "
                         f"another --out")


def parse_size(size: str) -> tuple[int, int] | None:
    """(H, W) of "64" or "48x64"; None of ""."""
    if not size:
        return None
    sides = size.split("x")
    if len(sides) > 2 or not all(re.fullmatch("[1-9][0-9]{0,3}", side) for side in sides):
        raise ValueError(f"size is {size!r}; it must be like 64 or 48x64 (H x W), and below 10000")
    return int(sides[0]), int(sides[-1])
