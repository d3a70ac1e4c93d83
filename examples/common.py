"""What the examples share: a trained model without its labels, the chain from any x_t on, held-out digits, training."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import trange

import data
import ddpm
from run import checkpoint

HELD_OUT = 597                      # digits that the model has not seen


class Model(NamedTuple):
    """A trained model without labels."""
    schedule: ddpm.Schedule
    denoise: Callable               # (xt, t) -> output
    target: str                     # what the output predicts


def trained(path: str) -> Model:
    """The model of a checkpoint of the digits, with the null class if it takes labels. Raises ValueError for others."""
    saved, shape = checkpoint.load(path), data.digits().shape
    if tuple(saved.data["shape"]) != shape:
        raise ValueError(f"{path} makes pictures of {tuple(saved.data['shape'])}, and the digits here are {shape}; "
                         f"name a model of the digits")
    unet = checkpoint.load_unet(saved)
    null, device = len(saved.data["classes"]), next(unet.parameters()).device
    if saved.network.classes == null > 0:
        raise ValueError(f"{path} has no null class, so it cannot sample without a label; train one with --null 0.1")

    @torch.no_grad()
    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        labels = torch.full_like(t, null, dtype=torch.int64) if saved.network.classes else None
        return unet(xt, t, labels)[:, :xt.shape[1]]

    return Model(ddpm.from_betas(saved.beta.to(device)), denoise, saved.settings["target"])


def held_out_digits(model: Model, n: int) -> Tensor:
    """The first n digits that the model has not seen, in [-1, 1], on its device."""
    return data.to_unit(data.digits(held_out=True).images[:n]).to(model.schedule.beta.device)


def run(denoise: Callable, rows: Tensor, xt: Tensor, seeds: Tensor | None = None) -> Tensor:
    """The end of the chain of rows that begins at this xt (B, ...), with noise from the seeds, if any."""
    *_, (_, x0, _) = ddpm.sample(denoise, rows, xt.shape[1:], seeds, x_T=xt)
    return x0


def minimise(loss: Callable[[int], Tensor], optimizers: Sequence[torch.optim.Optimizer], steps: int) -> None:
    """Lowers loss(k), k = 1..steps, at rates that fall along a cosine to zero; the bar shows it."""
    rates, bar = [CosineAnnealingLR(each, steps) for each in optimizers], trange(1, steps + 1, leave=False)
    for k in bar:
        for each in optimizers:
            each.zero_grad()
        value = loss(k)
        value.backward()
        for each in [*optimizers, *rates]:
            each.step()
        bar.set_postfix_str(f"loss {value.item():.4f}", refresh=False)


def rms(x: Tensor) -> float:
    """Root of the mean square."""
    return x.square().mean().sqrt().item()
