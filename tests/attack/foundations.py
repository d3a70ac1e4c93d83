"""The sound files that the cases begin with."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch

from tests.forks import ROOT, run_forked
from tests.published import networks

TRAIN = [f"--{flag}" for flag in ("T=4", "batch=4", "warmup=1", "log_every=1", "save_every=1", "sample_every=100",
                                  "out=run")]
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
            ["convert.py", "--source", "digits.safetensors", "--to", "folder"],
            ["-m", "tests.attack.fid", "--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]):
        done = run_forked(command, cwd=base)
        assert done.returncode == 0, (command, done.stderr)
