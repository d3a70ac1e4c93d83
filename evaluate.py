"""Scores a trained model by its samples or by its likelihood; the metrics are in scores/.

    python evaluate.py digits                        # quality, class agreement and memorisation of the digits model
    python evaluate.py nll                           # bits/dim of the held-out digits, term by term
    python evaluate.py neighbours                    # samples and the training pictures nearest to them
    python evaluate.py fid --data cifar10            # Frechet Inception distance; needs pip install pytorch-fid
    python evaluate.py classifier                    # trains the small classifier that `digits` uses

`digits` prints the scores with their floor (the training set itself) and ceilings. FD: Frechet distance to the
held-out digits in the 32 features of a digit classifier, in per cent of their variance (Heusel et al. 2017 with another
network); pFD: the same in raw pixels. agree: share classified as the requested class. mem: median distance to the
nearest training picture, relative to that of the held-out digits; 1 is as novel as held-out digits, 0 a copy. dup:
share of pictures closer to a training picture than 99 % of the held-out digits are.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

import data
import sample
from data.files import check_writable, writing
from run import checkpoint, pictures
from run.cli import check_range, parse, script
from scores import classes, fid, likelihood
from unet import UNet

CLASSIFIER = Path("weights/digits_classifier.pt")


@dataclass(frozen=True)
class Digits:
    """Scores samples of a model of the digits."""
    checkpoint: str = "weights/digits.pt"       # a checkpoint of train.py
    n: int = 1000                               # number of samples
    steps: str = "50"                           # number of sampler steps, as for sample.py
    eta: float = 0.                             # noise of each step: 0 is DDIM, 1 DDPM
    guidance: float = 0.                        # w of classifier-free guidance
    weights: str = "ema"                        # the averaged weights, or raw
    seed: int = 0                               # seed of the samples


@dataclass(frozen=True)
class Neighbours:
    """Shows each sample next to its nearest training pictures, to reveal copies."""
    checkpoint: str = "weights/digits.pt"       # a checkpoint of train.py
    data: str = ""                              # data set to search; empty is the training data
    fit: str = "crop"                           # how pictures are resized to the model's size: crop or pad
    among: int = 0                              # number of pictures to search, from the first; 0 is all
    n: int = 10                                 # number of samples
    k: int = 5                                  # nearest neighbours of each sample
    steps: str = "50"                           # number of sampler steps, as for sample.py
    seed: int = 0                               # seed of the samples
    out: str = "out/neighbours.png"             # the grid: one row per sample


@dataclass(frozen=True)
class Classifier:
    """Trains the classifier whose features score the digits."""
    steps: int = 1500                           # number of training steps
    out: str = str(CLASSIFIER)                  # file of the weights


def digits(argv: Sequence[str]) -> None:
    """Prints the table of scores."""
    config = parse(Digits, argv)
    check_range(config, "n", 2)                                                   # the covariance needs two samples
    weights = classes.load_classifier(CLASSIFIER)
    last = checkpoint.load(config.checkpoint)
    if last.data["name"] != "digits" or not last.network.classes:
        raise ValueError(f"{config.checkpoint} was trained on {last.data['name']}; use a model of labelled digits")
    settings = sample.Config(**vars(config), batch=250)
    train, test = data.digits(), data.digits(held_out=True)
    samples = sample.generate(settings)
    untrained = sample.generate(settings, weights=UNet(last.network).state_dict())
    rows = {"training set (floor)": (data.to_unit(train.images), train.labels),
            "held-out digits": (data.to_unit(test.images), test.labels),
            "untrained network": (untrained.x, untrained.labels),
            "a Gaussian per class": (classes.gaussians(train, samples.labels, config.seed), samples.labels),
            f"{config.checkpoint}": (samples.x, samples.labels)}
    print(f"n = {config.n}, {config.steps} steps, eta {config.eta:g}, guidance {config.guidance:g}, seed {config.seed}")
    print(f"{'':24}" + "".join(f"{name:>8}" for name in ("FD", "pFD", "agree", "mem", "dup")))
    for name, (x, labels) in rows.items():
        print(f"{name:24}" + "".join(f"{value:8.3f}" for value in classes.score(weights, x, labels).values()))


def neighbours(argv: Sequence[str]) -> None:
    """Saves the grid, one row per sample with the sample first, and prints median distances."""
    config = parse(Neighbours, argv)
    check_range(config, "among", 0)
    last = checkpoint.load(config.checkpoint)
    name, size = config.data or last.settings.get("data", ""), "{1}x{2}".format(*last.data["shape"])
    searched = data.first(data.load(name, size, config.fit), config.among)
    if searched.shape != tuple(last.data["shape"]) or not 1 <= config.k <= len(searched.images) > 1:
        raise ValueError(f"k is {config.k}, of {len(searched.images)} pictures of {searched.shape}; it must be between "
                         f"1 and the number of pictures, which must be at least 2 of shape {last.data['shape']}")
    settings = sample.Config(checkpoint=config.checkpoint, n=config.n, steps=config.steps, seed=config.seed)
    samples = sample.generate(settings).x
    distances, index = classes.nearest(samples, searched.images, config.k)
    nearest = data.to_unit(searched.images[index.flatten()]).view(-1, config.k, *searched.shape)
    x, heads = torch.cat([samples[:, None], nearest], 1), ("sample", "nearest", *map(str, range(2, config.k + 1)))
    pictures.save(pictures.grid(x.flatten(0, 1), 1 + config.k, heads), config.out)
    real = classes.nearest(nearest[:, 0], searched.images, 2)[0][:, 1]            # column 0 is the picture itself
    print(f"median rms distance per pixel, in [-1, 1]: {config.n} samples to their nearest picture "
          f"{distances[:, 0].median():.3f}, these to their nearest neighbour {real.median():.3f}; see {config.out}")


def classifier(argv: Sequence[str]) -> None:
    """Trains and saves the classifier, and prints its accuracy on the held-out digits."""
    config = parse(Classifier, argv)
    check_range(config, "steps", 1)
    check_writable(config.out)                                                    # fails before training, not after
    weights = classes.train_classifier(config.steps)
    with writing(config.out) as file:
        torch.save(weights, file)
    test = data.digits(held_out=True)
    accuracy = (classes.classify(weights, data.to_unit(test.images)).argmax(1) == test.labels).float().mean().item()
    print(f"{config.out}: classifies {accuracy:.2%} of the {len(test.labels)} held-out digits correctly")


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
