"""Fills the tables of docs/variants.md: short runs of the digits model, one choice changed in each; whole runs, each
from three seeds; guidance; then other pictures. And prints short runs on Fashion-MNIST, as those of docs/fashion.md.

    python -m docs.variants                         # the page: more than an hour on one CPU core
    python -m docs.variants --only shapes           # one of its tables alone: scores, seeds, guidance or shapes
    python -m docs.variants --only fashion          # about an hour
"""

import contextlib
import math
import struct
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import data
import ddpm
import noise
import sample
import train
from data.files import check_writable
from run import checkpoint, folder
from run.cli import parse, script
from run.markdown import fill, table
from scores import classes, likelihood
from unet import CONFIGS

PAGE = Path(__file__).with_name("variants.md")
VARIANTS = ("", "--target eps", "--target x0", "--loss l1", "--loss hybrid", "--loss bound",
            "--loss bound --sampling importance", "--schedule linear", "--null 1")
CHOICES = ("", "--optimizer adam", "--target x0", "--target x0 --space v", "--sampling lognormal",
           "--sampling logit-normal", "--zero_snr")
GUIDANCE = ("", "--guidance 1", "--guidance 4", "--guidance 4 --guidance_rescale 0.7",
            "--guidance 4 --guidance_interval 0.3,3")
SHORT, WHOLE = (600, 500), (3000, 1000)             # updates of a run, and samples of it
DIGITS = (2, 2, 3, 3, 3)                            # behind the point of each score
SCORES = ("flags", "FD", "pFD", "agree", "mem", "bits/dim")
CHOSEN = CONFIGS["fashion"]
PIXELS = replace(CHOSEN, patch=1, widths=(32, 64, 64), blocks=1, heads=(0, 0, 0, 1))
FASHION = {                                         # the network, and flags of train.py
    "chosen": (CHOSEN, ""),
    "one block per level, no attention": (replace(CHOSEN, blocks=1, heads=(0, 0, 0)), ""),
    "wider: 64, 64, one block per level": (replace(CHOSEN, blocks=1, widths=(64, 64)), ""),
    "attention at 7 x 7 everywhere": (replace(CHOSEN, heads=(0, 2, 2)), ""),
    "patches of 4, width 64, three blocks": (replace(CHOSEN, patch=4, widths=(64,), blocks=3, heads=(0, 1)), ""),
    "no patches: 32, 64, 64, one block per level": (PIXELS, ""),
    "no patches: 16, 32, one block per level": (replace(PIXELS, widths=(16, 32), heads=(0, 0, 0)), ""),
    "float32": (CHOSEN, "--dtype float32"),
    "batch 32": (CHOSEN, "--batch 32"),
    "rate 0.002": (CHOSEN, "--lr 2e-3"),
    "rate 0.01": (CHOSEN, "--lr 1e-2"),
    "Adam": (CHOSEN, "--optimizer adam"),
    "target x0, space min-snr": (CHOSEN, "--target x0 --space min-snr"),
}
MINUTES, SAMPLED = 4., (1000, 10)                   # of training; samples, and steps of DPM-Solver++ for each


@dataclass(frozen=True)
class Config:
    """Trains the digits model in several ways, and fills the tables of docs/variants.md."""
    only: str = ""                              # scores, seeds, guidance, shapes or fashion: one table; empty: the page
    data: str = train.PRESETS["fashion"].data   # the pictures of the table fashion, as for train.py


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


def command(flags: str) -> str:
    return f"`{f'python train.py {flags}'.strip()}`"


def scores() -> Iterator[Sequence[str]]:
    """Rows of the first table: short runs, one choice changed in each."""
    for flags in VARIANTS:
        yield command(flags), *map(number, scored(flags, *SHORT), DIGITS)


def seeds() -> Iterator[Sequence[str]]:
    """Rows of the second table: whole runs, each from three seeds."""
    for flags in CHOICES:
        runs = [scored(f"{flags} --seed {seed}", *WHOLE) for seed in range(3)]
        yield command(flags), *map(mean_and_range, zip(*runs, strict=True), DIGITS)


def guidance() -> Iterator[Sequence[str]]:
    """Rows of the third table: samples of the committed model, each from three seeds."""
    reference = classes.of_digits()
    for flags in GUIDANCE:
        runs = []
        for seed in range(3):
            config = parse(sample.Config, ["--n", str(WHOLE[1]), "--batch", "250", "--seed", str(seed), *flags.split()])
            made = sample.generate(config)
            scores = classes.score(reference, made.x, made.labels)
            runs.append([scores[name] for name in ("FD", "pFD", "agree", "mem")])
        yield f"`{flags}`" if flags else "none", *map(mean_and_range, zip(*runs, strict=True), DIGITS)


def shapes() -> Iterator[Sequence[str]]:
    """Rows of the fourth table: other pictures."""
    for name, flags, make in SHAPES:
        with tempfile.TemporaryDirectory() as folder:
            training, held_out = (make(data.digits(held), Path(tempfile.mkdtemp(dir=folder))) for held in (False, True))
            path = trained(f"{folder}/run", ["--data", training, *flags.split(), "--batch", "16", "--steps",
                                             str(SHORT[0])])
            shape = checkpoint.load(path).data["shape"]
            yield (name, f"`{flags}`" if flags else "", " x ".join(map(str, shape)),
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


def fashion(config: Config) -> Iterator[Sequence[str]]:
    """Rows of short runs on Fashion-MNIST: parameters, pictures learned from per second, FD and agree."""
    score = classes.scorer(data.load(config.data), config.data, "", "crop")
    if score is None:
        raise ValueError(f"data is {config.data!r}; weights/ has no classifier that fits it")
    torch.set_num_threads(1)
    for name, (network, flags) in FASHION.items():
        run = ["--preset", "fashion", "--data", config.data, "--network", "candidate", *flags.split()]
        with (tempfile.TemporaryDirectory() as out, patch.dict(CONFIGS, candidate=network),
              contextlib.redirect_stdout(sys.stderr)):
            path, (n, evaluations) = trained(out, [*run, "--minutes", str(MINUTES)]), SAMPLED
            samples = sample.generate(sample.Config(checkpoint=path, n=n, sampler="2m", steps=str(evaluations)))
            parameters = sum(w.numel() for w in checkpoint.load(path).ema.values())
            speed = [line["images_per_second"] for line in folder.read_log(Path(out)) if "loss" in line][-1]
        scores = score(samples.x, samples.labels)
        yield name, f"{parameters / 1e6:.2f} M", f"{speed:.0f}", f"{scores['FD']:.2f}", f"{scores['agree']:.3f}"


SHAPES = (("grey, 28 x 28 padded", "--size 32 --fit pad", as_mnist), ("coloured", "", coloured),
          ("a rectangle", "--size 8x12 --fit pad", coloured))
TABLES = {"scores": (SCORES, scores), "seeds": (SCORES, seeds), "guidance": (SCORES[:-1], guidance),
          "shapes": (("pictures", "flags", "C x H x W", "bits/dim"), shapes)}     # of the page


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    if config.only:
        ddpm.check_choice("only", config.only, [*TABLES, "fashion"])
    if config.only == "fashion":
        print("| changed | parameters | pictures/s | FD | agree |\n|---|---|---|---|---|")
        for row in fashion(config):
            print(f"| {' | '.join(row)} |", flush=True)
        return
    check_writable(PAGE)
    for name, (head, rows) in TABLES.items():
        if config.only in ("", name):
            fill(PAGE, {name: f"\n\n{table(head, [*rows()])}\n"})
    print(f"see {PAGE}")


if __name__ == "__main__":
    main()
