"""All cases, by kind; each kind is a function of the seed alone."""

import random
from pathlib import Path

from tests.attack.flags import flags, known_flags
from tests.attack.harness import Case
from tests.attack.pictures import arrays, authors_files, folders_of_pictures
from tests.attack.published import published_weights, settings
from tests.attack.scores import caches
from tests.attack.surroundings import disks, links, streams
from tests.attack.tensors import checkpoints, logs, parts_of_checkpoints

KINDS = (checkpoints, parts_of_checkpoints, logs, settings, published_weights, folders_of_pictures, arrays,
         authors_files, caches, flags, known_flags, disks, links, streams)


def every_case(base: Path, seed: int = 0) -> list[Case]:
    """All cases of this seed; base: a folder that `foundations.lay` filled."""
    return [case for make in KINDS for case in make(base, random.Random(f"{seed} {make.__name__}"))]
