"""Scores a trained model by its samples or by its likelihood; the metrics are in scores/.

    python evaluate.py classes       # quality, class agreement and memorisation of a model of a labelled set
    python evaluate.py classifier    # trains the classifier that it needs, of any labelled set
    python evaluate.py nll           # bits/dim of held-out pictures, term by term
    python evaluate.py neighbours    # samples and the training pictures nearest to them
    python evaluate.py fid           # Frechet Inception distance of sample.py --npz; needs pip install pytorch-fid

Without flags they score the committed model of the digits; of a model of your own, for example:

    python evaluate.py nll --checkpoint runs/x/last.safetensors --held_out more_photos/

Every command takes --device; --data is the training set, --held_out pictures that were not trained on, both as for
train.py, and by default those of the checkpoint.

`classes` (or `digits`) prints the scores with their floor (the training set itself) and ceilings. FD: Frechet distance
to the held-out pictures in the features of a small classifier, in per cent of their variance (Heusel et al. 2017 with
another network); pFD: the same in raw pixels. agree: share classified as the requested class. mem: median distance to
the nearest training picture, relative to that of the held-out pictures; 1 is as novel as these, 0 a copy. dup: share of
pictures closer to a training picture than 99 % of the held-out ones are. prec, rec: share of the pictures within the
manifold of the held-out ones, and of these within that of the pictures (Kynkaanniemi et al. 2019, 3 neighbours).
"""

import run.first  # noqa: F401  (--help without torch)

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch

import data
import ddpm
import sample
import samplers
from data.files import check_writable
from run import pictures
from run.checkpoint import load
from run.cli import DTYPES, check_range, choose_device, parse, script
from scores import classes, classifier, fid, likelihood
from scores.pictures import HELD_OUT, load_pictures, relabel
from unet import UNet


@dataclass(frozen=True)
class Classes:
    """Scores samples of a model of a labelled set."""
    checkpoint: str = "weights/digits.safetensors"  # a checkpoint of train.py
    data: str = ""                              # its training set, if that has moved, as for train.py
    held_out: str = HELD_OUT                    # pictures not trained on, as for train.py; by default the set's own
    classifier: str = ""                        # file of the classifier; empty is the one in weights/
    among: int = 0                              # number of training pictures to use, evenly spaced; 0 is all
    n: int = 1000                               # number of samples
    steps: str = "50"                           # number of sampler steps, as for sample.py
    eta: float = 0.                             # noise of each step: 0 is DDIM, 1 DDPM
    guidance: float = 0.                        # w of classifier-free guidance
    sampler: str = "ddim"                       # as for sample.py
    spacing: str = "trailing"                   # of the timesteps, as for sample.py
    weights: str = "ema"                        # the averaged weights, or raw
    seed: int = 0                               # seed of the samples
    batch: int = 250                            # largest batch; changes the samples by rounding only
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one


@dataclass(frozen=True)
class Neighbours:
    """Shows each sample next to its nearest training pictures, to reveal copies."""
    checkpoint: str = "weights/digits.safetensors"  # a checkpoint of train.py
    data: str = ""                              # its training set, if that has moved, or another set to search
    fit: str = ""                               # how pictures reach the model's size, crop or pad; empty is its own
    among: int = 0                              # number of pictures to search, from the first; 0 is all
    n: int = 10                                 # number of samples
    k: int = 5                                  # nearest neighbours of each sample
    steps: str = "50"                           # number of sampler steps, as for sample.py
    seed: int = 0                               # seed of the samples
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = "out/neighbours.png"             # the grid: one row per sample


@dataclass(frozen=True)
class Classifier:
    """Trains the classifier whose features score the models of a labelled set."""
    data: str = "digits"                        # the training set, as for train.py
    size: str = ""                              # pixels, as for train.py
    fit: str = "crop"                           # how pictures reach that size: crop or pad
    held_out: str = HELD_OUT                    # pictures to measure its accuracy on; by default the set's own
    steps: int = 1500                           # number of training steps
    dtype: str = "float32"                      # of the weights in the file: float32, or bf16, half the size
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = str(classifier.FILES["digits"])  # file of the weights


def sampling(config: Classes | Neighbours) -> sample.Config:
    """Its settings that sample.py has, too."""
    return sample.Config(**{name: value for name, value in vars(config).items() if hasattr(sample.Config, name)})


