"""Published data sets by name, from the hub or from files.

    --data cifar10                  comes through the `datasets` library (pip install datasets), which keeps it
    --data cifar10:PATH             files of one's own: CIFAR's binary version, MNIST's IDX, parquet, or images
    --data test:cifar10:PATH        the pictures that its authors held out of the training set (test:cifar10, too)
    --data stream:imagenet64        never kept, shuffled a little (stream:imagenet64:PATH, too)

Sets up to sets.IN_MEMORY bytes of pixels are decoded at once, larger ones as needed. Nothing is ever unpickled: a
pickle can run code, so CIFAR and mini-ImageNet in that form are refused.
"""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from data import loader, sets
from data.files import reading
from data.folders import read_folder, visible
from data.formats import FORMATS
from data.image_files import read_image
from data.sets import Data


class Source(NamedTuple):
    """Where a named set lies on the hub, what its rows are called, and what its pictures are."""
    hub: str
    split: str                          # also what the names of local parquet files begin with
    image: str                          # column
    label: str                          # column
    channels: int
    size: tuple[int, int] | None        # H, W; None: of many sizes
    held_out: str = "test"              # the split held out of training; "" if there is none


SETS = {
    "mnist": Source("ylecun/mnist", "train", "image", "label", 1, (28, 28)),
    "fashion-mnist": Source("zalando-datasets/fashion_mnist", "train", "image", "label", 1, (28, 28)),
    "cifar10": Source("uoft-cs/cifar10", "train", "img", "label", 3, (32, 32)),
    "cifar100": Source("uoft-cs/cifar100", "train", "img", "fine_label", 3, (32, 32)),
    "stanford-cars": Source("tanganke/stanford_cars", "train+test", "image", "label", 3, None, ""),
    "mini-imagenet": Source("timm/mini-imagenet", "train", "image", "label", 3, None),
    "imagenet64": Source("benjamin-paine/imagenet-1k-64x64", "train", "image", "label", 3, (64, 64),
                         "validation"),
    "celeba-hq": Source("korexyz/celeba-hq-256x256", "train", "image", "label", 3, (256, 256), "validation"),
}
TEST = "test:"                                          # before the name of a set: what is held out of it
WINDOW = 10_000                                         # rows of a stream among which it is shuffled


def parse_name(name: str) -> tuple[bool, str, str]:
    """Whether to stream, the set, and the path, of "stream:SET:PATH", "SET:PATH" or "SET"."""
    streamed = name.startswith("stream:")
    key, _, path = name.removeprefix("stream:").partition(":")
    return streamed, key, path


def load_named(name: str, size: tuple[int, int] | None, fit: str, held_out: bool = False, channels: int = 0) -> Data:
    """The named set, or what is held out of it. Raises ValueError for what cannot be had, with the remedy."""
    streamed, key, path = parse_name(name)
    source = SETS[key]
    if held_out and (streamed or not source.held_out):
        raise ValueError(f"{name} has no held-out pictures; instead of {TEST}{name}, name a folder, an .npz file or "
                         f"another set")
    source = source._replace(split=source.held_out) if held_out else source
    source = source._replace(channels=channels or source.channels)
    if not path:
        return load_table(name, source, size, fit, streamed)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise ValueError(f"no folder {folder} for {key}; leave it out to download {source.hub}")
    if key in FORMATS and not streamed and (arrays := FORMATS[key](folder, held_out)):
        return sets.resize(sets.from_arrays(name, *arrays)._replace(name=key), size, fit, channels)
    parquet = visible(folder, "*.parquet")
    of_split = [p for p in parquet if p.name.startswith(tuple(source.split.split("+")))]
    if of_split or parquet and not held_out:
        return load_table(name, source, size, fit, streamed, of_split or parquet)
    images = folder / (source.split if held_out else "train")
    if held_out and not images.is_dir():
        raise ValueError(f"{folder} has no held-out pictures of {key}: neither its authors' own test files, nor "
                         f"{source.split}*.parquet, nor images in a folder {source.split}")
    return read_folder(images if images.is_dir() else folder, size or source.size, fit, channels)._replace(name=key)


# Tables, through the `datasets` library

