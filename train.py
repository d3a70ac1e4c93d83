"""Trains an image model.

    python train.py                                     # digits, class-conditional: about two minutes of a CPU core
    python train.py --data photos/ --size 32 --network fashion --out runs/photos
    python train.py --minutes 15                        # as many steps as that allows, at a rate that falls by then
    python train.py --preset cars64                     # a published recipe; other flags change it
    torchrun --nproc-per-node=4 train.py                # the same batch, shared by 4 processes (run/processes.py)

A run is a folder: last.safetensors and the checkpoint before it, previous.safetensors, log.jsonl, loss.png,
samples/*.png and their film, progress.gif. Repeat the command to resume it. Every random number is a function of (seed,
step), so on the same kind of CPU, thread count and versions a resumed run is bitwise the unbroken one.
"""

import run.first  # noqa: F401  (--help without torch)

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import data
import ddpm
import noise
import published
from kernels.compile import COMPILING, compile_trained, fast_unet
from run import folder, presets, processes
from run.checkpoint import LAST, Checkpoint
from run.cli import DTYPES, as_flag, check_range, choose_device, command, limit_threads, parse, script
from run.importance import LEVELS, empty_history, importance, level_probabilities, update_history
from run.memory import Cast, recompute
from run.muon import optimizer_of
from run.resume import LEARNED, RATE, latest, resume, run_folder, saved_settings, settings_of, start_from
from run.state import Progress, Run, describe, due, log, saved_on_error, scores_are_cheap, steps_of, time_left, write
from scores.classes import scorer
from unet import CONFIGS, UNet, UNetConfig, check_size

LOSSES = ("l2", "l1", *LEARNED)
SAMPLINGS = ("stratified", "importance", *LEVELS)


@dataclass(frozen=True)
class Config:
    """Trains an image model; repeat the command to resume a run that stopped."""
    preset: str = ""                            # a recipe, which other flags change
    resume: str = ""                            # folder of a run, which goes on with its own settings
    init: str = ""                              # a model to start from: a run, a checkpoint, any --source of convert.py
    data: str = "digits"                        # digits, a folder, an .npz file, or a set: mnist:FOLDER
    size: str = ""                              # pixels, as 64 or 48x64 (H x W); empty keeps the pictures' own
    fit: str = "crop"                           # how pictures reach that size: crop (resized first) or pad (shrunk)
    channels: int = 0                           # 1, 3 or 4 (with transparency); 0 is the pictures' own
    flip: bool = False                          # mirror half of the pictures
    network: str = "digits"                     # a network of unet.py; its channels and classes follow the data
    target: str = "v"                           # what the network predicts: eps, x0, v or flow
    loss: str = "l2"                            # l2 or l1; hybrid or bound, which learn the variance too
    space: str = ""                             # what l2 is the error of, if not the target: eps, x0, v, flow, min-snr
    sampling: str = "stratified"                # of t: stratified, importance by its losses; lognormal, logit-normal
    schedule: str = "cosine"                    # linear, cosine, quadratic, sigmoid or flow
    zero_snr: bool = False                      # rescale it so that no signal is left at T
    T: int = 1000                               # steps of the forward process
    null: float = 0.1                           # probability of hiding the label, for guidance; 1 trains without labels
    steps: int = 3000                           # optimizer updates
    minutes: float = 0.                         # that the run may take, instead of --steps; no two runs are the same
    batch: int = 64                             # pictures per update
    accumulate: int = 1                         # parts that the batch is split into, to save memory
    optimizer: str = "muon"                     # muon for the blocks' products, adam for the rest; or adam for all
    lr: float = 5e-3                            # learning rate of Adam; Muon's is four times as large
    warmup: int = 100                           # updates over which it rises from 0
    final: float = 0.01                         # fraction left at the end of a cosine decay; 1 is constant
    clip: float = 1.0                           # largest norm of the gradient; inf does not clip
    ema: float = 0.995                          # decay of the weights' average, at most (1 + k)/(10 + k) at step k
    dtype: str = "float32"                      # or bf16 or fp16: all but the norms and the stored weights
    recompute: bool = False                     # recompute activations: up to half the memory, a third more time
    compile: bool = False                       # torch.compile the network, which pays in runs of an hour or more
    deterministic: bool = False                 # the same bits in every run on a GPU too, at some cost in time
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    seed: int = 0                               # of every random number; -1 chooses one, and prints and keeps it
    workers: int = 0                            # processes that load images ahead
    log_every: int = 50                         # updates between lines of the log
    sample_every: int = 1000                    # updates between grids of samples
    save_every: int = 500                       # updates between checkpoints
    tensorboard: bool = False                   # show the log and the grids in TensorBoard too, if it is installed
    accept_changes: bool = False                # resume although the data set has changed
    out: str = "runs/digits"                    # folder of the run


