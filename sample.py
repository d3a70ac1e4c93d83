"""Samples pictures from a trained model.

    python sample.py                                             # 100 digits, of the committed weights, to out/grid.png
    python sample.py --labels 7 --steps 1000 --eta 1 --gif        # DDPM, and a film of the reverse chain
    python sample.py --checkpoint runs/digits/last.safetensors --compile
    python sample.py --from google/ddpm-cifar10-32 --n 16         # a published model
    torchrun --nproc-per-node=4 -- sample.py --n 50000 --npz      # by 4 processes; without -- torchrun would take --n

The checkpoint knows the network, the schedule and the classes. The noise of picture i is a function of (seed, i, step)
to the bit, so the picture is a function of (weights, seed, i) to rounding: not of n, the batch or the processes.
"""

import run.first  # noqa: F401  (--help without torch)

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import ddpm
import published
import samplers
from kernels.compile import COMPILING, compile_denoiser, compile_loop, fast_norm
from noise import image_seeds
from run import arrays, pictures, processes
from run.chain import choose_guidance, choose_start
from run.checkpoint import WEIGHTS, Checkpoint, load, load_unet
from run.cli import DTYPES, as_flag, check_range, choose_device, make_parent, parse, parse_numbers, script
from run.labels import choose_labels
from run.pictures import Samples
from unet import UNet, group_norm_silu_plain


@dataclass(frozen=True)
class Config:
    """Samples pictures from a trained model."""
    checkpoint: str = "weights/digits.safetensors"  # what train.py saved
    from_: str = ""                             # a published model instead: any --source of convert.py
    n: int = 100                                # number of pictures; grid.png and the film show the first 1000 or so
    batch: int = 100                            # largest batch of a process; changes pictures by rounding only
    seed: int = 0                               # picture i is a function of the weights, the seed and i
    labels: str = ""                            # as 7, cat,dog or :0 (a number), repeated; empty: all; none: no label
    sampler: str = "ddim"                       # ddim, ddpm, 2m, heun, unipc, unipc-bh1, consistency, or a FILE.csv
    steps: str = "50"                           # number of steps, or the timesteps themselves, as 1000,600,200
    spacing: str = "trailing"                   # of the timesteps: trailing, leading, linspace, karras, logsnr or flow
    shift: float = 1.                           # above 1, the steps of flow spacing move to more noise
    eta: float = 0.                             # noise of each step of ddim or 2m; ddim with 1 is ddpm
    churn: float = 0.                           # noise of heun's steps: S_churn of EDM
    s_tmin: float = 0.                          # churn only from this sigma,
    s_tmax: float = math.inf                    # to this one,
    s_noise: float = 1.                         # and so much of its noise
    variance: str = ""                          # beta_tilde, beta or learned; empty is the model's own
    clip: bool = True                           # clip the predicted x0 to [-1, 1]
    table: str = ""                             # FILE.csv to write the sampler's table to, as --sampler takes it
    guidance: float = 0.                        # w of (1 + w) eps(label) - w eps(no label)
    guidance_interval: str = ""                 # guide only where sigma lies between these two, as 0.2,5
    guidance_rescale: float = 0.                # 0 to 1: how far guided outputs get the deviation of unguided ones
    start: str = ""                             # a picture to begin with, under noise, instead of noise alone
    strength: float = 0.6                       # the part of the chain that is left to it: 1 is nearly noise alone
    weights: str = "ema"                        # the averaged weights, or raw
    snapshots: str = ""                         # timesteps, as 1000,500,0: strip.png shows the nearest ones visited
    gif: bool = False                           # reverse.gif, a film of the reverse chain
    png: bool = False                           # every picture as a file, labels in metadata.csv, as --data reads them
    npz: bool = False                           # pictures.npz with arr_0 uint8 (n, H, W, C), arr_1 labels; resumable
    dtype: str = "float32"                      # or bf16 or fp16: all weights but the norms'
    compile: bool = False                       # torch.compile, same to about 1e-4; pays for thousands of pictures
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = "out"                            # folder for grid.png and the rest


def check(config: Config) -> None:
    """Raises ValueError for settings that cannot work, naming the first."""
    check_range(config, "n batch", 1)
    check_range(config, "guidance_rescale strength", 0, 1)
    if not math.isfinite(config.guidance):
        raise ValueError(f"guidance is {config.guidance}; it must be a number, 0 for none")
    ddpm.check_choice("weights", config.weights, WEIGHTS)
    ddpm.check_choice("dtype", config.dtype, DTYPES)


# The chain

