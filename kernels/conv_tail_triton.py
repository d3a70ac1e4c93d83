"""The Triton kernel of conv_tail: an implicit product of matrices, for GPUs with tensor-memory accelerators (sm_90).

Of y = W3 * h + W1 x + bias a program makes TILE pixels of OUT channels. A tile is whole rows of one image, or whole
images where those are smaller. Its columns of the unrolled h are never built: each of the nine taps is the tile
itself, moved by up to a pixel, which a tensor descriptor reads in one piece with zeros for what lies outside the
image. The products with the nine slices of W3, then those with W1, go into one sum.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE, DEPTH = 128, 64       # pixels of a program; channels multiplied at once, 128 bytes


@triton.jit
def conv_tail_kernel(
    h, x, y,                                                    # descriptors of (B, H, W, channels)
    weight, skip,                                               # of (OUT channels, 9 C), and (OUT channels, CX) or None
    bias_ptr,                                                   # (OUT channels,)
    C: tl.constexpr, CX: tl.constexpr, BLOCKS: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
    IMAGES: tl.constexpr, ROWS: tl.constexpr, OUT: tl.constexpr, DEPTH: tl.constexpr,
):
    """BLOCKS programs side by side share the pixels of a tile: IMAGES images of ROWS rows."""
    PIXELS: tl.constexpr = IMAGES * ROWS * W
    tile, out = tl.program_id(0) // BLOCKS, tl.program_id(0) % BLOCKS * OUT
    n, top = tile // (H // ROWS) * IMAGES, tile % (H // ROWS) * ROWS
    total = tl.zeros((PIXELS, OUT), tl.float32)
    for step in range(9 * (C // DEPTH)):
        tap, c = step // (C // DEPTH), step % (C // DEPTH) * DEPTH
        a = tl.reshape(h.load([n, top + tap // 3 - 1, tap % 3 - 1, c]), (PIXELS, DEPTH))
        total = tl.dot(a, weight.load([out, tap * C + c]).T, total)
    if skip is not None:
        for c in range(0, CX, DEPTH):
            a = tl.reshape(x.load([n, top, 0, c]), (PIXELS, DEPTH))
            total = tl.dot(a, skip.load([out, c]).T, total)
    total += tl.load(bias_ptr + out + tl.arange(0, OUT)).to(tl.float32)[None, :]
    if skip is None:
        total += tl.reshape(x.load([n, top, 0, out]), (PIXELS, OUT)).to(tl.float32)
    y.store([n, top, 0, out], tl.reshape(total.to(y.dtype), (IMAGES, ROWS, W, OUT)))


def conv_tail(h: Tensor, x: Tensor, weight: Tensor, bias: Tensor, skip: Tensor | None, y: Tensor) -> None:
    """Fills y. All but bias in channels_last."""
    (B, C, H, W), outs = h.shape, weight.shape[0]
    rows, wide = min(H, TILE // W), 128 if outs % 128 == 0 else 64
    images = TILE // (rows * W)

    def pixels(t: Tensor, channels: int) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(t.permute(0, 2, 3, 1), [images, rows, W, channels])

    def matrix(w: Tensor) -> TensorDescriptor:
        return TensorDescriptor.from_tensor(w.permute(0, 2, 3, 1).reshape(outs, -1), [wide, DEPTH])

    grid = (triton.cdiv(B, images) * (H // rows) * (outs // wide),)
    conv_tail_kernel[grid](
        pixels(h, DEPTH), pixels(x, wide if skip is None else DEPTH), pixels(y, wide), matrix(weight),
        None if skip is None else matrix(skip), bias, C, x.shape[1], outs // wide, H, W, images, rows, wide, DEPTH,
        num_warps=8, num_stages=4)
