"""Damaged and hostile weights of the classifier, and statistics of the FID."""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.attack.damage import tensor_files
from tests.attack.harness import Case

FID = ["-m", "tests.attack.fid", "--pictures", "few.npz", "--data", "few.npz", "--cache", "cache"]


def caches(base: Path, rng: random.Random) -> Iterator[Case]:
    """Damaged and hostile weights of the classifier, and statistics of the FID."""
    command = ["evaluate.py", "classes", "--checkpoint", str(base / "digits.safetensors"), "--n", "20", "--steps", "1",
               "--classifier", "c.safetensors"]
    for name, content in tensor_files(rng, base / "classifier.safetensors", 18):
        yield Case("classifier", name, {"c.safetensors": content}, command)
    [sound] = (base / "cache").iterdir()
    for name, content in tensor_files(rng, sound, 15):
        yield Case("FID cache", name, {"few.npz": base / "few.npz", f"cache/{sound.name}": content}, FID)
