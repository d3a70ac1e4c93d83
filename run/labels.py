"""The labels that pictures are sampled with."""

from typing import Any

import torch
from torch import Tensor

from run.checkpoint import Checkpoint


def choose_labels(checkpoint: Checkpoint, settings: Any) -> Tensor | None:
    """The labels that sample.py's settings ask for, to be repeated as often as needed; None for a network without.

    Raises ValueError for labels, and for a guidance, that the network cannot do.
    """
    classes, rows, path = list(checkpoint.data["classes"]), checkpoint.network.classes, settings.checkpoint
    if not rows:
        if settings.labels or settings.guidance:
            raise ValueError(f"{path} has no classes; leave --labels and --guidance alone")
        return None
    if rows == len(classes) and (settings.labels == "none" or settings.guidance):
        raise ValueError(f"{path} has no null class; it cannot do --labels none or --guidance")
    if settings.labels == "none":
        return torch.tensor([len(classes)])
    names = settings.labels.split(",") if settings.labels else classes
    if unknown := [name for name in names if name not in classes]:
        raise ValueError(f"labels has {unknown[0]!r}; the classes are {', '.join(classes[:20])}"
                         f"{', ...' if len(classes) > 20 else ''}")
    return torch.tensor([classes.index(name) for name in names])
