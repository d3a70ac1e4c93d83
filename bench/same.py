"""Whether the pictures are the same: to the byte when sampled twice, to rounding when compiled or captured."""

import gc
import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import ddpm
import sample
import samplers
from bench import bench_sampling_loop as loops
from bench.measure import CUDA, error_of
from bench.plots import picture_rows
from kernels import sampling_step
from kernels.compile import compile_denoiser

# Ways to sample, with their dtype and the largest difference to the plain float32 pictures, which lie in [-1, 1]; one
# of 256 shades is 0.008. TF32 is what PyTorch's convolutions do to float32 by default.
WAYS = {"compiled": ("float32", 1e-3), "captured": ("float32", 1e-3), "captured TF32": ("float32", 0.02),
        "captured bf16": ("bf16", 0.05)}


def digest(x: Tensor) -> str:
    return hashlib.sha256(x.cpu().contiguous().numpy().tobytes()).hexdigest()


def twice(chain: loops.Chain) -> dict:
    """The bytes of pictures sampled, sampled again, and sampled by a loop that was compiled and captured anew."""
    results = {}
    for names in (("once", "again"), ("captured anew",)):
        loop = loops.ours("graph" if CUDA else "eager", chain)
        results |= {name: digest(loop.sample()) for name in names}
        torch.compiler.reset()
    return {"sha256": results, "ok": len({*results.values()}) == 1}


def replays(chain: loops.Chain) -> dict:
    """Pictures of captured loops beside the plain loop's in float32: ||difference|| / ||plain||, each sampled twice.

    In float32 they are its pictures to rounding; in bf16 they are about as far from them as the plain loop
    in bf16: at most half as far again.
    """
    plain, away = precisely(lambda: loops.ours("eager", chain).sample().cpu()), {}
    for name, stage, dtype in (("plain bf16", "bf16", torch.bfloat16),
                               *((f"captured {name}", "graph" if CUDA else "eager", dtype) for name, dtype in
                                 (("float32", torch.float32), ("bf16", torch.bfloat16)))):
        def both(stage: str = stage, dtype: torch.dtype = dtype) -> list[Tensor]:
            loop = loops.ours(stage, chain, dtype)
            return [loop.sample().cpu() for _ in range(2)]
        once, again = precisely(both)
        error = error_of([once], [plain])
        tolerance = {"captured float32": 1e-3, "captured bf16": 1.5 * away.get("plain bf16", {}).get("error", 0)}
        away[name] = {"error": error, "tolerance": tolerance.get(name, ""), "same twice": torch.equal(once, again),
                      "ok": error <= tolerance.get(name, torch.inf) and torch.equal(once, again)}
        torch.compiler.reset()
        gc.collect()
    return {"replays": away}


def pictures(path: Path, n: int, folder: Path) -> dict:
    """The same n pictures sampled in every way that runs here: differences to the plain ones, and a PNG."""
    config = sample.Config(checkpoint=str(path), n=n, batch=n)
    sampled, results = {"plain": precisely(lambda: sample.generate(config).x)}, {}
    for name, (dtype, tolerance) in WAYS.items():
        if name != "compiled" and not CUDA:
            continue
        own = sample.Config(checkpoint=str(path), n=n, batch=n, dtype=dtype, compile=True)
        run = partial(compiled, own) if name == "compiled" else lambda own=own: sample.generate(own).x
        sampled[name] = run() if "TF32" in name else precisely(run)
        away = (sampled[name] - sampled["plain"]).abs()
        results[name] = {"largest": away.max().item(), "mean": away.mean().item(), "tolerance": tolerance,
                       "ok": bool(away.max() <= tolerance)}
    picture = f"same-{path.resolve().parent.name}.png"
    picture_rows(folder / picture, {name: x[:10] for name, x in sampled.items()})
    return {"n": n, "ways": results, "picture": picture}


def precisely(run) -> Tensor:
    """Its pictures without TF32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        return run()
    finally:
        torch.backends.cudnn.allow_tf32 = before


def compiled(config: sample.Config) -> Tensor:
    """As sample.py samples with --compile, but not captured."""
    chosen = sample.plan(config, sample.read(config))
    y = None if chosen.labels is None else chosen.labels[0]
    model = compile_denoiser(chosen.unet, samplers.network_times(chosen.rows))
    *_, (_, x0, _) = ddpm.sample(lambda xt, t: model(xt, t, y), chosen.rows, chosen.shape, chosen.seeds[0],
                                 step=sampling_step)
    return x0.cpu()
