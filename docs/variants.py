"""Fills the tables of docs/variants.md: short runs of the digits model, one choice changed in each; whole runs, each
from three seeds; then other pictures.

    python -m docs.variants                         # about 35 minutes on one CPU core
    python -m docs.variants --only shapes           # one table alone: scores, seeds or shapes
"""

import math
import re
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import data
import ddpm
import noise
import sample
import train
from data.files import check_writable, writing
from run import checkpoint
from run.cli import parse, script
from scores import classes, likelihood

PAGE = Path(__file__).with_name("variants.md")
VARIANTS = ("", "--target eps", "--target x0", "--loss l1", "--loss hybrid", "--loss bound",
            "--loss bound --sampling importance", "--schedule linear", "--null 1")
SPACES = ("", "--target x0", "--target x0 --space v")
SHORT, WHOLE = (600, 500), (3000, 1000)             # updates of a run, and samples of it
DIGITS = (2, 2, 3, 3, 3)                            # behind the point of each score


@dataclass(frozen=True)
class Config:
    """Trains the digits model in several ways, and fills the tables of docs/variants.md."""
    only: str = ""                              # scores, seeds or shapes: only that table; empty is all


def trained(out: str, flags: Sequence[str]) -> str:
    """The checkpoint of a run with these flags, without pictures on the way."""
    train.main([*flags, "--sample_every", "100000", "--save_every", "100000", "--out", out])
    return f"{out}/last.safetensors"


def bits(path: str, pictures: str, n: int = 0) -> float:
    """Bits/dim of n pictures under the model of this checkpoint, all for 0."""
    return likelihood.score(likelihood.Config(path, pictures, n=n, times=20)).total.mean().item()


def scored(flags: str, steps: int, n: int) -> list[float]:
    """FD, pFD, agree, mem and bits/dim of one run; agree is NaN without labels."""
    with tempfile.TemporaryDirectory() as out:
        path = trained(out, ["--steps", str(steps), *flags.split()])
        samples = sample.generate(sample.Config(checkpoint=path, n=n, batch=250))
        bound = bits(path, "held-out")
    labels = samples.labels if samples.labels is not None else torch.zeros(n).long()
    scores = classes.score(classes.of_digits(), samples.x, labels)
    agree = math.nan if samples.labels is None else scores["agree"]
    return [scores["FD"], scores["pFD"], agree, scores["mem"], bound]


def number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def mean_and_range(values: Sequence[float], digits: int) -> str:
    mean, least, most = (number(v, digits) for v in (sum(values) / len(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"


def scores() -> Iterator[str]:
    """Rows of the first table: short runs, one choice changed in each."""
    for flags in VARIANTS:
        yield row(f"`{f'python train.py {flags}'.strip()}`", *map(number, scored(flags, *SHORT), DIGITS))


def seeds() -> Iterator[str]:
    """Rows of the second table: whole runs, each from three seeds."""
    for flags in SPACES:
        runs = [scored(f"{flags} --seed {seed}", *WHOLE) for seed in range(3)]
        cells = map(mean_and_range, zip(*runs, strict=True), DIGITS)
        yield row(f"`{f'python train.py {flags}'.strip()}`", *cells)


def shapes() -> Iterator[str]:
    """Rows of the third table: other pictures."""
    for name, flags, make in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            training, held_out = (make(data.digits(held), Path(tempfile.mkdtemp(dir=folder))) for held in (False, True))
            path = trained(f"{folder}/run", ["--data", training, *flags.split(), "--batch", "16", "--steps",
                                             str(SHORT[0])])
            shape = checkpoint.load(path).data["shape"]
            yield row(name, f"`{flags}`" if flags else "", " x ".join(map(str, shape)),
                      f"{bits(path, held_out, 200):.3f}")


def as_mnist(digits: data.Data, folder: Path) -> str:
    """The digits at 28 x 28 in MNIST's files; the name under which `data.load` finds them."""
    large = data.resize(digits, (28, 28), "crop")
    for name, values in (("images-idx3", large.images[:, 0]), ("labels-idx1", large.labels.byte())):
        header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
        (folder / f"train-{name}-ubyte").write_bytes(header + values.contiguous().numpy().tobytes())
    return f"mnist:{folder}"


def coloured(digits: data.Data, folder: Path) -> str:
    """The digits in random colours, as an .npz file."""
    colour = torch.stack([noise.uniform(0, k, 3, noise.FLIPS) for k in range(len(digits.images))])
    images = digits.images * (0.3 + 0.7 * colour)[:, :, None, None]
    path = folder / "coloured.npz"
    np.savez(path, arr_0=images.byte().permute(0, 2, 3, 1).numpy(), arr_1=digits.labels.numpy())
    return str(path)


SHAPES = (("grey, 28 x 28 padded", "--size 32 --fit pad", as_mnist), ("coloured", "", coloured),
          ("a rectangle", "--size 8x12 --fit pad", coloured))
TABLES = {"scores": scores, "seeds": seeds, "shapes": shapes}       # in the page's order


def fill(section: str, rows: str) -> str:
    """A section of the page with these rows in its table."""
    return re.sub(r"(?<=---\|\n)(\|.*\n)+", lambda _: rows, section)


@script
def main(argv: Sequence[str] | None = None) -> None:
    only = parse(Config, argv).only
    if only:
        ddpm.check_choice("only", only, TABLES)
    check_writable(PAGE)
    title, *sections = re.split(r"(?m)^(?=## )", PAGE.read_text())
    for k, (name, rows) in enumerate(TABLES.items()):
        if only in ("", name):
            sections[k] = fill(sections[k], "".join(rows()))
    with writing(PAGE) as file:
        file.write((title + "".join(sections)).encode())
    print(f"see {PAGE}")


if __name__ == "__main__":
    main()
