"""Resuming a run: the newest sound checkpoint of its folder, held against the run before anything of it is used.

Beginning one with the weights of another model, too.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ddpm
from run import processes
from run.checkpoint import LAST, MOMENTS, PARTS, PREVIOUS, Checkpoint, load, versions
from run.cli import as_flag
from run.state import Run, steps_of

RATE = ("steps", "minutes", "lr", "warmup", "final")      # settings of the learning rate alone
LEARNED = ("hybrid", "bound")                   # losses that learn a variance
TABLE = "classes.weight"                        # a row per class
OLDER = {"optimizer": "adam"}                   # what runs had before it was a setting


def latest(out: Path, parts: Sequence[str] = PARTS) -> tuple[Path, Checkpoint] | None:
    """The newest sound checkpoint of a folder, and its path; None if there is none at all.

    Falls back on the previous one with a printed warning. Raises ValueError if what is there is damaged.
    """
    last, previous = out / LAST, out / PREVIOUS
    if not previous.exists():
        begun = last.exists() or last.with_suffix(".pt").exists()   # load says how to convert a .pt
        return (last, load(last, parts)) if begun else None
    try:
        return last, load(last, parts)
    except ValueError as error:
        checkpoint = load(previous, parts)
        if processes.rank() == 0:
            print(f"warning: {error}")
        return previous, checkpoint


def saved_settings(path: str, defaults: Any) -> dict[str, Any]:
    """The settings of the run in this folder, which may have been moved. Raises ValueError if there is none."""
    out = run_folder(path)
    file, checkpoint = latest(out, ()) or (out, load(out))                      # load says that there is none
    return {**settings_in(file, checkpoint, defaults), "out": str(out), "accept_changes": False}


def settings_in(path: Path, checkpoint: Checkpoint, defaults: Any) -> dict[str, Any]:
    """The checkpoint's settings, and what older runs lack. Raises ValueError for text where a number should be."""
    saved, usual = checkpoint.settings, asdict(defaults)
    if wrong := [name for name in saved.keys() & usual if isinstance(saved[name], str) != isinstance(usual[name], str)]:
        raise ValueError(f"{path} was trained with {as_flag(wrong[0], saved[wrong[0]])}, which cannot be; choose "
                         f"another --out")
    return usual | OLDER | saved


def run_folder(path: str) -> Path:
    """The folder of a run, of which a path may name the checkpoint instead."""
    return Path(path).parent if Path(path).name == LAST else Path(path)


def resume(run: Run, path: Path, checkpoint: Checkpoint, free: set[str],
           rate: Callable[[Any, int, int], float]) -> None:
    """Puts the run where the checkpoint is, and says if its learning rate, of (config, step, steps), will be another.

    free: the settings that may differ. Raises ValueError for a checkpoint of another run.
    """
    check_same_run(run, path, checkpoint, free)
    copy_weights(run, checkpoint)
    if run.history is not None:
        run.history.copy_(checkpoint.history)
    # Adam's moments must be laid out in memory as the weights are: fused Adam relies on it
    state = {k: {"step": torch.tensor(float(checkpoint.updates)),
                 **{part: torch.empty_like(w).copy_(moments[name]) for part in MOMENTS
                    if name in (moments := getattr(checkpoint, part))}}
             for k, (name, w) in enumerate(run.weights.items())}
    run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": state})
    if run.scaler.is_enabled():
        run.scaler.load_state_dict(checkpoint.scaler)
    run.progress.step = run.progress.saved = checkpoint.step
    run.progress.seconds = checkpoint.seconds
    run.progress.records = [losses.to(run.schedule.beta.device) for losses in checkpoint.losses]
    run.progress.sound = path.name == LAST
    if processes.rank() == 0:
        step, config, saved = checkpoint.step, run.config, checkpoint.settings
        steps = steps_of(config, step, checkpoint.seconds)
        more = "minutes" if config.minutes else "steps"
        print(f"resuming {path} at step {step} of {f'about {steps}' if config.minutes else steps}"
              f"{f'; nothing is left to do, ask for more --{more}' if step >= steps else ''}")
        changed = [name for name in RATE if saved.get(name, getattr(config, name)) != getattr(config, name)]
        before = replace(config, **{name: saved[name] for name in changed})
        earlier = steps_of(before, step, checkpoint.seconds)
        old, new = f"{rate(before, step, earlier):.2g}", f"{rate(config, step + 1, steps):.2g}"
        if new != f"{rate(before, step + 1, earlier):.2g}" and step < steps:
            print(f"warning: the learning rate goes from {old} to {new}, as the run had "
                  f"{' '.join(as_flag(name, saved[name]) for name in changed)}")


