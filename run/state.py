"""A training run as a value: what it is made of, how far it is, how it is described, sampled from and saved."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.func import functional_call

import data
import ddpm
import noise
from run import checkpoint, folder, pictures, processes
from run.checkpoint import LAST, MOMENTS, PREVIOUS, Checkpoint
from run.cli import command
from run.labels import with_pictures
from unet import UNet

Score = Callable[[Tensor, Tensor | None], dict[str, float]]         # samples in [-1, 1], their labels -> scores by name
PATIENCE = 5                        # consecutive updates that may fail before the run stops
SCORED, SCORED_STEPS = 250, 10      # samples that are scored, and their steps of DPM-Solver++
DAY, UNITS = 86400, (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))        # with their seconds
SHOWN, SHOWN_STEPS = 20, 50         # classes in a grid of samples, at most, and the steps of DDIM


@dataclass
class Progress:
    """How far a run is."""
    step: int | None = 0            # of the last complete update; None while one changes the run, which cannot be saved
    seconds: float = 0.             # that it has taken
    records: list[Tensor] = field(default_factory=list)             # of the steps that the log does not have yet
    failures: Tensor | int = 0      # consecutive updates that failed, on the device; PATIENCE of them are not forgotten
    saved: int = 0                  # the step of the newest checkpoint, or of the latest attempt to write one
    sound: bool = False             # whether the newest file is this run's and sound, and so worth keeping
    data: dict[str, list[float]] = field(default_factory=dict)      # mean and deviation of its channels, once known

    def count(self, step: int, finite: Tensor, record: Tensor) -> None:
        """The update of this step is done; where the gradient was not finite it changed nothing, and has no record.

        Nothing here waits for a GPU.
        """
        self.failures = torch.where(finite & (self.failures < PATIENCE), 0, self.failures + 1)
        self.records.append(torch.where(finite, record, 0))
        self.step = step

    def check_failures(self) -> None:
        """Raises ValueError if too many updates in a row failed. Waits for a GPU."""
        if self.failures >= PATIENCE:
            raise ValueError(f"the loss or its gradient was not finite {PATIENCE} steps in a row, seen at step "
                             f"{self.step}; lower --lr, also of a run that is resumed, or look at the data. A "
                             f"checkpoint, if any, is from before")


class Run(NamedTuple):
    """A training run: what changes from step to step, and what it is made of."""
    config: Any                     # train.Config
    dataset: data.Data
    schedule: ddpm.Schedule
    unet: UNet
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler    # multiplies the loss in fp16, where small gradients would be 0
    p: Tensor | None                # (T,), how probable each t is, unless all are equally or its losses tell
    history: Tensor | None          # (T, 10), with importance sampling
    progress: Progress
    digest: str = ""                # of the data set
    score: Score | None = None      # of samples during training; None where there is no classifier of the data set
    check_folder: Callable[[], None] = lambda: None                 # raises ValueError if it is no longer this job's
    board: Any = None               # TensorBoard's writer, if it is wanted


def describe(run: Run, rate: Callable[[Any, int, int], float]) -> None:
    """Prints what is trained on what, and how much of the data the schedule leaves in x_T.

    rate: (config, step, steps) -> the learning rate; one that never gets near --lr is told.
    """
    config, bits, world = run.config, ddpm.schedule_check(run.schedule), processes.world_size()
    N, used = len(run.dataset.images), config.steps * config.batch
    epochs = "" if N == data.ENDLESS else f", each used {used / N:,.{0 if used > 10 * N else 1}f} times"
    print(f"data     {config.data}: {data.describe(run.dataset)}")
    if config.minutes:
        print(f"steps    as many as {config.minutes:g} minutes allow, with {config.batch} pictures")
    else:
        print(f"steps    {config.steps:,} with {config.batch} pictures{epochs}")
    print(f"network  {config.network or config.init}: {sum(w.numel() for w in run.weights.values()):,} parameters, "
          f"{config.dtype}, on {f'{world} x ' if world > 1 else ''}{run.schedule.beta.device}; seed {config.seed}")
    print(f"schedule {config.schedule}, T = {config.T}: {bits:.2g} bits/dim of the data are left in x_T")
    if bits > 1e-3:
        print("warning: sampling starts without them; a larger T or another --schedule leaves less")
    peak = max((rate(config, step, config.steps) for step in range(1, min(config.warmup, config.steps) + 1)),
               default=config.lr)
    if peak < config.lr / 2 and not config.minutes:
        print(f"warning: the learning rate reaches {peak:.2g}, not --lr {config.lr:g}, as it rises for --warmup "
              f"{config.warmup} of {config.steps} steps; lower --warmup")


def steps_of(config: Any, step: int, seconds: float) -> int:
    """The steps of a run: config's, or, after `step` of them, as many as its minutes allow at this pace."""
    if not config.minutes:
        return config.steps
    return max(step, round(step * 60 * config.minutes / seconds)) if step * seconds else data.ENDLESS


