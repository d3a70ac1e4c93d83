"""Resuming a run: the newest sound checkpoint of its folder, held against the run before anything of it is used."""

from dataclasses import asdict
from pathlib import Path

import torch

from run import checks, processes
from run.checkpoint import Checkpoint, load, versions
from run.cli import as_flag
from run.importance import LATEST
from run.state import Run

NAMES = ("last.pt", "previous.pt")


def latest(out: Path) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint of a folder, and its path; None if there is none at all.

    Falls back on previous.pt with a printed warning. Raises ValueError if what is there is damaged.
    """
    problems = []
    for path in (out / name for name in NAMES):
        try:
            if not path.is_symlink() and not path.exists():
                raise FileNotFoundError(f"{path} is missing")
            last = load(path)
            check_training_state(path, last)
        except (ValueError, FileNotFoundError) as error:
            problems.append(error)
            continue
        if problems and processes.rank() == 0:
            print(f"warning: {problems[0]}")
        return path, last
    damaged = [error for error in problems if isinstance(error, ValueError)]
    if damaged:
        raise damaged[0]
    return None


def check_training_state(path: Path, last: Checkpoint) -> None:
    """Raises ValueError unless what training would change, and sampling does not use, is sound and finite."""
    try:
        if other := [name for copy in (last.weights, last.ema) for name, w in copy.items()
                     if w.dtype != torch.float32 or not w.isfinite().all()]:
            raise ValueError(f"{other[0]} is not float32, or not finite")
        if type(last.settings.get("seed", 0)) is not int:
            raise ValueError("its seed is no whole number")
        if last.optimizer:
            checks.check_optimizer(last.optimizer, last.weights, last.step)
        if any(loss.dtype != torch.float64 or loss.shape not in ((4, 2), (4, 4)) for loss in last.losses):
            raise ValueError("the records of its last steps are of another shape or dtype")
        if last.history is not None and (last.history.shape != (len(last.beta), LATEST) or last.history.isinf().any()
                                         or last.history.dtype != torch.float32):
            raise ValueError("the losses of each t are of another shape or dtype, or infinite")
    except Exception as error:
        raise ValueError(f"{path} cannot be resumed: {error or type(error).__name__}; use another file") from error


def resume(run: Run, path: Path, last: Checkpoint, free: set[str]) -> None:
    """Puts the run where the checkpoint is.

    free: the settings that may differ. Raises ValueError for a checkpoint of another run.
    """
    check_same_run(run, path, last, free)
    check_same_data(run, path, last)
    with torch.no_grad():
        for ours, saved in ((run.weights, last.weights), (run.ema, last.ema)):
            for name, w in ours.items():
                w.copy_(saved[name])
    if run.history is not None:
        run.history.copy_(last.history)
    load_optimizer(run, last)
    run.progress.step = run.progress.saved = last.step
    run.progress.records, run.progress.sound = list(last.losses), path.name == NAMES[0]
    if processes.rank() == 0:
        print(f"resuming {path} at step {last.step}")


def check_same_run(run: Run, path: Path, last: Checkpoint, free: set[str]) -> None:
    """Raises ValueError unless the checkpoint is of a run with the same settings, but for the free ones."""
    settings = asdict(run.config)
    changed = [name for name, value in last.settings.items() if name not in free and settings.get(name) != value]
    if changed or tuple(last.data["shape"]) != run.dataset.shape or tuple(last.data["classes"]) != run.dataset.classes:
        was = " ".join(as_flag(name, last.settings[name]) for name in changed) or (
            f"other data: {tuple(last.data['shape'])}, classes {', '.join(last.data['classes'][:20]) or 'none'}")
        raise ValueError(f"{path} was trained with {was}; repeat that, or choose another --out")
    if not last.optimizer:
        raise ValueError(f"{path} was given away without its optimizer; choose another --out")
    [ours], [theirs] = run.optimizer.state_dict()["param_groups"], last.optimizer["param_groups"]
    differ = any(theirs.get(name, value) != value for name, value in ours.items() if name != "lr")
    if differ or last.network != run.unet.config or [*last.weights] != [*run.weights]:
        raise ValueError(f"{path} was trained with another network or optimizer; choose another --out")
    if len(last.beta) != run.config.T or (last.history is None) != (run.history is None):
        raise ValueError(f"{path} has another schedule, or lacks the losses of each t; choose another --out")


def check_same_data(run: Run, path: Path, last: Checkpoint) -> None:
    """Raises ValueError if the data set was changed since, unless that is accepted; says if the versions were."""
    said = processes.rank() == 0
    if run.digest != last.data.get("digest", run.digest):
        if not run.config.accept_changes:
            raise ValueError(f"the data set {run.config.data} has changed since {path} was saved: files or pixels "
                             f"differ; restore it, choose another --out, or accept it with --accept_changes")
        if said:
            print(f"warning: the data set {run.config.data} has changed since {path} was saved")
    other = [f"{name} {last.versions[name]} (now {version})" for name, version in versions().items()
             if last.versions.get(name, version) != version]
    if other and said:
        print(f"warning: {path} was saved with {', '.join(other)}; the run resumes, but not to the bit")


def load_optimizer(run: Run, last: Checkpoint) -> None:
    """Copies Adam's moments into memory laid out as the weights are, which fused Adam relies on."""
    saved = last.optimizer["state"]
    state = {k: {**saved[k], **{name: torch.empty_like(w).copy_(saved[k][name]) for name in checks.MOMENTS}}
             for k, w in enumerate(run.weights.values()) if saved}
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
