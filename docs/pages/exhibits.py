"""What the interactive pages are given: numbers made by the very functions that the pages are about."""

import base64
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import data
import ddpm
import noise
import sample
import samplers
import schedules
import swiss_roll
from docs.pages import unet_picture
from docs.pages.sources import ROOT
from run import checkpoint

MIXTURE = {"means": [[0.9, 0.1], [0.2, 0.9], [-0.8, 0.5], [-0.7, -0.6], [0.4, -0.8]],
           "weights": [0.15, 0.25, 0.2, 0.3, 0.1], "std": 0.3}
KNOWN = [((0, 0), (0, 0, 0, 0)), ((2**32 - 1,) * 2, (2**32 - 1,) * 4),
         ((0xa4093822, 0x299f31d0), (0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344))]      # of Random123's own test
CASES = [(0, 0, 1000, noise.SAMPLE), (3, 41, 17, noise.TRAIN), (2**31 - 1, 2**32 - 1, 0, noise.SAMPLE)]

KEPT = {"digits": {}, "fashion": {"sampler": "2m", "steps": "15"}}         # what sample.py is asked for, of each model


def pack(x: Tensor, dtype: str) -> str:
    """Base64 of the numbers, little-endian."""
    return base64.b64encode(x.numpy().astype(f"<{dtype}").tobytes()).decode()


def integers(frames: list[Tensor], scale: float, dtype: str) -> str:
    """The frames' numbers, each times scale and rounded, as far as the dtype has them."""
    most = np.iinfo(dtype).max
    return pack((torch.stack(frames) * scale).round().clamp(-most, most), dtype)


def forward() -> dict:
    """A clear picture of every digit, the one nearest to the mean of its class; pixels 0..255."""
    digits, clear = data.digits(), []
    for k in range(len(digits.classes)):
        images = digits.images[digits.labels == k].flatten(1)
        clear.append(images[(images - images.float().mean(0)).square().sum(1).argmin()].tolist())
    return {"digits": clear}


def reverse(steps: int) -> dict:
    """Two reverse chains: of the swiss roll, after so many steps of training, and of the committed digits model."""
    torch.set_num_threads(1)                                            # both networks are small
    return {"roll": roll_chain(steps), "digits": digits_chain()}


def roll_chain(steps: int, points: int = 500) -> dict:
    """x_t and x0_hat at every t of swiss_roll.py's chain, in 1/4096."""
    schedule = swiss_roll.tuned_schedule()
    T, seeds = len(schedule.beta) - 1, noise.image_seeds(0, torch.arange(points))
    torch.manual_seed(0)
    model, sobol = swiss_roll.Reverse(T), torch.quasirandom.SobolEngine(5, scramble=True, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.99), fused=True)

    def K():
        return swiss_roll.bound(model, schedule, *swiss_roll.batch(sobol, 64, T))

    swiss_roll.train(model, K, [optimiser], steps)
    chain = swiss_roll.sample(model, schedule, seeds)
    x0_hat = [chain[0], chain[1], *(predicted_x0(model, schedule, chain[t], t) for t in range(2, T + 1))]
    return {"points": points, "times": list(range(T, -1, -1)),
            "xt": integers(chain[::-1], 4096, "i2"), "x0": integers(x0_hat[::-1], 4096, "i2")}


@torch.no_grad()
def predicted_x0(model, schedule: ddpm.Schedule, xt: Tensor, t: int) -> Tensor:
    """The x0_hat that makes the model's mean: the mean is linear in it."""
    t = torch.tensor([t])
    mean, *_ = model(schedule, xt[None], t)
    without, *_ = ddpm.q_posterior(schedule, torch.zeros(1), xt[None], t)
    weight, *_ = ddpm.q_posterior(schedule, torch.ones(1), torch.zeros_like(xt[None]), t)
    return ((mean - without) / weight)[0]