def load_table(name: str, source: Source, size: tuple[int, int] | None, fit: str, streamed: bool,
               files: Sequence[Path] = ()) -> Data:
    """The set from a table, of these parquet files or else the hub's, to be read in any order or streamed."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{name} comes through the datasets library; install it with: pip install datasets") from None
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)                    # what it logs as errors it raises, too
    shape = (source.channels, *(size or source.size or ()))
    if len(shape) == 1:
        raise ValueError(f"the pictures of {name} have many sizes; choose one with --size")
    where = {"path": "parquet", "data_files": [str(p) for p in files]} if files else {"path": source.hub}
    split = "train" if files else source.split                                  # what the library calls plain files
    remedy = (f"see that the files are whole, and {source.hub}'s" if files else
              f"fetch it elsewhere and name its folder, as {name}:FOLDER")
    with reading(f"{name} from {files[0] if files else source.hub}", remedy):
        rows = datasets.load_dataset(**where, split=split, streaming=streamed)
        rows = rows.select_columns([source.image, source.label])
        rows = rows.cast_column(source.image, datasets.Image(decode=False))       # decoded by image_files alone
    return (as_stream if streamed else as_rows)(name, source, rows, shape, fit)


def as_rows(name: str, source: Source, rows, shape: tuple[int, int, int], fit: str) -> Data:
    """A table whose pictures can be asked for in any order, read at once if they are small enough."""
    with reading(name, "see that its files are whole"):
        labels = torch.as_tensor(rows.with_format("numpy")[source.label][:])
    classes = sets.name_classes(name, labels, getattr(rows.features[source.label], "names", None) or ())
    images = Rows(name, rows.select_columns([source.image]), source.image, shape, fit)
    if len(images) * math.prod(shape) <= sets.IN_MEMORY:
        images = images[range(len(images))]
    return Data(name, images, labels.long(), classes, shape)


def decode(cell: dict | None, shape: tuple[int, int, int], fit: str, name: str) -> Tensor:
    """uint8 (C, H, W) of a table's cell: the bytes of an image file, or its path."""
    cell = cell or {"bytes": b""}
    file = cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])
    return read_image(file, shape, fit, name)


@dataclass(frozen=True)
class Rows:
    """Pictures of a table on disk, decoded as they are asked for; indexes like the tensor they would make."""
    name: str
    table: Any                          # datasets.Dataset
    column: str
    shape: tuple[int, int, int]
    fit: str

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([decode(self.table[int(i)][self.column], self.shape, self.fit, f"in row {i} of {self.name}")
                            for i in indices])


# Streams

def as_stream(name: str, source: Source, rows, shape: tuple[int, int, int], fit: str) -> Data:
    """A table that is only passed through, over and over."""
    names = tuple(getattr(rows.features[source.label], "names", None) or ())
    stream = Stream(rows, name)
    images = Column(stream, lambda i, row: decode(row[source.image], shape, fit, f"in row {i} of {name}"))
    labels = Column(stream, lambda i, row: one_label(row[source.label], len(names), f"row {i} of {name}"))
    return Data(name, images, labels if names else None, names, shape)


def one_label(label: int | None, classes: int, row: str) -> Tensor:
    """A row's label, int64 (). Raises ValueError, naming the row, for none."""
    if label is None or not 0 <= label < classes:
        raise ValueError(f"{row} has the label {label}; it must be from 0 to {classes - 1}; choose another split")
    return torch.tensor(label)


class Stream:
    """The rows of pass after pass through a table, shuffled within WINDOW rows; read once if asked for in order."""

    def __init__(self, table, name: str):
        self.table, self.name = table, name
        self.rows, self.position = iter(()), math.inf                             # position: of the row that comes next
        self.first, self.latest = 0, []                                           # rows first, first + 1, ...

    def passes(self):
        for epoch in itertools.count():
            rows = iter(self.table)
            window = list(itertools.islice(rows, WINDOW))
            if not window:
                raise ValueError(f"{self.name} has no rows; fetch it anew")
            while window:
                yield from (window[k] for k in loader.permutation(len(window), 0, epoch))
                window = list(itertools.islice(rows, WINDOW))

    def __call__(self, first: int, n: int) -> list[dict]:
        if (first, n) != (self.first, len(self.latest)):
            if first < self.position:
                self.rows, self.position = self.passes(), 0
            with reading(self.name, "see that its files are whole"):
                self.latest = list(itertools.islice(self.rows, first - self.position, first - self.position + n))
            self.first, self.position = first, first + n
        return self.latest


@dataclass(frozen=True)
class Column:
    """What `of` makes of a stream's rows; takes indices in order, as `loader.batch_indices` gives them."""
    stream: Stream
    of: Callable                        # (index, row) -> tensor

    def __len__(self) -> int:
        return sets.ENDLESS

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        first, n = int(indices[0]), len(indices)
        if not torch.equal(torch.as_tensor(indices), torch.arange(first, first + n)):
            raise ValueError("a stream gives its rows in order only; leave out stream: to choose among them")
        return torch.stack([self.of(first + k, row) for k, row in enumerate(self.stream(first, n))])

    def first(self, n: int) -> Tensor:
        """Of the table's first rows, read apart from the stream."""
        return torch.stack([self.of(k, row) for k, row in enumerate(itertools.islice(self.stream.table, n))])
