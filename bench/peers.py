"""Our plain lines beside published implementations, on the same work, in turn, in one process, on a CPU.

    pip install diffusers denoising-diffusion-pytorch
    python -m bench.peers

Every candidate runs once in every round, so a machine that slows down slows all of them; the ratios are the
medians of the rounds' ratios to diffusers.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from diffusers import DDPMScheduler, UNet2DModel

import data
import ddpm
import noise
import train
from cli import parse, script


@dataclass(frozen=True)
class Config:
    """Times samplers and training steps against diffusers and denoising-diffusion-pytorch."""
    rounds: int = 15                # of every comparison
    threads: int = 1                # of torch


def compare(title: str, candidates: dict[str, Callable[[], None]], rounds: int, per: int = 1) -> None:
    """Prints the median time of each candidate, divided by `per`, and its ratio to the first's."""
    seconds = {name: [] for name in candidates}
    for run in candidates.values():
        run()
    for _ in range(rounds):
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            seconds[name].append((time.perf_counter() - began) / per)
    first, *_ = seconds.values()
    print(f"\n{title}")
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, first, strict=True))
        print(f"  {name:42} {1e3 * statistics.median(own):9.3f} ms {ratio:6.2f}")


def samplers(shape: tuple[int, ...], steps: int = 50) -> dict[str, Callable[[], None]]:
    """DDPM over the last `steps` of 1000 steps with a network that answers at once: the sampler's own cost."""
    B, C, H, W = shape
    answer = 0.1 * torch.randn(shape)
    scheduler = DDPMScheduler(clip_sample=True)
    theirs = GaussianDiffusion(Fake(answer), image_size=H, beta_schedule="linear", objective="pred_noise",
                               auto_normalize=False)
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), range(steps, 0, -1), eta=1.)
    seeds = noise.image_seeds(0, torch.arange(B))

    def diffusers() -> None:
        xt = torch.randn(shape)
        for t in range(steps - 1, -1, -1):
            xt = scheduler.step(answer, t, xt).prev_sample

    @torch.inference_mode()
    def lucidrains() -> None:
        xt = torch.randn(shape)
        for t in range(steps - 1, -1, -1):
            xt, _ = theirs.p_sample(xt, t)

    def ours(step: Callable = ddpm.step, ahead: int = 1) -> None:
        for _ in ddpm.sample(lambda xt, t: answer, rows, shape[1:], seeds, step=step, ahead=ahead):
            pass

    compiled = torch.compile(ddpm.step)
    return {"diffusers": diffusers, "denoising-diffusion-pytorch": lucidrains, "ours, one draw a step": ours,
            "ours, 50 steps' noise at once": lambda: ours(ahead=50), "ours, compiled step": lambda: ours(compiled)}


class Fake(torch.nn.Module):
    """A network that knows its answer."""
    channels = out_dim = 3
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, answer: torch.Tensor):
        super().__init__()
        self.answer, self.channels, self.out_dim = answer, answer.shape[1], answer.shape[1]

    def forward(self, xt, t, x_self_cond=None):
        return self.answer


def training_steps() -> dict[str, Callable[[], None]]:
    """One update on 64 digits: loss, gradient, clip, Adam, and (ours) the noise and the average of the weights."""
    run = train.begin(train.Config(), data.load("digits"))
    model, batch = train.denoiser(run), data.Steps(run.dataset, 64, 0, False)[1]
    x0 = data.to_unit(batch[0])
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    same = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32),
                       down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
                       num_class_embeds=11, resnet_time_scale_shift="scale_shift", add_attention=False)
    theirs = GaussianDiffusion(Unet(dim=16, dim_mults=(1, 2), channels=1), image_size=8, auto_normalize=False)

    def learner(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

        def learn() -> None:
            optimizer.zero_grad()
            loss().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.)
            optimizer.step()
        return learn

    def diffusers_loss() -> torch.Tensor:
        t, eps = torch.randint(1000, (64,)), torch.randn_like(x0)
        answer = same(scheduler.add_noise(x0, eps, t), t, class_labels=batch[1]).sample
        return (answer - scheduler.get_velocity(x0, eps, t)).square().mean()

    for name, network in {"diffusers": same, "denoising-diffusion-pytorch": theirs, "ours": run.unet}.items():
        print(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters")
    return {"diffusers, the same network": learner(same, diffusers_loss),
            "denoising-diffusion-pytorch, dim 16": learner(theirs, lambda: theirs(x0)),
            "ours": lambda: train.update(run, model, 1, *batch) and None}


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    torch.set_num_threads(config.threads)
    print(f"torch {torch.__version__}, {config.threads} threads, median of {config.rounds} rounds, ratio to diffusers")
    for shape in ((64, 3, 32, 32), (4, 1, 8, 8)):
        compare(f"a sampler's own cost a step, {shape}", samplers(shape), config.rounds, per=50)
    compare("a training step on 64 digits", training_steps(), config.rounds)


if __name__ == "__main__":
    main()