def digits_chain(every: int = 20) -> dict:
    """x_t in 4/127 and x0_hat in 1/127 at every so many t of ten chains of ancestral sampling, in 250 steps."""
    trained = checkpoint.load(ROOT / "weights" / "digits.safetensors")
    unet, labels = checkpoint.load_unet(trained), torch.arange(10)
    schedule, target = ddpm.from_betas(trained.beta), trained.settings["target"]
    T, shape, seeds = len(trained.beta), tuple(trained.data["shape"]), noise.image_seeds(0, torch.arange(10))
    rows = ddpm.sampler_rows(schedule, range(T, 0, -T // 250), eta=1., target=target)
    kept = [(T, noise.normal(seeds, T, shape), torch.zeros(10, *shape))]
    kept += [each for each in ddpm.sample(lambda xt, t: unet(xt, t, labels), rows, shape, seeds, ahead=64)
             if each[0] % every == 0]
    return {"count": 10, "times": [s for s, *_ in kept], "xt": integers([xs for _, xs, _ in kept], 127 / 4, "i1"),
            "x0": integers([x0_hat for *_, x0_hat in kept], 127, "i1")}


def sampling() -> dict:
    """The options of every sampler, the spacings, and what sample.py does without a flag."""
    return {"options": {name: samplers.options_of(name) for name in samplers.SAMPLERS},
            "spacings": samplers.SPACINGS + samplers.NOISE_SPACINGS,
            "defaults": asked(sample.Config(), "checkpoint labels churn")}


def table() -> dict:
    """The same, alpha_bar of every named schedule, targets and variances, and the mixture that is sampled."""
    return {**sampling(), "alphaBar": {name: pack(make().alpha_bar, "f8") for name, make in ddpm.SCHEDULES.items()},
            "targets": schedules.TARGETS, "variances": schedules.VARIANCES, "mixture": MIXTURE}


def philox() -> dict:
    """Words and normals of noise.py, and known blocks of Philox4x32-10."""
    cases = []
    for seed, index, s, stream in CASES:
        key = noise.image_seeds(seed, torch.tensor(index))
        words = torch.stack(noise.words(key, s, 64, stream), dim=-1).flatten()
        cases.append({"seed": seed, "index": index, "s": s, "stream": stream, "words": words.tolist(),
                      "normals": noise.normal(key, s, (64,), stream).tolist()})
    return {"cases": cases, "known": [{"key": key, "counter": counter, "words": noise.philox(key, counter)}
                                      for key, counter in KNOWN]}


def asked(config: sample.Config, more: str = "") -> dict:
    """What sample.py is asked for, by flag; steps as a number."""
    flags = ("sampler", "steps", "spacing", "eta", "guidance", "seed", *more.split())
    return {name: getattr(config, name) for name in flags} | {"steps": int(config.steps)}


def model(name: str, weights: Path = ROOT / "weights") -> str:
    """A script with all that sampling from NAME.safetensors takes, and ten pictures that sample.py makes of it."""
    path = weights / f"{name}.safetensors"
    config = sample.Config(str(path), n=10, **KEPT[name])
    samples, trained = sample.generate(config), checkpoint.load(path, ["ema"])
    shape, schedule, target = trained.data["shape"], ddpm.from_betas(trained.beta), trained.settings["target"]
    facts = {"name": name, "config": asdict(trained.network), "shape": shape, "classes": samples.classes,
             "target": target, "clip": trained.clip, "alphaBar": pack(schedule.alpha_bar, "f8"),
             "flops": unet_picture.measure(trained.network, *shape[1:])[""].flops,
             "tables": tables(weights.glob(f"{name}-*.csv"), schedule, target),
             "choice": asked(config), "pixels": pack(data.to_pixels(samples.x), "u1"),
             "weights": base64.b64encode(safetensors.torch.save(trained.ema)).decode()}
    return f"files.{name} = {json.dumps(facts)};\n"


def tables(paths: Iterable[Path], schedule: ddpm.Schedule, target: str) -> dict[str, list[dict[str, float]]]:
    """The learned tables of these files, the shortest first: each its rows, by the names of their columns."""
    read = {path.stem: samplers.read_table(path, schedule, target).tolist() for path in paths}
    return {name: [dict(zip(samplers.COLUMNS, row, strict=True)) for row in rows]
            for name, rows in sorted(read.items(), key=lambda each: len(each[1]))}