PRESETS = {name: replace(Config(), **changes, out=f"runs/{name}") for name, changes in presets.PRESETS.items()}
AVERAGED = 10**9                    # steps that the average of --init counts as having behind it: none is ramped
CHECK_EVERY = 50                    # updates after which a GPU is asked whether they succeeded
FIRST_SCALE = 1024.                 # of the loss in fp16; under torch's 65536 more updates may fail than a run forgives
FREE = {"steps", "recompute", "compile", "deterministic", "device", "workers",  # may differ when a run is resumed
        "log_every", "sample_every", "save_every", "tensorboard", "accept_changes", "out",
        "preset", "resume", "accumulate", *RATE}        # the rate's are told, accumulation changes rounding alone


def defaults(config: Config) -> Config:
    """The settings that the flags of this config change: of the preset, of the run to resume, of the model to train."""
    if config.preset:
        ddpm.check_choice("preset", config.preset, PRESETS)
    settings = PRESETS.get(config.preset, Config())
    if config.resume:
        if config.preset:
            raise ValueError(f"the run in {config.resume} goes on with its own settings; leave --preset out")
        saved = saved_settings(config.resume, Config())
        settings = Config(**{name: saved[name] for name in saved if hasattr(settings, name)})
    if config.init:
        settings = replace(settings, **settings_of(published.read(config.init), settings.loss))
    return settings


def check(config: Config) -> None:
    """Raises ValueError for settings that cannot work, or whose batch the processes cannot share, naming the first."""
    for name, allowed in {"network": [*CONFIGS, *[""] * bool(config.init)], "target": ddpm.TARGETS, "loss": LOSSES,
                          "sampling": SAMPLINGS, "schedule": ddpm.SCHEDULES, "dtype": DTYPES}.items():
        ddpm.check_choice(name, getattr(config, name), allowed)
    if config.resume and Path(config.out) != run_folder(config.resume):
        raise ValueError(f"out is {config.out} and resume {config.resume}; a run goes on in its own folder; leave out "
                         f"--out, or copy the folder and resume the copy")
    if config.space:
        ddpm.check_choice("space", config.space, ddpm.SPACES)
    if config.space and config.loss != "l2":
        raise ValueError(f"space is {config.space} and loss {config.loss}; a space weights squared errors, use loss l2")
    for name, most in (("lr", 1), ("clip", math.inf)):
        if not 0 < getattr(config, name) <= most:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0 and at most {most}")
    if config.loss in LEARNED and config.sampling in LEVELS:
        raise ValueError(f"loss is {config.loss} and sampling {config.sampling}, under which the mean of the bound's "
                         f"terms would not be the bound; use sampling stratified or importance")
    check_range(config, "T", 2 if config.loss in LEARNED or config.zero_snr else 1, 10**6)
    ddpm.check_target(ddpm.named_schedule(config.schedule, config.T, config.zero_snr).alpha_bar[-1], config.target)
    check_range(config, "batch accumulate", 1, 2**20)
    check_range(config, "steps log_every sample_every save_every", 1)
    check_range(config, "null final ema", 0, 1)
    check_range(config, "warmup minutes", 0)
    check_range(config, "workers", 0, 1000)
    check_range(config, "seed", -1)
    n = processes.world_size()
    if config.batch % n:
        raise ValueError(f"batch is {config.batch}; for {n} processes it must be a multiple of {n}")
    if config.accumulate > config.batch // n:
        raise ValueError(f"accumulate is {config.accumulate}; it must be at most {config.batch // n}, one "
                         f"process's share of the batch")


def network_for(config: Config, dataset: data.Data, model: Checkpoint | None = None) -> UNetConfig:
    """The named network, or the model's, with the data's channels and classes, and a null class if it is trained."""
    C = dataset.shape[0]
    classes = len(dataset.classes) + (config.null > 0) if dataset.classes and config.null < 1 else 0
    network = replace(CONFIGS[config.network] if config.network else model.network, in_channels=C, classes=classes,
                      out_channels=2 * C if config.loss in LEARNED else C)
    check_size(network, *dataset.shape)
    return network


