"""Scores a trained model.

    python evaluate.py digits                        # quality, class agreement and memorisation of the digits model
    python evaluate.py nll                           # bits/dim of the held-out digits, term by term
    python evaluate.py neighbours                    # samples beside the nearest training pictures
    python evaluate.py fid --data cifar10            # Frechet Inception distance; needs pip install pytorch-fid
    python evaluate.py classifier                    # trains the small classifier that the scores look through

Scores of digits, each beside its floor (the training set itself) and its ceilings. FD: Frechet distance to
the held-out digits in the classifier's 32 features, in per cent of their variance (Heusel et al. 2017, with a
network that knows digits); pFD: the same of raw pixels. agree: how often the classifier sees the class asked
for. mem: median distance to the nearest training picture over the held-out digits' own; 1 is as new as new
digits, 0 a copy. dup: the share of pictures nearer to a training picture than 99 % of the held-out ones are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import data
import sample
from run import checkpoint, pictures
from run.cli import check_range, make_parent, parse, script, writable
from scores import classes, fid, likelihood
from unet import UNet

CLASSIFIER = Path("weights/digits_classifier.pt")


@dataclass(frozen=True)
class Digits:
    """Scores a model of the digits by its samples."""
    checkpoint: str = "weights/digits.pt"       # what train.py saved
    n: int = 1000                               # samples
    steps: str = "50"                           # of the sampler, as for sample.py
    eta: float = 0.                             # noise a step
    guidance: float = 0.                        # w of classifier-free guidance
    weights: str = "ema"                        # the averaged weights, or raw
    seed: int = 0                               # of the samples


@dataclass(frozen=True)
class Neighbours:
    """Draws samples, each beside the training pictures nearest to it: copies would show."""
    checkpoint: str = "weights/digits.pt"       # what train.py saved
    data: str = ""                              # the pictures looked among; empty is what it was trained on
    fit: str = "crop"                           # how they get to the model's size: crop or pad
    among: int = 0                              # how many of those, the first; 0 is all
    n: int = 10                                 # samples
    k: int = 5                                  # neighbours of each
    steps: str = "50"                           # of the sampler, as for sample.py
    seed: int = 0                               # of the samples
    out: str = "out/neighbours.png"             # the picture


@dataclass(frozen=True)
class Classifier:
    """Trains the classifier through whose features the digits are scored."""
    steps: int = 1500                           # updates
    out: str = str(CLASSIFIER)                  # where it is kept


def digits(argv: Sequence[str]) -> None:
    """Prints the table of scores."""
    config = parse(Digits, argv)
    check_range(config, "n", 2)                                                   # one sample has no variance
    if not CLASSIFIER.is_file():
        raise ValueError(f"no {CLASSIFIER}; make it with: python evaluate.py classifier")
    weights = torch.load(CLASSIFIER, weights_only=True)
    last = checkpoint.load(config.checkpoint)
    if last.data["name"] != "digits" or not last.network.classes:
        raise ValueError(f"{config.checkpoint} was trained on {last.data['name']}; it takes a model of labelled digits")
    settings = sample.Config(**vars(config), batch=250)
    train, test = data.digits(), data.digits(held_out=True)
    drawn = sample.generate(settings)
    untrained = sample.generate(settings, weights=UNet(last.network).state_dict())
    rows = {"training set (floor)": (data.to_unit(train.images), train.labels),
            "held-out digits": (data.to_unit(test.images), test.labels),
            "untrained network": (untrained.x, untrained.labels),
            "a Gaussian per class": (classes.gaussians(train, drawn.labels, config.seed), drawn.labels),
            f"{config.checkpoint}": (drawn.x, drawn.labels)}
    print(f"n = {config.n}, {config.steps} steps, eta {config.eta:g}, guidance {config.guidance:g}, seed {config.seed}")
    print(f"{'':24}" + "".join(f"{name:>8}" for name in ("FD", "pFD", "agree", "mem", "dup")))
    for name, (x, labels) in rows.items():
        print(f"{name:24}" + "".join(f"{value:8.3f}" for value in classes.score(weights, x, labels).values()))


def neighbours(argv: Sequence[str]) -> None:
    """Draws the picture: a row a sample, the sample first."""
    config = parse(Neighbours, argv)
    check_range(config, "among", 0)
    last = checkpoint.load(config.checkpoint)
    name, size = config.data or last.settings.get("data", ""), "{1}x{2}".format(*last.data["shape"])
    found = data.first(data.load(name, size, config.fit), config.among)
    if found.shape != tuple(last.data["shape"]) or not 1 <= config.k <= len(found.images) > 1:
        raise ValueError(f"k is {config.k}, of {len(found.images)} pictures of {found.shape}; the model's are "
                         f"{last.data['shape']}; use others, or another k")
    settings = sample.Config(checkpoint=config.checkpoint, n=config.n, steps=config.steps, seed=config.seed)
    drawn = sample.generate(settings)
    distances, index = classes.nearest(drawn.x, found.images, config.k)
    x = torch.cat([drawn.x[:, None], data.to_unit(found.images[index.flatten()]).view(-1, config.k, *found.shape)], 1)
    pictures.grid(x.flatten(0, 1), 1 + config.k, ("sample", "nearest", *map(str, range(2, config.k + 1)))).save(
        make_parent(Path(config.out)))
    own = classes.nearest(x[:, 1], found.images, 2)[0][:, 1]                      # of real pictures to one another
    print(f"root mean square distance a pixel, of 2: {config.n} samples to their nearest picture "
          f"{distances[:, 0].median():.3f}, those pictures to their own nearest {own.median():.3f}; see {config.out}")


def classifier(argv: Sequence[str]) -> None:
    """Trains and keeps the classifier, and prints how many held-out digits it knows."""
    config = parse(Classifier, argv)
    check_range(config, "steps", 1)
    path = writable(config.out)                                                   # fails now, not at the end
    weights = classes.train_classifier(config.steps)
    with path.open("wb") as file:
        torch.save(weights, file)
    test = data.digits(held_out=True)
    known = (classes.classify(weights, data.to_unit(test.images)).argmax(1) == test.labels).float().mean().item()
    print(f"{config.out}: knows {known:.2%} of the {len(test.labels)} held-out digits")


@script
def main(argv: Sequence[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    commands = {"digits": digits, "nll": likelihood.nll, "neighbours": neighbours, "fid": fid.fid,
                "classifier": classifier}
    if command not in commands:
        raise ValueError(f"no command {command!r}; it must be one of {', '.join(commands)}")
    commands[command](rest)


if __name__ == "__main__":
    main()
