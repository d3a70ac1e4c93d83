"""Trains an image model.

    python train.py                                     # digits, class-conditional: about two minutes of a CPU core
    python train.py --data photos/ --size 64 --network cifar10 --compile --dtype bf16
    python train.py --preset cars64                     # the recipe of a source; other flags change it

    torchrun --nproc-per-node=4 train.py                # the same batch, shared by 4 processes (distributed.py)

A run is a folder: last.pt (go on from it by repeating the command), log.jsonl, loss.png, samples/*.png.
Every random number is a function of (seed, step), so a run that was stopped ends where it would have.
"""

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from tqdm import tqdm

import checkpoint
import data
import ddpm
import distributed
import noise
import presets
import run_folder
import sources
from cli import DTYPES, check_range, choose_device, parent_made, parse, script, settle_threads
from kernels.compile import fast_unet
from unet import CONFIGS, Cast, UNet, UNetConfig, check_size, recompute

LOSSES, LEARNED = ("l2", "l1", "hybrid", "bound"), ("hybrid", "bound")
SAMPLINGS = ("stratified", "importance")
HISTORY = 10                                    # losses of each t that importance sampling goes by
PATIENCE = 5                                    # steps in a row that may fail before the run stops


@dataclass(frozen=True)
class Config:
    """Trains an image model; repeat the command to go on where it stopped."""
    data: str = "digits"                        # digits, a folder of images, or an .npz file
    size: str = ""                              # pixels, as 64 or 48x64 (H x W); empty keeps the pictures' own
    fit: str = "crop"                           # how they get there: crop (resized first) or pad
    flip: bool = False                          # mirror half of the pictures
    network: str = "digits"                     # a name in unet.CONFIGS; channels and classes follow the data
    target: str = "v"                           # what the network answers: eps, x0 or v
    loss: str = "l2"                            # l2 or l1; hybrid or bound, which learn the variance too
    sampling: str = "stratified"                # of t: stratified, or importance, by the last losses of each t
    schedule: str = "cosine"                    # linear, cosine, quadratic or sigmoid
    T: int = 1000                               # steps of the forward process
    null: float = 0.1                           # chance to hide the label, for guidance; 1 trains without labels
    steps: int = 3000                           # updates in all
    batch: int = 64                             # pictures an update
    accumulate: int = 1                         # parts the batch is cut into, to save memory
    lr: float = 5e-3                            # learning rate of Adam, betas 0.9 and 0.99
    warmup: int = 100                           # updates in which it rises from 0
    final: float = 0.01                         # the part of it left at the end, along a cosine; 1 keeps it all
    clip: float = 1.0                           # largest norm of the gradient; inf lets it be
    ema: float = 0.995                          # decay of the weights' average, ramped as (1 + k)/(10 + k)
    dtype: str = "float32"                      # float32, or bf16: all but norms and the weights' own copy
    recompute: bool = False                     # keep less for the gradient: up to half the memory, a third more time
    compile: bool = False                       # torch.compile the network
    deterministic: bool = False                 # on a GPU, too, the same bits at every run, for some time
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    seed: int = 0                               # of every random number; -1 chooses one, prints and keeps it
    workers: int = 0                            # processes that read images ahead
    log_every: int = 50                         # updates between lines of the log
    sample_every: int = 1000                    # updates between grids of samples
    save_every: int = 500                       # updates between checkpoints
    out: str = "runs/digits"                    # folder of the run


PRESETS = {name: replace(Config(), **changes, out=f"runs/{name}") for name, changes in presets.PRESETS.items()}
FREE = {"steps", "recompute", "compile", "deterministic", "device", "workers",  # may change later
        "log_every", "sample_every", "save_every", "out"}