def chosen_steps(config: Config, T: int) -> list[int]:
    """The number of steps, or the timesteps; the default number is T, if that is less."""
    steps = parse_numbers("steps", config.steps)
    return [min(*steps, T)] if config.steps == Config.steps else steps


def check_defaults(config: Config, names: str) -> None:
    """Raises ValueError for a flag that a table would leave without effect."""
    for name in names.split():
        if getattr(config, name) != getattr(Config, name):
            raise ValueError(f"{as_flag(name, getattr(config, name))} would do nothing: {config.sampler} is a table of "
                             f"its own, which fixes every step; leave it out")


def sampler_table(checkpoint: Checkpoint, config: Config) -> Tensor:
    """The sampler's rows (S, 12), on the CPU."""
    schedule, target = ddpm.from_betas(checkpoint.beta), checkpoint.settings["target"]
    if samplers.is_file(config.sampler):
        check_defaults(config, "steps spacing shift eta churn s_tmin s_tmax s_noise variance clip strength")
        rows = samplers.read_table(config.sampler, schedule, target)
        if samplers.needs(rows).learned and not checkpoint.network.learns_variance:
            raise ValueError(f"{config.sampler} reads a learned variance, but {config.checkpoint} learned none")
        return rows
    steps = chosen_steps(config, len(checkpoint.beta))
    if len(steps) > 1 and (config.spacing, config.shift) != ("trailing", 1):
        raise ValueError(f"steps lists the timesteps, so spacing {config.spacing} and shift {config.shift:g} would do "
                         f"nothing; leave them out, or give the number of steps")
    times = samplers.spaced_times(schedule, steps[0], config.spacing, config.shift) if len(steps) == 1 else steps
    if config.start:
        times = samplers.as_python(torch.as_tensor(times))
        times = [t for t in times if t <= config.strength * len(checkpoint.beta)] or times[-1:]
    if config.variance == "learned" and not checkpoint.network.learns_variance:
        raise ValueError(f"variance is learned, but {config.checkpoint} learned none; use beta_tilde or beta")
    options_of = samplers.options_of(config.sampler)
    if config.variance and {"eta", "variance"} <= {*options_of} and not config.eta:
        raise ValueError(f"variance is {config.variance}, but with eta 0 no noise is added; use --eta 1")
    options = {name: value for name in ("eta", "churn", "s_tmin", "s_tmax", "s_noise", "variance")
               if (value := getattr(config, name)) != getattr(Config, name)}
    if "variance" in options_of:
        options.setdefault("variance", checkpoint.variance)
    rows = samplers.sampler_rows(schedule, times, sampler=config.sampler, target=target,
                                 clip=config.clip and checkpoint.clip, **options)
    if config.sampler == "heun" and (gain := samplers.column(rows, "cp").abs().max()) > 10 and not processes.rank():
        print(f"a step of heun is so long here that its correction multiplies errors by {gain:.0f}; use --spacing "
              f"logsnr, or more --steps")
    return rows


class Plan(NamedTuple):
    """What will be sampled. What cannot work is refused while it is made, before anything is written."""
    config: Config
    unet: UNet
    rows: Tensor                                # (S, 12), of the sampler
    guidance: list[float]                       # w of every row
    first: Callable[[Tensor], Tensor]           # seeds -> x_T
    shape: tuple[int, int, int]                 # C, H, W
    classes: tuple[str, ...]
    seeds: tuple[Tensor, ...]                   # of one batch after the other, those of all processes in turn
    labels: tuple[Tensor, ...] | None           # the same; None for a network without classes


def make_plan(config: Config, checkpoint: Checkpoint, weights: dict[str, Tensor] | None = None) -> Plan:
    """The network, the chain and the batches that config asks for. weights: used instead of the checkpoint's."""
    device, config = choose_device(config.device), replace(config, checkpoint=config.from_ or config.checkpoint)
    norm = fast_norm(device) if config.compile else group_norm_silu_plain
    unet = load_unet(checkpoint, config.weights, config.dtype, config.device, norm, weights)
    rows, choices = sampler_table(checkpoint, config), choose_labels(checkpoint, config)
    w, first = choose_guidance(config, checkpoint, rows), choose_start(config, checkpoint, rows)
    world = processes.world_size()
    rounds = math.ceil(config.n / (config.batch * world))
    size = math.ceil(config.n / (rounds * world))                                 # of every process's every batch
    index = torch.arange(rounds * world * size)
    labels = None if choices is None else choices[index % len(choices)].to(device).split(size)
    return Plan(config, unet, rows.to(device), w, first, tuple(checkpoint.data["shape"]),
                tuple(checkpoint.data["classes"]), image_seeds(config.seed, index).to(device).split(size), labels)


