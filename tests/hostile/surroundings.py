"""Hostile flags, full disks, links in the place of files, and broken streams."""

import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path

import torch
from PIL import Image

import convert
import evaluate
import sample
import swiss_roll
import train
from examples import inpaint
from run import checkpoint
from scores import classifier
from tests import test_flags
from tests.hostile.case import ROOT, TRAIN, Case, resumed
from tests.hostile.scores import FID, fid_main


def flags(base: Path, rng: random.Random) -> Iterator[Case]:
    """Arbitrary flags of every script."""
    def arrange(script: test_flags.Script, argv: list[str]) -> list[str]:
        test_flags.lay_out(Path.cwd())
        for module, name in test_flags.LONG:
            setattr(module, name, lambda *args, **kwargs: exit(0))
        classifier.FILES["digits"] = base / "classifier.safetensors"
        return [*script.command.split(), *script.base.split(), *argv]

    for name, script in test_flags.SCRIPTS.items():
        choices = [f for f in fields(script.config) if f.name not in script.never.split()]
        for _ in range(4):
            argv = []
            for field in rng.sample(choices, min(len(choices), rng.randint(1, 3))):
                flag = field.name.rstrip("_")
                values = test_flags.SMALL if flag in script.small.split() else test_flags.VALUES.get(field.type, ())
                argv.append(f"--{flag}={rng.choice(values)}" if values else rng.choice([f"--{flag}", f"--no-{flag}"]))
            yield Case("flags", f"{name} {argv}"[:90], script.main, partial(arrange, script, argv))


def writers(base: Path) -> dict[str, tuple[Callable, Callable[[], list[str]]]]:
    """Every script that writes, and its flags, where its files are there already."""
    digits = ["--checkpoint", str(base / "digits.safetensors"), "--n", "20", "--steps", "2"]

    def after(main: Callable, argv: list[str]) -> list[str]:
        main(argv)
        return argv

    def classifier_flags() -> list[str]:
        shutil.copy(base / "classifier.safetensors", "c.safetensors")
        return ["classifier", "--steps", "2", "--out", "c.safetensors"]

    def roll() -> list[str]:
        swiss_roll.train = lambda *args: None
        swiss_roll.bound = lambda *args: torch.zeros(())
        Image.new("L", (8, 8)).save("roll.png")
        return ["--steps", "1", "--out", "roll.png"]

    def fid_flags() -> list[str]:
        shutil.copy(base / "few.npz", "few.npz")
        return FID

    def all_of_sample(flag: str) -> list[str]:
        return [*after(sample.main, [*digits, *flag.split(), "--out", "out"]), "--seed", "1"]

    return {
        "train": (train.main, lambda: [*TRAIN, "--steps", "6"]), "train, resumed": (train.main, lambda: resumed(base)),
        **{f"sample {flag}": (sample.main, partial(all_of_sample, flag)) for flag in (
            "", "--png", "--npz", "--gif", "--snapshots 1000,0", "--npz --png")},
        "convert": (convert.main, lambda: after(
            convert.main, ["--source", str(base / "bin"), "--to", "new.safetensors"])),
        "convert to a folder": (convert.main, lambda: after(
            convert.main, ["--source", str(base / "digits.safetensors"), "--to", "folder"])),
        "checkpoint": (checkpoint.main, lambda: after(
            checkpoint.main, ["--source", str(base / "run" / "last.safetensors"), "--to", "new.safetensors"])),
        "classifier": (evaluate.main, classifier_flags), "fid": (fid_main, fid_flags),
        "swiss_roll": (swiss_roll.main, roll),
        "neighbours": (evaluate.main, lambda: ["neighbours", *digits, "--k", "2", "--out", "n.png"]),
        "nll": (evaluate.main, lambda: ["nll", *digits[:2], "--n", "2", "--times", "2", "--out", "nll.png"]),
        "inpaint": (inpaint.main, lambda: [*digits, "--samples", "1", "--rounds", "1", "--out", "i.png"])}


def disks(base: Path, rng: random.Random) -> Iterator[Case]:
    """Scripts whose files may not grow beyond some size."""
    for name, (main, arrange) in writers(base).items():
        for least, most in ((0, 0), (1, 600), (600, 8000), (8000, 10**5), (10**5, 10**6)):
            size = rng.randint(least, most)
            yield Case("full disk", f"{name}, {size} bytes", main, arrange, size, midway=True)


def links(base: Path, rng: random.Random) -> Iterator[Case]:
    """Symbolic links, pipes and folders under the names that scripts write to."""
    def arrange(made: Callable[[], list[str]], name: str, what: str) -> list[str]:
        argv, path = made(), Path(name)
        Path("precious").write_text("precious")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        {"link": lambda: path.symlink_to(Path("precious").resolve()), "folder": path.mkdir,
         "pipe": lambda: os.mkfifo(path)}[what]()
        return argv

    names = {"train, resumed": ["run/.lock", "run/last.safetensors.tmp", "run/log.jsonl.tmp", "run/loss.png",
                                "run/loss.png.tmp", "run/samples/000006.png", "run/progress.gif",
                                "run/previous.safetensors", "run/log.jsonl"],
             "train": ["run/last.safetensors.tmp", "run/.lock", "run/previous.safetensors.tmp"],
             "sample --png": ["out/grid.png", "out/grid.png.tmp", "out/.lock", "out/png/000000.png.tmp"],
             "sample --npz": ["out/pictures.npz", "out/pictures.npz.tmp"],
             "convert": ["new.safetensors", "new.safetensors.tmp"],
             "convert to a folder": ["folder/unet/config.json", "folder/model_index.json.tmp"],
             "classifier": ["c.safetensors", "c.safetensors.tmp"], "swiss_roll": ["roll.png.tmp"]}
    for script, paths in names.items():
        main, made = writers(base)[script]
        for name in paths:
            for what in ("link", rng.choice(["folder", "pipe"])):
                yield Case("links and pipes", f"{script}: {what} {name}", main, partial(arrange, made, name, what),
                           midway=True)


def streams(base: Path, rng: random.Random) -> Iterator[Case]:
    """Closed and broken streams, no docstrings, few descriptors: real processes."""
    python = f"{os.sys.executable} {{}} {ROOT}"
    sampled = f"sample.py --checkpoint {base / 'digits.safetensors'} --n 2 --steps 1"
    trained = "train.py --T 2 --steps 2 --batch 2 --warmup 1 --out run"
    lines = [*(f"{sampled} {ends}" for ends in ("| true", "2>&1 | true", "2>&-", ">&-", "<&- >&- 2>&-", ">/dev/full",
                                                "2>/dev/full")), f"{trained} 2>&-", f"{trained} 2>&1 | head -c 9 >&2",
             "ddpm.py | true", "-OO ddpm.py >/dev/null", f"-OO {trained} 2>/dev/null", f"{trained} --workers 3; n=12",
             f"{trained} --workers 3; n=24"]

    def bash(line: str) -> None:
        line, _, few = line.partition("; n=")
        option, line = ("-OO", line.removeprefix("-OO ")) if line.startswith("-OO") else ("", line)
        command = f"set -o pipefail; ulimit -n {few or 256}; {python.format(option)}/{line}"
        os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        os.execvp("bash", ["bash", "-c", command])

    for line in lines:
        yield Case("streams", line.replace(str(base), "BASE"), bash, lambda line=line: line)