def check(config: Config) -> None:
    """Raises ValueError for settings that cannot work, naming the first."""
    for name, allowed in {"network": CONFIGS, "target": ddpm.TARGETS, "loss": LOSSES, "sampling": SAMPLINGS,
                          "schedule": ddpm.SCHEDULES, "dtype": DTYPES}.items():
        ddpm.one_of(name, getattr(config, name), allowed)
    for name, most in (("lr", 1), ("clip", math.inf)):
        if not 0 < getattr(config, name) <= most:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be above 0 and at most {most}")
    check_range(config, "T", 2 if config.loss in LEARNED else 1, 10**6)
    check_range(config, "batch accumulate", 1, 2**20)
    check_range(config, "steps log_every sample_every save_every", 1)
    check_range(config, "null final ema", 0, 1)
    check_range(config, "warmup", 0)
    check_range(config, "workers", 0, 1000)
    check_range(config, "seed", -1)
    if config.accumulate > config.batch:
        raise ValueError(f"accumulate is {config.accumulate}; it must be at most the batch, {config.batch}")


def check_share(config: Config) -> None:
    """Raises ValueError unless the batch can be shared by the processes."""
    n = distributed.world()
    if config.batch % n or config.accumulate > config.batch // n:
        raise ValueError(f"batch is {config.batch} and accumulate {config.accumulate}; for {n} processes batch must be "
                         f"a multiple of {n}, and accumulate at most {max(1, config.batch // n)}")


def network_for(config: Config, dataset: data.Data) -> UNetConfig:
    """The named network, its channels and classes those of the data; the null class is the last row."""
    C = dataset.shape[0]
    classes = len(dataset.classes) + 1 if dataset.classes and config.null < 1 else 0
    network = replace(CONFIGS[config.network], in_channels=C, classes=classes,
                      out_channels=2 * C if config.loss in LEARNED else C)
    check_size(network, *dataset.shape)
    return network


def learning_rate(config: Config, step: int) -> float:
    """Rises for `warmup` steps, falls along a cosine to `final` of itself."""
    cosine = (1 + math.cos(math.pi * min(step / config.steps, 1))) / 2
    return config.lr * min(1, step / max(config.warmup, 1)) * (config.final + (1 - config.final) * cosine)


