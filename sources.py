"""Data sets by name: digits, files of one's own, published sets, and dead leaves, the natural images of 2015.

    --data cifar10                  comes through the `datasets` library (pip install datasets), which keeps it
    --data cifar10:PATH             files of one's own: CIFAR's binary version, MNIST's IDX, parquet, or images
    --data stream:imagenet64        never kept: rows in the order in which they come (stream:imagenet64:PATH, too)
    --data dead-leaves --size 64    without end, drawn as asked for; dead-leaves-grey is grey

Sets up to data.IN_MEMORY bytes of pixels are decoded at once, larger ones as needed. Nothing is ever unpickled: a
pickle can run code, so CIFAR and mini-ImageNet in that form are refused.
"""

import gzip
import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import data
import image_files
from data import Data
from dead_leaves import DeadLeaves


class Source(NamedTuple):
    """Where a named set lies on the hub, what its rows are called, and what its pictures are."""
    hub: str
    split: str                          # also what the names of local parquet files begin with
    image: str                          # column
    label: str                          # column
    channels: int
    size: tuple[int, int] | None        # H, W; None: of many sizes


SETS = {
    "mnist": Source("ylecun/mnist", "train", "image", "label", 1, (28, 28)),
    "fashion-mnist": Source("zalando-datasets/fashion_mnist", "train", "image", "label", 1, (28, 28)),
    "cifar10": Source("uoft-cs/cifar10", "train", "img", "label", 3, (32, 32)),
    "cifar100": Source("uoft-cs/cifar100", "train", "img", "fine_label", 3, (32, 32)),
    "stanford-cars": Source("tanganke/stanford_cars", "train+test", "image", "label", 3, None),
    "mini-imagenet": Source("timm/mini-imagenet", "train", "image", "label", 3, None),
    "imagenet64": Source("benjamin-paine/imagenet-1k-64x64", "train", "image", "label", 3, (64, 64)),
    "celeba-hq": Source("korexyz/celeba-hq-256x256", "train", "image", "label", 3, (256, 256)),
}
LEAVES = {"dead-leaves": 3, "dead-leaves-grey": 1}      # channels
NAMES = (*LEAVES, *SETS)
WINDOW = 10_000                                         # rows of a stream among which it is shuffled


def parts(name: str) -> tuple[bool, str, str]:
    """Whether to stream, the set, and the path, of "stream:SET:PATH", "SET:PATH" or "SET"."""
    streamed = name.startswith("stream:")
    key, _, path = name.removeprefix("stream:").partition(":")
    return streamed, key, path


def load(name: str, size: str = "", fit: str = "crop") -> Data:
    """The data set `name`: "digits", a name of this file's, a folder of images, or an .npz file.

    size: "", the pictures' own; or "64", or "48x64" (H x W), reached by fit: "crop" resizes and crops at the
    centre, "pad" adds black all round. Raises ValueError for what cannot be read, naming it.
    """
    if fit not in ("crop", "pad"):
        raise ValueError(f"fit is {fit!r}; it must be crop or pad")
    if name == "digits":
        return data.resized(data.digits(), parse_size(size), fit)
    if parts(name)[1] in NAMES:
        return named(name, parse_size(size), fit)
    path = Path(name)
    if path.is_dir():
        return data.folder(path, parse_size(size), fit)
    if path.suffix == ".npz" and path.is_file():
        return data.resized(data.npz(path), parse_size(size), fit)
    raise ValueError(f"no data set {name!r}; it must be an existing folder of images, an .npz file, digits, "
                     f"{', '.join(NAMES)}, or one of these with files of your own, as mnist:FOLDER")


def parse_size(size: str) -> tuple[int, int] | None:
    """(H, W) of "64" or "48x64"; None of ""."""
    if not size:
        return None
    sides = size.split("x")
    if len(sides) > 2 or not all(re.fullmatch("[1-9][0-9]{0,3}", side) for side in sides):
        raise ValueError(f"size is {size!r}; it must be like 64 or 48x64 (H x W), and below 10000")
    return int(sides[0]), int(sides[-1])


def named(name: str, size: tuple[int, int] | None, fit: str) -> Data:
    """The named set. Raises ValueError for what cannot be had, with the mend."""
    streamed, key, path = parts(name)
    if key in LEAVES:
        if path or streamed:
            raise ValueError(f"no data set {name!r}; {key} is drawn, not read: it takes no path and no stream")
        shape = (LEAVES[key], *(size or (32, 32)))
        return Data(name, DeadLeaves(shape), None, (), shape)
    rows = (as_stream if streamed else as_rows, SETS[key], size, fit)
    return local(name, key, Path(path).expanduser(), rows) if path else table(name, *rows)


