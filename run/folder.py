"""What a training run writes down: log.jsonl, one line every few steps, and loss.png, its curves.

A step's record is (4, 1 + P), float64, a row for each quarter of 1..T: the weights of the pictures whose t fell
there, and their weighted losses, P of them: the loss, or the loss and the two parts that make it up.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:                 # Windows
    fcntl = None

import torch
from torch import Tensor

from run import processes
from run.cli import make_parent

PARTS = ("loss", "simple", "bound")


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """For the first process of a job: no other job that asks for the folder has it meanwhile.

    Raises ValueError if one has. The end of the process, whatever it is, gives the folder back.
    """
    if processes.rank() > 0:
        yield
        return
    with make_parent(folder / ".lock").open("w") as file:
        try:
            if fcntl:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process writes into {folder}; wait for it, or choose another --out") from None
        yield


def loss_record(T: int, t: Tensor, weights: Tensor, losses: Tensor) -> Tensor:
    """The record of a step: t int64 (B,) in 1..T, weights (B,), losses (P, B)."""
    columns = torch.cat([weights[None], weights * losses]).double().T             # B 1+P
    return columns.new_zeros(4, columns.shape[1]).index_add_(0, (t - 1) * 4 // T, columns)


def mean_losses(records: list[Tensor]) -> dict:
    """The mean losses over these steps, and the loss of each quarter of 1..T, None where no t fell."""
    total = torch.stack(records).sum(0)
    weight, losses = total[:, :1], total[:, 1:]
    line = dict(zip(PARTS, (losses.sum(0) / weight.sum()).tolist(), strict=False))
    quarters = (losses[:, 0] / weight[:, 0]).tolist()
    return {**line, "quarters": [q if w else None for q, w in zip(quarters, weight[:, 0].tolist(), strict=True)]}


def read_log(out: Path) -> list[dict]:
    """The log's lines; none before there is a log. One that a killed process left unended is none."""
    path = out / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def append_log(out: Path, line: dict) -> None:
    """Adds a line to the log."""
    with make_parent(out / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def truncate_log(out: Path, step: int) -> None:
    """Drops the log's lines after the step at which the run resumes, atomically."""
    path, temporary = out / "log.jsonl", out / "log.jsonl.tmp"
    if path.exists():
        temporary.write_text("".join(json.dumps(line) + "\n" for line in read_log(out) if line["step"] <= step))
        os.replace(temporary, path)


def plot_log(out: Path, path: Path | None = None) -> None:
    """Draws the log as loss.png, or under another path: the loss and its parts, and the loss by quarter of 1..T."""
    lines = [line for line in read_log(out) if "loss" in line]
    if not lines:
        return
    from matplotlib.figure import Figure
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    whole, quarters = figure.subplots(1, 2)
    steps = [line["step"] for line in lines]
    for name in (name for name in PARTS if name in lines[0]):
        whole.plot(steps, [line[name] for line in lines], label=name)
    for q, name in enumerate(("t in 1..T/4, least noise", "T/4..T/2", "T/2..3T/4", "3T/4..T, most noise")):
        loss = torch.tensor([line["quarters"][q] or torch.nan for line in lines])
        quarters.plot(steps, loss, label=name, color=f"C{q}")
    for axes, title in ((whole, "loss"), (quarters, "loss by quarter of 1..T")):
        axes.set(xlabel="step", yscale="log", title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path or out / "loss.png", dpi=120)
