"""Trainings on the same pictures and labels, for bench.quality: ours, and two published packages' with their own
networks, losses, optimizers and averages.

Every package gets the labels, and the form that was its quickest of three on a CPU: float32, bf16, or bf16 in
channels_last. Where its default network cannot take 28 x 28 pixels, it is the nearest of its authors' that can; the
docstrings say which.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import data
import ddpm
import train


@dataclass
class Contender:
    """A training that can be stopped and resumed."""
    network: torch.nn.Module
    parts: dict[str, Any]                               # all that changes; each has state_dict and load_state_dict
    batch: int
    update: Callable[[int, Tensor, Tensor], object]     # step, pixels uint8 (B, C, H, W), labels (B,)
    output: Callable[[Tensor, Tensor, Tensor], Tensor]  # of the averaged weights: x_t, t in 1..T, labels
    schedule: ddpm.Schedule
    target: str
    form: str
    pace: Callable[[float], None] = lambda spent: None  # is told the CPU-seconds before each step

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.network.parameters())


def ours(dataset: data.Data, seed: int, rate: float, optimizer: str = "adam", minutes: float = 0.) -> Contender:
    """`python train.py --preset fashion`. minutes: of CPU, by which the rate has fallen; 0 for the preset's steps."""
    config = replace(train.PRESETS["fashion"], seed=seed, lr=rate, optimizer=optimizer, minutes=minutes)
    run = train.start(config, dataset)
    torch.set_num_threads(1)
    model, average = train.trained_model(run), copy.deepcopy(run.unet).eval()
    average.load_state_dict(run.ema, assign=True)           # shares the memory, so it follows

    def update(step: int, pixels: Tensor, labels: Tensor) -> None:
        train.update(run, model, step, pixels, labels)
        run.progress.records.clear()

    def pace(spent: float) -> None:
        run.progress.seconds = spent

    return Contender(run.unet, {"network": run.unet, "average": average, "optimizer": run.optimizer},
                     config.batch, update, average, run.schedule, config.target, config.dtype, pace)


def lucidrains(dataset: data.Data, seed: int, rate: float, dim: int = 64, cond_drop_prob: float = 0.5,
               update_every: int = 10) -> Contender:
    """denoising-diffusion-pytorch: the U-Net and process of its classifier_free_guidance, the loop of its Trainer.

    Its defaults but for dim_mults, (1, 2, 4) where (1, 2, 4, 8) would halve 28 pixels three times, and no flips.
    dim: 64 in its README. cond_drop_prob: how many labels are hidden. update_every: the average follows every so many
    updates.
    """
    from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet
    from ema_pytorch import EMA
    torch.manual_seed(seed)
    C, H, _ = dataset.shape
    network = Unet(dim=dim, num_classes=len(dataset.classes), dim_mults=(1, 2, 4), channels=C,
                   cond_drop_prob=cond_drop_prob).to(memory_format=torch.channels_last)
    process = GaussianDiffusion(network, image_size=H)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.9, 0.99), fused=True)
    average = EMA(process, beta=0.995, update_every=update_every)

    def update(step: int, pixels: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = process(pixels / 255, classes=labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.)
        optimizer.step()
        average.update()

    def output(xt: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return average.ema_model.model(xt, t - 1, labels, cond_drop_prob=0.)

    return Contender(network, {"network": network, "average": average, "optimizer": optimizer}, 16, update, output,
                     ddpm.from_betas(process.betas.double()), "eps", "bf16, channels_last")


def diffusers(dataset: data.Data, seed: int, rate: float, warmup: int = 500, epochs: int = 100) -> Contender:
    """diffusers: UNet2DModel with classes and the widths of its authors' course for 28 x 28; the settings of its script
    train_unconditional.py with --use_ema, whose own network would halve 28 pixels five times.

    warmup: updates in which the rate rises. epochs: in which it falls along a cosine.
    """
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.optimization import get_cosine_schedule_with_warmup
    from diffusers.training_utils import EMAModel
    torch.manual_seed(seed)
    C, H, _ = dataset.shape
    network = UNet2DModel(sample_size=H, in_channels=C, out_channels=C, layers_per_block=2,
                          block_out_channels=(32, 64, 64), num_class_embeds=len(dataset.classes),
                          down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
                          up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"))
    scheduler, weights = DDPMScheduler(), list(network.parameters())
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=True)
    rates = get_cosine_schedule_with_warmup(optimizer, warmup, epochs * len(dataset.images) // 16)
    average = EMAModel(weights, decay=0.9999, use_ema_warmup=True, inv_gamma=1., power=0.75, foreach=True)

    def update(step: int, pixels: Tensor, labels: Tensor) -> None:
        x0 = data.to_unit(pixels)
        t, eps = torch.randint(1000, (len(x0),)), torch.randn_like(x0)
        output = network(scheduler.add_noise(x0, eps, t), t, class_labels=labels).sample
        (output - eps).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        average.step(weights)

    def output(xt: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        average.store(weights)
        average.copy_to(weights)
        output = network(xt, t - 1, class_labels=labels).sample
        average.restore(weights)
        return output

    return Contender(network, {"network": network, "average": average, "optimizer": optimizer, "rates": rates}, 16,
                     update, output, ddpm.from_betas(scheduler.betas.double()), "eps", "float32")


class Training(NamedTuple):
    """A training by its name in CONTENDERS, its learning rate and its seed."""
    name: str
    rate: float
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.name}, {self.rate:g}, seed {self.seed}"


def training_of(line: dict) -> Training:
    """The training that a line of the results is of."""
    return Training(line["name"], line["rate"], line["seed"])


class Entry(NamedTuple):
    """The function that makes a training from a data set, a seed and a learning rate, and the rates, the best first."""
    make: Callable[..., Contender]
    rates: tuple[float, ...]
    annealed: bool = False              # a training for each stop, which `make` is told as `minutes`


CONTENDERS = {
    "ours": Entry(ours, (train.PRESETS["fashion"].lr,)),
    "ours annealed": Entry(ours, (3e-3, 2e-3, 5e-3), annealed=True),
    "ours annealed with Muon": Entry(partial(ours, optimizer="muon"), (5e-3, 3e-3, 8e-3), annealed=True),
    "denoising-diffusion-pytorch": Entry(lucidrains, (1e-4,)),
    "denoising-diffusion-pytorch tuned": Entry(partial(lucidrains, dim=16, cond_drop_prob=0.1, update_every=1),
                                               (1e-3, 3e-4, 3e-3)),
    "diffusers": Entry(diffusers, (1e-4,)),
    "diffusers tuned": Entry(partial(diffusers, warmup=100, epochs=3), (1e-3, 3e-4, 3e-3)),       # 3: an hour or so
}
