"""A training run as a value: what it is made of, how it is described, saved, resumed and sampled from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

import data
import ddpm
import noise
from run import checkpoint, folder, pictures, processes
from run.cli import make_parent
from unet import UNet


class Run(NamedTuple):
    """A training run: what changes from step to step, and what it is made of."""
    config: Any                     # train.Config
    dataset: data.Data
    schedule: ddpm.Schedule
    unet: UNet
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    history: Tensor | None          # (T, 10), with importance sampling


def describe(run: Run) -> None:
    """Prints what is trained on what, and how much of the data the schedule leaves in x_T."""
    config, (C, H, W), bits = run.config, run.dataset.shape, ddpm.schedule_check(run.schedule)
    N, world = len(run.dataset.images), processes.world_size()
    print(f"data     {config.data}: {'endless' if N == data.ENDLESS else N} pictures of {C} x {H} x {W}, "
          f"{len(run.dataset.classes)} classes")
    print(f"network  {config.network}: {sum(w.numel() for w in run.weights.values()):,} parameters, {config.dtype}, "
          f"on {f'{world} x ' if world > 1 else ''}{run.schedule.beta.device}; seed {config.seed}")
    print(f"schedule {config.schedule}, T = {config.T}: {bits:.2g} bits/dim of the data are left in x_T")
    if bits > 1e-3:
        print("warning: sampling starts without them; a larger T or another --schedule leaves less")


def save(run: Run, step: int, records: list[Tensor]) -> None:
    """Writes the whole run to last.pt, with the records that are not yet in its log, and plots its curves."""
    facts = {"name": run.dataset.name, "shape": run.dataset.shape, "classes": run.dataset.classes}
    weights = {name: w.detach() for name, w in run.weights.items()}
    checkpoint.save(Path(run.config.out, "last.pt"), checkpoint.Checkpoint(
        run.unet.config, weights, run.ema, step, run.schedule.beta[1:], asdict(run.config), facts,
        run.optimizer.state_dict(), records, checkpoint.versions(), run.history))
    folder.plot_log(Path(run.config.out))


def resume(run: Run, last: checkpoint.Checkpoint, free: set[str]) -> None:
    """Puts the run where the checkpoint is.

    free: the settings that may differ. Raises ValueError for a checkpoint of another run.
    """
    path = Path(run.config.out, "last.pt")
    checkpoint.check_same_run(path, last, asdict(run.config), free, run.dataset.shape, run.dataset.classes)
    with torch.no_grad():
        for ours, saved in ((run.weights, last.weights), (run.ema, last.ema)):
            for name, w in ours.items():
                w.copy_(saved[name])
    if run.history is not None:
        run.history.copy_(last.history)
    run.optimizer.load_state_dict(last.optimizer)
    if processes.rank() == 0:
        print(f"resuming {path} at step {last.step}")


@torch.no_grad()
def save_samples(run: Run, path: Path) -> dict[str, list[float]]:
    """Samples every class with the averaged weights, always from the same noise; returns the channels' statistics."""
    device, classes = run.schedule.beta.device, run.dataset.classes
    seeds = noise.image_seeds(0, torch.arange(5 * len(classes) if run.unet.classes else 16, device=device))
    labels = torch.arange(len(seeds), device=device) % len(classes) if run.unet.classes else None
    rows = ddpm.sampler_rows(run.schedule, ddpm.timesteps(run.config.T, min(50, run.config.T)),
                             target=run.config.target, variance=run.unet.config.variance)
    run.unet.eval()
    *_, (_, x0, _) = ddpm.sample(lambda xt, t: functional_call(run.unet, run.ema, (xt, t, labels)),
                                 rows, run.dataset.shape, seeds)
    run.unet.train()
    columns, heads = (len(classes), classes) if run.unet.classes else (4, ())
    pictures.grid(x0, columns, heads).save(make_parent(path))
    real = data.to_unit(data.evenly_spaced(run.dataset, 512))
    return {**pictures.channel_statistics("samples", x0), **pictures.channel_statistics("data", real)}
