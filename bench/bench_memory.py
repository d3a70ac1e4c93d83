"""The memory that tensors take at once, at most, when a named network is trained and when it samples.

What is counted is what PyTorch has allocated, every byte of it, on a CPU as on a GPU; libraries, and the scratch of
their convolutions, come on top.
"""

from collections.abc import Callable

import pytest
import torch
from torch.autograd.profiler import profile

import data
import ddpm
import noise
import train
from bench.measure import CUDA, device
from kernels.equivalence import SIDES
from run.memory import cast
from unet import CONFIGS, UNet

TRAINING = {"float32": {}, "bf16": {"dtype": "bf16"}, "float32 `--recompute`": {"recompute": True},
            "bf16 `--recompute`": {"dtype": "bf16", "recompute": True}}
SAMPLING = {"float32": torch.float32, "bf16": torch.bfloat16}


def peak(run: Callable[[], object]) -> int:
    """The most bytes in use at once, of what `run` allocates."""
    if CUDA:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    with profile(profile_memory=True) as profiler:
        run()
    changes = sorted((e.start_ns(), e.nbytes()) for e in profiler.kineto_results.events() if e.name() == "[memory]")
    return int(torch.tensor([size for _, size in changes]).cumsum(0).max())


def batch(network: str) -> int:
    """64 digits, 32 pictures of 32 x 32, or as many pixels."""
    return min(64, max(1, 32**3 // SIDES[network]**2))


def update(network: str, flags: dict) -> None:
    """A training step, the optimizer's moments being there."""
    config, B, side = CONFIGS[network], batch(network), SIDES[network]
    shape, classes = (config.in_channels, side, side), tuple(map(str, range(config.classes - 1)))
    pixels, labels = torch.zeros(B, *shape, dtype=torch.uint8), torch.zeros(B if classes else 0, dtype=torch.int64)
    run = train.start(train.Config(network=network, batch=B, device=device().type, optimizer="adam",
                                   loss="hybrid" if config.learns_variance else "l2", **flags),
                      data.Data("black", pixels, labels, classes, shape))
    for w in run.weights.values():
        w.grad = torch.zeros_like(w)
    run.optimizer.step()
    train.update(run, train.trained_model(run), 1, pixels, labels)


@torch.no_grad()
def sampling(network: str, dtype: torch.dtype) -> None:
    """Reading one set of weights, and two steps of DDPM."""
    config, B, side = CONFIGS[network], batch(network), SIDES[network]
    with torch.device("meta"):
        unet = UNet(config)
    read = {name: torch.zeros(w.shape) for name, w in unet.state_dict().items()}
    unet.load_state_dict(cast(read, dtype), assign=True)
    unet.to(device()).eval()
    labels = torch.zeros(B, dtype=torch.int64, device=device()) if config.classes else None
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), [1000, 500], eta=1.,
                             variance="learned" if config.learns_variance else "beta_tilde").to(device())
    list(ddpm.sample(lambda xt, t: unet(xt, t, labels), rows, (config.in_channels, side, side),
                     noise.image_seeds(0, torch.arange(B, device=device()))))


@pytest.mark.parametrize("network", CONFIGS)
@pytest.mark.parametrize("work, name", [*(("training", name) for name in TRAINING),
                                        *(("sampling", name) for name in SAMPLING)])
def test_memory(benchmark, work, name, network):
    """The benchmark's time is that of a cold run, and means nothing."""
    run = (lambda: update(network, TRAINING[name])) if work == "training" else (
        lambda: sampling(network, SAMPLING[name]))
    with torch.device("meta"):
        parameters = sum(w.numel() for w in UNet(CONFIGS[network]).parameters())
    benchmark.group = f"memory of {work}"
    benchmark.extra_info |= {"network": network, "parameters": parameters,
                             "pictures": f"{batch(network)} of {SIDES[network]} x {SIDES[network]}"}
    benchmark.extra_info["peak GB"] = benchmark.pedantic(peak, args=(run,)) / 1e9
