"""The hostile cases of tests/attack.py, by kind; each is a function of the seed alone.

A case arranges files in the current folder, in a process of its own, and returns the flags of the script that is then
run on them. Files named precious must never change; others only if the script succeeds.
"""

import random
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.published import published_weights, settings
from tests.hostile.scores import caches
from tests.hostile.sets import arrays, authors_files, folders_of_pictures
from tests.hostile.surroundings import disks, flags, links, streams
from tests.hostile.tensors import checkpoints, logs, optimizers

KINDS = (checkpoints, optimizers, logs, settings, published_weights, folders_of_pictures, arrays, authors_files, caches,
         flags, disks, links, streams)


def cases(base: Path, seed: int = 0) -> list[Case]:
    """All cases of this seed; base: a folder that `foundations` filled."""
    return [case for make in KINDS for case in make(base, random.Random(f"{seed} {make.__name__}"))]
