"""Resuming a run: the newest sound checkpoint of its folder, held against the run before anything of it is used."""

from dataclasses import asdict
from pathlib import Path

import torch

from data.files import reading
from run import processes
from run.checkpoint import LAST, MOMENTS, PREVIOUS, Checkpoint, check_there, load, versions
from run.cli import as_flag
from run.importance import LATEST
from run.state import Run


def latest(out: Path) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint of a folder, and its path; None if there is none at all.

    Falls back on the previous one with a printed warning. Raises ValueError if what is there is damaged.
    """
    paths = [path for path in (out / LAST, out / PREVIOUS) if path.exists()]
    if not paths and (out / LAST).with_suffix(".pt").exists():
        check_there(out / LAST)                                     # says how to convert it
    problems = [] if paths[:1] in ([], [out / LAST]) else [f"{out / LAST} is missing"]
    for path in paths:
        try:
            checkpoint = load(path)
            check_training_state(path, checkpoint)
        except ValueError as error:
            problems.append(error)
            continue
        if problems and processes.rank() == 0:
            print(f"warning: {problems[0]}")
        return path, checkpoint
    if paths:
        raise problems[-1]
    return None


def check_training_state(path: Path, checkpoint: Checkpoint) -> None:
    """Raises ValueError unless what training would change, and sampling does not use, is sound and finite."""
    history = checkpoint.history
    with reading(path):
        for part in ("weights", "ema", *MOMENTS):
            for name, w in getattr(checkpoint, part).items():
                if w.dtype != torch.float32 or not w.isfinite().all() or part == "exp_avg_sq" and (w < 0).any():
                    raise ValueError(f"{part}.{name} is not float32, not finite, or a negative square")
        if type(checkpoint.settings.get("seed", 0)) is not int:
            raise ValueError("its seed is no whole number")
        if any(loss.dtype != torch.float64 or loss.shape not in ((4, 2), (4, 4)) for loss in checkpoint.losses):
            raise ValueError("the records of its last steps are of another shape or dtype")
        if history is not None and (history.shape != (len(checkpoint.beta), LATEST) or history.isinf().any()
                                    or history.dtype != torch.float32):
            raise ValueError("the losses of each t are of another shape or dtype, or infinite")


def resume(run: Run, path: Path, checkpoint: Checkpoint, free: set[str]) -> None:
    """Puts the run where the checkpoint is.

    free: the settings that may differ. Raises ValueError for a checkpoint of another run.
    """
    check_same_run(run, path, checkpoint, free)
    check_same_data(run, path, checkpoint)
    with torch.no_grad():
        for name in run.weights:
            run.weights[name].copy_(checkpoint.weights[name])
            run.ema[name].copy_(checkpoint.ema[name])
    if run.history is not None:
        run.history.copy_(checkpoint.history)
    load_optimizer(run, checkpoint)
    run.progress.step = run.progress.saved = checkpoint.step
    run.progress.records = [losses.to(run.schedule.beta.device) for losses in checkpoint.losses]
    run.progress.sound = path.name == LAST
    if processes.rank() == 0:
        print(f"resuming {path} at step {checkpoint.step}")


def check_same_run(run: Run, path: Path, checkpoint: Checkpoint, free: set[str]) -> None:
    """Raises ValueError unless the checkpoint is of a run with the same settings, but for the free ones."""
    settings, saved, shape, classes = asdict(run.config), checkpoint.settings, *map(checkpoint.data.get, (
        "shape", "classes"))
    changed = [name for name, value in saved.items() if name not in free and settings.get(name) != value]
    if changed or shape != run.dataset.shape or classes != run.dataset.classes:
        was = " ".join(as_flag(name, saved[name]) for name in changed) or (
            f"other data: {shape}, classes {', '.join(classes[:20]) or 'none'}")
        raise ValueError(f"{path} was trained with {was}; repeat that, or choose another --out")
    if not all(getattr(checkpoint, part) for part in ("weights", *MOMENTS)):
        raise ValueError(f"{path} was given away without its optimizer; choose another --out")
    if checkpoint.network != run.unet.config:
        raise ValueError(f"{path} was trained with another network; choose another --out")
    if len(checkpoint.beta) != run.config.T or (checkpoint.history is None) != (run.history is None):
        raise ValueError(f"{path} has another schedule, or lacks the losses of each t; choose another --out")


def check_same_data(run: Run, path: Path, checkpoint: Checkpoint) -> None:
    """Raises ValueError if the data set was changed since, unless that is accepted; says if the versions were."""
    first = processes.rank() == 0
    if run.digest != checkpoint.data.get("digest", run.digest):
        if not run.config.accept_changes:
            raise ValueError(f"the data set {run.config.data} has changed since {path} was saved: files or pixels "
                             f"differ; restore it, choose another --out, or accept it with --accept_changes")
        if first:
            print(f"warning: the data set {run.config.data} has changed since {path} was saved")
    other = [f"{name} {checkpoint.versions[name]} (now {version})" for name, version in versions().items()
             if checkpoint.versions.get(name, version) != version]
    if other and first:
        print(f"warning: {path} was saved with {', '.join(other)}; the run resumes, but not to the bit")


def load_optimizer(run: Run, checkpoint: Checkpoint) -> None:
    """Copies Adam's moments into memory laid out as the weights are, which fused Adam relies on."""
    state = {k: {"step": torch.tensor(float(checkpoint.updates)),
                 **{part: torch.empty_like(w).copy_(getattr(checkpoint, part)[name]) for part in MOMENTS}}
             for k, (name, w) in enumerate(run.weights.items())}
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
