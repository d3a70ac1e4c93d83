"""Whole sampling loops: ours from eager to captured, stage by stage; diffusers; denoising-diffusion-pytorch.

Random weights, none of them zero: a GPU is faster on zeros. Every candidate samples B pictures with the same number of
network evaluations, ours and diffusers' through the same network, denoising-diffusion-pytorch's through its own.
"""

import copy
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import ddpm
from bench.measure import CUDA, check_error, device, error_of, forget_peak, memory, missing
from kernels import group_norm_silu, group_norm_silu_plain, sampling_step
from kernels.compile import compile_denoiser, compile_loop, time_table
from kernels.equivalence import SIDES
from noise import image_seeds, normal
from run.memory import cast
from unet import CONFIGS, UNet

# Ours from plain to fast: each stage is the previous one with its change.
STAGES = {"eager": "plain lines, float32 (TF32 in convolutions)", "bf16": "weights and activations in bf16",
          "channels_last": "convolutions in their own layout", "compile": "torch.compile of network and step",
          "kernels": "the fused norm and step", "time path": "the rows of all steps computed once",
          "sub-pixel": "nearest-up and convolution as one transposed convolution",
          "graph": "one step captured and replayed: all of --compile --dtype bf16"}
LUCIDRAINS = "denoising-diffusion-pytorch"
PEERS = {"diffusers nchw": {}, "diffusers channels_last": {"channels_last": True},
         "diffusers compiled": {"channels_last": True, "mode": "reduce-overhead"},
         "diffusers max-autotune": {"channels_last": True, "mode": "max-autotune"},
         "diffusers float32": {"dtype": torch.float32},
         f"{LUCIDRAINS} nchw": {}, f"{LUCIDRAINS} channels_last": {"channels_last": True}}
# What diffusers' guide to fast inference sets with max-autotune; a UNet2DModel has no fuse_qkv_projections
GUIDE = {"conv_1x1_as_mm": True, "coordinate_descent_tuning": True, "epilogue_fusion": False,
         "coordinate_descent_check_all_directions": True}


# Of ||difference|| / ||output||, which is 1.3 % in bf16 for the cifar10 network, ours and diffusers', on a CPU, 0.5 %
# under autocast, and 1e-6 in float32; TF32 rounds a convolution's input eight times as finely as bf16.
HALF, FULL = 0.02, 0.005 if CUDA else 1e-4


class Loop(NamedTuple):
    """Something that samples pictures."""
    sample: Callable[[], Tensor]            # -> B pictures
    error: Callable[[], float]              # of one output of the network against float64: ||difference|| / ||output||
    tolerance: float
    parameters: int
    start: Callable[[], Iterator] | None = None     # of ours: the chain, step by step


class Chain(NamedTuple):
    """The work: B pictures of a network's size, sampled in so many steps, DDIM at eta = 0, DDPM at 1."""
    network: str
    B: int
    steps: int
    eta: float

    def __str__(self) -> str:
        return f"{'DDPM' if self.eta else 'DDIM'}-{self.steps} {self.network} batch {self.B}"


