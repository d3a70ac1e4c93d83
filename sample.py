"""Draws pictures from a trained model.

    python sample.py                                              # 100 digits from weights/digits.pt to out/grid.png
    python sample.py --labels 7 --steps 1000 --eta 1 --gif        # DDPM, and a film of it
    python sample.py --checkpoint runs/digits/last.pt --compile
    python sample.py --from google/ddpm-cifar10-32 --n 16         # a published model
    torchrun --nproc-per-node=4 -- sample.py --n 50000 --npz      # by 4 processes; -- or torchrun takes --n for its own

The checkpoint knows the network, the schedule and the classes. Picture i is a function of (weights, seed, i):
not of n, the batch, the processes, or what was drawn before.
"""

import contextlib
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import checkpoint
import convert
import data
import ddpm
import distributed
import image_files
import noise
import pictures
import run_folder
from checkpoint import Checkpoint
from cli import DTYPES, check_range, choose_device, parent_made, parse, script, settle_threads
from kernels import group_norm_silu_plain
from kernels.compile import compile_denoiser, compile_loop, fast_norm
from unet import UNet, cast


@dataclass(frozen=True)
class Config:
    """Draws pictures from a trained model."""
    checkpoint: str = "weights/digits.pt"       # what train.py saved
    from_: str = ""                             # a published model instead: any --source of convert.py
    n: int = 100                                # pictures; grid.png and the film show the first 1000 or so
    batch: int = 100                            # pictures at once, at most, of a process; changes no picture
    seed: int = 0                               # picture i is a function of the weights, the seed and i
    labels: str = ""                            # as 7 or cat,dog, repeated; empty is all in turn, none is no label
    sampler: str = "ddim"                       # ddim, or 2m: DPM-Solver++ of second order
    steps: str = "50"                           # how many, or the times themselves, as 1000,600,200
    spacing: str = "trailing"                   # of the times: trailing, leading or linspace
    eta: float = 0.                             # noise a step: 0 is DDIM, 1 DDPM
    variance: str = ""                          # beta_tilde, beta or learned; empty is the model's own
    clip: bool = True                           # keep what the network takes for the picture in [-1, 1]
    guidance: float = 0.                        # w of (1 + w) eps(label) - w eps(no label)
    weights: str = "ema"                        # the averaged weights, or raw
    snapshots: str = ""                         # times, as 1000,500,0: strip.png shows the nearest on the way
    gif: bool = False                           # reverse.gif, a film of the whole chain
    png: bool = False                           # every picture as a file of its own
    npz: bool = False                           # pictures.npz with arr_0 uint8 (n, H, W, C), arr_1 labels; resumable
    dtype: str = "float32"                      # float32, or bf16: all weights but the norms'
    compile: bool = False                       # torch.compile; the pictures agree to about 1e-4
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = "out"                            # folder for grid.png and the rest


WEIGHTS = {"ema": "ema", "raw": "weights"}      # of --weights, their place in a checkpoint
SHOWN = 1000                                    # pictures of a grid or a film, at most


class Drawn(NamedTuple):
    """Pictures, and what is to be known of them."""
    n: int                          # how many were drawn
    x: Tensor | None                # (n, C, H, W) in [-1, 1]; None of what was already there
    labels: Tensor | None           # (n,); the null class is the last
    classes: tuple[str, ...]        # names of all but the null class
    states: dict[int, Tensor]       # x_t at the times kept, and x_0
    seconds: float                  # without compilation
    calls: int                      # of the network


def network(last: Checkpoint, config: Config, weights: dict[str, Tensor] | None = None) -> UNet:
    """The checkpoint's network with the weights asked for, or these."""
    weights = weights or getattr(last, WEIGHTS[config.weights])
    device = choose_device(config.device)
    with torch.device("meta"):                                                    # its weights come from the file
        unet = UNet(last.network, fast_norm(device) if config.compile else group_norm_silu_plain)
    unet.load_state_dict(cast(weights, DTYPES[config.dtype]), assign=True)
    settle_threads(unet)
    return unet.to(device).eval().requires_grad_(False)


def chain(last: Checkpoint, config: Config) -> Tensor:
    """The sampler's rows, on the CPU."""
    schedule = ddpm.from_betas(last.beta)
    numbers = whole_numbers("steps", config.steps)
    times = ddpm.timesteps(len(last.beta), numbers[0], config.spacing) if len(numbers) == 1 else numbers
    if config.variance == "learned" and not last.network.learns_variance:
        raise ValueError(f"variance is learned, but {config.checkpoint} learned none; use beta_tilde or beta")
    return ddpm.sampler_rows(schedule, times, sampler=config.sampler, target=last.settings["target"], eta=config.eta,
                             clip=config.clip and last.clip, variance=config.variance or last.variance)


def choose_labels(last: Checkpoint, config: Config) -> Tensor | None:
    """The labels asked for, one after the other as long as needed; None for a network without classes."""
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


