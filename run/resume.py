"""Resuming a run: the newest sound checkpoint of its folder, held against the run before anything of it is used."""

from dataclasses import asdict
from pathlib import Path

import torch

from run import processes
from run.checkpoint import LAST, MOMENTS, PREVIOUS, Checkpoint, load, versions
from run.cli import as_flag
from run.state import Run


def latest(out: Path) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint of a folder, and its path; None if there is none at all.

    Falls back on the previous one with a printed warning. Raises ValueError if what is there is damaged.
    """
    last, previous = out / LAST, out / PREVIOUS
    if not previous.exists():
        begun = last.exists() or last.with_suffix(".pt").exists()   # load says how to convert a .pt
        return (last, load(last)) if begun else None
    try:
        return last, load(last)
    except ValueError as error:
        checkpoint = load(previous)
        if processes.rank() == 0:
            print(f"warning: {error}")
        return previous, checkpoint


def resume(run: Run, path: Path, checkpoint: Checkpoint, free: set[str]) -> None:
    """Puts the run where the checkpoint is.

    free: the settings that may differ. Raises ValueError for a checkpoint of another run.
    """
    check_same_run(run, path, checkpoint, free)
    with torch.no_grad():
        for name in run.weights:
            run.weights[name].copy_(checkpoint.weights[name])
            run.ema[name].copy_(checkpoint.ema[name])
    if run.history is not None:
        run.history.copy_(checkpoint.history)
    # Adam's moments must be laid out in memory as the weights are: fused Adam relies on it
    state = {k: {"step": torch.tensor(float(checkpoint.updates)),
                 **{part: torch.empty_like(w).copy_(getattr(checkpoint, part)[name]) for part in MOMENTS}}
             for k, (name, w) in enumerate(run.weights.items())}
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
    run.progress.step = run.progress.saved = checkpoint.step
    run.progress.records = [losses.to(run.schedule.beta.device) for losses in checkpoint.losses]
    run.progress.sound = path.name == LAST
    if processes.rank() == 0:
        print(f"resuming {path} at step {checkpoint.step}")


def check_same_run(run: Run, path: Path, checkpoint: Checkpoint, free: set[str]) -> None:
    """Raises ValueError unless settings, but for the free ones, network and data are the checkpoint's.

    Changed data may be accepted. Other versions are only said.
    """
    settings, saved, facts = asdict(run.config), checkpoint.settings, checkpoint.data
    if changed := [name for name, value in saved.items() if name not in free and settings.get(name) != value]:
        raise ValueError(f"{path} was trained with {' '.join(as_flag(name, saved[name]) for name in changed)}; "
                         f"repeat that, or choose another --out")
    if not checkpoint.weights or not checkpoint.exp_avg:
        raise ValueError(f"{path} was given away without its optimizer; choose another --out")
    if (checkpoint.network, facts["shape"], facts["classes"]) != (
            run.unet.config, run.dataset.shape, run.dataset.classes):
        raise ValueError(f"{path} was trained with another network, or on pictures of another shape or of other "
                         f"classes; choose another --out")
    first = processes.rank() == 0
    if run.digest != facts.get("digest", run.digest):
        if not run.config.accept_changes:
            raise ValueError(f"the data set {run.config.data} has changed since {path} was saved: files or pixels "
                             f"differ; restore it, choose another --out, or accept it with --accept_changes")
        if first:
            print(f"warning: the data set {run.config.data} has changed since {path} was saved")
    other = [f"{name} {checkpoint.versions[name]} (now {version})" for name, version in versions().items()
             if checkpoint.versions.get(name, version) != version]
    if other and first:
        print(f"warning: {path} was saved with {', '.join(other)}; the run resumes, but not to the bit")
