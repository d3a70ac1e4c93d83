"""A sampler's own cost: the last 50 of 1000 steps of DDPM with a network that costs nothing. Ours and peers."""

from collections import deque
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import ddpm
import noise
from bench.measure import LUCIDRAINS, check_error, device, error_of, skip_missing

STEPS = 50
TOGETHER = "eager, noise of 50 steps together"


def ours(output: Tensor, step: Callable = ddpm.step, ahead: int = 1) -> Callable[[], Tensor]:
    B, *shape = output.shape
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), range(STEPS, 0, -1), eta=1.).to(output.device)
    seeds = noise.image_seeds(0, torch.arange(B, device=output.device))

    def run() -> Tensor:
        chain = ddpm.sample(lambda xt, t: output, rows, shape, seeds, step=step, ahead=ahead)
        return deque(chain, maxlen=1)[0][1]
    return run


def diffusers(output: Tensor) -> Callable[[], Tensor]:
    from diffusers import DDPMScheduler
    scheduler = DDPMScheduler(clip_sample=True)

    def run() -> Tensor:
        xt = torch.randn_like(output)
        for t in range(STEPS - 1, -1, -1):
            xt = scheduler.step(output, t, xt).prev_sample
        return xt
    return run


def lucidrains(output: Tensor) -> Callable[[], Tensor]:
    from denoising_diffusion_pytorch import GaussianDiffusion
    process = GaussianDiffusion(Constant(output), image_size=output.shape[2], beta_schedule="linear",
                                objective="pred_noise", auto_normalize=False).to(output.device)

    @torch.inference_mode()
    def run() -> Tensor:
        xt = torch.randn_like(output)
        for t in range(STEPS - 1, -1, -1):
            xt, _ = process.p_sample(xt, t)
        return xt
    return run


class Constant(nn.Module):
    """A network with a constant output, as denoising-diffusion-pytorch wants one."""
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, output: Tensor):
        super().__init__()
        self.output, self.channels, self.out_dim = output, output.shape[1], output.shape[1]

    def forward(self, xt: Tensor, t: Tensor, x_self_cond: Tensor | None = None) -> Tensor:
        return self.output


CANDIDATES = {"eager": ours, "compiled": lambda output: ours(output, torch.compile(ddpm.step)),
              TOGETHER: partial(ours, ahead=STEPS), "diffusers": diffusers, LUCIDRAINS: lucidrains}


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (4, 1, 8, 8)], ids=str)
def test_sampler(benchmark, name, shape):
    skip_missing(name)
    output = 0.1 * torch.randn(shape, device=device())
    run = CANDIDATES[name](output)
    run()
    if name in ("compiled", TOGETHER):
        benchmark.extra_info["error"] = check_error(error_of([run()], [ours(output)()]), 1e-4)
    benchmark.group = f"a sampler's own cost, {shape}"
    benchmark.pedantic(run, rounds=20)
    benchmark.extra_info |= {"calls": STEPS}
