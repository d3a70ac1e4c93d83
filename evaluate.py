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
import torch.nn.functional as F
from torch import Tensor

import checkpoint
import data
import fid
import likelihood
import noise
import sample
import sources
from cli import check_range, parent_made, parse, script, writable
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


def features(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The 32 features (N, 32) of digits (N, 1, 8, 8) in [-1, 1]."""
    h = F.relu(F.conv2d(x, weights["conv1"], padding=1))                          # N 32 8 8
    h = F.max_pool2d(F.relu(F.conv2d(h, weights["conv2"], padding=1)), 2)         # N 64 4 4
    return F.relu(h.flatten(1) @ weights["features"])


def classify(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits (N, 10)."""
    return features(weights, x) @ weights["classes"]


def train_classifier(steps: int) -> dict[str, Tensor]:
    """Learns the 1200 training digits, shifted by up to a pixel and in a little noise; always the same weights."""
    shapes = {"conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "features": (1024, 32), "classes": (32, 10)}
    fan_in = {"conv1": 9, "conv2": 288, "features": 1024, "classes": 32}
    seeds = noise.image_seeds(0, torch.arange(64))
    weights = {name: (noise.normal(seeds[k], 0, shape) * (2 / fan_in[name]) ** 0.5).requires_grad_()
               for k, (name, shape) in enumerate(shapes.items())}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step, (pixels, labels) in enumerate(data.batches(data.digits(), 64, 0, range(1, steps + 1)), 1):
        dy, dx = (noise.uniform(0, step, 2, noise.FLIPS) * 3).int().tolist()
        x = F.pad(data.to_unit(pixels), (1, 1, 1, 1), value=-1)[:, :, dy:dy + 8, dx:dx + 8]
        x = x + 0.2 * noise.normal(seeds, step, (1, 8, 8), noise.TRAIN)
        loss = F.cross_entropy(classify(weights, x), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: w.detach() for name, w in weights.items()}


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two point clouds (N, D), taken as Gaussians, in per cent of b's variance."""
    return 100 * fid.frechet(fid.statistics(a), fid.statistics(b)) / b.double().var(0).sum().item()


def gaussians(train: data.Data, labels: Tensor, seed: int) -> Tensor:
    """A sample of a Gaussian per class fitted to the training digits: what needs no network at all."""
    x = data.to_unit(train.images).flatten(1)
    z = noise.normal(noise.image_seeds(seed, torch.arange(len(labels))), 0, (64,))
    out = torch.empty(len(labels), 64)
    for k in range(10):
        own = x[train.labels == k]
        values, vectors = torch.linalg.eigh(own.T.cov())
        out[labels == k] = own.mean(0) + z[labels == k] * values.clamp(min=0).sqrt() @ vectors.T
    return out.view(-1, 1, 8, 8).clamp(-1, 1)


def score(weights: dict[str, Tensor], x: Tensor, labels: Tensor) -> dict[str, float]:
    """All scores of pictures x (N, 1, 8, 8) that were asked to be of these labels."""
    train, test = data.digits(), data.digits(held_out=True)
    known, fresh = data.to_unit(train.images), data.to_unit(test.images)
    near, usual = (torch.cdist(y.flatten(1), known.flatten(1)).min(1).values for y in (x, fresh))
    return {"FD": frechet(features(weights, x), features(weights, fresh)),
            "pFD": frechet(x.flatten(1), fresh.flatten(1)),
            "agree": (classify(weights, x).argmax(1) == labels).float().mean().item(),
            "mem": (near.median() / usual.median()).item(),
            "dup": (near < usual.quantile(0.01)).float().mean().item()}


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
    drawn = sample.draw(settings)
    untrained = sample.draw(settings, weights=UNet(last.network).state_dict())
    rows = {"training set (floor)": (data.to_unit(train.images), train.labels),
            "held-out digits": (data.to_unit(test.images), test.labels),
            "untrained network": (untrained.x, untrained.labels),
            "a Gaussian per class": (gaussians(train, drawn.labels, config.seed), drawn.labels),
            f"{config.checkpoint}": (drawn.x, drawn.labels)}
    print(f"n = {config.n}, {config.steps} steps, eta {config.eta:g}, guidance {config.guidance:g}, seed {config.seed}")
    print(f"{'':24}" + "".join(f"{name:>8}" for name in ("FD", "pFD", "agree", "mem", "dup")))
    for name, (x, labels) in rows.items():
        print(f"{name:24}" + "".join(f"{value:8.3f}" for value in score(weights, x, labels).values()))


def nearest(x: Tensor, images, k: int, batch: int = 1000) -> tuple[Tensor, Tensor]:
    """The k images, uint8 as in `data.Data`, nearest to each x (N, C, H, W): distances a pixel, indices, (N, k)."""
    found = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64)
    for index in torch.arange(len(images)).split(batch):
        known = data.to_unit(images[index]).flatten(1)
        distances = torch.cdist(x.flatten(1), known, compute_mode="donot_use_mm_for_euclid_dist") / known.shape[1]**0.5
        both = torch.cat([found[0], distances], dim=1), torch.cat([found[1], index.expand(len(x), -1)], dim=1)
        order = both[0].argsort(dim=1, stable=True)[:, :k]
        found = both[0].gather(1, order), both[1].gather(1, order)
    return found


def neighbours(argv: Sequence[str]) -> None:
    """Draws the picture: a row a sample, the sample first."""
    config = parse(Neighbours, argv)
    check_range(config, "among", 0)
    last = checkpoint.load(config.checkpoint)
    name, size = config.data or last.settings.get("data", ""), "{1}x{2}".format(*last.data["shape"])
    found = likelihood.first(sources.load(name, size, config.fit), config.among)
    if found.shape != tuple(last.data["shape"]) or not 1 <= config.k <= len(found.images) > 1:
        raise ValueError(f"k is {config.k}, of {len(found.images)} pictures of {found.shape}; the model's are "
                         f"{last.data['shape']}; use others, or another k")
    drawn = sample.draw(sample.Config(checkpoint=config.checkpoint, n=config.n, steps=config.steps, seed=config.seed))
    distances, index = nearest(drawn.x, found.images, config.k)
    x = torch.cat([drawn.x[:, None], data.to_unit(found.images[index.flatten()]).view(-1, config.k, *found.shape)], 1)
    data.grid(x.flatten(0, 1), 1 + config.k, ("sample", "nearest", *map(str, range(2, config.k + 1)))).save(
        parent_made(Path(config.out)))
    own = nearest(x[:, 1], found.images, 2)[0][:, 1]                              # of real pictures to one another
    print(f"root mean square distance a pixel, of 2: {config.n} samples to their nearest picture "
          f"{distances[:, 0].median():.3f}, those pictures to their own nearest {own.median():.3f}; see {config.out}")


def classifier(argv: Sequence[str]) -> None:
    """Trains and keeps the classifier, and prints how many held-out digits it knows."""
    config = parse(Classifier, argv)
    check_range(config, "steps", 1)
    path = writable(config.out)                                                   # fails now, not at the end
    weights = train_classifier(config.steps)
    with path.open("wb") as file:
        torch.save(weights, file)
    test = data.digits(held_out=True)
    known = (classify(weights, data.to_unit(test.images)).argmax(1) == test.labels).float().mean().item()
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
