"""What a training run writes down: log.jsonl, one line every few steps, and loss.png, its curves.

A step's record is (4, 1 + P), float64, a row for each quarter of 1..T: the weights of the pictures whose t fell
there, and their weighted losses, P of them: the loss, or the loss and the two parts that make it up.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from data.files import reading, writing
from run import processes
from run.cli import make_parent
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
    path = make_parent(folder / ".lock")
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
    """The log's lines; none before there is a log. One that a killed process left unended is none.

    Lines that are no lines of a log are skipped, with one warning.
    """
    path = out / "log.jsonl"
    if not path.exists():
        return []
    with reading(path, "remove it"):
        texts = path.read_text(errors="replace").split("\n")[:-1]
    lines = [line for text in texts if (line := parse_line(text))]
    if skipped := len(texts) - len(lines):
        print(f"warning: lines of {path} that are no lines of a log were skipped: {skipped}")
    return lines


def parse_line(text: str) -> dict | None:
    """A line of the log; None if it is no JSON object with a step, and numbers where `plot_log` needs them."""
    try:
        line = json.loads(text)
        numbers = [line[name] for name in (*PARTS, *SCORES) if name in line]
        if "loss" in line:
            numbers += [0 if line["quarters"][q] is None else line["quarters"][q] for q in range(4)]
        sum([line["step"], *numbers], 0.)                       # raises for what is no number, or too large for a float
        return line if type(line["step"]) is int else None
    except Exception:                                           # whatever another program or a person wrote
        return None


def append_log(out: Path, line: dict) -> None:
    """Adds a line to the log: whole, or, on a full disk, not at all, which is an OSError."""
    path, rest = out / "log.jsonl", (json.dumps(line) + "\n").encode()
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            while rest:
                rest = rest[file.write(rest):]
        except OSError as error:
            file.truncate(before)
            raise OSError(f"cannot write {path}: {error.strerror}; what was there is unchanged") from error


def truncate_log(out: Path, step: int) -> None:
    """Drops the log's lines after the step at which the run resumes, atomically."""
    path = out / "log.jsonl"
    if path.exists():
        lines = [line for line in read_log(out) if line["step"] <= step]
        with writing(path) as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


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
        plot_scores(axes, scored)
    save_figure(figure, path or out / "loss.png", dpi=120)


def plot_scores(axes, lines: list[dict]) -> None:
    """Draws the scores of the samples against the step, the share that agrees on an axis of its own."""
    steps = [line["step"] for line in lines]
    share = axes.twinx()
    axes.set(xlabel="step", title="samples", yscale="log")
    share.set_ylim(0, 1)
    for name, place, color in zip(SCORES, (axes, share), ("C0", "C1"), strict=True):
        place.plot(steps, [line.get(name, torch.nan) for line in lines], color=color, marker=".")
        place.set_ylabel(SCORES[name], color=color)