def whole_numbers(name: str, text: str) -> list[int]:
    """[1000, 500, 0] of "1000,500,0"."""
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be whole numbers, as 1000,500,0") from None


def check(config: Config) -> None:
    """Raises ValueError for settings that cannot work, naming the first."""
    check_range(config, "n batch", 1)
    if not math.isfinite(config.guidance):
        raise ValueError(f"guidance is {config.guidance}; it must be a number, 0 for none")
    ddpm.one_of("weights", config.weights, WEIGHTS)
    ddpm.one_of("dtype", config.dtype, DTYPES)


def draw(config: Config, keep: Callable[[list[int]], set[int]] = lambda times: set(),
         weights: dict[str, Tensor] | None = None) -> Drawn:
    """The pictures that config asks for, and x_t at the times, of all that the chain visits, that `keep` chooses.

    weights: to be used instead of the checkpoint's.
    """
    check(config)
    return joined(list(drawings(config, read(config), keep, weights)))


def joined(parts: list[Drawn]) -> Drawn:
    """All of what was drawn in parts."""
    states = {t: torch.cat([part.states[t] for part in parts]) for t in parts[0].states}
    labels = None if parts[0].labels is None else torch.cat([part.labels for part in parts])
    return Drawn(len(states[0]), states[0], labels, parts[0].classes, states,
                 sum(part.seconds for part in parts), sum(part.calls for part in parts))


def drawings(config: Config, last: Checkpoint, keep: Callable[[list[int]], set[int]] = lambda times: set(),
             weights: dict[str, Tensor] | None = None, done: int = 0) -> Iterator[Drawn]:
    """What `draw` gives, batch after batch, each of all processes together and on all of them.

    done: pictures already there; the batches that lie among them are told, not drawn.
    """
    device, config = choose_device(config.device), replace(config, checkpoint=config.from_ or config.checkpoint)
    unet, rows, choices = network(last, config, weights), chain(last, config).to(device), choose_labels(last, config)
    shape, times = tuple(last.data["shape"]), [*rows[:, 0].int().tolist(), 0]
    rounds = math.ceil(config.n / (config.batch * distributed.world()))
    size = math.ceil(config.n / (rounds * distributed.world()))                   # every batch has this size
    whole = size * distributed.world()
    index = torch.arange(rounds * whole)
    seeds = noise.image_seeds(config.seed, index).to(device).split(size)
    labels = choices[index % len(choices)].to(device) if choices is not None else None
    y = labels[:size].clone() if labels is not None else None                     # the batch's, always in this place
    run = sampler(config, unet, rows, shape, seeds[0], y, null=len(last.data["classes"]))

    wanted, classes = {0, *keep(times)}, tuple(last.data["classes"])
    with tqdm(total=rounds * len(rows), unit=" steps", leave=False, disable=distributed.rank() > 0) as bar:
        for k in range(rounds):
            began, mine = time.perf_counter(), k * distributed.world() + distributed.rank()
            n = min(whole, config.n - k * whole)
            asked = None if labels is None else labels[k * whole:][:n].cpu()
            if k * whole + n <= done:
                bar.update(len(rows))
                yield Drawn(n, None, asked, classes, {}, 0., 0)
                continue
            states = {}
            if times[0] in wanted:
                states[times[0]] = distributed.gathered(noise.normal(seeds[mine], times[0], shape))[:n].cpu()
            if y is not None:
                y.copy_(labels[mine * size:][:size])
            for s, xs, _ in run(seeds[mine]):
                bar.update()
                if s in wanted:
                    states[s] = distributed.gathered(xs)[:n].cpu()
            if not states[0].isfinite().all():
                raise ValueError(f"{config.checkpoint} drew pictures that are not finite; its training went wrong, or "
                                 f"guidance {config.guidance:g} is too large")
            yield Drawn(n, states[0], asked, classes, states, time.perf_counter() - began, len(rows))