def local(name: str, key: str, path: Path, rows: tuple) -> Data:
    """The set from the files under path, its own format first, then parquet, then images by class."""
    how, source, size, fit = rows
    if not path.is_dir():
        raise ValueError(f"no folder {path} for {key}; leave it out to download {source.hub}")
    if key in FORMATS and FORMATS[key].files(path) and how is as_rows:
        return data.resized(FORMATS[key].read(path)._replace(name=key), size, fit)
    if parquet := sorted(map(image_files.regular, path.rglob("*.parquet"))):
        splits = tuple(source.split.split("+"))
        return table(name, *rows, [str(p) for p in parquet if p.name.startswith(splits)] or [str(p) for p in parquet])
    if pickled := next((p for p in sorted(path.rglob("*")) if is_pickle(p)), None):
        raise ValueError(f"{pickled} is a pickle, which could run code and is not read; for {key} use "
                         f"{FORMATS[key].says if key in FORMATS else 'parquet or image files'}")
    return data.folder(path / "train" if (path / "train").is_dir() else path, size or source.size, fit)


def is_pickle(path: Path) -> bool:
    """Whether a file begins as pickles have since protocol 2 (images, arrays and tables do not)."""
    if not path.is_file() or path.suffix not in ("", ".pkl", ".pickle"):
        return False
    with open(path, "rb") as file:
        first = file.read(2)
    return first[:1] == b"\x80" and first[1:] <= b"\x05"


# Tables, through the `datasets` library

def table(name: str, how: Callable, source: Source, size, fit: str, files: Sequence[str] = ()) -> Data:
    """The set as `how`, as_rows or as_stream, makes it of a table: of these parquet files, or else the hub's."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{name} comes through the datasets library; install it with: pip install datasets") from None
    shape = (source.channels, *(size or source.size or ()))
    if len(shape) == 1:
        raise ValueError(f"the pictures of {name} have many sizes; choose one with --size")
    where = {"path": "parquet", "data_files": files} if files else {"path": source.hub}
    split = "train" if files else source.split                                  # what the library calls plain files
    try:
        rows = datasets.load_dataset(**where, split=split, streaming=how is as_stream)
        features = rows.features or {}
        if missing := [c for c in (source.image, source.label) if c not in features]:
            raise ValueError(f"it has no column {missing[0]!r} but {', '.join(features)}")
        rows = rows.cast_column(source.image, datasets.Image(decode=False))
    except Exception as error:                          # the library, the network and the disk raise many kinds
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        mend = (f"see that the files are whole, and {source.hub}'s" if files else
                f"fetch it elsewhere and name its folder, as {name}:FOLDER")
        raise ValueError(f"cannot load {name} from {files[0] if files else source.hub}: {reason}; {mend}") from error
    return how(name, source, rows, shape, fit)


def as_rows(name: str, source: Source, rows, shape: tuple[int, int, int], fit: str) -> Data:
    """A table whose pictures can be asked for in any order, read at once if they are small enough."""
    labels = torch.as_tensor(rows.with_format("numpy")[source.label][:]).long()
    names = getattr(rows.features[source.label], "names", None)
    if len(labels) == 0 or labels.min() < 0:
        raise ValueError(f"{name} has {len(labels)} rows, or rows without a label (-1); choose another split")
    images = Rows(name, rows.select_columns([source.image]), source.image, shape, fit)
    if len(images) * math.prod(shape) <= data.IN_MEMORY:
        images = images[range(len(images))]
    return Data(name, images, labels, tuple(names) if names else data.numbered(labels), shape)


def picture(cell: dict | None, shape: tuple[int, int, int], fit: str, name: str) -> Tensor:
    """uint8 (C, H, W) of a table's cell: the bytes of an image file, or its path."""
    cell = cell or {"bytes": b""}
    return image_files.read(cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"]), shape, fit, name)


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
        return torch.stack([picture(self.table[int(i)][self.column], self.shape, self.fit, f"in row {i} of {self.name}")
                            for i in indices])


def as_stream(name: str, source: Source, rows, shape: tuple[int, int, int], fit: str) -> Data:
    """A table that is only passed through, over and over."""
    names = tuple(getattr(rows.features[source.label], "names", None) or ())
    stream = Stream(rows)
    images = Column(stream, lambda i, row: picture(row[source.image], shape, fit, f"in row {i} of {name}"))
    return Data(name, images, Column(stream, lambda _, row: torch.tensor(row[source.label])) if names else None,
                names, shape)


class Stream:
    """The rows of pass after pass through a table, shuffled within WINDOW rows; read once if asked for in order."""

    def __init__(self, table):
        self.table, self.rows, self.at = table, iter(()), math.inf                # at: the row that comes next
        self.first, self.last = 0, []                                             # rows first, first + 1, ...

    def passes(self):
        for epoch in itertools.count():
            rows = iter(self.table)
            window = list(itertools.islice(rows, WINDOW))
            if not window:
                raise ValueError("the streamed table has no rows; fetch it anew")
            while window:
                yield from (window[k] for k in data.permutation(len(window), 0, epoch))
                window = list(itertools.islice(rows, WINDOW))

    def __call__(self, first: int, n: int) -> list[dict]:
        if (first, n) != (self.first, len(self.last)):
            if first < self.at:
                self.rows, self.at = self.passes(), 0
            self.last = list(itertools.islice(self.rows, first - self.at, first - self.at + n))
            self.first, self.at = first, first + n
        return self.last


@dataclass(frozen=True)
class Column:
    """What `of` makes of a stream's rows; takes indices that follow one another, as `data.order` gives them."""
    stream: Stream
    of: Callable                        # (index, row) -> tensor

    def __len__(self) -> int:
        return data.ENDLESS

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        first, n = int(indices[0]), len(indices)
        if not torch.equal(torch.as_tensor(indices), torch.arange(first, first + n)):
            raise ValueError("a stream gives its rows in order only; leave out stream: to choose among them")
        return torch.stack([self.of(first + k, row) for k, row in enumerate(self.stream(first, n))])

    def first(self, n: int) -> Tensor:
        """Of the table's first rows, read apart from the stream."""
        return torch.stack([self.of(k, row) for k, row in enumerate(itertools.islice(self.stream.table, n))])


# Local files in the formats of their authors

class Format(NamedTuple):
    """How a set's own files are found and read."""
    files: Callable[[Path], list[Path]]
    read: Callable[[Path], Data]
    says: str                           # what to look for


def content(path: Path) -> bytes:
    """All of a file, unpacked if its name ends in .gz, up to data.IN_MEMORY."""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(image_files.regular(path), "rb") as file:
            raw = file.read(data.IN_MEMORY + 1)
        if len(raw) > data.IN_MEMORY:
            raise ValueError(f"it holds more than {data.IN_MEMORY} bytes")
        return raw
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}; fetch it anew") from None


