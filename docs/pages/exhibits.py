"""What the interactive pages are given: numbers made by the very functions that the pages are about."""

import base64

import torch
from torch import Tensor

import data
import ddpm
import noise
import samplers
import schedules
import swiss_roll
from docs.pages.sources import ROOT
from run import checkpoint

MIXTURE = {"means": [[0.9, 0.1], [0.2, 0.9], [-0.8, 0.5], [-0.7, -0.6], [0.4, -0.8]],
           "weights": [0.15, 0.25, 0.2, 0.3, 0.1], "std": 0.3}
KNOWN = [((0, 0), (0, 0, 0, 0)), ((2**32 - 1,) * 2, (2**32 - 1,) * 4),
         ((0xa4093822, 0x299f31d0), (0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344))]      # of Random123's own test
CASES = [(0, 0, 1000, noise.SAMPLE), (3, 41, 17, noise.TRAIN), (2**31 - 1, 2**32 - 1, 0, noise.SAMPLE)]


def pack(x: Tensor, dtype: str) -> str:
    """Base64 of the numbers, little-endian."""
    return base64.b64encode(x.numpy().astype(f"<{dtype}").tobytes()).decode()


def forward() -> dict:
    """A clear picture of every digit, the one nearest to the mean of its class; pixels 0..255."""
    found, clear = data.digits(), []
    for k in range(len(found.classes)):
        images = found.images[found.labels == k].flatten(1)
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
    xt, x0 = ((torch.stack(x[::-1]) * 4096).round().clamp(-2**15, 2**15 - 1) for x in (chain, x0_hat))
    return {"points": points, "times": list(range(T, -1, -1)), "xt": pack(xt, "i2"), "x0": pack(x0, "i2")}


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
    last = checkpoint.load(ROOT / "weights" / "digits.safetensors")
    unet, labels = checkpoint.load_unet(last), torch.arange(10)
    T, shape, seeds = len(last.beta), tuple(last.data["shape"]), noise.image_seeds(0, torch.arange(10))
    rows = ddpm.sampler_rows(ddpm.from_betas(last.beta), range(T, 0, -T // 250), eta=1., target=last.settings["target"])
    kept = [(T, noise.normal(seeds, T, shape), torch.zeros(10, *shape))]
    kept += [each for each in ddpm.sample(lambda xt, t: unet(xt, t, labels), rows, shape, seeds, ahead=64)
             if each[0] % every == 0]
    xt, x0 = ((torch.stack(x) * unit).round().clamp(-127, 127) for x, unit in
              (([xs for _, xs, _ in kept], 127 / 4), ([x0_hat for *_, x0_hat in kept], 127)))
    return {"count": 10, "times": [s for s, *_ in kept], "xt": pack(xt, "i1"), "x0": pack(x0, "i1")}


def table() -> dict:
    """alpha_bar of every named schedule, the names that choose a table, and the mixture that is sampled."""
    return {"alphaBar": {name: pack(make().alpha_bar, "f8") for name, make in ddpm.SCHEDULES.items()},
            "options": {name: samplers.options_of(name) for name in samplers.SAMPLERS},
            "spacings": samplers.SPACINGS + samplers.NOISE_SPACINGS,
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
