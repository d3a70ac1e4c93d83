"""Full disks and broken streams."""

import os
import random
import resource
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from run.checkpoint import LAST
from tests.attack.files import FID, RESUME
from tests.attack.harness import Case
from tests.forks import ROOT


def writers(base: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Every script that writes: files, where those that it will write are there already, and its command."""
    digits = base / "digits.safetensors"
    sampled = ["--checkpoint", str(digits), "--n", "20", "--steps", "2"]
    picture, out = base / "out" / "grid.png", {"out": base / "out"}
    return {
        "train": ({}, RESUME), "train, resumed": ({"run": base / "run"}, RESUME),
        **{f"sample {flag}": (out, ["sample.py", *sampled, *flag.split(), "--seed", "1"])
           for flag in ("", "--png", "--npz", "--gif", "--snapshots 1000,0", "--npz --png")},
        "convert": ({"new.safetensors": digits}, ["convert.py", "--source", str(base / "bin"), "--to",
                                                  "new.safetensors"]),
        "convert to a folder": ({"folder": base / "folder"}, ["convert.py", "--source", str(digits), "--to", "folder"]),
        "checkpoint": ({"new.safetensors": digits}, ["-m", "run.checkpoint", "--source", str(base / "run" / LAST),
                                                     "--to", "new.safetensors"]),
        "classifier": ({"c.safetensors": base / "classifier.safetensors"},
                       ["evaluate.py", "classifier", "--steps", "2", "--out", "c.safetensors"]),
        "fid": ({"few.npz": base / "few.npz"}, FID),
        **{name: ({f"{name}.png": picture}, [*command, "--out", f"{name}.png"]) for name, command in {
            "swiss_roll": ["swiss_roll.py", "--steps", "1"],
            "neighbours": ["evaluate.py", "neighbours", *sampled, "--k", "2"],
            "nll": ["evaluate.py", "nll", *sampled[:2], "--n", "2", "--times", "2"],
            "inpaint": ["examples/inpaint.py", *sampled, "--samples", "1", "--rounds", "1"]}.items()}}


def disks(base: Path, rng: random.Random) -> Iterator[Case]:
    """Scripts whose files may not grow beyond some size."""
    for name, (files, command) in writers(base).items():
        for least, most in ((0, 0), (1, 8000), (8000, 10**5), (10**5, 10**6)):
            size = rng.randint(least, most)
            yield Case("full disk", f"{name}, {size} bytes", files, command, midway=True,
                       before=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size)))


def streams(base: Path, rng: random.Random) -> Iterator[Case]:
    """Closed and full streams, and readers that leave: fresh Pythons."""
    sampled = f"sample.py --checkpoint {base / 'digits.safetensors'} --n 2 --steps 1"
    trained = "train.py --T 2 --steps 2 --batch 2 --warmup 1 --out run"
    for line in (*(f"{sampled} {end}" for end in ("| true", "2>&1 | true", ">&-", ">/dev/full")),
                 f"{trained} 2>&1 | head -c 9 >&2", "ddpm.py | head"):
        command = f"export PYTHONPATH={ROOT}; {sys.executable} {ROOT}/{line}"
        if "|" in line:                                             # where its reader has left, it ends with 1
            command += "; [ ${PIPESTATUS[0]} -le 1 ]"
        yield Case("streams", line.replace(str(base), "BASE"), {}, partial(os.execvp, "bash", ["bash", "-c", command]))
