"""Short runs of the digits model, one choice changed in each; whole runs from three seeds; then other pictures.

    python -m docs.variants                         # about 35 minutes on one CPU core; writes docs/variants.md
    python -m docs.variants --only shapes           # one table alone: scores, seeds or shapes
"""

import math
import re
import struct
import tempfile
from collections.abc import Callable, Sequence
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
from run.cli import check_range, parse, script
from scores import classes, likelihood

VARIANTS = ("", "--target eps", "--target x0", "--loss l1", "--loss hybrid", "--loss bound",
            "--loss bound --sampling importance", "--schedule linear", "--null 1")

DIGITS = (2, 2, 3, 3, 3)                            # behind the point of each score
SPACES = ("", "--target x0", "--target x0 --space v")

TITLE = "# Variants of the digits model\n\n`python -m docs.variants` made these tables.\n\n"

SCORES = """## Short runs

{steps} steps of each, on one CPU thread, {n} samples in 50 steps of DDIM,
seed 0. The runs are a fifth as long as the default: they say that each choice works, not which is best.
The first row has the defaults: target v, loss l2, stratified t, cosine schedule, a label hidden in every tenth picture.

FD, pFD, agree and mem are those of `python evaluate.py classes`; bits/dim is the bound on the held-out digits
(`python evaluate.py nll`), with 20 t's per picture. A network that predicts x0 samples well, but its bound is poor: at
small t its mean must be right to within beta_tilde, which it is not after a short run, while eps and v are scaled with
the noise.

| flags | FD | pFD | agree | mem | bits/dim |
|---|---|---|---|---|---|
"""

SEEDS = """## Whole runs from three seeds

What is predicted and where its error is measured are two choices (`--space`, Li and He 2025). Whole runs, {long} steps
each, {many} samples, from seeds 0, 1 and 2: the mean, and the least and the most. v's loss weighs the squared error of
x0 by 1 / (1 - alpha_bar), so that it counts at small t, where the bound is lost, and nearly all of it is won back.
No recipe is best in every column. FD of x0 by its own loss and of v differ by less than the seeds do; v has the least
pFD, the best agreement and by far the least bits/dim, and so v remains the default.

| flags | FD | pFD | agree | mem | bits/dim |
|---|---|---|---|---|---|
"""

SHAPES = """## Pictures of other shapes

Pictures of other shapes have no such scores, but bits/dim; the same {steps} steps, of 16 pictures each, on digits that
were enlarged to 28 x 28 and stored as MNIST is, coloured at random, or padded to a rectangle; held-out ones were
treated alike. Black borders cost next to nothing, hence the small figures.

| pictures | flags | C x H x W | bits/dim |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Config:
    """Trains the digits model in several ways, and writes docs/variants.md."""
    only: str = ""                              # scores, seeds or shapes: only that table; empty is all
    steps: int = 600                            # updates of each short run
    n: int = 500                                # samples of each
    long: int = 3000                            # updates of each run from three seeds
    many: int = 1000                            # samples of each
    out: str = str(Path(__file__).with_name("variants.md"))     # the table


def scored(flags: str, steps: int, n: int) -> list[float]:
    """FD, pFD, agree, mem and bits/dim of one run; agree is NaN without labels."""
    with tempfile.TemporaryDirectory() as out:
        train.main(["--steps", str(steps), "--sample_every", "100000", "--save_every", "100000", "--out", out,
                    *flags.split()])
        path = f"{out}/last.safetensors"
        samples = sample.generate(sample.Config(checkpoint=path, n=n, batch=250))
        bound = bits(path, data.digits(held_out=True))
    labels = samples.labels if samples.labels is not None else torch.zeros(n).long()
    scores = classes.score(classes.of_digits(), samples.x, labels)
    agree = math.nan if samples.labels is None else scores["agree"]
    return [scores["FD"], scores["pFD"], agree, scores["mem"], bound]


def row(flags: str, cells: Sequence[str]) -> str:
    """A line of the first two tables."""
    return f"| `{f'python train.py {flags}'.strip()}` | {' | '.join(cells)} |\n"


def scores(config: Config) -> str:
    """The first table: short runs, one choice changed in each."""
    lines = [row(flags, [number(value, digits) for value, digits in zip(
        scored(flags, config.steps, config.n), DIGITS, strict=True)]) for flags in VARIANTS]
    return SCORES.format(**vars(config)) + "".join(lines)


def seeds(config: Config) -> str:
    """The second table: whole runs, each from three seeds."""
    def cell(values: Sequence[float], digits: int) -> str:
        mean, least, most = (number(v, digits) for v in (sum(values) / len(values), min(values), max(values)))
        return f"{mean} ({least} to {most})"

    text = SEEDS.format(**vars(config))
    for flags in SPACES:
        runs = [scored(f"{flags} --seed {seed}", config.long, config.many) for seed in range(3)]
        text += row(flags, list(map(cell, zip(*runs, strict=True), DIGITS)))
    return text


def number(value: float, digits: int) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def bits(path: str, held_out: data.Data) -> float:
    """Bits/dim of held-out pictures."""
    last = checkpoint.load(path)
    terms = likelihood.bound(ddpm.from_betas(last.beta), checkpoint.load_unet(last),
                             held_out.images, held_out.labels if last.network.classes else None,
                             parts=likelihood.partition(len(last.beta), 20), target=last.settings["target"],
                             variance=last.variance, clip=True)
    return terms.total.mean().item()


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


def shape_row(name: str, flags: Sequence[str], make: Callable, config: Config) -> str:
    """A line of the third table."""
    with tempfile.TemporaryDirectory() as folder:
        training, held_out = (make(data.digits(held), Path(tempfile.mkdtemp(dir=folder))) for held in (False, True))
        train.main(["--data", training, *flags, "--batch", "16", "--steps", str(config.steps),
                    "--sample_every", "100000", "--save_every", "100000", "--out", f"{folder}/run"])
        settings = checkpoint.load(f"{folder}/run/last.safetensors").settings
        pictures = data.load(held_out, settings["size"], settings["fit"])
        few = pictures._replace(images=pictures.images[:200], labels=pictures.labels[:200])
        said = f"`{' '.join(flags)}`" if flags else ""
        return (f"| {name} | {said} | {' x '.join(map(str, pictures.shape))} | "
                f"{bits(f'{folder}/run/last.safetensors', few):.3f} |\n")


def shapes(config: Config) -> str:
    """The third table: other pictures."""
    return SHAPES.format(**vars(config)) + "".join(
        shape_row(name, flags, make, config) for name, flags, make in (
            ("grey, 28 x 28 padded", ["--size", "32", "--fit", "pad"], as_mnist), ("coloured", [], coloured),
            ("a rectangle", ["--size", "8x12", "--fit", "pad"], coloured)))


TABLES = {"scores": scores, "seeds": seeds, "shapes": shapes}


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    if config.only:
        ddpm.check_choice("only", config.only, TABLES)
    check_range(config, "n many", classes.K + 1)
    check_range(config, "steps long", 1)
    path = Path(config.out)
    old = re.split(r"(?m)^(?=## )", path.read_text())[1:] if config.only else [""] * len(TABLES)
    if len(old) != len(TABLES):
        raise ValueError(f"{path} has {len(old)} tables, not {len(TABLES)}; leave out --only to write all of them")
    check_writable(path)
    parts = [table(config).strip() if config.only in ("", name) else part.strip()
             for (name, table), part in zip(TABLES.items(), old, strict=True)]
    text = TITLE + "\n\n".join(parts) + "\n"
    with writing(path) as file:
        file.write(text.encode())
    print(text)


if __name__ == "__main__":
    main()
