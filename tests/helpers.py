"""What tests share: golden numbers, exact denoisers of a Gaussian, networks, and files, sound and hostile."""

import functools
import gzip
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ddpm import TARGETS, alpha_bar_at, cosine_schedule, linear_schedule, predict, training_target
from noise import image_seeds
from run import checkpoint, folder
from unet import UNet

GOLDEN_SCHEDULES = {"linear1000": linear_schedule(), "linear100": linear_schedule(100, 1e-3, 0.2),
                    "cosine1000": cosine_schedule(), "cosine50": cosine_schedule(50)}
FIXED = {"fixed_small": "beta_tilde", "fixed_large": "beta", "learned_range": "learned"}
SAMPLERS = {"ddpm": {"sampler": "ddpm"}, "ddpm beta": {"sampler": "ddpm", "variance": "beta"}, "ddim": {},
            "ddim 0.5": {"eta": 0.5},
            "2m": {"sampler": "2m"}, "2m sde": {"sampler": "2m", "eta": 1.}, "2m 0.5": {"sampler": "2m", "eta": 0.5},
            "heun": {"sampler": "heun"}, "heun churn": {"sampler": "heun", "churn": 10.}, "unipc": {"sampler": "unipc"},
            "unipc-bh1": {"sampler": "unipc-bh1"}, "consistency": {"sampler": "consistency"}}

each_schedule = pytest.mark.parametrize("name", GOLDEN_SCHEDULES)
each_clip = pytest.mark.parametrize("clip", [False, True])
each_target = pytest.mark.parametrize("target", TARGETS)


@functools.cache
def golden(name):
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as file:
        return {key: torch.from_numpy(array) for key, array in file.items()}


@functools.cache
def guided_diffusion(prefix=""):
    return {key.removeprefix(prefix): value for key, value in golden("guided_diffusion").items()
            if key.startswith(prefix)}


def close(actual, expected, rtol=1e-5, atol=1e-5):
    assert_close(actual.expand_as(expected), expected, rtol=rtol, atol=atol)


def same(actual, expected):
    assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def same_run(one, other, log=True):
    """Asserts that the runs in two folders are equal to the bit: counts, tensors and, but for its speed, the log."""
    ours, theirs = (checkpoint.load(out / "last.safetensors") for out in (one, other))
    assert (ours.step, ours.updates, ours.scaler) == (theirs.step, theirs.updates, theirs.scaler)
    for part in (*checkpoint.PARTS, "losses", "history"):
        assert_close(getattr(ours, part), getattr(theirs, part), rtol=0, atol=0, equal_nan=True)
    if log:
        logs = [[line | {"images_per_second": 0} for line in folder.read_log(out)] for out in (one, other)]
        assert logs[0] == logs[1]


def output_of(family):
    g = guided_diffusion()
    return torch.cat([g["eps_hat"], g["var_hat"]], dim=1) if family == "learned_range" else g["eps_hat"]


def pictures(count, *shape, seed=1):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def seeds_of(count, seed=0):
    return image_seeds(seed, torch.arange(count))


def last(chain):
    """x_0 of a chain."""
    return list(chain)[-1][1]


def gaussian_denoiser(schedule, mean, var, target):
    """The exact output for x0 ~ N(mean, var), at whole times and between them."""
    def denoise(xt, t):
        alpha_bar = alpha_bar_at(schedule, t).view(-1, 1, 1, 1).to(xt.dtype)
        gain = alpha_bar.sqrt() * var / (alpha_bar * var + 1 - alpha_bar)
        x0_hat = mean + gain * (xt - alpha_bar.sqrt() * mean)
        _, eps_hat = predict(schedule, x0_hat, xt, t, "x0")
        return training_target(schedule, x0_hat, t, eps_hat, target)
    return denoise


def gaussian_with_variance(schedule, mean, var, target):
    """Its output and, in the second half, the v that makes a learned variance exact."""
    def denoise(xt, t):
        alpha_bar, beta, beta_tilde = (table[t].view(-1, 1, 1, 1).to(xt.dtype) for table in
                                       (schedule.alpha_bar, schedule.beta, schedule.beta_tilde))
        x0_var = var * (1 - alpha_bar) / (alpha_bar * var + 1 - alpha_bar)
        before = schedule.alpha_bar[t - 1].view(-1, 1, 1, 1)
        log_var = (beta_tilde + x0_var * before * (beta / (1 - alpha_bar))**2).log()
        log_min = schedule.beta_tilde[t.clamp(min=2)].view(-1, 1, 1, 1).log()
        v = 2 * (log_var - log_min) / (beta.log() - log_min) - 1
        return torch.cat([gaussian_denoiser(schedule, mean, var, target)(xt, t), v.expand_as(xt).to(xt.dtype)], dim=1)
    return denoise


def write_idx(path, array):
    """An IDX file as its authors describe it: two zeros, 8 for bytes, the number of dimensions, sizes, bytes.

    Packed, if its name ends in .gz.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG: its length, kind, content and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


class Trap:
    """What a hostile pickle does: it leaves a folder, trap-was-here."""
    NAME = "trap-was-here"

    def __reduce__(self):
        return os.mkdir, (self.NAME,)


def awake(config, **kwargs):
    """A network none of whose weights are zero, so that every path shows."""
    torch.manual_seed(0)
    unet = UNet(config, **kwargs).eval()
    with torch.no_grad():
        for p in unet.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return unet
