"""Folders of image files, their labels by subfolder or by a table; what is left out of them is said in a line each."""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import sets
from data.files import SILENT, reading, say, some
from data.image_files import SUFFIXES, Header, open_image, read_header, read_image
from data.sets import Data, say_if_dark

T = TypeVar("T")
TABLES = ("metadata.csv", "metadata.jsonl", "dataset.json")     # of the library `datasets`, of StyleGAN and EDM
RUNS = ("last.safetensors", "last.pt")                  # in the folder of a run, whose pictures are samples
CHECKED = 16                                            # 16-bit pictures whose values are looked at


@dataclass(frozen=True)
class Folder:
    """Image files read as they are asked for; indexes like the tensor they would make."""
    root: Path
    paths: list[Path]
    shape: tuple[int, int, int]
    fit: str

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([read_image(self.paths[i], self.shape, self.fit) for i in indices])


def read_folder(root: Path, size: tuple[int, int] | None, fit: str, channels: int = 0) -> Data:
    """A folder of images at any depth, labelled by a table in it, or by its subfolders, if there are any.

    channels: 0 for those of the richest picture (grey, colour, colour with alpha), so that nothing is dropped. Up to
    1 GiB is read at once, which finds damaged files before training; more is read as needed. Raises ValueError for what
    cannot be read or labelled, naming the files; what is left out or looks odd is said on stderr.
    """
    paths, labels, classes = choose_pictures(root, visible(root))
    try:
        headers = read_each(paths, read_header, "looking at pictures")
    except ValueError:                                  # now all that is wrong, pixels included, in one sentence
        read_each(paths, lambda path: (read_header(path), read_image(path, (1, 8, 8), fit)), "looking for others")
        raise
    sizes = sorted({header.size for header in headers})
    if size is None and len(sizes) > 1:
        (H, W), *_, (most_H, most_W) = sizes
        raise ValueError(f"the images under {root} have {len(sizes)} sizes, {H}x{W} to {most_H}x{most_W}; choose one "
                         f"with --size")
    shape = (channels or max(header.channels for header in headers), *(size or sizes[0]))
    values_said = say_what_is_odd(paths, headers, channels)
    images = Folder(root, paths, shape, fit)
    if len(paths) * math.prod(shape) <= sets.IN_MEMORY:
        images = torch.stack(read_each(paths, lambda path: read_image(path, shape, fit), "reading pictures"))
        if not values_said:
            say_if_dark(str(root), images)
    number = {label: k for k, label in enumerate(classes)}
    numbers = torch.tensor([number[label] for label in labels]) if labels else None
    return Data(root.resolve().name, images, numbers, tuple(classes), shape)


def visible(folder: Path, pattern: str = "*", above: tuple[Path, ...] = ()) -> list[Path]:
    """The files that match the pattern at any depth, sorted: nothing hidden, and nothing of macOS's __MACOSX folders.

    Links to folders are followed, but not in circles: `above` are the folders that led here. Links that lead nowhere
    are among the files, so that whoever opens them says so.
    """
    here, files = folder.resolve(), []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path = folder / entry.name
        if entry.name[0] == "." or entry.name == "__MACOSX":
            continue
        if entry.is_dir():
            files += [] if path.resolve() in (here, *above) else visible(path, pattern, (here, *above))
        elif path.match(pattern) and (entry.is_file() or entry.is_symlink()):
            files.append(path)
    return files


def choose_pictures(root: Path, files: Sequence[Path]) -> tuple[list[Path], list[str], list[str]]:
    """The pictures to read among these files, the label of each, if anything tells them, and the classes in order."""
    runs = {file.parent for file in files if file.name in RUNS}
    kept = [file for file in files if not runs.intersection(file.parents)] if runs else files
    paths = [file for file in kept if file.suffix.lower() in SUFFIXES]
    if other := [file for file in kept if file.suffix.lower() not in SUFFIXES and file.name not in TABLES]:
        say(f"left out {len(other)} files that are no pictures readable here, such as {other[0]}")
    if not paths:
        raise ValueError(f"no images under {root}{', but the folder of a run' if runs else ''}; it takes "
                         f"{' '.join(SUFFIXES)}, and after the name of a set, as cifar10:{root}, also parquet and its "
                         f"authors' binary files, but no pickles")
    if runs:
        say(f"left out {len(runs)} folders of runs, whose pictures are samples: {some(sorted(runs))}")
    labels, tables = read_tables([file for file in kept if file.name in TABLES])
    if labels:
        if outside := [path for path in paths if not any(table.parent in path.parents for table in tables)]:
            raise ValueError(f"{tables[0]} labels pictures of its folder, but {outside[0]} lies outside of it; list "
                             f"all in a table above both, or remove it")
        if absent := sorted(labels.keys() - set(paths)):
            raise ValueError(f"{len(absent)} labelled pictures are not there, such as {absent[0]}; mend the table")
        if unlisted := [path for path in paths if path not in labels]:
            say(f"left out {len(unlisted)} pictures that no table lists, such as {unlisted[0]}")
        classes = sorted({*labels.values()})
        return [*labels], [*labels.values()], sorted(classes, key=int) if all(map(str.isdecimal, classes)) else classes
    names = [path.relative_to(root).parts[0] if path.parent != root else "" for path in paths]
    if len({"", *names}) == 1:
        return paths, [], []
    if "" in names:
        raise ValueError(f"{root} has images beside subfolders such as {max(names)!r}; put every image into a "
                         f"subfolder to label them, or none")
    folders = {file.relative_to(root).parts[0] for file in kept if file.parent != root}
    folders |= {path.name for path in root.iterdir() if path.is_dir() and not any(path.iterdir())}
    if empty := sorted(folders - {*names}):
        say(f"{len(empty)} subfolders have no pictures, and are no classes: {some(empty)}")
    return paths, names, sorted({*names})


