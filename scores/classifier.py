"""A small classifier of any labelled set: its features are those that samples are scored in (scores/classes.py).

The file carries what it was trained on, so that it scores no model of other pictures.
"""

import math
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import noise
from data.files import reading
from data.published import parse_name
from run import tensors
from run.checkpoint import Checkpoint

FILES = {"digits": Path("weights/digits_classifier.safetensors"),
         "fashion-mnist": Path("weights/fashion_classifier.safetensors")}
REMEDY = ("train one with: python evaluate.py classifier --data ... --held_out ... --out FILE, and name it with "
          "--classifier FILE")
Weights = dict[str, Tensor]


class Facts(NamedTuple):
    """What a classifier or a model was trained on."""
    name: str                       # of the data set, without a path
    shape: tuple[int, int, int]     # C, H, W
    classes: tuple[str, ...]

    def fit(self, other: "Facts") -> bool:
        """Whether both are facts of one data set; numbers stand for names of classes that a file does not give."""
        numbers = tuple(map(str, range(len(self.classes))))
        names = {self.classes, other.classes} - {numbers}
        return self[:2] == other[:2] and len(self.classes) == len(other.classes) and len(names) <= 1

    def __str__(self) -> str:
        return f"{self.name}, {' x '.join(map(str, self.shape))}, in {len(self.classes)} classes"


class Classifier(NamedTuple):
    """A trained classifier."""
    facts: Facts
    weights: Weights


def facts_of(dataset: data.Data) -> Facts:
    """The facts of a data set, whose name may have a path."""
    return Facts(parse_name(dataset.name)[1], dataset.shape, dataset.classes)


def trained_on(checkpoint: Checkpoint) -> Facts:
    """The facts of what a model was trained on."""
    name, shape, classes = (checkpoint.data[key] for key in ("name", "shape", "classes"))
    return Facts(parse_name(name)[1], tuple(shape), tuple(classes))


# The network

def halvings(shape: tuple[int, ...]) -> int:
    """How often pictures (C, H, W) are halved until their shorter side is at most 4."""
    return max(0, (min(shape[1:]) - 1).bit_length() - 2)


def shapes(facts: Facts) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights: at least two convolutions, the last ones halving, and two products of matrices."""
    C, H, W = facts.shape
    pools = halvings(facts.shape)
    widths = (C, 32, *[64] * max(1, pools - 1))
    hidden = min(64, 4 * min(H, W))
    return {**{f"conv{k}": (widths[k], widths[k - 1], 3, 3) for k in range(1, len(widths))},
            "features": (64 * (H >> pools) * (W >> pools), hidden), "classes": (hidden, len(facts.classes))}


def features(weights: Weights, x: Tensor) -> Tensor:
    """Features (N, D) of pictures (N, C, H, W) in [-1, 1]: the last hidden layer."""
    convolutions = [w for name, w in weights.items() if name.startswith("conv")]
    whole = len(convolutions) - halvings(x.shape[1:])                             # the first ones, which halve nothing
    x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)                    # channels_last: twice as fast
    for k, w in enumerate(convolutions):
        x = F.conv2d(x, w, padding=1)
        x = F.relu(x if k < whole else F.max_pool2d(x, 2))
    return F.relu(x.flatten(1) @ weights["features"])


def classify(weights: Weights, x: Tensor) -> Tensor:
    """Logits (N, classes) of pictures (N, C, H, W) in [-1, 1]."""
    return features(weights, x) @ weights["classes"]


# Training

def train(dataset: data.Data, steps: int, device: torch.device | str = "cpu") -> Classifier:
    """Deterministic training on pictures shifted by up to a pixel, with Gaussian noise: weak where details are fine."""
    facts = facts_of(dataset)
    C, H, W = facts.shape
    seeds, std = noise.image_seeds(0, torch.arange(64, device=device)), min(0.2, 1.6 / min(H, W))
    weights = {}
    for k, (name, shape) in enumerate(shapes(facts).items()):
        fan_in = math.prod(shape[1:]) if name.startswith("conv") else shape[0]
        weights[name] = (noise.normal(seeds[k], 0, shape) * (2 / fan_in) ** 0.5).requires_grad_()
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step, (pixels, labels) in enumerate(data.batches(dataset, 64, 0, range(1, steps + 1)), 1):
        dy, dx = (noise.uniform(0, step, 2, noise.FLIPS) * 3).int().tolist()
        x = F.pad(data.to_unit(pixels.to(device)), [1] * 4, value=-1)[:, :, dy:dy + H, dx:dx + W]
        x = x + std * noise.normal(seeds, step, (C, H, W), noise.TRAIN)
        loss = F.cross_entropy(classify(weights, x), labels.to(device), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return Classifier(facts, {name: w.detach().cpu() for name, w in weights.items()})


# Files

def save(path: str | Path, classifier: Classifier, dtype: torch.dtype) -> None:
    """Writes the weights, in this dtype, and what they were trained on: whole, or not at all."""
    weights = {name: w.to(dtype) for name, w in classifier.weights.items()}
    tensors.save(path, weights, classifier.facts._asdict())


def load(path: Path) -> Classifier:
    """What `save` wrote, its weights in float32. Raises ValueError for anything else."""
    remedy = "train it with: python evaluate.py classifier"
    if not path.is_file():
        raise ValueError(f"no {path}; {remedy}")
    with reading(path, remedy):
        weights, content = tensors.load(path, remedy=remedy)
        if content.keys() != {*Facts._fields}:
            raise ValueError("it is no classifier")
        facts = Facts(content["name"], tuple(content["shape"]), tuple(content["classes"]))
        if {name: tuple(w.shape) for name, w in weights.items()} != shapes(facts):
            raise ValueError(f"its tensors are not the classifier's, {shapes(facts)}")
        if not all(w.isfinite().all() for w in weights.values()):
            raise ValueError("its weights are not finite")
        return Classifier(facts, {name: weights[name].float() for name in shapes(facts)})


def load_fitting(facts: Facts, path: str = "", device: torch.device | str = "cpu") -> Classifier:
    """The classifier of this data set, on the device; from FILES if no path is given. Raises ValueError for others'."""
    if not path and facts.name not in FILES:
        raise ValueError(f"there is no classifier of {facts.name} in weights/; {REMEDY}")
    path = Path(path or FILES[facts.name])
    classifier = load(path)
    if not classifier.facts.fit(facts):
        raise ValueError(f"{path} is a classifier of {classifier.facts}, the pictures are {facts}; {REMEDY}")
    return classifier._replace(weights={name: w.to(device) for name, w in classifier.weights.items()})
