"""Short runs of the digits model, one choice changed in each, scored beside each other.

    python -m docs.variants                         # about 8 minutes on one CPU core; writes docs/variants.md
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
import data
import ddpm
import evaluate
import likelihood
import sample
import train
from cli import parse, script

VARIANTS = ("", "--target eps", "--target x0", "--loss l1", "--loss hybrid", "--loss bound",
            "--loss bound --sampling importance", "--schedule linear", "--null 1")

HEAD = """# Variants of the digits model

`python -m docs.variants` made this table: {steps} steps of each, on one CPU thread, {n} samples in 50 steps of DDIM,
seed 0. The runs are a fifth as long as the default: they say that each choice works, not which is best.
The first row has the defaults: target v, loss l2, stratified t, cosine schedule, a label hidden in every tenth picture.

FD, pFD, agree and mem are those of `python evaluate.py digits`; bits/dim is the bound on the held-out digits
(`python evaluate.py nll`), with 20 t's a picture. A network that answers x0 draws well, but its bound is poor: at small
t its mean must be right to within beta_tilde, which a short run's picture is not, while eps and v are scaled with the
noise.

| flags | FD | pFD | agree | mem | bits/dim |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Config:
    """Trains the digits model in several ways for a short time, and writes docs/variants.md."""
    steps: int = 600                            # updates of each
    n: int = 500                                # samples of each
    out: str = str(Path(__file__).with_name("variants.md"))     # the table


def row(flags: Sequence[str], config: Config, out: str) -> list[str]:
    """The scores of one short run."""
    train.main(["--steps", str(config.steps), "--sample_every", "100000", "--save_every", "100000",
                "--out", out, *flags])
    path = f"{out}/last.pt"
    drawn = sample.draw(sample.Config(checkpoint=path, n=config.n, batch=250))
    classifier = torch.load(evaluate.CLASSIFIER, weights_only=True)
    labels = drawn.labels if drawn.labels is not None else torch.zeros(config.n).long()
    scores = evaluate.score(classifier, drawn.x, labels)
    agree = "" if drawn.labels is None else f"{scores['agree']:.3f}"
    return [f"{scores['FD']:.2f}", f"{scores['pFD']:.2f}", agree, f"{scores['mem']:.3f}", f"{bits(path):.3f}"]


def bits(path: str) -> float:
    """Bits/dim of the held-out digits."""
    last, held_out = checkpoint.load(path), data.digits(held_out=True)
    learned = last.network.out_channels == 2
    terms = likelihood.bound(ddpm.from_betas(last.beta), sample.network(last, sample.Config(checkpoint=path)),
                             held_out.images, held_out.labels if last.network.classes else None,
                             parts=likelihood.parts_of(len(last.beta), 20), target=last.settings["target"],
                             variance="learned" if learned else "beta_tilde", clip=True)
    return terms.total.mean().item()


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    table = HEAD.format(steps=config.steps, n=config.n)
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as out:
            cells = row(name.split(), config, out)
        table += f"| `{f'python train.py {name}'.strip()}` | {' | '.join(cells)} |\n"
        Path(config.out).write_text(table)
        print(name, *cells)


if __name__ == "__main__":
    main()