def start(config: Config, dataset: data.Data, model: Checkpoint | None = None) -> Run:
    """A run at step 0. model: what has the network, if config does not name it."""
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    network = network_for(config, dataset, model)
    unet = fast_unet(network, device) if config.compile else UNet(network).to(device)
    limit_threads(unet)
    if config.recompute:
        recompute(unet)
    weights = dict(unet.named_parameters())
    ema = {name: w.detach().clone() for name, w in weights.items()}
    optimizer = optimizer_of(config.optimizer, weights)
    tables = ddpm.named_schedule(config.schedule, config.T, config.zero_snr)
    schedule = ddpm.Schedule(*(table.to(device) for table in tables))
    scaler = torch.amp.GradScaler(device.type, FIRST_SCALE, enabled=config.dtype == "fp16")
    if (schedule.alpha_bar.diff() >= 0).any():
        raise ValueError(f"alpha_bar of schedule {config.schedule} and T = {config.T} is 0 before T; use a smaller T")
    history = empty_history(config.T) if config.sampling == "importance" else None
    p = level_probabilities(tables, *LEVELS[config.sampling]) if config.sampling in LEVELS else None
    return Run(config, dataset, schedule, unet, weights, ema, optimizer, scaler, p, history, Progress())


# Algorithm 1

def sample_timesteps(config: Config, step: int, p: Tensor | None = None) -> Tensor:
    """t of every picture of the batch, int64 (B,) in 1..T, one from each of B equal parts of 1..T.

    p: (T,) float64, the probability of each t; the parts are then equally probable instead of equally long.
    """
    B = config.batch
    u = torch.arange(B) + noise.uniform(config.seed, step, B, noise.TIMES).double()
    if p is None:
        return (u * config.T / B).long() + 1
    return torch.searchsorted(p.cumsum(0), u / B, right=True).clamp(max=config.T - 1) + 1


def hide_labels(config: Config, step: int, labels: Tensor, null: int, share: slice = slice(None)) -> Tensor:
    """The labels of this share of the batch, each replaced by the null class with probability config.null."""
    hidden = noise.uniform(config.seed, step, config.batch, noise.LABELS)[share] < config.null
    return torch.where(hidden, null, labels) if len(labels) else labels


def dropout_seed(seed: int, step: int) -> int:
    """Seed of torch's generator for this step and process; 32 bits, the most a CPU generator uses."""
    key = noise.image_seeds(seed, torch.tensor(processes.rank()))
    return noise.words(key, step, 1, noise.DROPOUT)[0].item()


def learning_rate(config: Config, step: int, steps: int) -> float:
    """Rises linearly for `warmup` steps, and falls along a cosine to `final` times its maximum at the last step."""
    cosine = (1 + math.cos(math.pi * min(step / steps, 1))) / 2
    return config.lr * min(1, step / max(config.warmup, 1)) * (config.final + (1 - config.final) * cosine)


def update_average(ema: dict[str, Tensor], weights: dict[str, Tensor], decay: float, k: int,
                   finite: Tensor | bool = True) -> None:
    """ema <- ema + (1 - d) (weights - ema), in place; d rises with the step k, so the first weights are soon forgotten.

    finite: if it is false, nothing is changed. A GPU is not waited for: the change is multiplied by 0.
    """
    d = min(decay, (1 + k) / (10 + k))
    ema, weights = list(ema.values()), [weights[name].detach() for name in ema]
    change = torch._foreach_sub(weights, ema)
    torch._foreach_mul_(change, (1 - d) * finite)
    torch._foreach_add_(ema, change)


def objective(config: Config, schedule: ddpm.Schedule, denoise: Callable, x0, t, eps) -> dict[str, Tensor]:
    """The loss of each picture (B,); for "hybrid" also the two parts that it is the sum of.

    "bound" is T times the bound's term, whose mean over t is the whole bound without its prior, in bits/dim.
    """
    if config.loss == "hybrid":
        simple, bound = ddpm.hybrid_parts(schedule, denoise, x0, t, eps, target=config.target)
        return {"loss": simple + bound, "simple": simple, "bound": bound}
    if config.loss == "bound":
        terms = ddpm.bound_terms(schedule, denoise, x0, t, eps, target=config.target, variance="learned", clip=False)
        return {"loss": config.T * terms}
    return {"loss": ddpm.loss(schedule, denoise, x0, t, eps, target=config.target, kind=config.loss,
                              space=config.space)}


