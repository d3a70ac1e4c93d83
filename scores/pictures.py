"""The pictures that a model is scored with: what it was trained on, what was held out of that, or any others."""

import torch

import data
from run.checkpoint import Checkpoint
from scores.classifier import Facts, facts_of

HELD_OUT = "held-out"


def load_pictures(checkpoint: Checkpoint, name: str, fit: str = "", trained_on: str = "") -> data.Data:
    """The set `name` as the model's pictures are; "" is what it was trained on, HELD_OUT what was held out of that.

    fit: crop or pad; "" is the model's own. trained_on: the name of the training set, if not the one in the
    checkpoint.
    """
    C, H, W = checkpoint.data["shape"]
    trained_on = trained_on or checkpoint.settings.get("data", "")
    if name in ("", HELD_OUT) and not trained_on:
        raise ValueError(f"the checkpoint does not say what it was trained on; name the pictures with "
                         f"{'--held_out' if name else '--data'}")
    name = {"": trained_on, HELD_OUT: data.TEST + trained_on}.get(name, name)
    return data.load(name, f"{H}x{W}", fit or checkpoint.settings.get("fit", "crop"), C)


def relabel(dataset: data.Data, facts: Facts) -> data.Data:
    """The set, its labels those of the classes of these facts. Raises ValueError if it has no labels, or others."""
    classes = facts.classes
    if len(dataset.images) == data.ENDLESS:
        raise ValueError(f"{dataset.name} has no end; name pictures that can be counted")
    if dataset.labels is None:
        raise ValueError(f"{dataset.name} has no labels; name a labelled set")
    if facts_of(dataset).fit(facts):
        return dataset._replace(classes=classes)
    if others := [name for name in dataset.classes if name not in classes]:
        raise ValueError(f"{dataset.name} has the class {others[0]!r}; it must be one of {', '.join(classes[:20])}")
    place = {name: k for k, name in enumerate(classes)}
    return dataset._replace(labels=torch.tensor([place[name] for name in dataset.classes])[dataset.labels],
                            classes=classes)
