"""Damaged and hostile weights of the classifier, and statistics of the FID."""

import io
import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.attack.damage import tensor_files
from tests.attack.files import zip_bomb
from tests.attack.harness import Case
from tests.helpers import Trap

FID = ["-m", "tests.attack.fid", "--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]


def caches(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and hostile weights of the classifier, and statistics of the FID."""
    command = ["evaluate.py", "classes", "--checkpoint", str(base / "digits.safetensors"), "--n", "20", "--steps", "1",
               "--classifier", "c.safetensors"]
    for name, content in tensor_files(rng, base / "classifier.safetensors", 24):
        yield Case("classifier", name, {"c.safetensors": content}, command)

    [sound] = (base / "cache").iterdir()
    with np.load(sound) as file:
        arrays = dict(file)

    def npz(content: dict) -> bytes:
        file = io.BytesIO()
        np.savez(file, **content)
        return file.getvalue()

    contents = {"empty": b"", "a text": b"x" * 99, "a bomb": zip_bomb(), "a pickle": pickle.dumps(Trap()),
                "one is missing": npz({"n0": arrays["n0"]})}
    for name, value in {"nan": np.full(12, np.nan), "short": np.zeros(3), "scalar": np.array(3.), "text": np.array("x"),
                        "objects": np.array([{}], object), "ints": np.zeros(12, int), "large": np.zeros((12, 12, 12)),
                        "complex": np.zeros(12, complex)}.items():
        key = rng.choice([*arrays])
        contents[f"{key} {name}"] = npz({**arrays, key: value})
    for name, content in contents.items():
        yield Case("FID cache", name, {"few.npz": base / "few.npz", f"cache/{sound.name}": content}, FID)