def trained_model(run: Run) -> Callable:
    """(xt, t, labels) -> output, with the weights being trained, in the chosen dtype; gradients reach the weights."""
    model = run.unet if run.config.dtype == "float32" else Cast(run.unet, DTYPES[run.config.dtype])
    if run.config.compile:
        device = run.schedule.beta.device
        torch.backends.cudnn.benchmark = device.type == "cuda" and not run.config.deterministic
        model = compile_trained(model, device)
    return processes.average_gradients(model)


class Batch(NamedTuple):
    """This process's share of a batch, on the device."""
    x0: Tensor                      # (b, C, H, W)
    t: Tensor                       # (b,)
    eps: Tensor                     # (b, C, H, W)
    y: Tensor | None                # (b,) labels, for a network with classes
    weight: Tensor                  # (b,) of each loss, mean 1


def make_batch(run: Run, step: int, t: Tensor, weight: Tensor, pixels: Tensor, labels: Tensor) -> Batch:
    """This process's share of the step's batch. pixels and labels are the share's, t and weight the whole batch's."""
    config, device, share = run.config, run.schedule.beta.device, processes.local_slice(run.config.batch)
    y = hide_labels(config, step, labels, len(run.dataset.classes), share) if run.unet.classes else None
    pixels, t, y, weight = (to_device(part, device) for part in (pixels, t[share], y, weight[share]))
    x0 = data.to_unit(pixels)
    seeds = noise.image_seeds(config.seed, torch.arange(config.batch, device=device)[share])
    eps = noise.normal(seeds, step, x0.shape[1:], noise.TRAIN)
    return Batch(x0, t, eps, y, weight)


def to_device(part: Tensor | None, device: torch.device) -> Tensor | None:
    """The tensor on the device; from pinned memory, or the copy would wait for all that a GPU has yet to compute."""
    if part is None or part.device.type == device.type:
        return part
    return part.pin_memory().to(device, non_blocking=True)


def backward(run: Run, model: Callable, batch: Batch) -> Tensor:
    """Leaves the gradient of the batch's mean loss, scaled, in the weights; returns all losses, a row per name."""
    config, losses = run.config, []
    parts = torch.arange(len(batch.x0)).chunk(config.accumulate)
    for part in parts:
        def denoise(xt: Tensor, t: Tensor, part: Tensor = part) -> Tensor:
            return model(xt, t, None if batch.y is None else batch.y[part])

        waits = processes.world_size() > 1 and part is not parts[-1]              # gradients are averaged once
        with model.no_sync() if waits else contextlib.nullcontext():
            by_name = objective(config, run.schedule, denoise, batch.x0[part], batch.t[part], batch.eps[part])
            mean = (batch.weight[part] * by_name["loss"]).sum() * processes.world_size() / config.batch
            run.scaler.scale(mean).backward()
        losses.append(torch.stack([*by_name.values()]).detach())
    return processes.all_gather(torch.cat(losses, dim=1), dim=1)


def update(run: Run, model: Callable, step: int, pixels: Tensor, labels: Tensor) -> Tensor:
    """One update of the weights (Ho et al. 2020, algorithm 1); returns the gradient's norm, on the device.

    pixels, labels: this process's share of the batch. If the norm is not finite, nothing but the progress is changed. A
    GPU is waited for only where the losses choose the next t.
    """
    config = run.config
    p = run.p if run.history is None else importance(run.history)
    t, weight = sample_timesteps(config, step, p), torch.ones(config.batch)
    if run.history is not None:
        weight = (1 / (config.T * p[t - 1])).float()                              # mean 1: unbiased
    batch = make_batch(run, step, t, weight, pixels, labels)
    if run.unet.config.dropout:
        torch.manual_seed(dropout_seed(config.seed, step))
    run.optimizer.zero_grad()
    losses = backward(run, model, batch)
    run.scaler.unscale_(run.optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.weights.values(), config.clip)
    finite = norm.isfinite()
    run.progress.step = None                                                      # what ends in here cannot be saved
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(config, step, steps_of(config, step - 1, run.progress.seconds))
    run.optimizer.found_inf = (~finite).float()                                   # then it changes nothing
    run.optimizer.step()
    run.scaler.update()
    update_average(run.ema, run.weights, config.ema, step + AVERAGED * bool(config.init), finite)
    if run.history is not None and finite:
        update_history(run.history, t, losses[0].cpu())
    record = folder.loss_record(config.T, *(to_device(part, losses.device) for part in (t, weight)), losses)
    run.progress.count(step, finite, record)
    return norm