def draw(config: Config, step: int, labels: Tensor, null: int, p: Tensor | None = None,
         share: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """t of each picture, one from each of B equal parts of 1..T, and the labels, sometimes hidden, of a share of them.

    p: (T,) float64, how likely each t is; then the parts are equally likely instead of equally long.
    """
    B = config.batch
    u = torch.arange(B) + noise.uniform(config.seed, step, B, noise.TIMES).double()
    if p is None:
        t = (u * config.T / B).long() + 1
    else:
        t = torch.searchsorted(p.cumsum(0), u / B, right=True).clamp(max=config.T - 1) + 1
    hidden = noise.uniform(config.seed, step, B, noise.LABELS)[share] < config.null
    return t, torch.where(hidden, null, labels) if len(labels) else labels


def importance(history: Tensor) -> Tensor:
    """p_t, (T,) float64, as the root mean square of each t's last losses (Nichol & Dhariwal 2021, eq. 18).

    history: (T, 10), NaN where there is no loss yet; until all are there p is even, and a thousandth of it stays so.
    """
    even = torch.full((len(history),), 1 / len(history), dtype=torch.float64)
    if history.isnan().any():
        return even
    p = history.double().square().mean(1).sqrt()
    return 0.999 * p / p.sum() + 0.001 * even


def remember(history: Tensor, t: Tensor, losses: Tensor) -> None:
    """Puts the losses (B,) of times t (B,) into the history, in place, each for the oldest of its t."""
    for row, loss in zip((t - 1).tolist(), losses.tolist(), strict=True):
        history[row] = torch.cat([history[row, 1:], history.new_tensor([loss])])


def update_average(ema: dict[str, Tensor], weights: dict[str, Tensor], decay: float, k: int) -> None:
    """ema <- d ema + (1 - d) weights in place, d ramped so that the first weights are soon forgotten."""
    d = min(decay, (1 + k) / (10 + k))
    torch._foreach_lerp_(list(ema.values()), [weights[name].detach() for name in ema], 1 - d)


def objective(config: Config, schedule: ddpm.Schedule, denoise: Callable, x0, t, eps) -> Tensor:
    """The loss of each picture, (1, B); with "hybrid" (3, B), followed by the two parts that it is the sum of.

    "bound" is T times the bound's term, whose mean over t is the whole bound (but its prior) in bits/dim.
    """
    if config.loss == "hybrid":
        simple, bound = ddpm.hybrid_parts(schedule, denoise, x0, t, eps, target=config.target)
        return torch.stack([simple + bound, simple, bound])
    if config.loss == "bound":
        terms = ddpm.bound_terms(schedule, denoise, x0, t, eps, target=config.target, variance="learned", clip=False)
        return config.T * terms[None]
    return ddpm.loss(schedule, denoise, x0, t, eps, target=config.target, kind=config.loss)[None]


class Run(NamedTuple):
    """A training run: what changes from step to step, and what it is made of."""
    config: Config
    dataset: data.Data
    schedule: ddpm.Schedule
    unet: UNet
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    history: Tensor | None          # (T, 10), with importance sampling


def begin(config: Config, dataset: data.Data) -> Run:
    """A run at step 0."""
    device = choose_device(config.device)
    torch.manual_seed(config.seed)
    network = network_for(config, dataset)
    unet = fast_unet(network, device) if config.compile else UNet(network).to(device)
    settle_threads(unet)
    if config.recompute:
        recompute(unet)
    weights = dict(unet.named_parameters())
    ema = {name: w.detach().clone() for name, w in weights.items()}
    optimizer = torch.optim.Adam(weights.values(), betas=(0.9, 0.99), fused=True)
    schedule = ddpm.Schedule(*(table.to(device) for table in ddpm.SCHEDULES[config.schedule](config.T)))
    history = torch.full((config.T, HISTORY), math.nan) if config.sampling == "importance" else None
    return Run(config, dataset, schedule, unet, weights, ema, optimizer, history)


def save(run: Run, step: int, records: list[Tensor]) -> None:
    """Writes all of the run to last.pt, with the records not yet in its log, and draws its curves."""
    facts = {"name": run.dataset.name, "shape": run.dataset.shape, "classes": run.dataset.classes}
    weights = {name: w.detach() for name, w in run.weights.items()}
    checkpoint.save(Path(run.config.out, "last.pt"), checkpoint.Checkpoint(
        run.unet.config, weights, run.ema, step, run.schedule.beta[1:], asdict(run.config), facts,
        run.optimizer.state_dict(), records, checkpoint.versions(), run.history))
    run_folder.plot(Path(run.config.out))


def resume(run: Run, last: checkpoint.Checkpoint) -> None:
    """Puts the run where the checkpoint is. Raises ValueError for another run's."""
    ours = asdict(run.config)
    changed = [name for name, value in last.settings.items() if name not in FREE and ours.get(name) != value]
    if changed or tuple(last.data["shape"]) != run.dataset.shape or tuple(last.data["classes"]) != run.dataset.classes:
        was = " ".join(f"--{name} {last.settings[name]}" for name in changed) or f"other data, {last.data}"
        raise ValueError(f"{run.config.out}/last.pt was trained with {was}; repeat that, or choose another --out")
    if not last.optimizer:
        raise ValueError(f"{run.config.out}/last.pt was given away without its optimizer; choose another --out")
    with torch.no_grad():
        for ours, theirs in ((run.weights, last.weights), (run.ema, last.ema)):
            for name, w in ours.items():
                w.copy_(theirs[name])
    if run.history is not None:
        run.history.copy_(last.history)
    run.optimizer.load_state_dict(last.optimizer)
    if distributed.rank() == 0:
        print(f"going on from step {last.step} of {run.config.out}/last.pt")


def denoiser(run: Run) -> Callable:
    """(xt, t, labels) -> answer by the weights being trained, in the asked-for dtype; gradients reach the weights."""
    model = run.unet if run.config.dtype == "float32" else Cast(run.unet, DTYPES[run.config.dtype])
    return distributed.averaging(torch.compile(model, fullgraph=True) if run.config.compile else model)


def update(run: Run, model: Callable, step: int, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """One update of the weights (Ho et al. 2020, algorithm 1): the step's record and the gradient's norm.

    pixels, labels: of this process's share of the batch. Where the norm is not finite, nothing is changed.
    """
    config, schedule, device = run.config, run.schedule, run.schedule.beta.device
    share = distributed.share(config.batch)
    p = None if run.history is None else importance(run.history)
    t, labels = draw(config, step, labels, len(run.dataset.classes), p, share)
    weights = torch.ones(config.batch) if p is None else (1 / (config.T * p[t - 1])).float()     # mean 1: unbiased
    times, labels, even = t[share].to(device), labels.to(device), weights[share].to(device)
    x0 = data.to_unit(pixels.to(device, non_blocking=True))
    seeds = noise.image_seeds(config.seed, torch.arange(config.batch, device=device)[share])
    eps = noise.normal(seeds, step, x0.shape[1:], noise.TRAIN)
    torch.manual_seed(config.seed + step + (distributed.rank() << 32))            # dropout, too, is the step's

    run.optimizer.zero_grad()
    losses, parts = [], torch.arange(len(x0)).chunk(config.accumulate)
    for part in parts:
        y = labels[part] if run.unet.classes else None
        waits = distributed.world() > 1 and part is not parts[-1]                 # gradients are averaged once
        with model.no_sync() if waits else contextlib.nullcontext():
            losses.append(objective(config, schedule, partial(answer, model, y), x0[part], times[part], eps[part]))
            ((even[part] * losses[-1][0]).sum() * distributed.world() / config.batch).backward()
        losses[-1] = losses[-1].detach()
    losses = distributed.gathered(torch.cat(losses, dim=1), dim=1).cpu()
    norm = torch.nn.utils.clip_grad_norm_(run.weights.values(), config.clip)
    if norm.isfinite():
        for group in run.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        run.optimizer.step()
        update_average(run.ema, run.weights, config.ema, step)
        if run.history is not None:
            remember(run.history, t, losses[0])
    return run_folder.record(config.T, t, weights, losses), norm


def answer(model: Callable, labels: Tensor | None, xt: Tensor, t: Tensor) -> Tensor:
    return model(xt, t, labels)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv, PRESETS)
    check(config)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")               # or cuBLAS would refuse
        torch.use_deterministic_algorithms(True)
    with distributed.joined(config.device):
        check_share(config)
        train(*prepared(config))


def prepared(config: Config) -> tuple[Run, int, list[Tensor]]:
    """The run, where its checkpoint left it if there is one: its step, and its records not yet in the log."""
    last = Path(config.out, "last.pt")
    last = checkpoint.load(last) if last.exists() else None
    step = last.step if last else 0
    if step != distributed.first_s(step):
        raise ValueError(f"{config.out}/last.pt is at step {step}, for another process not; --out must lie where all "
                         f"read the same")
    if config.seed == -1:
        config = replace(config, seed=last.settings["seed"] if last else distributed.first_s(random.randrange(2**31)))
    run = begin(config, sources.load(config.data, config.size, config.fit))
    if distributed.rank() == 0:
        announce(run)
    if last:
        resume(run, last)
    return run, step, last.losses if last else []


def announce(run: Run) -> None:
    """Says what is trained on what, and what the schedule leaves in x_T."""
    config, (C, H, W), bits = run.config, run.dataset.shape, ddpm.schedule_check(run.schedule)
    N = len(run.dataset.images)
    print(f"data     {config.data}: {'endless' if N == data.ENDLESS else N} pictures of {C} x {H} x {W}, "
          f"{len(run.dataset.classes)} classes")
    print(f"network  {config.network}: {sum(w.numel() for w in run.weights.values()):,} parameters, {config.dtype}, "
          f"on {f'{n} x ' if (n := distributed.world()) > 1 else ''}{run.schedule.beta.device}; seed {config.seed}")
    print(f"schedule {config.schedule}, T = {config.T}: x_T still knows {bits:.2g} bits/dim")
    if bits > 1e-3:
        print("warning: sampling starts without what x_T knows; a larger T or another --schedule leaves less")


def train(run: Run, start: int, records: list[Tensor]) -> None:
    """Updates from step start + 1 to the last, with a log, a checkpoint and a grid of samples now and then.

    records: of the steps before, as far as the log does not have them yet.
    """
    config, out, model = run.config, Path(run.config.out), denoiser(run)
    steps = range(start + 1, config.steps + 1)
    loader = data.batches(run.dataset, config.batch, config.seed, steps, config.flip, config.workers,
                          distributed.share(config.batch))
    writes, stop, failed, began = distributed.rank() == 0, False, 0, time.perf_counter()
    with (run_folder.owned(out), stoppable() as stopped,
          tqdm(total=config.steps, initial=start, unit=" steps", disable=not writes) as bar):
        if writes:
            run_folder.rewind(out, start)
        for step, (pixels, labels) in zip(steps, loader, strict=True):
            record, norm = update(run, model, step, pixels, labels)
            stop = distributed.anyone(stopped.is_set())
            failed = 0 if norm.isfinite() else failed + 1
            give_up_after(failed, step, record)
            records = records if failed else [*records, record]
            bar.update()

            def due(every: int, step: int = step) -> bool:
                return step % every == 0 or step == config.steps
            if due(config.log_every) and records:
                rate = (step - start) * config.batch / (time.perf_counter() - began)
                line = {"step": step, **run_folder.means(records), "norm": norm.item(),
                        "lr": learning_rate(config, step), "images_per_second": rate}
                if writes:
                    run_folder.write(out, line)
                bar.set_postfix(loss=f"{line['loss']:.4f}", images=f"{rate:.0f}/s")
                records = []
            if writes and due(config.sample_every):
                run_folder.write(out, {"step": step, **show(run, parent_made(out / "samples" / f"{step:06d}.png"))})
            if writes and (due(config.save_every) or stop):
                save(run, step, records)
            if stop:
                break
    if writes:
        print(f"stopped at step {step}; the same command goes on from there" if stop else f"{out}: last.pt, log.jsonl, "
              f"loss.png, samples/; draw more with: python sample.py --checkpoint {out}/last.pt")


def give_up_after(failed: int, step: int, record: Tensor) -> None:
    """Raises ValueError if too many steps in a row failed, this one the last."""
    if failed == PATIENCE:
        loss = run_folder.means([record])["loss"]
        raise ValueError(f"loss {loss:g} or its gradient was not finite {PATIENCE} steps in a row, up to step {step}; "
                         f"lower --lr or look at the data. A checkpoint, if there is one, is from before")


@torch.no_grad()
def show(run: Run, path: Path) -> dict[str, list[float]]:
    """Draws samples of the averaged weights so far, every class in turn, always from the same noise, and their tint."""
    device, classes = run.schedule.beta.device, run.dataset.classes
    seeds = noise.image_seeds(0, torch.arange(5 * len(classes) if run.unet.classes else 16, device=device))
    labels = torch.arange(len(seeds), device=device) % len(classes) if run.unet.classes else None
    times = ddpm.timesteps(run.config.T, min(50, run.config.T))
    rows = ddpm.sampler_rows(run.schedule, times, target=run.config.target,
                             variance="learned" if run.config.loss in LEARNED else "beta_tilde")
    run.unet.eval()
    *_, (_, x0, _) = ddpm.sample(lambda xt, t: functional_call(run.unet, run.ema, (xt, t, labels)),
                                 rows, run.dataset.shape, seeds)
    run.unet.train()
    columns, heads = (len(classes), classes) if run.unet.classes else (4, ())
    data.grid(x0, columns, heads).save(path)
    return {**tint("samples", x0), **tint("data", data.to_unit(data.few(run.dataset, 512)))}


def tint(name: str, x: Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of x (N, C, H, W): samples off the data's have a colour cast."""
    channels = x.transpose(0, 1).flatten(1)
    return {f"{name}_mean": channels.mean(1).tolist(), f"{name}_std": channels.std(1).tolist()}


@contextlib.contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that is set by Ctrl-C or SIGTERM, instead of dying of it."""
    stopped = threading.Event()
    before = {s: signal.signal(s, lambda *_: stopped.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


if __name__ == "__main__":
    main()