def time_left(run: Run, seconds: float) -> str:
    """How long the steps that are left take, at so many seconds each; a warning if it is more than a day."""
    steps = steps_of(run.config, run.progress.step, run.progress.seconds) - run.progress.step
    unit, length = next((each for each in UNITS if steps * seconds >= 2 * each[1]), UNITS[-1])
    text = f"about {steps * seconds / length:.0f} {unit} for the {steps:,} steps that are left"
    if steps * seconds < DAY:
        return text
    return f"warning: {text}; fewer --steps, or a smaller --network, --size or --batch, take less, as does a GPU"


def due(run: Run, every: int) -> bool:
    """Whether what is done every so many steps, and at the last, is to be done now."""
    step = run.progress.step
    return step % every == 0 or step == steps_of(run.config, step, run.progress.seconds)


def log(run: Run, **facts: float | Tensor) -> dict | None:
    """Adds a line to the log if one is due: the mean losses since the last one, and the facts; returns it."""
    progress = run.progress
    if not due(run, run.config.log_every) or not (losses := folder.mean_losses(progress.records)):
        return None
    line = {"step": progress.step, **losses, **{k: float(v) for k, v in facts.items()}}
    if processes.rank() == 0:
        run.check_folder()
        folder.append_log(Path(run.config.out), line, run.board)
    progress.records = []
    return line


def write(run: Run) -> None:
    """Writes a grid of samples and a checkpoint if they are due."""
    if due(run, run.config.sample_every):
        write_samples(run)
    if due(run, run.config.save_every) and run.progress.step > run.progress.saved:
        save(run)


def write_samples(run: Run) -> None:
    """Writes a grid of samples, and what the log says of it, unless the log has it already."""
    step, out = run.progress.step, Path(run.config.out)
    if any(line["step"] == step and "samples_mean" in line for line in folder.read_log(out)):
        return
    run.check_folder()
    grid = out / "samples" / f"{step:06d}.png"
    facts = save_samples(run, grid)
    if run.board:
        run.board.add_image("samples", numpy.asarray(Image.open(grid).convert("RGB")), step, dataformats="HWC")
    folder.append_log(out, {"step": step, **facts, **score_samples(run)}, run.board)
    pictures.progress(out / "samples", step, out / "progress.gif")


def save(run: Run) -> None:
    """Writes the last complete step to last.safetensors, keeps what that was as the previous one, plots the curves."""
    progress, path = run.progress, Path(run.config.out, LAST)
    progress.saved = progress.step
    run.check_folder()
    facts = {"name": run.dataset.name, "shape": run.dataset.shape, "classes": run.dataset.classes, "digest": run.digest,
             "counts": data.count_pictures(run.dataset)}
    adam = {name: run.optimizer.state[w] for name, w in run.weights.items()}
    moments = {part: {name: state[part] for name, state in adam.items() if part in state} for part in MOMENTS}
    updates = int(next(iter(adam.values()))["step"])
    checkpoint.save(path, Checkpoint(
        run.unet.config, run.weights, run.ema, progress.step, run.schedule.beta[1:], asdict(run.config), facts,
        checkpoint.versions(), **moments, updates=updates, losses=progress.records, history=run.history,
        scaler=run.scaler.state_dict(), seconds=progress.seconds),
        path.with_name(PREVIOUS) if progress.sound else None)
    progress.sound = True
    folder.plot_log(Path(run.config.out))


