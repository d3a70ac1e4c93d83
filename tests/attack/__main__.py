"""Plays all cases: damaged and wrong files, flags, disks and streams against every script.

    python -m tests.attack                          # about ten minutes of two cores
    python -m tests.attack --only images --seed 3   # other cases of one kind

The cases are data, in the other files here: files, a command, and what is expected; harness.py says what is a failure.
Exits 1 after any.
"""

import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from run import cli
from tests.attack.files import FID, TRAIN, logs, own_files, settings, weights
from tests.attack.flags import flags, known_flags
from tests.attack.harness import Case, attack, table
from tests.attack.pictures import arrays, folders_of_pictures, sets_of_pictures
from tests.attack.surroundings import disks, streams
from tests.forks import ROOT, run_forked
from tests.published import networks

KINDS = (own_files, logs, settings, weights, folders_of_pictures, arrays, sets_of_pictures, flags, known_flags, disks,
         streams)
OPENAI = "guided_unet_improved"


@dataclass(frozen=True)
class Config:
    """Plays damaged and wrong files, flags, disks and streams against every script."""
    only: str = ""                      # one kind of case; empty is all
    seed: int = 0                       # of the cases
    jobs: int = 2                       # processes at a time
    limit: float = 600.                 # seconds after which a process hangs


def lay(base: Path) -> None:
    """Fills the folder: a run, a model, its samples, its classifier, published models, and pictures, all sound."""
    shutil.copy(ROOT / "weights" / "digits.safetensors", base)
    shutil.copy(ROOT / "weights" / "digits_classifier.safetensors", base / "classifier.safetensors")
    networks.folder(base / "bin", "bin")
    networks.folder(base / "safetensors")
    torch.save(networks.golden_network(OPENAI)[0], base / "openai.pt")
    (base / "openai.json").write_text(json.dumps(networks.OPENAI[OPENAI]))
    np.savez(base / "few.npz", arr_0=np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8))
    for command in (
            ["train.py", *TRAIN, "--steps", "4"],
            ["sample.py", "--checkpoint", "digits.safetensors", "--n", "20", "--steps", "2", "--png", "--npz", "--gif",
             "--snapshots", "1000,0"],
            ["convert.py", "--source", "digits.safetensors", "--to", "folder"], FID):
        done = run_forked(command, cwd=base)
        assert done.returncode == 0, (command, done.stderr)


def every_case(base: Path, seed: int = 0) -> list[Case]:
    """All cases, each kind a function of the seed alone; base: a folder that `lay` filled."""
    return [case for make in KINDS for case in make(base, random.Random(f"{seed} {make.__name__}"))]


def main(argv: Sequence[str] | None = None) -> None:
    config = cli.parse(Config, argv)
    with tempfile.TemporaryDirectory() as base:
        lay(Path(base))
        cases = every_case(Path(base), config.seed)
        kinds = dict.fromkeys(case.kind for case in cases)
        if config.only and config.only not in kinds:
            raise SystemExit(f"attack: only is {config.only!r}; it must be one of {', '.join(kinds)}")
        ends = attack([case for case in cases if config.only in ("", case.kind)], config.jobs, config.limit)
    print(table(ends))
    raise SystemExit(not all(end.well for end in ends))


if __name__ == "__main__":
    main()
