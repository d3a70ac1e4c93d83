"""Data sets as uint8 pixels, found by name, and their batches as a function of (seed, step)."""

import importlib
import re
from pathlib import Path

from data.loader import Batches, batch_indices, batches
from data.published import SETS, TEST, load_named, parse_name
from data.sets import (
    ENDLESS,
    Data,
    digest,
    digits,
    even_indices,
    evenly_spaced,
    first,
    read_folder,
    read_npz,
    resize,
    spread,
    to_pixels,
    to_unit,
)

__all__ = ["ENDLESS", "TEST", "Batches", "Data", "batch_indices", "batches", "digest", "digits", "even_indices",
           "evenly_spaced", "first", "load", "parse_size", "read_folder", "read_npz", "resize", "spread",
           "to_pixels", "to_unit"]

EXAMPLES = dict.fromkeys(["dead-leaves", "dead-leaves-grey"], "examples.dead_leaves")         # imported when asked for


def load(name: str, size: str = "", fit: str = "crop") -> Data:
    """The data set `name`: "digits", a name of published.py's, dead leaves, a folder of images, or an .npz file.

    "test:" before digits or a name of published.py's: the pictures held out of it.
    size: "", the pictures' own; or "64", or "48x64" (H x W), reached by fit: "crop" resizes and crops at the
    centre, "pad" adds black all round. Raises ValueError for what cannot be read, naming it.
    """
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit is {fit!r}; it must be crop or pad")
    pixels = parse_size(size)
    held_out, name = name.startswith(TEST), name.removeprefix(TEST)
    if name == "digits":
        return resize(digits(held_out), pixels, fit)
    if parse_name(name)[1] in SETS:
        return load_named(name, pixels, fit, held_out)
    if held_out:
        raise ValueError(f"no held-out pictures of {name!r} are known; name the folder or the .npz file that has them, "
                         f"as --held_out of evaluate.py")
    if name in EXAMPLES:
        return importlib.import_module(EXAMPLES[name]).load(name, pixels)
    path = Path(name)
    if path.is_dir():
        return read_folder(path, pixels, fit)
    if path.suffix == ".npz" and path.is_file():
        return resize(read_npz(path), pixels, fit)
    raise ValueError(f"no data set {name!r}; it must be an existing folder of images, an .npz file, digits, "
                     f"{', '.join([*SETS, *EXAMPLES])}, or one of the published sets with files of your own, as "
                     f"mnist:FOLDER")


def parse_size(size: str) -> tuple[int, int] | None:
    """(H, W) of "64" or "48x64"; None of ""."""
    if not size:
        return None
    sides = size.split("x")
    if len(sides) > 2 or not all(re.fullmatch("[1-9][0-9]{0,3}", side) for side in sides):
        raise ValueError(f"size is {size!r}; it must be like 64 or 48x64 (H x W), and below 10000")
    return int(sides[0]), int(sides[-1])