@contextlib.contextmanager
def saved_on_error(run: Run) -> Iterator[None]:
    """Whatever error ends the block, the last complete step is saved before it is raised, where that can be done.

    It cannot be done in the middle of an update, which changes weights, moments and average one after the other. It is
    not done after too many failed updates: a run that is started again and again would reach its end with them.
    An interruption is no error: it ends the block.
    """
    try:
        yield
    except Exception as error:
        step, stopped = run.progress.step or 0, isinstance(error, processes.Interrupted)
        unsaved = step > run.progress.saved and run.progress.failures < PATIENCE
        if processes.rank() == 0 and (unsaved or stopped):
            if unsaved:
                save(run)
            end = f"stopped at step {step}" if stopped else f"an error ended the run, step {step} is saved"
            again = f"to resume, repeat the command, or: {command('train.py', '--resume', run.config.out)}"
            print(f"{end}; {again if run.progress.saved else 'nothing is saved yet'}")
        if not stopped:
            raise


def save_samples(run: Run, path: Path) -> dict[str, list[float]]:
    """Saves five samples of each class, of 20 classes at most, always from the same noise; returns their statistics."""
    classes = with_pictures(data.count_pictures(run.dataset), run.dataset.classes if run.unet.classes else ())
    shown = classes[data.even_indices(len(classes), SHOWN)]
    x0, _ = sampled(run, 5 * len(shown) or 16, shown, SHOWN_STEPS, "ddim")
    heads = pictures.class_heads(run.dataset.classes, shown.tolist())
    pictures.save(pictures.grid(x0, len(heads) or 4, heads), path)
    if not run.progress.data:                           # pictures that are read as needed are read once for it
        real = data.to_unit(data.evenly_spaced(run.dataset, 512))
        run.progress.data.update(pictures.channel_statistics("data", real))
    return {**pictures.channel_statistics("samples", x0), **run.progress.data}


def score_samples(run: Run) -> dict[str, float]:
    """The scores of samples of all classes, always from the same noise, if the run has a score."""
    if run.score is None:
        return {}
    classes = with_pictures(data.count_pictures(run.dataset), run.dataset.classes)
    x0, labels = sampled(run, SCORED, classes, SCORED_STEPS, "2m")
    return run.score(x0.cpu(), None if labels is None else labels.cpu())


def scores_are_cheap(config: Any) -> bool:
    """Whether to score samples takes at most about 2 % of the time of the updates between two grids, or of all.

    To sample them, without gradients, takes as long as to train on a third as many pictures as there are evaluations.
    """
    pictures_trained_on = min(config.sample_every, config.steps) * config.batch
    return pictures_trained_on >= 50 * SCORED * SCORED_STEPS / 3


@torch.no_grad()
def sampled(run: Run, n: int, classes: Tensor, steps: int, sampler: str) -> tuple[Tensor, Tensor | None]:
    """n samples of the averaged weights (n, C, H, W), of these classes in turn, and their labels, if there are any.

    Raises ValueError for a schedule that cannot be sampled.
    """
    times = ddpm.timesteps(run.config.T, min(steps, run.config.T))
    rows = ddpm.sampler_rows(run.schedule, times, sampler=sampler, target=run.config.target)
    device = run.schedule.beta.device
    seeds = noise.image_seeds(0, torch.arange(n, device=device))
    labels = classes.to(device)[torch.arange(n, device=device) % len(classes)] if run.unet.classes else None
    run.unet.eval()
    for _, x0, _ in ddpm.sample(lambda xt, t: functional_call(run.unet, run.ema, (xt, t, labels)),  # noqa: B007
                                rows, run.dataset.shape, seeds):
        processes.unless_interrupted()
    run.unet.train()
    return x0, labels
