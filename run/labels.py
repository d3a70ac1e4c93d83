"""The labels that pictures are sampled with."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from run.checkpoint import Checkpoint

NONE = "none"                       # what the null class is called


def choose_labels(checkpoint: Checkpoint, settings: Any) -> Tensor | None:
    """The labels that sample.py's settings ask for, to be repeated as often as needed; None for a network without.

    By default they are all classes that had pictures. Raises ValueError for what the network cannot do.
    """
    facts, rows, path = checkpoint.data, checkpoint.network.classes, settings.checkpoint
    if not rows:
        if settings.labels or settings.guidance:
            raise ValueError(f"{path} has no classes; leave --labels and --guidance alone")
        return None
    has_null = rows > len(facts["classes"])
    if not has_null and (settings.guidance or settings.labels == NONE and NONE not in facts["classes"]):
        raise ValueError(f"{path} has no null class; it cannot do --labels none or --guidance")
    if settings.labels:
        return torch.tensor(parse_labels(settings.labels, facts["classes"], has_null))
    return with_pictures(facts.get("counts", ()), facts["classes"])


def with_pictures(counts: Sequence[int], classes: Sequence[str]) -> Tensor:
    """The numbers of the classes that have pictures; of all where the pictures were not counted."""
    return torch.tensor([k for k in range(len(classes)) if not counts or counts[k]], dtype=torch.int64)


def parse_labels(text: str, classes: Sequence[str], has_null: bool) -> list[int]:
    """The numbers of "cat,dog", of "cats, big" if that is one class, of "none", or of ":0,:12", classes by number.

    Raises ValueError for anything else, and for "none" if it is the null class and also the name of another.
    """
    place = {f":{k}": k for k in range(len(classes) + has_null)} | ({NONE: len(classes)} if has_null else {})
    place |= {name.strip(): k for k, name in enumerate(classes)}
    parts, labels, longest = text.split(","), [], 1 + max(name.count(",") for name in classes)
    while parts:
        n = next((n for n in range(longest, 0, -1) if ",".join(parts[:n]).strip() in place), 0)
        name = ",".join(parts[:n or 1]).strip()
        if not n:
            raise ValueError(f"labels has {name!r}; the classes are {', '.join(map(repr, classes[:20]))}"
                             f"{', ...' if len(classes) > 20 else ''}, or :0 to :{len(classes) - 1} by number")
        if name == NONE and has_null and place[NONE] < len(classes):
            raise ValueError(f"labels has 'none', which is a class and the name of the null class; choose the class by "
                             f"its number, :{place[NONE]}, or the null class by :{len(classes)}")
        labels.append(place[name])
        parts = parts[n:]
    return labels
