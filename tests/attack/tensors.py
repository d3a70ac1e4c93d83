"""Damaged and hostile checkpoints, and the log beside them."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from run.checkpoint import LAST, PREVIOUS
from tests.attack.damage import changed_copy, other_tensors, tensor_files
from tests.attack.foundations import TRAIN
from tests.attack.harness import Case

RESUME = ["train.py", *TRAIN, "--steps", "6"]
SAMPLE = ["sample.py", "--checkpoint", "x.safetensors", "--n", "2", "--steps", "2", "--out", "out"]
COPY = ["-m", "run.checkpoint", "--source", "x.safetensors", "--to", "new.safetensors"]


def damaged_run(base: Path, content: bytes | Callable[[Path], object]) -> dict:
    """The run's folder with this checkpoint and none before it."""
    return {"run": base / "run", f"run/{PREVIOUS}": Path.unlink, f"run/{LAST}": content}


def checkpoints(base: Path, rng: random.Random) -> Iterator[Case]:
    """To sample from, to resume and to copy."""
    for name, content in tensor_files(rng, base / "run" / LAST, 48):
        yield Case("sampled checkpoint", name, {"x.safetensors": content}, SAMPLE)
    for name, content in tensor_files(rng, base / "run" / LAST, 60):
        yield Case("resumed checkpoint", name, damaged_run(base, content), RESUME)
    for name, content in tensor_files(rng, base / "digits.safetensors", 15):
        yield Case("copied checkpoint", name, {"x.safetensors": content}, COPY)


def parts_of_checkpoints(base: Path, rng: random.Random) -> Iterator[Case]:
    """Every tensor of one part of the checkpoint is another: an average or moments of another network."""
    def spoil(part: str, kind: str) -> Callable[[dict, dict], tuple[dict, dict]]:
        return lambda content, facts: ({name: other_tensors(w)[kind] if name.split(".")[0] == part else w
                                        for name, w in content.items()}, facts)

    for part in ("weights", "ema", "exp_avg", "exp_avg_sq", "beta"):
        for kind in other_tensors(torch.ones(2, 2)):
            yield Case("part of a checkpoint", f"{part} {kind}", damaged_run(
                base, changed_copy(base / "run" / LAST, spoil(part, kind))), RESUME)


def logs(base: Path, rng: random.Random) -> Iterator[Case]:
    """Hostile lines of log.jsonl, among sound ones."""
    lines = ["", " ", "{", "[" * 10**5, '{"a": ' * 10**5, "\ufeff{}", "\0" * 100, "x" * 10**7, "\xff"]
    whole = (base / "run" / "log.jsonl").read_bytes()
    for line in lines:
        raw, where = line.encode("latin1" if line == "\xff" else "utf8"), rng.choice(["first", "last", "torn", "alone"])
        log = {"first": raw + b"\n" + whole, "last": whole + raw + b"\n", "torn": whole + raw, "alone": raw + b"\n"}
        yield Case("log", f"{where}: {line[:40]!r}", {"run": base / "run", "run/log.jsonl": log[where]}, RESUME)