def sampler(config: Config, unet: UNet, rows: Tensor, shape, seeds: Tensor, y: Tensor | None, null: int) -> Callable:
    """seeds -> `ddpm.sample`'s iterator, for batches as large as this one, whose labels are read from y."""
    def denoiser(model: Callable) -> Callable:
        return model if y is None else ddpm.guided(model, y, null, config.guidance)

    if config.compile:
        began = time.perf_counter()
        run = compile_loop(denoiser(compile_denoiser(unet, rows[:, 0].long())), rows, shape, seeds)
        print(f"compiled in {time.perf_counter() - began:.0f} s")
        return run
    elements = len(seeds) * math.prod(shape)
    ahead = max(1, min(64, 2**17 // elements)) if rows.device.type == "cpu" else 1      # what caches hold
    return partial(ddpm.sample, denoiser(unet), rows, shape, ahead=ahead)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    wanted = whole_numbers("snapshots", config.snapshots)

    def keep(times: list[int]) -> set[int]:
        frames = times[::max(1, len(times) // 60)] if config.gif else []
        return {*frames, *(nearest(t, times) for t in wanted)}

    alone = run_folder.owned(Path(config.out)) if config.npz else contextlib.nullcontext()
    with distributed.joined(config.device), alone:
        drawn, writes = write(config, keep), distributed.rank() == 0
    if not writes:
        return
    out = Path(config.out)
    columns, heads = table(drawn)
    data.grid(drawn.x, columns, heads).save(parent_made(out / "grid.png"))
    if wanted:
        strip(drawn, [nearest(t, list(drawn.states)) for t in wanted]).save(out / "strip.png")
    if config.gif:
        film(drawn, columns, out / "reverse.gif")
    print(f"{config.n} pictures in {drawn.seconds:.2f} s, {drawn.n / (drawn.seconds or math.inf):.1f} images/s, "
          f"{drawn.calls} network calls{' of twice the batch' if config.guidance else ''}; see {out}/grid.png")


def read(config: Config) -> Checkpoint:
    """What is drawn from. Raises ValueError if the processes do not read the same."""
    parts = [WEIGHTS[config.weights]]
    last = convert.read(config.from_) if config.from_ else checkpoint.load(config.checkpoint, parts)
    if last.step != distributed.first_s(last.step):
        raise ValueError(f"{config.checkpoint} was replaced while it was read; draw again")
    return last


def write(config: Config, keep: Callable[[list[int]], set[int]]) -> Drawn:
    """Draws the pictures and writes --png and --npz on the way, batch after batch; returns the first SHOWN."""
    check(config)
    out, writes, last = Path(config.out), distributed.rank() == 0, read(config)
    rows = out / f"pictures-{key(config, last)}.npy" if config.npz else None
    goes_on = config.npz and not (config.png or config.gif or config.snapshots)
    done = distributed.first_s(pictures.begun(rows, config.n, tuple(last.data["shape"])) if goes_on else 0)
    shown, labels, seconds, calls, first, new = [], [], 0., 0, 0, 0
    for part in drawings(config, last, keep, done=done):
        n, seconds, calls = part.n, seconds + part.seconds, calls + part.calls
        new += n if part.x is not None else 0
        if writes and part.x is None and first < SHOWN:
            x = data.to_unit(pictures.read(rows, first, n))
            part = part._replace(x=x, states={0: x})
        elif writes and part.x is not None:
            put(config, out, rows, first, data.to_pixels(part.x))
        if first < SHOWN:
            shown.append(part)
        labels, first = [*labels, part.labels], first + n
    if writes and config.npz:
        pictures.finish(rows, out / "pictures.npz", None if labels[0] is None else torch.cat(labels))
    return (joined(shown) if writes else shown[0])._replace(n=new, seconds=seconds, calls=calls)


def put(config: Config, out: Path, rows: Path | None, first: int, pixels: Tensor) -> None:
    """Writes pictures, the first of them number `first`, uint8 (B, C, H, W)."""
    if config.npz:
        pictures.append(rows, config.n, first, pixels)
    for i, picture in enumerate(pixels if config.png else (), first):
        image_files.as_image(picture).save(parent_made(out / "png" / f"{i:06d}.png"))


def key(config: Config, last: Checkpoint) -> str:
    """A name for the pictures asked for: a digest of the settings and of the weights that they depend on."""
    settings = replace(config, batch=1, snapshots="", gif=False, png=False, npz=False, device="", out="")
    digest = hashlib.sha256(f"{settings} {last.network} {last.settings} {last.data}".encode())
    for w in (last.beta, *getattr(last, WEIGHTS[config.weights]).values()):
        digest.update(w.float().contiguous().numpy())
    return digest.hexdigest()[:12]


def nearest(t: int, times: list[int]) -> int:
    """The time on the way that is nearest to t."""
    return min(times, key=lambda visited: abs(visited - t))


def table(drawn: Drawn) -> tuple[int, tuple[str, ...]]:
    """Columns of the grid, and what stands over them: a class each, where every row repeats the same labels."""
    distinct = len(drawn.labels.unique()) if drawn.labels is not None else 1
    if distinct == 1:
        return math.ceil(len(drawn.x) ** 0.5), ()
    names = (*drawn.classes, "none")
    return distinct, tuple(names[label] for label in drawn.labels[:distinct])


def strip(drawn: Drawn, times: list[int]) -> Image.Image:
    """The first pictures, a row each, at these times of the reverse chain."""
    rows = min(len(drawn.x), max(1, len(drawn.classes)))
    x = torch.stack([drawn.states[t][:rows] for t in times], dim=1).flatten(0, 1)
    return data.grid(x, len(times), [f"t = {t}" for t in times])


def film(drawn: Drawn, columns: int, path: Path) -> None:
    """The reverse chain of all pictures as a GIF of 6 seconds, the last frame held for 2."""
    frames = [data.grid(drawn.states[t], columns, [f"t = {t}"]) for t in sorted(drawn.states, reverse=True)]
    frames[0].save(path, save_all=True, append_images=frames[1:], loop=0, duration=[100] * (len(frames) - 1) + [2000])


if __name__ == "__main__":
    main()
