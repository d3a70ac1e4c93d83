"""The rows beside the schedulers of diffusers, step by step over whole trajectories, both in float64.

diffusers computes its tables in float32, and some schedulers cast the state to float32. Here its modules see float64
under that name, so that the method is compared and not its rounding.
The states are compared in variance-preserving coordinates, into which every scheduler's own are scaled.
"""

import importlib
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from ddpm import SCHEDULES, cosine_schedule, flow_schedule, linear_schedule, rescale_zero_snr
from samplers import COLUMNS, alpha_bar_at, network_times, sampler_rows, spaced_times, step

diffusers = pytest.importorskip("diffusers")
MODULES = ("dpmsolver_multistep", "edm_dpmsolver_multistep", "edm_euler", "euler_ancestral_discrete", "euler_discrete",
           "flow_match_euler_discrete", "heun_discrete", "lcm", "unipc_multistep")
LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
STEPS = 12


class Wide:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self.module, name)


@pytest.fixture
def wide(monkeypatch):
    for name in MODULES:
        module = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        monkeypatch.setattr(module, "torch", Wide(torch))
        if hasattr(module, "np"):
            monkeypatch.setattr(module, "np", Wide(np))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Levels(NamedTuple):
    """All that a sampler needs of a schedule: here a table of its own noise levels."""
    alpha_bar: Tensor


def output(x: Tensor, log_sigma: Tensor) -> Tensor:
    """A network's: some smooth function of the state and its noise level."""
    return 0.7 * x + 0.4 * (2 * x + 0.3 * log_sigma.clamp(max=9)).sin()


def numbers(count: int) -> Tensor:
    return torch.randn(count, 2, 3, 4, generator=torch.Generator().manual_seed(count), dtype=torch.float64)


def replace_noise(monkeypatch, module: str, z: Tensor) -> None:
    """Makes a scheduler's random numbers these, step by step."""
    left = iter(z)
    monkeypatch.setattr(f"diffusers.schedulers.scheduling_{module}.randn_tensor", lambda *_, **__: next(left))


def ours(schedule, rows: Tensor, xt: Tensor, noise: Tensor | None = None) -> list[Tensor]:
    """x_s after every row."""
    past, states = [None, None], []
    for k, t in enumerate(network_times(rows)):
        log_sigma = -alpha_bar_at(schedule, t).logit() / 2
        xt, x0_hat = step(rows, torch.tensor([k]), xt, output(xt, log_sigma), past[-1], x0_prev2=past[-2],
                          z=None if noise is None else noise[k])
        past.append(x0_hat)
        states.append(xt)
    return states


def theirs(scheduler, x: Tensor, sigmas: Tensor, scale, **options) -> list[Tensor]:
    """Their state after every step, times scale(sigma); sigmas: the noise for a signal of one, of every step and 0."""
    xt, states = x / scale(sigmas[0]), []
    for k, t in enumerate(scheduler.timesteps):
        extra = {name: value[k] for name, value in options.items()}
        if hasattr(scheduler, "scale_model_input"):
            assert_close(scheduler.scale_model_input(xt, t), xt * scale(sigmas[k]))
        xt = scheduler.step(output(xt * scale(sigmas[k]), sigmas[k].log()), t, xt, **extra).prev_sample
        states.append(xt * scale(sigmas[k + 1]))
    return states


def same(mine: list[Tensor], other: list[Tensor]) -> None:
    """Every step, relative to the largest number. diffusers' B1 multiplies 0 by infinity in the last step, to 0."""
    for k, (a, b) in enumerate(zip(mine, other, strict=True)):
        if k == len(other) - 1 and b.isnan().all():
            return
        assert b.dtype == torch.float64 and b.abs().max() > 0.1
        assert_close(a, b, rtol=0, atol=1e-9 * b.abs().max().item(), msg=lambda m, k=k: f"step {k}: {m}")


def variance_preserving(sigma: Tensor) -> Tensor:
    """From sigma's coordinates, in which the signal is not scaled."""
    return 1 / (1 + sigma**2).sqrt()


def unscaled(sigma: Tensor) -> Tensor:
    return torch.ones_like(sigma)


def straight(sigma: Tensor) -> Tensor:
    """From the straight path's coordinates, (1 - u) x0 + u eps with sigma = u / (1 - u)."""
    u = (sigma / (1 + sigma)).nan_to_num(nan=1.)
    return 1 / ((1 - u)**2 + u**2).sqrt()


MULTISTEP = {"2m": ("DPMSolverMultistep", {}), "unipc": ("UniPCMultistep", {"solver_type": "bh2"}),
             "unipc-bh1": ("UniPCMultistep", {"solver_type": "bh1"})}


def scheduler_of(name: str, steps: int = STEPS, **options):
    scheduler = getattr(diffusers, f"{name}Scheduler")(**options)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("beta_schedule, spacing, prediction, target", [
    ("linear", "trailing", "epsilon", "eps"), ("linear", "linspace", "sample", "x0"),
    ("linear", "trailing", "v_prediction", "v"), ("squaredcos_cap_v2", "trailing", "epsilon", "eps"),
    ("squaredcos_cap_v2", "linspace", "epsilon", "eps")])
@pytest.mark.parametrize("sampler", MULTISTEP)
def test_multistep(sampler, beta_schedule, spacing, prediction, target, wide):
    name, options = MULTISTEP[sampler]
    schedule, x = linear_schedule() if beta_schedule == "linear" else cosine_schedule(), numbers(1)[0]
    other = scheduler_of(name, **LINEAR | {"beta_schedule": beta_schedule}, **options, timestep_spacing=spacing,
                         prediction_type=prediction)
    rows = sampler_rows(schedule, other.timesteps + 1, sampler=sampler, target=target, clip=False)
    mine, other = ours(schedule, rows, x), theirs(other, x, other.sigmas, unscaled)
    assert other[-1].isnan().all() == (sampler == "unipc-bh1") and mine[-1].isfinite().all()
    same(mine, other)