def read_tables(files: Sequence[Path]) -> tuple[dict[Path, str], list[Path]]:
    """The label of each picture that a table among these lists, sorted by path, and the tables that list any."""
    labels, tables = {}, []
    for file in files:
        with reading(file, "mend or remove it"):
            rows = rows_of(file)
            tables += [file] * bool(rows)
            for name, label in rows:
                if not isinstance(label, str | int) or not str(label).strip():
                    raise ValueError(f"the label of {name} is {label!r}, and must be a name or a whole number")
                labels[file.parent / name.replace("\\", "/")] = str(label).strip()
    if labels:
        say(f"labels are those of {some(tables)}")
    return dict(sorted(labels.items())), tables


def rows_of(file: Path) -> Sequence[tuple[str, str | int]]:
    """The names, relative to the file's folder, and the labels that a table lists; none if it has no labels."""
    text = file.read_text("utf-8-sig")
    if file.suffix == ".json":
        return json.loads(text).get("labels") or ()
    lines = [line for line in text.split("\n") if line.strip()]
    rows = [*csv.DictReader(io.StringIO(text))] if file.suffix == ".csv" else [*map(json.loads, lines)]
    columns = [*rows[0]] if rows else []
    if "file_name" not in columns:
        raise ValueError(f"its columns are {some(columns)}; one must be file_name, and label another")
    if "label" not in columns:
        say(f"{file} has no column label, but {some(columns)}; it is left out")
        return ()
    return [(row["file_name"], row.get("label")) for row in rows]


def read_each(paths: Sequence[Path], read: Callable[[Path], T], what: str) -> list[T]:
    """What `read` makes of every path, behind a progress bar. Raises ValueError naming all that cannot be read."""
    made, errors = [], {}
    for path in tqdm(paths, desc=what, unit=" files", delay=1, leave=False, disable=SILENT):
        try:
            made.append(read(path))
        except ValueError as error:
            errors[path] = error
    if len(errors) > 1:
        raise ValueError(f"{len(errors)} of {len(paths)} images cannot be read; mend or remove them: "
                         f"{', '.join(map(str, errors))}")
    for error in errors.values():
        raise error
    return made


def say_what_is_odd(paths: Sequence[Path], headers: Sequence[Header], channels: int) -> bool:
    """Says which pictures decided the channels, are animated, or use few of their 16 bits; returns whether the last."""
    richest = max(header.channels for header in headers)
    decided = [path for path, header in zip(paths, headers, strict=True) if header.channels == richest]
    if not channels and len(decided) < len(paths):
        say(f"pictures have {richest} channels because {len(decided)} of {len(paths)} do, such as {decided[0]}; "
            f"--channels chooses")
    if animated := [path for path, header in zip(paths, headers, strict=True) if header.animated]:
        say(f"{len(animated)} files hold several pictures, and only the first of each is read, such as {animated[0]}")
    deep = [path for path, header in zip(paths, headers, strict=True) if header.deep]
    least, most = math.inf, -1
    for path in deep[::max(1, len(deep) // CHECKED)]:
        with open_image(path) as (image, _):
            values = np.array(image)
            least, most = min(least, values.min()), max(most, values.max())
    few = 0 <= most < 2**14
    if few:
        say(f"{len(deep)} pictures of 16 bits use the values {least} to {most} of 65535, such as {deep[0]}; they will "
            f"be nearly black, so scale them first")
    return few
