"""What a training run writes down: log.jsonl, one line every few steps, and loss.png, its curves.

A step's record is (4, 1 + P), float64, a row for each quarter of 1..T: the weights of the pictures whose t fell
there, and their weighted losses, P of them: the loss, or the loss and the two parts that make it up.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from data.files import reading, writing
from run import processes
from run.pictures import panels, save_figure

PARTS = ("loss", "simple", "bound")
PATIENCE = 6                        # seconds to wait for a lock: workers of a killed job hold it until they notice, 5 s
SCORES = {"FD": "Frechet distance, %", "agree": "classified as requested"}        # of samples, and what they are called


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[Callable[[], None]]:
    """Keeps the folder for this job while the block runs, and yields a check that it is still this job's.

    The job's first process holds the lock; the others wait here until it does. Raises ValueError if another job has the
    folder; so does the check, if the folder or its .lock was removed or replaced. The end of the process, whatever ends
    it, frees the folder.
    """
    if processes.rank() > 0:
        processes.broadcast_first(None)
        yield lambda: None
        return
    path = folder / ".lock"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(path).acquire(timeout=PATIENCE)
    except Timeout:
        raise ValueError(f"another process writes into {folder}; wait for it, or choose another --out") from None
    with held:
        locked = path.lstat()

        def check() -> None:
            if not path.exists() or not os.path.samestat(path.lstat(), locked):
                raise ValueError(f"{folder} is no longer this job's: its .lock was removed or replaced; what is there "
                                 f"now is left alone, choose another --out")

        processes.broadcast_first(None)
        try:
            yield check
        finally:
            with contextlib.suppress(ValueError, OSError):      # not ours; or Windows, which removes no open files
                check()
                path.unlink()


def loss_record(T: int, t: Tensor, weights: Tensor, losses: Tensor) -> Tensor:
    """The record of a step: t int64 (B,) in 1..T, weights (B,), losses (P, B)."""
    columns = torch.cat([weights[None], weights * losses]).double().T             # B 1+P
    return columns.new_zeros(4, columns.shape[1]).index_add_(0, (t - 1) * 4 // T, columns)


def mean_losses(records: list[Tensor]) -> dict:
    """The mean losses over these steps, and that of each quarter of 1..T, None where no t fell; {} without losses."""
    total = torch.stack(records).cpu().sum(0) if records else torch.zeros(4, 2)
    weight, losses = total[:, :1], total[:, 1:]
    if not weight.any():
        return {}
    line = dict(zip(PARTS, (losses.sum(0) / weight.sum()).tolist(), strict=False))
    quarters = (losses[:, 0] / weight[:, 0]).tolist()
    return {**line, "quarters": [q if w else None for q, w in zip(quarters, weight[:, 0].tolist(), strict=True)]}


def read_log(out: Path) -> list[dict]:
    """The log's lines; none before there is a log. One that a killed process left unended is skipped."""
    path = out / "log.jsonl"
    with reading(path, "correct or remove it"):
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        log = [json.loads(line) for line in lines if line.endswith("\n")]
        if not all(isinstance(line, dict) and type(line.get("step")) is int for line in log):
            raise ValueError("one of its lines has no step")
        return log


def tensorboard(out: Path, step: int) -> Any:
    """TensorBoard's writer of a run that is at this step. Raises ValueError if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ValueError("TensorBoard is not installed; pip install tensorboard, or leave --tensorboard out") from None
    return SummaryWriter(out / "tensorboard", purge_step=step + 1)              # what is shown beyond it is dropped


def append_log(out: Path, line: dict, board: Any = None) -> None:
    """Adds a line to the log, and shows it on the board, if there is one. Raises OSError, which names the log."""
    path = out / "log.jsonl"
    try:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    for name, value in line.items() if board else ():
        numbers = {f"{name}/{k}": v for k, v in enumerate(value, 1)} if isinstance(value, list) else {name: value}
        for tag, number in numbers.items():
            if number is not None:
                board.add_scalar(tag, number, line["step"])
        board.flush()


def truncate_log(out: Path, step: int) -> None:
    """Drops the log's lines after the step at which the run resumes, atomically."""
    if lines := read_log(out):
        with writing(out / "log.jsonl") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines if line["step"] <= step).encode())


def plot_log(out: Path, path: Path | None = None) -> None:
    """Draws the log as loss.png, or under another path: the loss, the loss by quarter of 1..T, and scores if any."""
    log = read_log(out)
    lines, scored = ([line for line in log if name in line] for name in ("loss", "FD"))
    if not lines:
        return
    columns = 3 if scored else 2
    figure, (whole, quarters, *rest) = panels(1, columns, (4.5 * columns, 3.5), grid=True)
    steps = [line["step"] for line in lines]
    for name in (name for name in PARTS if name in lines[0]):
        whole.plot(steps, [line.get(name, torch.nan) for line in lines], label=name)
    for q, name in enumerate(("t in 1..T/4, least noise", "T/4..T/2", "T/2..3T/4", "3T/4..T, most noise")):
        loss = torch.tensor([line["quarters"][q] or torch.nan for line in lines])
        quarters.plot(steps, loss, label=name, color=f"C{q}")
    for axes, title in ((whole, "loss"), (quarters, "loss by quarter of 1..T")):
        axes.set(xlabel="step", yscale="log", title=title)
        axes.legend(fontsize=8)
    for axes in rest:
        share = axes.twinx()                                        # of the samples that agree, from 0 to 1
        axes.set(xlabel="step", title="samples", yscale="log")
        share.set_ylim(0, 1)
        for name, place, color in zip(SCORES, (axes, share), ("C0", "C1"), strict=True):
            place.plot([line["step"] for line in scored], [line.get(name, torch.nan) for line in scored], color=color,
                       marker=".")
            place.set_ylabel(SCORES[name], color=color)
    save_figure(figure, path or out / "loss.png", dpi=120)
