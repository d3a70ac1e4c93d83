"""Samples pictures from a trained model.

    python sample.py                                              # 100 digits from weights/digits.pt to out/grid.png
    python sample.py --labels 7 --steps 1000 --eta 1 --gif        # DDPM, and a film of the reverse chain
    python sample.py --checkpoint runs/digits/last.pt --compile
    python sample.py --from google/ddpm-cifar10-32 --n 16         # a published model
    torchrun --nproc-per-node=4 -- sample.py --n 50000 --npz      # by 4 processes; without -- torchrun would take --n

The checkpoint knows the network, the schedule and the classes. The noise of picture i is a function of (seed, i, step)
to the bit, so the picture is a function of (weights, seed, i) to rounding: not of n, the batch or the processes.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import ddpm
import published
import samplers
from kernels.compile import compile_denoiser, compile_loop, fast_norm
from noise import image_seeds, normal
from run import arrays, checkpoint, folder, pictures, processes
from run.checkpoint import WEIGHTS, Checkpoint
from run.cli import DTYPES, check_range, choose_device, make_parent, parse, parse_integers, script
from run.pictures import Samples
from unet import UNet, group_norm_silu_plain


@dataclass(frozen=True)
class Config:
    """Samples pictures from a trained model."""
    checkpoint: str = "weights/digits.pt"       # what train.py saved
    from_: str = ""                             # a published model instead: any --source of convert.py
    n: int = 100                                # number of pictures; grid.png and the film show the first 1000 or so
    batch: int = 100                            # largest batch of a process; changes pictures by rounding only
    seed: int = 0                               # picture i is a function of the weights, the seed and i
    labels: str = ""                            # as 7 or cat,dog, repeated; empty is all in turn, none is no label
    sampler: str = "ddim"                       # ddim, 2m (DPM-Solver++), heun, unipc, unipc-bh1 or consistency
    steps: str = "50"                           # number of steps, or the timesteps themselves, as 1000,600,200
    spacing: str = "trailing"                   # of the timesteps: trailing, leading, linspace, karras, logsnr or flow
    shift: float = 1.                           # above 1, the steps of flow spacing move to more noise
    eta: float = 0.                             # noise of each step of ddim or 2m: 0 is DDIM, 1 DDPM
    churn: float = 0.                           # noise of heun's steps: S_churn of EDM
    variance: str = ""                          # beta_tilde, beta or learned; empty is the model's own
    clip: bool = True                           # clip the predicted x0 to [-1, 1]
    guidance: float = 0.                        # w of (1 + w) eps(label) - w eps(no label)
    weights: str = "ema"                        # the averaged weights, or raw
    snapshots: str = ""                         # timesteps, as 1000,500,0: strip.png shows the nearest ones visited
    gif: bool = False                           # reverse.gif, a film of the reverse chain
    png: bool = False                           # every picture as a file of its own
    npz: bool = False                           # pictures.npz with arr_0 uint8 (n, H, W, C), arr_1 labels; resumable
    dtype: str = "float32"                      # float32, or bf16: all weights but the norms'
    compile: bool = False                       # torch.compile; the pictures agree to about 1e-4
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = "out"                            # folder for grid.png and the rest


def check(config: Config) -> None:
    """Raises ValueError for settings that cannot work, naming the first."""
    check_range(config, "n batch", 1)
    if not math.isfinite(config.guidance):
        raise ValueError(f"guidance is {config.guidance}; it must be a number, 0 for none")
    ddpm.check_choice("weights", config.weights, WEIGHTS)
    ddpm.check_choice("dtype", config.dtype, DTYPES)


# The chain

def sampler_table(last: Checkpoint, config: Config) -> Tensor:
    """The sampler's rows (S, 12), on the CPU."""
    steps = parse_integers("steps", config.steps)
    schedule = ddpm.from_betas(last.beta)
    times = samplers.spaced_times(schedule, steps[0], config.spacing, config.shift) if len(steps) == 1 else steps
    if config.variance == "learned" and not last.network.learns_variance:
        raise ValueError(f"variance is learned, but {config.checkpoint} learned none; use beta_tilde or beta")
    return samplers.sampler_rows(schedule, times, sampler=config.sampler, eta=config.eta, churn=config.churn,
                                 target=last.settings["target"], clip=config.clip and last.clip,
                                 variance=config.variance or last.variance)


