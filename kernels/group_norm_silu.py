"""GroupNorm and SiLU as one operation: the most frequent line of a diffusion U-Net.

`group_norm_silu_plain` in unet.py defines it; `group_norm_silu` is the same function in one pass over the
memory, a torch operator with its own backward. Its Triton file is loaded the first time it runs.
"""

import os

import torch
from torch import Tensor

from unet import group_norm_silu_plain

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"        # the kernels then run on a CPU, slowly
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float = 1e-5, *,
                    scale: Tensor | None = None, shift: Tensor | None = None, add: Tensor | None = None,
                    silu: bool = True) -> Tensor:
    """`group_norm_silu_plain` on the same arguments, fused on CUDA; on other devices it is the plain lines.

    x: float32, bfloat16 or float16. An x whose images are contiguous or channels_last, at any batch stride,
    is read where it lies, and y and dx have its layout; any other x is first copied, once, to contiguous.
    The parameters may have other dtypes than x. Raises ValueError for what the kernels do not do.
    """
    check(x, groups, weight, bias, scale=scale, shift=shift, add=add)
    if x.device.type != "cuda" and not INTERPRET:
        return group_norm_silu_plain(x, groups, weight, bias, norm_eps, scale=scale, shift=shift, add=add, silu=silu)
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}, shape {tuple(x.shape)}; the fused norm takes float32, bfloat16 or float16, "
                         f"group_norm_silu_plain takes any")
    return forward_op(x, weight, bias, scale, shift, add, groups, norm_eps, silu)[0]


def check(x: Tensor, groups: int, weight: Tensor, bias: Tensor, **rows: Tensor | None) -> None:
    """Raises ValueError, in a sentence, unless the shapes and devices fit."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x is {x.dtype}, shape {tuple(x.shape)}; it must be (B, C, H, W) with at least one pixel")
    C = x.shape[1]
    if groups < 1 or C % groups:
        raise ValueError(f"groups is {groups}; it must divide the {C} channels of x, shape {tuple(x.shape)}")
    if C * x.shape[2] * x.shape[3] >= 2**31:
        raise ValueError(f"x has shape {tuple(x.shape)}; one image must have fewer than 2**31 elements")
    wanted = {"weight": (weight, (C,)), "bias": (bias, (C,)), **{k: (v, (x.shape[0], C)) for k, v in rows.items()}}
    for name, (value, shape) in wanted.items():
        if value is not None and (value.shape != shape or value.device != x.device or not value.is_floating_point()):
            raise ValueError(f"{name} is {value.dtype}, shape {tuple(value.shape)}, on {value.device}; for x of shape "
                             f"{tuple(x.shape)} on {x.device} it must be floating, shape {tuple(shape)}, there too")


# The operator. Its fake makes the outputs and the real one fills them, so shapes and strides are defined once.

def layout(x: Tensor) -> torch.memory_format | None:
    """How each image of x lies in memory, whatever the batch stride; None is neither of the two."""
    for order in (torch.contiguous_format, torch.channels_last):
        if x[:1].is_contiguous(memory_format=order):
            return order
    return None


def in_layout(x: Tensor, order: torch.memory_format) -> Tensor:
    """x itself if its images lie in this order, else a copy that does."""
    return x if x[:1].is_contiguous(memory_format=order) else x.contiguous(memory_format=order)


def forward_outputs(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
                    add: Tensor | None, groups: int, norm_eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Empty y like x, and the groups' mean and 1/sqrt(var + norm_eps), (B, G) float32."""
    y = torch.empty_like(x, memory_format=layout(x) or torch.contiguous_format)
    return y, *(x.new_empty(x.shape[0], groups, dtype=torch.float32) for _ in range(2))


@torch.library.custom_op("minimal_diffusion::group_norm_silu", mutates_args=(), device_types=("cuda", "cpu"))
def forward_op(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
               add: Tensor | None, groups: int, norm_eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    from kernels import group_norm_silu_triton as kernels
    y, mean, rstd = forward_outputs(x, weight, bias, scale, shift, add, groups, norm_eps, silu)
    order = layout(y)
    with torch.cuda.device_of(x):
        kernels.forward(in_layout(x, order), y, mean, rstd, weight, bias, scale, shift, add, norm_eps, silu,
                        order == torch.channels_last)
    return y, mean, rstd


def backward_outputs(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
                     scale: Tensor | None, shift: Tensor | None, add: Tensor | None,
                     silu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Empty dx, dweight, dbias, dscale, dshift, dadd; that of an absent argument has no elements."""
    dx = torch.empty_like(x, memory_format=layout(x) or torch.contiguous_format)
    rows = (x.new_empty(0) if r is None else r.new_empty(r.shape) for r in (scale, shift, add))
    return dx, weight.new_empty(weight.shape), bias.new_empty(bias.shape), *rows


@torch.library.custom_op("minimal_diffusion::group_norm_silu_backward", mutates_args=(), device_types=("cuda", "cpu"))
def backward_op(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor,
                scale: Tensor | None, shift: Tensor | None, add: Tensor | None,
                silu: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    from kernels import group_norm_silu_triton as kernels
    outputs = backward_outputs(dy, x, mean, rstd, weight, bias, scale, shift, add, silu)
    order = layout(outputs[0])
    with torch.cuda.device_of(x):
        kernels.backward(in_layout(dy, order), in_layout(x, order), mean, rstd, weight, bias, scale, shift, add, silu,
                         order == torch.channels_last, *outputs)
    return outputs


def save(ctx, inputs: tuple, output: tuple) -> None:
    """Keeps x and the statistics, not y: the backward recomputes what it needs from x."""
    *tensors, _, _, ctx.silu = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*tensors, *output[1:])


def backward(ctx, dy: Tensor, *_) -> tuple[Tensor | None, ...]:
    x, weight, bias, scale, shift, add, mean, rstd = ctx.saved_tensors
    dx, dweight, dbias, *drows = backward_op(dy, x, mean, rstd, weight, bias, scale, shift, add, ctx.silu)
    drows = (d if r is not None else None for d, r in zip(drows, (scale, shift, add), strict=True))
    return dx, dweight, dbias, *drows, None, None, None


forward_op.register_fake(forward_outputs)
forward_op.register_autograd(backward, setup_context=save)
backward_op.register_fake(backward_outputs)