def score_classes(argv: Sequence[str]) -> None:
    """Prints the table of scores."""
    config = parse(Classes, argv)
    check_range(config, "n", classes.K + 1)                                       # a sample needs K neighbours
    check_range(config, "among", 0)
    checkpoint = load(config.checkpoint)
    if not checkpoint.network.classes:
        raise ValueError(f"{config.checkpoint} was trained without labels; use a model of a labelled set")
    facts = classifier.trained_on(checkpoint)
    weights = classifier.load_fitting(facts, config.classifier, choose_device(config.device)).weights
    settings = sampling(config)
    train, test = (relabel(load_pictures(checkpoint, name, trained_on=config.data), facts)
                   for name in ("", config.held_out))
    train = data.spread(train, config.among)
    samples = sample.generate(settings)
    untrained = sample.generate(settings, weights=UNet(checkpoint.network).state_dict())
    reference = classes.refer(weights, train, test)
    rows = {"training set (floor)": (classes.units(train), train.labels, torch.zeros(len(train.labels))),
            "held-out set": (reference.unseen, test.labels, reference.distances),
            "untrained network": (untrained.x, untrained.labels)}
    if samples.x[0].numel() <= classes.LARGEST:
        rows["a Gaussian per class"] = classes.gaussians(train, samples.labels, config.seed), samples.labels
    rows[config.checkpoint] = samples.x, samples.labels
    steps = ",".join(map(str, sample.chosen_steps(settings, len(checkpoint.beta))))
    chain = config.sampler if samplers.is_file(config.sampler) else f"{steps} steps"
    print(f"n = {config.n}, {chain}, eta {config.eta:g}, guidance {config.guidance:g}, seed {config.seed}")
    print_scores({name: classes.score(reference, *row) for name, row in rows.items()})


def print_scores(rows: dict[str, dict[str, float]]) -> None:
    """Prints the scores, one row per name."""
    width = max(24, *map(len, rows))
    print(f"{'':{width}}" + "".join(f"{name:>8}" for name in next(iter(rows.values()))))
    for name, scores in rows.items():
        print(f"{name:{width}}" + "".join(f" {value:7.3f}" for value in scores.values()))


def neighbours(argv: Sequence[str]) -> None:
    """Saves the grid, one row per sample with the sample first, and prints median distances."""
    config = parse(Neighbours, argv)
    check_range(config, "among", 0)
    out = pictures.picture_path(config.out)                                       # fails before sampling, not after
    searched = data.first(load_pictures(load(config.checkpoint), config.data, config.fit), config.among)
    if not 1 <= config.k <= len(searched.images) > 1:
        raise ValueError(f"k is {config.k}, of {len(searched.images)} pictures; it must be between 1 and the number of "
                         f"pictures, which must be at least 2")
    samples = sample.generate(sampling(config)).x
    distances, indices = classes.nearest(samples, searched.images, config.k)
    nearest = [data.to_unit(searched.images[index]) for index in indices.T]
    heads = ("sample", "nearest", *map(str, range(2, config.k + 1)))
    pictures.save(pictures.side_by_side([samples, *nearest], heads), out)
    real = classes.nearest(nearest[0], searched.images, 2)[0][:, 1]               # column 0 is the picture itself
    median, real_median = (d.median() / math.prod(searched.shape)**0.5 for d in (distances[:, 0], real))
    print(f"median rms distance per pixel, in [-1, 1]: {config.n} samples to their nearest picture {median:.3f}, these "
          f"to their nearest neighbour {real_median:.3f}; see {config.out}")


def train_classifier(argv: Sequence[str]) -> None:
    """Trains and saves the classifier, and prints its accuracy on held-out pictures."""
    config = parse(Classifier, argv)
    check_range(config, "steps", 1)
    ddpm.check_choice("dtype", config.dtype, DTYPES)
    held_out = data.TEST + config.data if config.held_out == HELD_OUT else config.held_out
    train = data.load(config.data, config.size, config.fit)
    facts, (C, H, W) = classifier.facts_of(train), train.shape
    test = data.load(held_out, f"{H}x{W}", config.fit, C)
    train, test = (relabel(dataset, facts) for dataset in (train, test))
    if config.out == Classifier.out and (config.data, config.size) != ("digits", ""):
        raise ValueError(f"{config.out} is the digits' classifier; choose another file for these with --out")
    out = check_writable(config.out)                                              # fails before training, not after
    classifier.save(out, classifier.train(train, config.steps, choose_device(config.device)), DTYPES[config.dtype])
    weights = classifier.load(out).weights
    right = classes.agreement(weights, classes.features(weights, classes.units(test)), test.labels)
    print(f"{out}: classifies {right:.2%} of the {len(test.labels)} held-out pictures correctly")


@script
def main(argv: Sequence[str] | None = None) -> None:
    command, *flags = (sys.argv[1:] if argv is None else argv) or ["--help"]
    commands = {"classes": score_classes, "digits": score_classes, "nll": likelihood.nll, "neighbours": neighbours,
                "fid": fid.fid, "classifier": train_classifier}
    if command in ("-h", "--help"):
        print(__doc__, "--help behind a command explains its flags.", sep="\n")
        return
    if command not in commands:
        raise ValueError(f"no command {command!r}; it must be one of {', '.join(commands)}")
    commands[command](flags)


if __name__ == "__main__":
    main()
