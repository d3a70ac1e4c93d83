"""Our plain lines and published implementations on the same work, in turn, in one process, on a CPU.

    pip install -r bench/requirements.txt               # in an environment of its own: it may replace torch
    python -m bench.peers

Every candidate runs once in every round, so a machine that slows down slows all of them; the ratios are the medians
of the rounds' ratios to diffusers, or to ours where diffusers is not installed. What is missing is named at the end.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

import data
import ddpm
import noise
import train
from bench.bench_sampling_loop import awake, diffusers_unet
from bench.packages import installed
from kernels.compile import compile_denoiser
from run.cli import parse, script
from run.memory import cast
from unet import CONFIGS, UNet


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
    """DDPM over the last `steps` of 1000 steps with a network that costs nothing: the sampler's own cost."""
    B, C, H, W = shape
    output = 0.1 * torch.randn(shape)
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), range(steps, 0, -1), eta=1.)
    seeds = noise.image_seeds(0, torch.arange(B))

    def ours(step: Callable = ddpm.step, ahead: int = 1) -> None:
        for _ in ddpm.sample(lambda xt, t: output, rows, shape[1:], seeds, step=step, ahead=ahead):
            pass

    compiled = torch.compile(ddpm.step)
    runs = {"diffusers": diffusers_sampler(output, steps)} if installed("diffusers") else {}
    if installed("denoising-diffusion-pytorch"):
        runs["denoising-diffusion-pytorch"] = lucidrains_sampler(output, steps)
    return runs | {"ours, noise of each step by itself": ours, "ours, compiled step": lambda: ours(compiled),
                   "ours, noise of 50 steps together": lambda: ours(ahead=50)}


def diffusers_sampler(output: torch.Tensor, steps: int) -> Callable[[], None]:
    from diffusers import DDPMScheduler
    scheduler = DDPMScheduler(clip_sample=True)

    def run() -> None:
        xt = torch.randn_like(output)
        for t in range(steps - 1, -1, -1):
            xt = scheduler.step(output, t, xt).prev_sample
    return run


def lucidrains_sampler(output: torch.Tensor, steps: int) -> Callable[[], None]:
    from denoising_diffusion_pytorch import GaussianDiffusion
    process = GaussianDiffusion(Fake(output), image_size=output.shape[2], beta_schedule="linear",
                                objective="pred_noise", auto_normalize=False)

    @torch.inference_mode()
    def run() -> None:
        xt = torch.randn_like(output)
        for t in range(steps - 1, -1, -1):
            xt, _ = process.p_sample(xt, t)
    return run


class Fake(torch.nn.Module):
    """A network with a constant output."""
    channels = out_dim = 3
    self_condition = random_or_learned_sinusoidal_cond = False

    def __init__(self, output: torch.Tensor):
        super().__init__()
        self.output, self.channels, self.out_dim = output, output.shape[1], output.shape[1]

    def forward(self, xt, t, x_self_cond=None):
        return self.output


def forwards(B: int = 8) -> dict[str, Callable[[], None]]:
    """The output of the cifar10 network: plain, and as sample.py --compile --dtype bf16 computes it."""
    x, t = torch.randn(B, 3, 32, 32), torch.full((B,), 500)
    runs = {}
    if installed("diffusers"):
        theirs = awake(diffusers_unet("cifar10"))
        theirs_half = copy.deepcopy(theirs).bfloat16().to(memory_format=torch.channels_last)
        runs = {"diffusers, the same network": lambda: theirs(x, t - 1),
                "diffusers, bf16, channels_last": lambda: theirs_half(x.bfloat16(), t - 1)}
    ours = awake(UNet(CONFIGS["cifar10"]))
    half = copy.deepcopy(ours)
    half.load_state_dict(cast(ours.state_dict(), torch.bfloat16), assign=True)
    half = compile_denoiser(half.requires_grad_(False), t[:1])
    runs |= {"ours": lambda: ours(x, t), "ours, bf16, compiled": lambda: half(x, t)}
    return {name: torch.no_grad()(run) for name, run in runs.items()}


