"""Less memory for the same network: weights in another dtype, activations that are computed again."""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from unet import UNet


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights in dtype, but norms as they are: their affines, like their statistics, stay float32."""
    return {name: w if "norm" in name else w.to(dtype) for name, w in weights.items()}


class Cast(nn.Module):
    """The network in another dtype: each call casts its weights, and gradients reach them in their own."""

    def __init__(self, unet: UNet, dtype: torch.dtype):
        super().__init__()
        self.unet, self.dtype = unet, dtype

    def forward(self, *inputs: Tensor | None) -> Tensor:
        return functional_call(self.unet, cast(dict(self.unet.named_parameters()), self.dtype), inputs)


def recompute(unet: UNet) -> None:
    """Keeps a block's input alone for the gradient; the rest is computed again when it is needed (Chen et al. 2016)."""
    for block in (*unet.downs, *unet.middle, *unet.ups):
        block.forward = partial(recomputed, copy.copy(block))                     # shares all but the new forward


def recomputed(block: nn.Module, x: Tensor, time: Tensor) -> Tensor:
    weights = dict(block.named_parameters())                                      # today's: Cast may have swapped them
    return checkpoint(lambda *inputs: functional_call(block, weights, inputs), x, time, use_reentrant=False)