# The loop

def train(run: Run, clock: Callable[[], float] = time.perf_counter) -> None:
    """All updates that are left, with a log, grids and checkpoints at intervals. clock: in seconds; ends --minutes."""
    config, progress, model, writes = run.config, run.progress, trained_model(run), processes.rank() == 0
    first, last = progress.step, steps_of(config, progress.step, progress.seconds)
    most = data.ENDLESS if config.minutes and first < last else last
    loader = data.batches(run.dataset, config.batch, config.seed, range(first + 1, most + 1), config.flip,
                          config.workers, processes.local_slice(config.batch))
    timed, began, told = first, clock(), False
    zero = began - progress.seconds
    with (processes.interruptible(gradients=run.schedule.beta.is_cpu and not config.compile), saved_on_error(run),
          tqdm(total=None if most == data.ENDLESS else last, initial=first, unit=" steps", disable=not writes) as bar):
        if writes and config.compile:
            bar.write(COMPILING)
        if writes and first:
            write(run)                                                            # what it was stopped before
        for step, (pixels, labels) in enumerate(loader, first + 1):
            norm = update(run, model, step, pixels, labels)
            stop = processes.any_process(processes.INTERRUPTED.is_set())
            now = clock()
            progress.seconds = processes.broadcast_first(now - zero) if config.minutes else now - zero
            last = bar.total = steps_of(config, step, progress.seconds)
            seconds, count = now - began, step - timed
            rate = count * config.batch / seconds
            if norm.is_cpu or stop or any(due(run, every) for every in (
                    CHECK_EVERY, config.log_every, config.sample_every, config.save_every)):
                progress.check_failures()
                if writes and not told and (seconds > 10 or count >= 20) and step < last:
                    bar.write(time_left(run, seconds / count))
                    told = True
            bar.update()
            if line := log(run, norm=norm, lr=run.optimizer.param_groups[0]["lr"], images_per_second=rate):
                bar.set_postfix(loss=f"{line['loss']:.4f}", images=f"{rate:.0f}/s")
            if writes:
                write(run)
            if stop:
                raise processes.Interrupted
            if config.compile and step == first + 1:
                timed, began = step, clock()                                      # compiled it
            if step == last:
                break
    if writes and progress.step >= last:
        print(f"{config.out}: log.jsonl, loss.png, samples/, progress.gif, {LAST}; sample from it with: "
              f"{command('sample.py', '--checkpoint', Path(config.out, LAST))}")


def prepare(config: Config, check_folder: Callable[[], None]) -> Run:
    """The run, resumed if its folder has a checkpoint. check_folder: raises ValueError if it is another job's now."""
    out = Path(config.out)
    path, checkpoint = latest(out) or (None, None)
    step = checkpoint.step if checkpoint else 0
    model = published.read(config.init) if config.init and not checkpoint else checkpoint
    if step != processes.broadcast_first(step):
        raise ValueError(f"{path} is at step {step} for one process and not for another; --out must be a folder that "
                         f"all of them share")
    if config.seed == -1:
        seed = checkpoint.settings.get("seed", 0) if checkpoint else processes.broadcast_first(random.randrange(2**31))
        config = replace(config, seed=seed)
    data.check_outside(config.data, config.out)
    dataset = data.load(config.data, config.size, config.fit, config.channels)
    run = start(config, dataset, model)._replace(digest=data.digest(dataset), check_folder=check_folder)
    if processes.rank() == 0:
        describe(run, learning_rate)
        if config.tensorboard:
            run = run._replace(board=folder.tensorboard(out, step))
        if scores_are_cheap(config):
            run = run._replace(score=scorer(dataset, config.data, config.size, config.fit))
    if checkpoint:
        resume(run, path, checkpoint, FREE, learning_rate)
    elif config.init:
        start_from(run, model)
    if processes.rank() == 0:
        folder.truncate_log(out, step)
    return run


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, defaults, {"preset": PRESETS, "network": CONFIGS})
    if config.preset:
        print(f"preset {config.preset}:", *starmap(as_flag, asdict(config).items()))
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")               # or cuBLAS would refuse
        torch.use_deterministic_algorithms(True)
    with processes.group(config.device):
        check(config)
        with folder.lock(Path(config.out)) as check_folder:
            train(prepare(config, check_folder))


if __name__ == "__main__":
    main()