@pytest.mark.parametrize("karras", [False, True])
def test_sde_multistep(karras, wide):
    other = scheduler_of("DPMSolverMultistep", **LINEAR, algorithm_type="sde-dpmsolver++", use_karras_sigmas=karras,
                         timestep_spacing="trailing")
    schedule, x, z = linear_schedule(), numbers(1)[0], numbers(STEPS)
    times = spaced_times(schedule, STEPS, "karras" if karras else "trailing")
    rows = sampler_rows(schedule, times, sampler="2m", eta=1., clip=False)
    same(ours(schedule, rows, x, z), theirs(other, x, other.sigmas, unscaled, variance_noise=z))


TRAILING = {"timestep_spacing": "trailing"}
KARRAS, LOGSNR = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}


@pytest.mark.parametrize("name, options, spacing, choice", [
    ("EulerAncestral", TRAILING, "trailing", {"eta": 1.}), ("Euler", TRAILING, "trailing", {}),
    ("Euler", KARRAS, "karras", {}), ("Euler", LOGSNR, "logsnr", {}),
    ("Heun", TRAILING | {"clip_sample": True}, "trailing", {"sampler": "heun", "clip": True}),
    *(("Heun", options, spacing, {"sampler": "heun"}) for options, spacing in (
        (TRAILING, "trailing"), (KARRAS, "karras"), (LOGSNR, "logsnr")))])
def test_euler_and_heun(name, options, spacing, choice, wide, monkeypatch):
    other, schedule = scheduler_of(f"{name}Discrete", **LINEAR, **options), linear_schedule()
    x, z = numbers(1)[0], numbers(2 * STEPS)
    replace_noise(monkeypatch, "euler_ancestral_discrete", z)
    rows = sampler_rows(schedule, spaced_times(schedule, STEPS, spacing), **{"clip": False} | choice)
    assert_close(rows[:, 0], other.timesteps + 1, rtol=0, atol=1e-8)          # what the network is told, too
    same(ours(schedule, rows, x, z), theirs(other, x, other.sigmas, variance_preserving))


@pytest.mark.parametrize("name, options, sampler", [
    ("EDMEuler", {}, {}), ("EDMDPMSolverMultistep", {}, {"sampler": "2m"}),
    ("EDMDPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {"sampler": "2m", "eta": 1.})])
def test_edm(name, options, sampler, wide, monkeypatch):
    """Karras's sigmas and preconditioning for data of deviation 0.5: v-prediction of data divided by it, F = -v."""
    other, data = scheduler_of(name, **options), 0.5
    sigmas, x, z = other.sigmas / data, numbers(1)[0], numbers(STEPS)
    replace_noise(monkeypatch, "edm_dpmsolver_multistep", z)
    schedule = Levels(torch.cat([torch.ones(1), 1 / (1 + sigmas[:-1].flip(0)**2)]))
    assert_close(spaced_times(schedule, STEPS, "karras"), torch.arange(STEPS, 0, -1.), rtol=0, atol=1e-9)
    rows = sampler_rows(schedule, range(STEPS, 0, -1), target="v", clip=False, **sampler)
    rows[:, COLUMNS.index("b")] *= -1                                             # their output is -v
    same(ours(schedule, rows, x, z), theirs(other, x, sigmas, lambda sigma: variance_preserving(sigma) / data))


@pytest.mark.parametrize("shift", [1., 3.])
def test_flow_matching_is_ddim(shift, wide):
    """Their x is (1 - u) x0 + u eps; alpha_bar_T = 0, and the times lie between the whole ones."""
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    other.set_timesteps(sigmas=np.linspace(1, 1 / STEPS, STEPS))
    u, x, schedule = other.sigmas, numbers(1)[0], flow_schedule()
    times = spaced_times(schedule, STEPS, "flow", shift)
    assert_close(times, other.timesteps, rtol=0, atol=0.01)                       # log sigma is no line in u
    rows = sampler_rows(schedule, times, target="flow", clip=False)
    same(ours(schedule, rows, x), theirs(other, x, u / (1 - u), straight))


def test_consistency_is_lcm(wide, monkeypatch):
    """Their x0_hat is c_skip x + c_out x0_hat, which is another a and b."""
    other, z, x, schedule = scheduler_of("LCM", 4, **LINEAR, clip_sample=False), numbers(4), numbers(1)[0], None
    replace_noise(monkeypatch, "lcm", z)
    schedule = linear_schedule()
    rows = sampler_rows(schedule, other.timesteps + 1, sampler="consistency", clip=False)
    skip, out = zip(*map(other.get_scalings_for_boundary_condition_discrete, other.timesteps), strict=True)
    rows[:, 2:4] *= torch.stack(out)[:, None]
    rows[:, 2] += torch.stack(skip)
    bar = schedule.alpha_bar[torch.cat([other.timesteps + 1, torch.zeros(1).long()])]
    same(ours(schedule, rows, x, z), theirs(other, x, (1 / bar - 1).sqrt(), unscaled))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1000, 20])
def test_zero_snr_is_the_published_rescaling(name, T):
    rescale = importlib.import_module("diffusers.schedulers.scheduling_ddim").rescale_zero_terminal_snr
    schedule = SCHEDULES[name](T)
    rescaled = rescale_zero_snr(schedule)
    assert_close(rescaled.beta[1:], rescale(schedule.beta[1:]), rtol=1e-9, atol=1e-12)
    assert rescaled.alpha_bar[-1] == 0
    assert_close(rescaled.alpha_bar[1], schedule.alpha_bar[1], rtol=1e-14, atol=0)