@torch.no_grad()
def awake(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in network.parameters():
        p.add_(0.02 * torch.randn_like(p))
    return network.eval().requires_grad_(False).to(device())


def shape_of(chain: Chain) -> tuple[int, int, int]:
    return CONFIGS[chain.network].in_channels, SIDES[chain.network], SIDES[chain.network]


@torch.no_grad()
def ours(stage: str, chain: Chain) -> Loop:
    """All that STAGES lists up to this stage; the weights are the same every time."""
    torch.manual_seed(0)
    has = list(STAGES)[:list(STAGES).index(stage) + 1].__contains__
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), ddpm.timesteps(1000, chain.steps), eta=chain.eta).to(device())
    seeds = image_seeds(0, torch.arange(chain.B)).to(device())
    classes, dtype = CONFIGS[chain.network].classes, torch.bfloat16 if has("bf16") else torch.float32
    labels = (seeds % classes,) if classes else ()
    unet = awake(UNet(CONFIGS[chain.network], group_norm_silu if has("kernels") else group_norm_silu_plain))
    exact = UNet(CONFIGS[chain.network]).to(device()).double().eval()
    exact.load_state_dict(unet.state_dict())
    unet.load_state_dict(cast(unet.state_dict(), dtype), assign=True)
    model = denoiser(unet.requires_grad_(False), rows[:, 0].long(), has)

    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        return model(xt, t, *labels)

    @torch.no_grad()                                        # as when sampling: compiled once for both
    def error() -> float:
        xt, t = normal(seeds, 1000, shape_of(chain)), rows[:, :1].long().expand(-1, chain.B)[0]
        few = [each[:2] for each in (t, *labels)]
        return error_of([denoise(xt, t)[:2]], [exact(xt[:2].double(), *few)])

    if has("graph"):
        run = compile_loop(denoise, rows, shape_of(chain), seeds)
    else:
        step = sampling_step if has("kernels") else torch.compile(ddpm.step) if has("compile") else ddpm.step
        run = partial(ddpm.sample, denoise, rows, shape_of(chain), step=step)
    tolerance = HALF if dtype == torch.bfloat16 else FULL
    return Loop(lambda: deque(run(seeds), maxlen=1)[0][1], error, tolerance, count(unet), lambda: run(seeds))


def denoiser(unet: UNet, times: Tensor, has: Callable[[str], bool]) -> Callable:
    if has("sub-pixel"):
        return compile_denoiser(unet, times)
    if has("channels_last"):
        unet.to(memory_format=torch.channels_last)
    if has("time path"):
        embed, trunk = time_table(unet, times), torch.compile(unet.trunk, fullgraph=True)
        return lambda xt, t, *labels: trunk(xt, embed(t, *labels or (None,)))
    return torch.compile(unet, fullgraph=True) if has("compile") else unet


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def diffusers_unet(network: str) -> nn.Module:
    """The same network by diffusers, with attention where ours has it; without dropout."""
    from diffusers import UNet2DModel
    config = CONFIGS[network]
    heads = config.heads[:-1]
    return UNet2DModel(
        sample_size=SIDES[network], in_channels=config.in_channels, out_channels=config.out_channels,
        block_out_channels=config.widths, layers_per_block=config.blocks, norm_num_groups=config.groups,
        norm_eps=config.norm_eps, freq_shift=config.freq_shift, flip_sin_to_cos=False, attention_head_dim=None,
        downsample_padding=0 if config.resample == "conv_end" else 1, add_attention=bool(config.heads[-1]),
        num_class_embeds=config.classes or None,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        down_block_types=["AttnDownBlock2D" if h else "DownBlock2D" for h in heads],
        up_block_types=["AttnUpBlock2D" if h else "UpBlock2D" for h in reversed(heads)])


@torch.no_grad()
def diffusers(chain: Chain, channels_last: bool = False, mode: str = "", dtype: torch.dtype = torch.bfloat16) -> Loop:
    """Its loop as its pipelines have it, but with the times on the device once; weights and pictures in dtype."""
    from diffusers import DDIMScheduler, DDPMScheduler
    scheduler = (DDPMScheduler if chain.eta else DDIMScheduler)(timestep_spacing="trailing")
    scheduler.set_timesteps(chain.steps)
    network = awake(diffusers_unet(chain.network))
    exact = copy.deepcopy(network).double()
    network.to(dtype).to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    if mode:
        options = torch._inductor.list_mode_options(mode) | (GUIDE if mode == "max-autotune" else {})
        network.compile(options=options, fullgraph=True)
    times = list(zip(scheduler.timesteps.tolist(), scheduler.timesteps.to(device()), strict=True))
    labels = {"class_labels": torch.zeros(chain.B, dtype=torch.int64, device=device())}
    labels = labels if CONFIGS[chain.network].classes else {}

    def start() -> Tensor:
        return torch.randn(chain.B, *shape_of(chain), dtype=dtype, device=device())

    @torch.no_grad()
    def sample() -> Tensor:
        xt = start()
        for t, on_device in times:
            torch.compiler.cudagraph_mark_step_begin()
            xt = scheduler.step(network(xt, on_device, **labels).sample, t, xt).prev_sample
        return xt

    @torch.no_grad()
    def error() -> float:
        xt, t = start(), times[0][1]
        few = {k: v[:2] for k, v in labels.items()}
        return error_of([network(xt, t, **labels).sample[:2]], [exact(xt[:2].double(), t, **few).sample])

    return Loop(sample, error, HALF if dtype == torch.bfloat16 else FULL, count(network))