def digits_updates() -> dict[str, Callable[[], None]]:
    """One update on 64 digits: loss, gradient, clip, Adam, and (ours) the noise and the average of the weights."""
    x0, labels = data.Batches(data.load("digits"), 64, 0, False)[1]
    runs = {}
    if installed("diffusers"):
        from diffusers import UNet2DModel
        same = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
                           block_out_channels=(16, 32), down_block_types=("DownBlock2D",) * 2,
                           up_block_types=("UpBlock2D",) * 2, norm_num_groups=8, num_class_embeds=11,
                           resnet_time_scale_shift="scale_shift", add_attention=False)
        runs["diffusers, the same network"] = diffusers_update(same, data.to_unit(x0), "v_prediction", labels)
    if installed("denoising-diffusion-pytorch"):
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        network = Unet(dim=16, dim_mults=(1, 2), channels=1)
        process = GaussianDiffusion(network, image_size=8, auto_normalize=False)
        print(f"denoising-diffusion-pytorch's network has {sum(p.numel() for p in network.parameters()):,} parameters")
        runs["denoising-diffusion-pytorch, dim 16"] = update_of(network, lambda: process(data.to_unit(x0)))
    return runs | {"ours": our_update(train.Config(), x0, labels)}


def cifar10_updates(B: int = 8) -> dict[str, Callable[[], None]]:
    """One update of the cifar10 network, with its dropout."""
    pixels = torch.randint(256, (B, 3, 32, 32), dtype=torch.uint8)
    config = train.Config(network="cifar10", batch=B, target="eps", schedule="linear")
    runs = {}
    if installed("diffusers"):
        plain, half = (diffusers_unet("cifar10") for _ in range(2))
        autocast = diffusers_update(half.to(memory_format=torch.channels_last), data.to_unit(pixels), "epsilon")
        runs = {"diffusers, the same network": diffusers_update(plain, data.to_unit(pixels), "epsilon"),
                "diffusers, bf16, channels_last": torch.autocast("cpu", torch.bfloat16)(autocast)}
    return runs | {"ours": our_update(config, pixels), "ours, bf16": our_update(replace(config, dtype="bf16"), pixels)}


def our_update(config: train.Config, pixels: torch.Tensor, labels: torch.Tensor | None = None) -> Callable[[], None]:
    dataset = data.load("digits") if labels is not None else data.Data("", pixels, None, (), tuple(pixels.shape[1:]))
    run = train.start(config, dataset)
    model, labels = train.trained_model(run), torch.empty(0, dtype=torch.int64) if labels is None else labels
    return lambda: train.update(run, model, 1, pixels, labels) and None


def diffusers_update(network, x0: torch.Tensor, target: str, labels: torch.Tensor | None = None) -> Callable[[], None]:
    from diffusers import DDPMScheduler
    scheduler = DDPMScheduler(prediction_type=target)

    def loss() -> torch.Tensor:
        t, eps = torch.randint(1000, (len(x0),)), torch.randn_like(x0)
        output = network(scheduler.add_noise(x0, eps, t), t, class_labels=labels).sample
        return (output - (scheduler.get_velocity(x0, eps, t) if target == "v_prediction" else eps)).square().mean()

    return update_of(network, loss)


def update_of(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)

    def update() -> None:
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.)
        optimizer.step()
    return update


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    torch.set_num_threads(config.threads)
    base = "diffusers" if installed("diffusers") else "the first line"
    print(f"torch {torch.__version__}, {config.threads} threads, median of {config.rounds} rounds, ratio to {base}")
    for shape in ((64, 3, 32, 32), (4, 1, 8, 8)):
        compare(f"a sampler's own cost per step, {shape}", samplers(shape), config.rounds, per=50)
    compare("a training step on 64 digits", digits_updates(), config.rounds)
    compare("the output of the cifar10 network, batch 8", forwards(), config.rounds)
    compare("a training step of the cifar10 network, batch 8", cifar10_updates(), config.rounds)
    for package in ("diffusers", "denoising-diffusion-pytorch"):
        if not installed(package):
            print(f"{package} is not installed, so it was not measured; install it with: pip install {package}")


if __name__ == "__main__":
    main()