def idx(path: Path, ndim: int) -> Tensor:
    """The array of bytes that an IDX file holds: 0, 0, 8, ndim, the big-endian sizes, the bytes."""
    raw = content(path)
    shape = np.frombuffer(raw[4:4 + 4 * ndim], ">u4" if len(raw) >= 4 + 4 * ndim else "u1").tolist()
    if raw[:4] != bytes([0, 0, 8, ndim]) or len(raw) != 4 + 4 * ndim + math.prod(shape) or not all(shape):
        raise ValueError(f"{path} is not an IDX file of bytes in {ndim} dimensions, or is cut short; fetch it anew")
    return torch.frombuffer(bytearray(raw[4 + 4 * ndim:]), dtype=torch.uint8).view(shape)


def idx_files(path: Path) -> list[Path]:
    return sorted(path.rglob("train-images*idx3-ubyte*"))


def idx_set(path: Path) -> Data:
    """MNIST's or Fashion-MNIST's train-images and train-labels, gz or not: (1, 28, 28)."""
    file = idx_files(path)[0]
    images = idx(file, 3)[:, None]
    labels = idx(file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1")), 1).long()
    if len(images) != len(labels):
        raise ValueError(f"{file} has {len(images)} pictures but {len(labels)} labels stand beside it; "
                         f"fetch both anew")
    return Data("", images, labels, data.numbered(labels), tuple(images.shape[1:]))


def cifar_format(names: Sequence[str], label_bytes: int, classes: str, says: str) -> Format:
    """CIFAR's binary version: of each picture the labels, the last of which counts, then 3 x 32 x 32 bytes."""
    def files(path: Path) -> list[Path]:
        return sorted(path.rglob(names[0]))

    def read(path: Path) -> Data:
        folder = files(path)[0].parent
        records = torch.cat([whole(folder / name, label_bytes + 3072) for name in names])
        labels, images = records[:, label_bytes - 1].long(), records[:, label_bytes:].reshape(-1, 3, 32, 32)
        listed = content(folder / classes).decode(errors="replace").split() if (folder / classes).is_file() else ()
        return Data("", images, labels, tuple(listed) if labels.max() < len(listed) else data.numbered(labels),
                    (3, 32, 32))

    return Format(files, read, says)


def whole(path: Path, record: int) -> Tensor:
    """A file of records of this many bytes, uint8 (N, record)."""
    raw = content(path)
    if not raw or len(raw) % record:
        raise ValueError(f"{path} has {len(raw)} bytes, which is not a whole number of pictures of {record}; "
                         f"fetch it anew")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(-1, record)


IDX = Format(idx_files, idx_set, "train-images-idx3-ubyte and train-labels-idx1-ubyte, gz or not")
FORMATS = {
    "mnist": IDX,
    "fashion-mnist": IDX,
    "cifar10": cifar_format([f"data_batch_{k}.bin" for k in range(1, 6)], 1, "batches.meta.txt",
                            "the binary version, cifar-10-binary.tar.gz"),
    "cifar100": cifar_format(["train.bin"], 2, "fine_label_names.txt", "the binary version, cifar-100-binary.tar.gz"),
}