def lucidrains(chain: Chain, channels_last: bool = False) -> Loop:
    """Its own network, without classes, under autocast: it has no bf16 loop of its own."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    config = CONFIGS[chain.network]
    mults = tuple(w // config.widths[0] for w in config.widths)
    network = awake(Unet(dim=config.widths[0], dim_mults=mults, channels=config.in_channels))
    exact = copy.deepcopy(network).double()
    network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    process = GaussianDiffusion(network, image_size=SIDES[chain.network], timesteps=1000, beta_schedule="linear",
                                sampling_timesteps=chain.steps, ddim_sampling_eta=chain.eta,
                                objective="pred_noise").to(device())

    @torch.no_grad()
    def half(function: Callable, *arguments) -> Tensor:
        with torch.autocast(device().type, torch.bfloat16):
            return function(*arguments)

    def error() -> float:
        xt, t = torch.randn(2, *shape_of(chain), device=device()), torch.full((2,), 999, device=device())
        with torch.no_grad():
            return error_of([half(network, xt, t)], [exact(xt.double(), t.double())])

    return Loop(lambda: half(process.sample, chain.B), error, HALF, count(network))


def build(name: str, chain: Chain) -> Loop:
    """A candidate by its name."""
    if name in STAGES:
        return ours(name, chain)
    return (lucidrains if name.startswith(LUCIDRAINS) else diffusers)(chain, **PEERS[name])


def cases() -> list[tuple[Chain, str]]:
    """Chains and candidates. On a CPU the stages that mean anything there, "sub-pixel" being all of --compile."""
    if not CUDA:
        stages = ["eager", "bf16", "channels_last", "compile", "sub-pixel"]
        names = [*stages, *(name for name, options in PEERS.items() if "mode" not in options)]
        return [(chain, name) for chain in (Chain("digits", 4, 5, 0.), Chain("cifar10", 8, 1, 0.)) for name in names]
    ends = ["graph", "compile", "eager"]
    names = {Chain("cifar10", 512, 50, 0.): [*reversed(STAGES), *PEERS],
             **{Chain("cifar10", B, 50, 0.): ends + [name for name in PEERS if "max" not in name] for B in (1, 128)},
             Chain("cifar10", 8, 50, 0.): ends,
             Chain("cifar10", 128, 1000, 1.): ["graph", "diffusers channels_last", "diffusers compiled"]}
    return [(chain, name) for chain in names for name in names[chain]]


@pytest.mark.parametrize("chain, name", cases(), ids=str)
def test_loop(benchmark, chain, name):
    if name in PEERS and missing(name):
        pytest.skip(missing(name))
    counters.clear()
    began = time.perf_counter()
    loop = build(name, chain)
    error = check_error(loop.error(), loop.tolerance)
    loop.sample()                                           # compiles what is left
    benchmark.group = str(chain)
    benchmark.extra_info |= {"error": error, "prepared s": time.perf_counter() - began, "B": chain.B,
                             "steps": chain.steps, "network": chain.network, "parameters": loop.parameters}
    loop = loop._replace(error=None)                        # frees the network in float64
    forget_peak()
    benchmark.pedantic(loop.sample, rounds=2 if chain.steps > 500 else 5)
    benchmark.extra_info |= memory() | skipped_graphs()


def skipped_graphs() -> dict[str, int]:
    """How often Inductor was asked for a CUDA graph and left it out, which it says in a warning only."""
    return {"cudagraph skips": counters["inductor"]["cudagraph_skips"]}
