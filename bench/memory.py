"""Measures the memory that training and sampling take, for every named network: the numbers of docs/memory.md.

    python -m bench.memory                                  # all networks: ten minutes on a CPU
    python -m bench.memory --networks cifar10 --out cifar10.md

What is counted is what PyTorch has allocated for tensors, every byte of it, on a CPU as on a GPU; libraries, and the
scratch of their convolutions, come on top.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.autograd.profiler import profile

import data
import ddpm
import noise
import train
from kernels.equivalence import SIDES
from run.cli import choose_device, parse, script
from run.markdown import fill, table
from run.memory import cast
from unet import CONFIGS, UNet

PAGE = Path("docs/memory.md")
TRAINING = {"float32": {}, "bf16": {"dtype": "bf16"}, "float32 `--recompute`": {"recompute": True},
            "bf16 `--recompute`": {"dtype": "bf16", "recompute": True}}
SAMPLING = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Config:
    """Measures the memory that training and sampling take."""
    networks: str = ",".join(CONFIGS)           # names in unet.CONFIGS
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = str(PAGE)                        # the page


def peak(run: Callable[[], object], device: torch.device) -> int:
    """The most bytes in use at once, of what `run` allocates."""
    if device.type == "cuda":
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


def update(network: str, device: torch.device, flags: dict) -> Callable[[], object]:
    """A training step, the optimizer's moments being there."""
    config, B, side = CONFIGS[network], batch(network), SIDES[network]
    shape, classes = (config.in_channels, side, side), tuple(map(str, range(config.classes - 1)))
    pixels, labels = torch.zeros(B, *shape, dtype=torch.uint8), torch.zeros(B if classes else 0, dtype=torch.int64)
    settings = train.Config(network=network, batch=B, device=device.type,
                            loss="hybrid" if config.learns_variance else "l2", **flags)

    def run() -> object:
        run = train.start(settings, data.Data("black", pixels, labels, classes, shape))
        for w in run.weights.values():
            w.grad = torch.zeros_like(w)
        run.optimizer.step()
        return train.update(run, train.trained_model(run), 1, pixels, labels)
    return run


def sampling(network: str, device: torch.device, dtype: torch.dtype) -> Callable[[], object]:
    """Reading one set of weights, and two steps of DDPM."""
    config, B, side = CONFIGS[network], batch(network), SIDES[network]
    labels = torch.zeros(B, dtype=torch.int64, device=device) if config.classes else None
    rows = ddpm.sampler_rows(ddpm.linear_schedule(), [1000, 500], eta=1.,
                             variance="learned" if config.learns_variance else "beta_tilde").to(device)
    seeds = noise.image_seeds(0, torch.arange(B, device=device))

    @torch.no_grad()
    def run() -> object:
        with torch.device("meta"):
            unet = UNet(config)
        read = {name: torch.zeros(w.shape) for name, w in unet.state_dict().items()}
        unet.load_state_dict(cast(read, dtype), assign=True)
        unet.to(device).eval()
        return list(ddpm.sample(lambda xt, t: unet(xt, t, labels), rows, (config.in_channels, side, side), seeds))
    return run


def measured(networks: Sequence[str], device: torch.device, function: Callable, ways: dict) -> str:
    """A table with a row per network and a column per way, in GB."""
    rows = []
    for name in networks:
        with torch.device("meta"):
            parameters = sum(w.numel() for w in UNet(CONFIGS[name]).parameters())
        peaks = [peak(function(name, device, way), device) / 1e9 for way in ways.values()]
        rows.append([name, f"{parameters / 1e6:.1f} M", f"{batch(name)} of {SIDES[name]} x {SIDES[name]}", *peaks])
        print(*rows[-1], flush=True)
    return table(["network", "parameters", "pictures", *ways], rows)


@script
def main(argv: Sequence[str] | None = None) -> None:
    config = parse(Config, argv)
    networks, device = config.networks.split(","), choose_device(config.device)
    for name in networks:
        ddpm.check_choice("networks", name, CONFIGS)
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    fill(PAGE, {"machine": f"{gpu}, torch {torch.__version__}",
                "training": f"\n\n{measured(networks, device, update, TRAINING)}\n",
                "sampling": f"\n\n{measured(networks, device, sampling, SAMPLING)}\n"}, Path(config.out))
    print(f"see {config.out}")


if __name__ == "__main__":
    main()