def choose_labels(last: Checkpoint, config: Config) -> Tensor | None:
    """The labels asked for, to be repeated as often as needed; None for a network without classes."""
    classes, rows = list(last.data["classes"]), last.network.classes
    if not rows:
        if config.labels or config.guidance:
            raise ValueError(f"{config.checkpoint} has no classes; leave --labels and --guidance alone")
        return None
    if rows == len(classes) and (config.labels == "none" or config.guidance):
        raise ValueError(f"{config.checkpoint} has no null class; it cannot do --labels none or --guidance")
    if config.labels == "none":
        return torch.tensor([len(classes)])
    names = config.labels.split(",") if config.labels else classes
    if unknown := [name for name in names if name not in classes]:
        raise ValueError(f"labels has {unknown[0]!r}; the classes are {', '.join(classes[:20])}"
                         f"{', ...' if len(classes) > 20 else ''}")
    return torch.tensor([classes.index(name) for name in names])


def make_chain(config: Config, unet: UNet, rows: Tensor, shape, seeds: Tensor, y: Tensor | None, null: int) -> Callable:
    """seeds -> `ddpm.sample`'s iterator, for batches as large as this one, whose labels are read from y."""
    def denoiser(model: Callable) -> Callable:
        return model if y is None else ddpm.guided(model, y, null, config.guidance)

    if config.compile:
        began = time.perf_counter()
        chain = compile_loop(denoiser(compile_denoiser(unet, samplers.network_times(rows))), rows, shape, seeds)
        print(f"compiled in {time.perf_counter() - began:.0f} s")
        return chain
    elements = len(seeds) * math.prod(shape)
    ahead = max(1, min(64, 2**17 // elements)) if rows.device.type == "cpu" else 1      # noise that fits in the caches
    return partial(ddpm.sample, denoiser(unet), rows, shape, ahead=ahead)


# Batches

Keep = Callable[[list[int]], set[int]]          # the timesteps of a chain -> those whose x_t is kept


def generate(config: Config, keep: Keep = lambda times: set(), weights: dict[str, Tensor] | None = None) -> Samples:
    """The pictures that config asks for, and x_t at the timesteps that `keep` chooses among those of the chain.

    weights: used instead of the checkpoint's.
    """
    check(config)
    return pictures.concatenate(list(generate_batches(config, read(config), keep, weights)))


def read(config: Config) -> Checkpoint:
    """The model to sample from. Raises ValueError if the processes do not read the same one."""
    last = (published.read(config.from_) if config.from_ else
            checkpoint.load(config.checkpoint, [WEIGHTS[config.weights]]))
    if last.step != processes.broadcast_first(last.step):
        raise ValueError(f"{config.checkpoint} was replaced while it was read; sample again")
    return last


def generate_batches(config: Config, last: Checkpoint, keep: Keep = lambda times: set(),
                     weights: dict[str, Tensor] | None = None, done: int = 0) -> Iterator[Samples]:
    """What `generate` returns, batch by batch; a batch is shared by all processes, and complete on each of them.

    done: how many pictures exist already; a batch that lies within them is reported, but not sampled again.
    """
    device, config = choose_device(config.device), replace(config, checkpoint=config.from_ or config.checkpoint)
    norm = fast_norm(device) if config.compile else group_norm_silu_plain
    unet = checkpoint.load_unet(last, config.weights, config.dtype, config.device, norm, weights)
    rows, choices = sampler_table(last, config).to(device), choose_labels(last, config)
    times, shape, classes = samplers.numbers(rows[:, 0]), tuple(last.data["shape"]), tuple(last.data["classes"])
    kept, world = {0, *keep([*times, 0])}, processes.world_size()

    rounds = math.ceil(config.n / (config.batch * world))
    size = math.ceil(config.n / (rounds * world))                                 # of every process's every batch
    index = torch.arange(rounds * world * size)
    seeds = image_seeds(config.seed, index).to(device).split(size)
    labels = None if choices is None else choices[index % len(choices)].to(device).split(size)
    y = None if labels is None else labels[0].clone()                             # a captured chain reads them here
    chain = make_chain(config, unet, rows, shape, seeds[0], y, null=len(classes))
    with tqdm(total=rounds * len(rows), unit=" steps", leave=False, disable=processes.rank() > 0) as bar:
        for k in range(rounds):
            began, first, mine = time.perf_counter(), k * world * size, k * world + processes.rank()
            n = min(world * size, config.n - first)
            asked = None if labels is None else torch.cat(labels[k * world:(k + 1) * world])[:n].cpu()
            if first + n <= done:
                bar.update(len(rows))
                yield Samples(n, None, asked, classes, {}, 0., 0)
                continue
            if y is not None:
                y.copy_(labels[mine])
            states = {t: processes.all_gather(xt)[:n].cpu()
                      for t, xt in visited(chain, seeds[mine], times[0], shape, bar) if t in kept}
            if not states[0].isfinite().all():
                raise ValueError(f"{config.checkpoint} made pictures that are not finite; its training went wrong, or "
                                 f"guidance {config.guidance:g} is too large")
            yield Samples(n, states[0], asked, classes, states, time.perf_counter() - began, len(rows))


def visited(chain: Callable, seeds: Tensor, T: int, shape, bar: tqdm) -> Iterator[tuple[int, Tensor]]:
    """Every (t, x_t) of the chain, from the noise x_T to the picture x_0."""
    yield T, normal(seeds, T, shape)
    for s, xs, _ in chain(seeds):
        bar.update()
        yield s, xs


# The command

def save(config: Config, keep: Keep) -> Samples:
    """Samples all pictures and writes --png and --npz on the way, batch by batch; returns the first of them."""
    check(config)
    last = read(config)
    return arrays.write_batches(
        lambda done: generate_batches(config, last, keep, done=done), Path(config.out), config.n,
        tuple(last.data["shape"]), png=config.png, npz=digest(config, last) if config.npz else "",
        resumable=not (config.png or config.gif or config.snapshots))


def digest(config: Config, last: Checkpoint) -> str:
    """A name for exactly these pictures: a hash of the settings and of the weights that they depend on."""
    settings = replace(config, batch=1, snapshots="", gif=False, png=False, npz=False, device="", out="")
    found = hashlib.sha256(f"{settings} {last.network} {last.settings} {last.data}".encode())
    for w in (last.beta, *getattr(last, WEIGHTS[config.weights]).values()):
        found.update(w.float().contiguous().numpy())
    return found.hexdigest()[:12]


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    out, snapshots = Path(config.out), parse_integers("snapshots", config.snapshots)

    def keep(times: list[int]) -> set[int]:
        frames = pictures.film_times(times) if config.gif else []
        return {*frames, *(pictures.nearest(t, times) for t in snapshots)}

    with processes.group(config.device), folder.lock(out) if config.npz else contextlib.nullcontext():
        samples, writes = save(config, keep), processes.rank() == 0
    if not writes:
        return
    pictures.grid(samples.x, *pictures.columns(samples)).save(make_parent(out / "grid.png"))
    if snapshots:
        times = [pictures.nearest(t, list(samples.states)) for t in snapshots]
        pictures.strip(samples, times).save(out / "strip.png")
    if config.gif:
        pictures.film(samples, out / "reverse.gif")
    print(f"{config.n} pictures in {samples.seconds:.2f} s, {samples.n / (samples.seconds or math.inf):.1f} images/s, "
          f"{samples.evaluations} network evaluations{' of twice the batch' if config.guidance else ''}; "
          f"see {out}/grid.png")


if __name__ == "__main__":
    main()
