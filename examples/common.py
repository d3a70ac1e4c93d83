"""What the examples share: a trained model without its labels, and the reverse chain from any x_t on."""

from collections.abc import Callable

import torch
from torch import Tensor

import ddpm
from run import checkpoint


def trained(path: str) -> tuple[ddpm.Schedule, Callable, str]:
    """The checkpoint's schedule, its denoiser (xt, t) -> output for the null class, and its target."""
    last = checkpoint.load(path)
    unet = checkpoint.load_unet(last)
    null, device = len(last.data["classes"]), next(unet.parameters()).device
    if last.network.classes == null > 0:
        raise ValueError(f"{path} has no null class, so it cannot sample without a label; train one with --null 0.1")
    schedule = ddpm.Schedule(*(table.to(device) for table in ddpm.from_betas(last.beta)))

    @torch.no_grad()
    def denoise(xt: Tensor, t: Tensor) -> Tensor:
        return unet(xt, t, torch.full_like(t, null) if last.network.classes else None)[:, :xt.shape[1]]

    return schedule, denoise, last.settings["target"]


@torch.no_grad()
def run(denoise: Callable, rows: Tensor, xt: Tensor, seeds: Tensor | None = None) -> Tensor:
    """The end of the chain of rows that begins at this xt (B, ...), with noise from the seeds, if any."""
    for k, t in enumerate(rows[:, 0].long()):
        i = torch.tensor([k], device=rows.device)
        xt, _ = ddpm.step(rows, i, xt, denoise(xt, t.expand(len(xt))), seeds=seeds)
    return xt