def make_chain(plan: Plan, y: Tensor | None) -> Callable:
    """seeds -> `ddpm.sample`'s iterator, for the plan's batches, whose labels are read from y."""
    rows, shape, seeds = plan.rows, plan.shape, plan.seeds[0]

    def denoisers(model: Callable) -> Callable | list[Callable]:
        if y is None:
            return model
        by_weight = {w: ddpm.guided(model, y, len(plan.classes), w, plan.config.guidance_rescale)
                     for w in {*plan.guidance}}
        return [by_weight[w] for w in plan.guidance]

    ahead = max(1, min(64, 2**17 // (len(seeds) * math.prod(shape)))) if rows.is_cpu else 1     # noise fits in caches
    if not plan.config.compile:
        return partial(ddpm.sample, denoisers(plan.unet), rows, shape, ahead=ahead)
    if not processes.rank():
        print(COMPILING, flush=True)
    return compile_loop(denoisers(compile_denoiser(plan.unet, samplers.network_times(rows))), rows, shape, seeds, ahead)


# Batches

Keep = Callable[[list[int]], set[int]]          # the timesteps of a chain -> those whose x_t is kept


def generate(config: Config, keep: Keep = lambda times: set(), weights: dict[str, Tensor] | None = None) -> Samples:
    """The pictures that config asks for, and x_t at the timesteps that `keep` chooses among those of the chain."""
    return pictures.concatenate(list(sample_batches(make_plan(config, read(config), weights), keep)))


def read(config: Config) -> Checkpoint:
    """The model to sample from. Raises ValueError if the processes do not read the same one."""
    check(config)
    checkpoint = published.read(config.from_) if config.from_ else load(config.checkpoint, [WEIGHTS[config.weights]])
    if checkpoint.step != processes.broadcast_first(checkpoint.step):
        raise ValueError(f"{config.checkpoint} was replaced while it was read; sample again")
    return checkpoint


def sample_batches(plan: Plan, keep: Keep, done: int = 0) -> Iterator[Samples]:
    """What `generate` returns, batch by batch; a batch is shared by all processes, and complete on each of them.

    done: how many pictures exist already; a batch that lies within them is reported, but not sampled again.
    """
    times, world, size = samplers.as_python(samplers.column(plan.rows, "t")), processes.world_size(), len(plan.seeds[0])
    kept, steps = {0, *keep([*times, 0])}, len(times)
    y = None if plan.labels is None else plan.labels[0].clone()                   # a captured chain reads them here
    chain = make_chain(plan, y)
    with tqdm(total=len(plan.seeds) // world * steps, unit=" steps", leave=False, disable=processes.rank() > 0) as bar:
        for k in range(0, len(plan.seeds), world):
            began, first, mine = time.perf_counter(), k * size, k + processes.rank()
            n = min(world * size, plan.config.n - first)
            labels = None if plan.labels is None else torch.cat(plan.labels[k:k + world])[:n].cpu()
            if first + n <= done:
                bar.update(steps)
                yield Samples(n, None, labels, plan.classes, {}, 0., 0)
                continue
            if y is not None:
                y.copy_(plan.labels[mine])
            states, x_T = {}, plan.first(plan.seeds[mine])
            for s, xs, _ in itertools.chain([(times[0], x_T, None)], chain(plan.seeds[mine], x_T=x_T)):
                bar.update(s < times[0])                                          # x_T took no step
                if s in kept:
                    states[s] = processes.all_gather(xs)[:n].cpu()
            if not states[0].isfinite().all():
                raise ValueError(f"{plan.config.checkpoint} made pictures that are not finite; its training went "
                                 f"wrong, or guidance {plan.config.guidance:g} is too large")
            yield Samples(n, states[0], labels, plan.classes, states, time.perf_counter() - began, steps)


# The command

@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    keep = partial(pictures.kept_times, parse_numbers("snapshots", config.snapshots), config.gif)
    with processes.group(config.device):
        checkpoint = read(config)
        plan = make_plan(config, checkpoint)
        if config.table and not processes.rank():
            samplers.write_table(make_parent(Path(config.table)), plan.rows)
        samples = arrays.write(partial(sample_batches, plan, keep), config, checkpoint)
    if samples:
        doubled = sum(map(bool, plan.guidance))
        print(f"{config.n} pictures in {samples.seconds:.2f} s, {samples.n / (samples.seconds or math.inf):.1f} "
              f"images/s, {samples.evaluations} network evaluations"
              f"{f', {doubled} of twice the batch' if doubled else ''}; see {config.out}/grid.png")


if __name__ == "__main__":
    main()
