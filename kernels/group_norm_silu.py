"""GroupNorm and SiLU as one operation: the most frequent line of a diffusion U-Net.

`group_norm_silu_plain` in unet.py defines it; `group_norm_silu` is the same function as one torch operator with its own
backward, which goes through the memory once where a group fits on the chip. Its Triton file is loaded the first time it
runs.
"""

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from unet import group_norm_silu_plain

INTERPRET = os.environ.get("TRITON_INTERPRET") == "1"        # the kernels then run on a CPU, slowly
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, norm_eps: float = 1e-5, *,
                    scale: Tensor | None = None, shift: Tensor | None = None, add: Tensor | None = None,
                    silu: bool = True) -> Tensor:
    """`group_norm_silu_plain` on the same arguments, fused on CUDA; on other devices it is the plain lines.

    So are second derivatives, forward mode and the transforms of torch.func, which the kernels do not know.

    x: float32, bfloat16 or float16. An x whose images are contiguous or channels_last, at any batch stride,
    is read where it lies, and y and dx have its layout; any other x is first copied, once, to contiguous.
    The parameters may have other dtypes than x. Raises ValueError for what the kernels do not do.
    """
    check(x, groups, weight, bias, scale=scale, shift=shift, add=add)
    if x.device.type != "cuda" and not INTERPRET or transformed():
        return group_norm_silu_plain(x, groups, weight, bias, norm_eps, scale=scale, shift=shift, add=add, silu=silu)
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}, shape {tuple(x.shape)}; the fused norm takes float32, bfloat16 or float16, "
                         f"group_norm_silu_plain takes any")
    return forward_op(x, weight, bias, scale, shift, add, groups, norm_eps, silu)[0]


def transformed() -> bool:
    """Whether forward-mode derivatives or a transform of torch.func are being taken."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def check(x: Tensor, groups: int, weight: Tensor, bias: Tensor, **rows: Tensor | None) -> None:
    """Raises ValueError, in a sentence, unless the shapes and devices fit."""
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(f"x is {x.dtype}, shape {tuple(x.shape)}; it must be (B, C, H, W) with at least one pixel")
    B, C, H, W = x.shape
    if groups < 1 or C % groups:
        raise ValueError(f"groups is {groups}; it must divide the {C} channels of x, shape {tuple(x.shape)}")
    if C * H * W >= 2**31:
        raise ValueError(f"x has shape {tuple(x.shape)}; one image must have fewer than 2**31 elements")
    arguments, device = {"weight": weight, "bias": bias, **rows}, x.device
    for name, value in arguments.items():
        shape = (B, C) if name in rows else (C,)
        if value is not None and (value.shape != shape or value.device != device or not value.is_floating_point()):
            raise ValueError(f"{name} is {value.dtype}, shape {tuple(value.shape)}, on {value.device}; for x of shape "
                             f"{tuple(x.shape)} on {device} it must be floating, shape {shape}, there too")


# The operators. Their fakes make the outputs and the real ones fill them, so shapes and strides are defined once.

def layout(x: Tensor) -> torch.memory_format | None:
    """How each image of x lies in memory, whatever the batch stride; None is neither of the two."""
    if x.is_contiguous():                                                                 # quick, and mostly enough
        return torch.contiguous_format
    if x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    image = x[:1]
    if image.is_contiguous():
        return torch.contiguous_format
    return torch.channels_last if image.is_contiguous(memory_format=torch.channels_last) else None


def in_layout(x: Tensor, order: torch.memory_format) -> Tensor:
    """x itself if its images lie in this order, else a copy that does."""
    return x if x.is_contiguous(memory_format=order) or layout(x) == order else x.contiguous(memory_format=order)


def forward_outputs(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None,
                    add: Tensor | None, groups: int, norm_eps: float, silu: bool) -> tuple[Tensor, Tensor]:
    """Empty y like x, and the groups' mean and 1/sqrt(var + norm_eps), (B, 2, G) float32."""
    y = torch.empty_like(x, memory_format=layout(x) or torch.contiguous_format)
    return y, x.new_empty((x.shape[0], 2, groups), dtype=torch.float32)


