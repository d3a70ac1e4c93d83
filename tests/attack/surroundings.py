"""Full disks, links in the place of files, and broken streams."""

import os
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from run.checkpoint import LAST, PREVIOUS
from tests.attack.foundations import TRAIN
from tests.attack.harness import Case
from tests.attack.scores import FID
from tests.forks import ROOT


def writers(base: Path) -> dict[str, tuple[dict[str, Any], list[str]]]:
    """Every script that writes: files, where those that it will write are there already, and its command."""
    digits = base / "digits.safetensors"
    sampled = ["--checkpoint", str(digits), "--n", "20", "--steps", "2"]
    picture = base / "out" / "grid.png"
    return {
        "train": ({}, ["train.py", *TRAIN, "--steps", "6"]),
        "train, resumed": ({"run": base / "run"}, ["train.py", *TRAIN, "--steps", "6"]),
        **{f"sample {flag}": ({"out": base / "out"}, ["sample.py", *sampled, *flag.split(), "--seed", "1"])
           for flag in ("", "--png", "--npz", "--gif", "--snapshots 1000,0", "--npz --png")},
        "convert": ({"new.safetensors": digits}, ["convert.py", "--source", str(base / "bin"), "--to",
                                                  "new.safetensors"]),
        "convert to a folder": ({"folder": base / "folder"}, ["convert.py", "--source", str(digits), "--to", "folder"]),
        "checkpoint": ({"new.safetensors": digits}, ["-m", "run.checkpoint", "--source", str(base / "run" / LAST),
                                                     "--to", "new.safetensors"]),
        "classifier": ({"c.safetensors": base / "classifier.safetensors"},
                       ["evaluate.py", "classifier", "--steps", "2", "--out", "c.safetensors"]),
        "fid": ({"few.npz": base / "few.npz"}, FID),
        "swiss_roll": ({"roll.png": picture}, ["swiss_roll.py", "--steps", "1", "--out", "roll.png"]),
        "neighbours": ({"n.png": picture}, ["evaluate.py", "neighbours", *sampled, "--k", "2", "--out", "n.png"]),
        "nll": ({"nll.png": picture}, ["evaluate.py", "nll", *sampled[:2], "--n", "2", "--times", "2", "--out",
                                       "nll.png"]),
        "inpaint": ({"i.png": picture}, ["examples/inpaint.py", *sampled, "--samples", "1", "--rounds", "1", "--out",
                                         "i.png"])}


def disks(base: Path, rng: random.Random) -> Iterator[Case]:
    """Scripts whose files may not grow beyond some size."""
    for name, (files, command) in writers(base).items():
        for least, most in ((0, 0), (1, 8000), (8000, 10**5), (10**5, 10**6)):
            size = rng.randint(least, most)
            yield Case("full disk", f"{name}, {size} bytes", files, command, disk=size, midway=True)


def put(what: str, target: str) -> Callable[[Path], None]:
    """What makes a link to the target, a folder or a pipe under the name of a file."""
    def make(path: Path) -> None:
        path.unlink(missing_ok=True)
        {"link": lambda: path.symlink_to(target), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}[what]()
    return make


def links(base: Path, rng: random.Random) -> Iterator[Case]:
    """Symbolic links, pipes and folders under the names that scripts write to."""
    names = {"train, resumed": [".lock", LAST, f"{LAST}.tmp", PREVIOUS, "log.jsonl", "log.jsonl.tmp", "loss.png",
                                "loss.png.tmp", "samples/000006.png", "progress.gif"],
             "train": [f"{LAST}.tmp", ".lock", f"{PREVIOUS}.tmp"],
             "sample --png": ["grid.png", "grid.png.tmp", ".lock", "png/000000.png.tmp"],
             "sample --npz": ["pictures.npz", "pictures.npz.tmp"],
             "convert": ["new.safetensors", "new.safetensors.tmp"],
             "convert to a folder": ["unet/config.json", "model_index.json.tmp"],
             "classifier": ["c.safetensors", "c.safetensors.tmp"], "swiss_roll": ["roll.png.tmp"]}
    folders = {"train": "run/", "train, resumed": "run/", "sample --png": "out/", "sample --npz": "out/",
               "convert to a folder": "folder/"}
    for script, paths in names.items():
        files, command = writers(base)[script]
        for name in paths:
            for what in ("link", rng.choice(["folder", "pipe"])):
                path = folders.get(script, "") + name
                yield Case("links and pipes", f"{script}: {what} {path}", {
                    "precious": b"precious", **files, path: put(what, "../" * path.count("/") + "precious")}, command,
                    midway=True)


def streams(base: Path, rng: random.Random) -> Iterator[Case]:
    """Broken streams, no docstrings, few descriptors: fresh Pythons."""
    sampled = f"sample.py --checkpoint {base / 'digits.safetensors'} --n 2 --steps 1"
    trained = "train.py --T 2 --steps 2 --batch 2 --warmup 1 --out run"
    for line in (*(f"{sampled} {ends}" for ends in ("| true", "2>&1 | true", ">&-", ">/dev/full", "2>/dev/full")),
                 f"{trained} 2>&1 | head -c 9 >&2", "ddpm.py | head", "-OO ddpm.py >/dev/null",
                 f"-OO {trained} 2>/dev/null", f"{trained} --workers 3; n=12", f"{trained} --workers 3; n=24"):
        script, _, few = line.partition("; n=")
        option, script = ("-OO ", script[4:]) if script.startswith("-OO") else ("", script)
        command = f"ulimit -n {few or 256}; export PYTHONPATH={ROOT}; {sys.executable} {option}{ROOT}/{script}"
        if "|" in script:                                           # where its reader has left, it ends with 1
            command += "; [ ${PIPESTATUS[0]} -le 1 ]"
        yield Case("streams", line.replace(str(base), "BASE"), {}, partial(os.execvp, "bash", ["bash", "-c", command]))
