"""All cases, by kind, each kind a function of the seed alone; and the sound files that they begin with."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import torch

from tests.attack.flags import flags, known_flags
from tests.attack.harness import Case
from tests.attack.pictures import arrays, folders_of_pictures, sets_of_pictures
from tests.attack.published import settings, weights
from tests.attack.surroundings import disks, links, streams
from tests.attack.tensors import FID, TRAIN, caches, checkpoints, logs, parts_of_checkpoints
from tests.forks import ROOT, run_forked
from tests.published import networks

KINDS = (checkpoints, parts_of_checkpoints, caches, logs, settings, weights, folders_of_pictures, arrays,
         sets_of_pictures, flags, known_flags, disks, links, streams)
OPENAI = "guided_unet_improved"


def lay(base: Path) -> None:
    """Fills the folder: a run, a model, its samples, its classifier, published models, and pictures."""
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
    """All cases of this seed; base: a folder that `lay` filled."""
    return [case for make in KINDS for case in make(base, random.Random(f"{seed} {make.__name__}"))]
