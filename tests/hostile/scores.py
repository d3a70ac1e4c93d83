"""Hostile weights of the classifier, and statistics of the FID."""

import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import evaluate
from run import cli
from scores import fid
from tests import test_fuzz
from tests.hostile.case import Case
from tests.hostile.tensors import tensor_files


def means(device: torch.device) -> fid.Features:
    """Features of pictures, instead of a network's that would have to be fetched."""
    return lambda pixels: torch.nn.functional.adaptive_avg_pool2d(pixels.float() / 255, 2).flatten(1)


@cli.script
def fid_main(argv: list[str]) -> None:
    fid.fid(argv, means)


FID = ["--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]


def caches(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile weights of the classifier, and statistics of the FID."""
    def weights(write: Callable[[Path], None]) -> list[str]:
        write(Path("c.safetensors"))
        return ["classes", "--checkpoint", str(base / "digits.safetensors"), "--classifier", "c.safetensors",
                "--n", "20", "--steps", "1"]

    def statistics(change: Callable[[dict], Any]) -> list[str]:
        shutil.copy(base / "few.npz", "few.npz")
        pixels = fid.data.load("few.npz")
        fid.halves(pixels, means("cpu"), 50, Path("cache"))
        [path] = Path("cache").iterdir()
        with np.load(path) as file:
            made = change(dict(file))
        path.write_bytes(made if isinstance(made, bytes) else b"")
        if isinstance(made, dict):
            np.savez(path, **made)
        return FID

    for name, write in tensor_files(rng, base / "classifier.safetensors", 24):
        yield Case("classifier", name, evaluate.main, partial(weights, write))
    for name, value in {"nan": np.full(12, np.nan), "short": np.zeros(3), "scalar": np.array(3.), "text": np.array("x"),
                        "objects": np.array([{}], object), "ints": np.zeros(12, int), "large": np.zeros((12, 12, 12)),
                        "complex": np.zeros(12, complex)}.items():
        key = rng.choice(["n0", "mean0", "scatter0", "n1", "mean1", "scatter1"])
        yield Case("FID cache", f"{key} {name}", fid_main, partial(statistics, lambda d, k=key, v=value: {**d, k: v}))
    for k, content in enumerate((b"", b"x" * 99, test_fuzz.zip_bomb(), pickle.dumps(test_fuzz.Trap()))):
        yield Case("FID cache", f"bytes {k}", fid_main, partial(statistics, lambda d, c=content: c))
    yield Case("FID cache", "one is missing", fid_main, partial(statistics, lambda d: {"n0": d["n0"]}))
