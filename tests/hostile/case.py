"""A hostile case, and the sound files that the cases begin with."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import train
from tests.published import networks

ROOT = Path(__file__).parents[2]
TRAIN = [f"--{flag}" for flag in ("T=4", "batch=4", "warmup=1", "log_every=1", "save_every=1", "sample_every=100",
                                  "out=run")]


class Case(NamedTuple):
    """What is run on what."""
    kind: str
    name: str
    main: Callable[[list[str]], Any]
    arrange: Callable[[], list[str]]            # makes the files in the current folder; the flags for main
    disk: int | None = None                     # bytes that a file may have
    midway: bool = False                        # it may fail in the middle: files may be newer, if they are whole


def foundations(base: Path) -> Case:
    """A case that fills a folder with sound files: a run, a model, its classifier, and published models."""
    def arrange() -> list[str]:
        shutil.copy(ROOT / "weights" / "digits.safetensors", base / "digits.safetensors")
        shutil.copy(ROOT / "weights" / "digits_classifier.safetensors", base / "classifier.safetensors")
        networks.folder(base / "bin", "bin")
        networks.folder(base / "safetensors")
        torch.save(networks.golden_network("guided_unet_improved")[0], base / "openai.pt")
        (base / "openai.json").write_text(json.dumps(networks.OPENAI["guided_unet_improved"]))
        np.savez(base / "few.npz", arr_0=np.random.default_rng(0).integers(0, 256, (8, 8, 8), np.uint8))
        return [*TRAIN, "--steps", "4", "--out", str(base / "run")]
    return Case("foundations", "", train.main, arrange)


def content_of(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def resumed(base: Path) -> list[str]:
    """The flags that resume the run, of which there is a copy now."""
    shutil.copytree(base / "run", "run")
    return [*TRAIN, "--steps", "6"]
