"""GroupNorm and SiLU as one operation: the most frequent line of a diffusion U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_silu_plain(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float = 1e-5, *,
                          scale: Tensor | None = None, shift: Tensor | None = None, add: Tensor | None = None,
                          silu: bool = True) -> Tensor:
    """silu(group_norm(x + add) * (1 + scale) + shift), in x's dtype and layout (Wu & He 2018).

    x: (B, C, H, W). weight, bias: (C,). scale, shift, add: (B, C) with any batch stride, 0 included.
    Computed in float32, or float64 for float64 x, whatever the dtype of x.
    """
    def each(c: Tensor) -> Tensor:
        return c[:, :, None, None].to(h.dtype)

    h = x.to(torch.promote_types(x.dtype, torch.float32))
    if add is not None:
        h = h + each(add)
    h = torch.group_norm(h, groups, weight.to(h.dtype), bias.to(h.dtype), norm_eps)
    if scale is not None:
        h = h * (1 + each(scale))
    if shift is not None:
        h = h + each(shift)
    return (F.silu(h) if silu else h).to(x.dtype)


group_norm_silu = group_norm_silu_plain