def forward(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None, shift: Tensor | None, add: Tensor | None,
            groups: int, norm_eps: float, silu: bool) -> tuple[Tensor, Tensor]:
    from kernels import group_norm_silu_triton as kernels
    y, stats = forward_outputs(x, weight, bias, scale, shift, add, groups, norm_eps, silu)
    order = layout(y)
    with torch.cuda.device_of(x):
        kernels.forward(in_layout(x, order), y, stats, weight, bias, scale, shift, add, norm_eps, silu,
                        order == torch.channels_last)
    return y, stats


def backward_outputs(dy: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
                     shift: Tensor | None, add: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:
    """Empty dx, and each image's dweight, dbias and those of dscale, dshift, dadd that are asked for, in float32."""
    dx = torch.empty_like(x, memory_format=layout(x) or torch.contiguous_format)
    rows = 2 + sum(row is not None for row in (scale, shift, add))
    return dx, x.new_empty((rows, *x.shape[:2]), dtype=torch.float32)


def backward(dy: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
             shift: Tensor | None, add: Tensor | None, silu: bool) -> tuple[Tensor, Tensor]:
    from kernels import group_norm_silu_triton as kernels
    dx, sums = backward_outputs(dy, x, stats, weight, bias, scale, shift, add, silu)
    order = layout(dx)
    with torch.cuda.device_of(x):
        kernels.backward(in_layout(dy, order), in_layout(x, order), stats, weight, bias, scale, shift, add, silu,
                         order == torch.channels_last, dx, sums)
    return dx, sums


class Recomputed(torch.autograd.Function):
    """Keeps x and the statistics, not y: the backward recomputes what it needs from x."""

    @staticmethod
    def forward(ctx, *inputs) -> tuple[Tensor, Tensor]:
        *tensors, ctx.groups, ctx.norm_eps, ctx.silu = inputs
        with torch._C._AutoDispatchBelowAutograd():
            y, stats = forward_op(*inputs)
        ctx.save_for_backward(*tensors, stats)
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)                                # no zeros for the statistics
        return y, stats

    @staticmethod
    def backward(ctx, dy: Tensor, _) -> tuple[Tensor | None, ...]:
        x, *affine, stats = ctx.saved_tensors
        if torch.is_grad_enabled():                                     # create_graph: to be differentiated again
            return *plain_gradients(ctx, dy, x, *affine), None, None, None
        dx, sums = backward_op(dy, x, stats, *affine, ctx.silu)
        gradients = iter((*sums[:2].sum(1).unbind(), *sums[2:].unbind()))
        return dx, *(None if value is None else next(gradients).to(value.dtype) for value in affine), None, None, None


def plain_gradients(ctx, dy: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """The same gradients by the plain lines, which can be differentiated again."""
    x, weight, bias, scale, shift, add = inputs
    y = group_norm_silu_plain(x, ctx.groups, weight, bias, ctx.norm_eps, scale=scale, shift=shift, add=add,
                              silu=ctx.silu)
    asked = [value for value, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
    gradients = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
    return [next(gradients) if needed else None for needed in ctx.needs_input_grad[:6]]


def differentiable(*inputs) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in inputs[:6]):
        return Recomputed.apply(*inputs)
    with torch._C._AutoDispatchBelowAutograd():
        return forward_op(*inputs)


def define(schema: str, fake: Callable, real: Callable) -> Callable:
    """An operator for CPU and GPU. (torch.library.custom_op says it shorter, but doubles the host's time in a call.)"""
    name = LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, real, "CUDA")
    LIBRARY.impl(name, real, "CPU")
    torch.library.register_fake(f"minimal_diffusion::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.minimal_diffusion, name).default


LIBRARY = torch.library.Library("minimal_diffusion", "FRAGMENT")
AFFINE = "Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, Tensor? add"
forward_op = define(f"group_norm_silu(Tensor x, {AFFINE}, int groups, float norm_eps, bool silu) -> (Tensor, Tensor)",
                    forward_outputs, forward)
backward_op = define(f"group_norm_silu_backward(Tensor dy, Tensor x, Tensor stats, {AFFINE}, bool silu) -> "
                     f"(Tensor, Tensor)", backward_outputs, backward)
LIBRARY.impl("group_norm_silu", differentiable, "Autograd")