def start_from(run: Run, model: Checkpoint) -> None:
    """Begins the run with the weights and the average of another model. Classes that this does not have begin anew.

    Raises ValueError for a model of another network, target or schedule.
    """
    init, network, beta = run.config.init, run.unet.config, run.schedule.beta[1:].cpu()
    theirs, ours = asdict(replace(model.network, classes=network.classes)), asdict(network)
    if differing := [f"{name} {value} (here {ours[name]})" for name, value in theirs.items() if value != ours[name]]:
        raise ValueError(f"the network of {init} has {', '.join(differing)}; use pictures with its channels, its "
                         f"own kind of --loss, and no --network")
    if run.config.target != model.settings["target"] or len(model.beta) != len(beta) or (
            schedule_name(model.beta) != schedule_name(beta)):
        raise ValueError(f"{init} predicts {model.settings['target']} of {len(model.beta)} steps of the schedule "
                         f"{schedule_name(model.beta)[0]}; leave out --target, --schedule, --zero_snr and --T, they "
                         f"are taken from it")
    new = copy_weights(run, model)
    if processes.rank() == 0:
        print(f"starting from {init}{f', to which {len(new)} of the classes are new: {new[0]}, ...' if new else ''}")


def copy_weights(run: Run, model: Checkpoint) -> list[str]:
    """Copies weights and average, the class table by the names of its rows; returns the classes that it lacks."""
    ours = [*run.dataset.classes, None][:run.unet.config.classes]               # None is the null class
    theirs = [*model.data["classes"], None][:model.network.classes]
    with torch.no_grad():
        for copies, originals in ((run.weights, model.weights or model.ema), (run.ema, model.ema)):
            for name, copy in copies.items():
                if name != TABLE:
                    copy.copy_(originals[name])
                for row, label in enumerate(ours if name == TABLE else ()):
                    if label in theirs:
                        copy[row] = originals[name][theirs.index(label)]
    return [label for label in ours if label is not None and label not in theirs]


def schedule_name(beta: Tensor) -> tuple[str, bool]:
    """Which of ddpm.SCHEDULES has these betas (T,), and whether it is rescaled. Raises ValueError if none has."""
    for zero_snr, name in product((False, True), ddpm.SCHEDULES):
        if torch.allclose(ddpm.named_schedule(name, len(beta), zero_snr).beta[1:], beta.double(), rtol=1e-4, atol=0):
            return name, zero_snr
    raise ValueError(f"the model's schedule of {len(beta)} steps, beta {beta[0]:.3g} to {beta[-1]:.3g}, is none of "
                     f"{', '.join(ddpm.SCHEDULES)}; it cannot be trained further here")


def settings_of(model: Checkpoint, loss: str) -> dict[str, Any]:
    """The settings that train the model further: its own, its pictures' too, and this loss if its output fits it."""
    learned, rows, (C, H, W) = model.network.learns_variance, model.network.classes, model.data["shape"]
    loss = loss if (loss in LEARNED) == learned else "hybrid" if learned else "l2"
    null = {"null": 0.} if 0 < rows == len(model.data["classes"]) else {}
    schedule, zero_snr = schedule_name(model.beta)
    return {"size": f"{H}x{W}", "channels": C, "network": "", "target": model.settings["target"],
            "schedule": schedule, "zero_snr": zero_snr, "T": len(model.beta), "loss": loss, **null}


def check_same_run(run: Run, path: Path, checkpoint: Checkpoint, free: set[str]) -> None:
    """Raises ValueError unless settings, but for the free ones, network and data are the checkpoint's.

    The digest tells whether data are the same, wherever they lie. Changed data may be accepted. Other versions are only
    said.
    """
    settings, facts = asdict(run.config), checkpoint.data
    saved = settings_in(path, checkpoint, type(run.config)())
    free = free | ({"data", "size", "channels"} if "digest" in facts else set())
    if changed := [name for name, value in saved.items() if name not in free and settings.get(name) != value]:
        raise ValueError(f"{path} was trained with {' '.join(as_flag(name, saved[name]) for name in changed)}; repeat "
                         f"that, or choose another --out, where {as_flag('init', path)} starts from its weights")
    if not checkpoint.weights or not checkpoint.exp_avg:
        raise ValueError(f"{path} was given away without its optimizer; choose another --out")
    for what, theirs, ours in (("pictures of C x H x W", facts["shape"], run.dataset.shape),
                               ("the classes", facts["classes"], run.dataset.classes),
                               ("the network", checkpoint.network, run.unet.config)):
        if theirs != ours:
            raise ValueError(f"{path} was trained with {what} {theirs}, not {ours}; choose another --out")
    if run.digest != facts.get("digest", run.digest):
        text = (f"the data set {run.config.data} is not what {path} was trained on, {saved.get('data')}: files or "
                f"pixels differ")
        if not run.config.accept_changes:
            raise ValueError(f"{text}; restore it, choose another --out, or accept it with --accept_changes")
        if processes.rank() == 0:
            print(f"warning: {text}")
    other = [f"{name} {checkpoint.versions[name]} (now {version})" for name, version in versions().items()
             if checkpoint.versions.get(name, version) != version]
    if other and processes.rank() == 0:
        print(f"warning: {path} was saved with {', '.join(other)}; the run resumes, but not to the bit")
