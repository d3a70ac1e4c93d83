"""Triton kernels of group_norm_silu, forward and backward, NCHW and channels_last.

A program works on one image n and on a tile of it: pixels p down, channels c across. Element (c, p) of an image lies
at c * stride_c + p * stride_p, where one of the strides is 1; that is all that tells the two layouts apart.

With mean_c the mean and m2_c the centred sum of squares of channel c, `add` moves mean_c and leaves m2_c alone, so
a group's moments, and everything after, need no sum x + add:

    mean = mean over c of (mean_c + add_c),    var = mean over c, p of m2_c / HW + (mean_c + add_c - mean)^2
    center_c = mean - add_c,    xh = (x - center_c) rstd,    rstd = 1 / sqrt(var + norm_eps)
    gain_c = weight_c (1 + scale_c),    offset_c = bias_c (1 + scale_c) + shift_c
    z = gain_c xh + offset_c,    y = z sigmoid(z)

Backwards, from x and dy alone (the mean and rstd of each group are kept):

    g = dy s (1 + z (1 - s)),  s = sigmoid(z);    db_c = sum_p g,    dw_c = sum_p g xh,    sx_c = sum_p xh
    c1 = sum_c gain_c dw_c / n,    c2 = sum_c gain_c db_c / n,    n = HW channels of the group
    dx = rstd (gain_c g - c2 - xh c1),    dadd_c = sum_p dx = rstd (gain_c db_c - HW c2 - c1 sx_c)
    dshift_c = db_c,    dscale_c = weight_c dw_c + bias_c db_c,    dweight, dbias = sum_n (1 + scale_c) (dw_c, db_c)

Three ways to do either, see `plan`. Resident: the tile holds whole groups and x is read once. Loop: one program
walks over the pixels of its groups twice. Split: many programs share a group, through partial sums in memory. No
sum depends on the order in which programs run.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Tiles

@triton.jit
def channels(block, CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr):
    """The channels of GROUPS groups, one a lane, and which lanes hold one: LANES is CPG up to a power of two."""
    lane = tl.arange(0, GROUPS * LANES)
    c = block * (GROUPS * LANES) + lane                         # so the compiler sees one long run
    if LANES != CPG:
        c = (block * GROUPS + lane // LANES) * CPG + lane % LANES
    return c, lane % LANES < CPG


@triton.jit
def tile(c, c_ok, start, stop, stride_c, stride_p, PIXELS: tl.constexpr):
    """Where the tile's elements lie in an image, and which of them exist: (PIXELS, lanes)."""
    p = start + tl.arange(0, PIXELS)
    return p[:, None] * stride_p + c[None, :] * stride_c, (p < stop)[:, None] & c_ok[None, :]


@triton.jit
def read(ptr, at, ok, FULL: tl.constexpr):
    """A tile in float32, zero where there is nothing. FULL: every tile is full, so no mask is needed."""
    if FULL:
        return tl.load(ptr + at).to(tl.float32)
    else:
        return tl.load(ptr + at, mask=ok, other=0).to(tl.float32)


@triton.jit
def write(ptr, at, value, ok, FULL: tl.constexpr):
    if FULL:
        tl.store(ptr + at, value.to(ptr.dtype.element_ty))
    else:
        tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=ok)


# Vectors over the lanes

@triton.jit
def row(ptr, n, stride, c, ok):
    """Image n's row of a (B, C) argument, or zeros without one."""
    if ptr is None:
        return tl.zeros(c.shape, tl.float32)
    else:
        return tl.load(ptr + n * stride + c, mask=ok, other=0).to(tl.float32)


@triton.jit
def affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, ok):
    """gain and offset: z = gain * xh + offset."""
    more = 1 + row(scale_ptr, n, scale_stride, c, ok)
    gain = row(weight_ptr, 0, 0, c, ok) * more
    return gain, row(bias_ptr, 0, 0, c, ok) * more + row(shift_ptr, n, shift_stride, c, ok)


@triton.jit
def over_group(v, LANES: tl.constexpr, GROUPS: tl.constexpr):
    """Each lane gets the sum over its group's lanes."""
    total = tl.sum(tl.reshape(v, (GROUPS, LANES)), axis=1)
    return tl.reshape(tl.broadcast_to(total[:, None], (GROUPS, LANES)), (GROUPS * LANES,))


@triton.jit
def of_group(ptr, n, C, c, ok, CPG: tl.constexpr):
    """Each lane's entry of a (B, G) argument."""
    return tl.load(ptr + n * (C // CPG) + c // CPG, mask=ok, other=0)


@triton.jit
def write_group(ptr, n, C, value, c, ok, CPG: tl.constexpr):
    """The reverse, when every lane of a group has the same value: its first lane writes."""
    tl.store(ptr + n * (C // CPG) + c // CPG, value, mask=ok & (c % CPG == 0))


@triton.jit
def merge(mean, m2, count, total):
    """Moments of each column, from those of its rows (Chan et al. 1979); count: (rows, 1), total its sum."""
    together = tl.sum(mean * count, axis=0) / total
    apart = mean - together[None, :]
    return together, tl.sum(m2 + count * apart * apart, axis=0)


@triton.jit
def group_moments(mean_c, m2_c, add, ok, HW, norm_eps, CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr):
    """Each lane gets its group's mean of x + add, and its rstd."""
    mean_c += add
    mean = over_group(tl.where(ok, mean_c, 0.), LANES, GROUPS) / CPG
    apart = tl.where(ok, mean_c - mean, 0.)
    var = over_group(m2_c / HW + apart * apart, LANES, GROUPS) / CPG
    return mean, 1 / tl.sqrt(var + norm_eps)


# Forward

@triton.jit
def moments(x_ptr, c, c_ok, start, stop, stride_c, stride_p, PIXELS: tl.constexpr, FULL: tl.constexpr):
    """Each channel's mean and centred sum of squares over the pixels start..stop.

    Every element of the tile is a running mean and sum of its own (Welford 1962); they merge at the end.
    """
    mean = tl.zeros((PIXELS, c.shape[0]), tl.float32)
    m2 = tl.zeros((PIXELS, c.shape[0]), tl.float32)
    seen = 0.
    for p in range(start, stop, PIXELS):
        at, ok = tile(c, c_ok, p, stop, stride_c, stride_p, PIXELS)
        x = read(x_ptr, at, ok, FULL)
        seen += 1
        apart = x - mean if FULL else tl.where(ok, x - mean, 0.)
        mean += apart * (1 / seen)
        m2 += apart * (x - mean)
    count = (stop - start - tl.arange(0, PIXELS) + PIXELS - 1) // PIXELS
    return merge(mean, m2, count.to(tl.float32)[:, None], stop - start)


@triton.jit
def normalise(x, center, rstd, gain, offset, SILU: tl.constexpr):
    z = (x - center[None, :]) * (rstd * gain)[None, :] + offset[None, :]
    return z / (1 + tl.exp(-z)) if SILU else z


@triton.jit
def normalise_pixels(x_ptr, y_ptr, center, rstd, gain, offset, c, c_ok, start, stop, stride_c, stride_p,
                     SILU: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr):
    for p in range(start, stop, PIXELS):
        at, ok = tile(c, c_ok, p, stop, stride_c, stride_p, PIXELS)
        write(y_ptr, at, normalise(read(x_ptr, at, ok, FULL), center, rstd, gain, offset, SILU), ok, FULL)


@triton.jit
def forward_kernel(
    x_ptr, y_ptr,                                               # (B, C, HW) in either layout
    mean_ptr, rstd_ptr,                                         # (B, G)
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, scale_stride, shift_stride, add_stride,           # from image to image
    C, HW, stride_c, stride_p, norm_eps, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    RESIDENT: tl.constexpr, FULL: tl.constexpr,
):
    """Whole groups of one image, resident or in a loop."""
    blocks = C // (CPG * GROUPS)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c, c_ok = channels(tl.program_id(0) % blocks, CPG, LANES, GROUPS)
    x_ptr += n * x_stride
    y_ptr += n * C * HW
    if RESIDENT:
        at, ok = tile(c, c_ok, 0, HW, stride_c, stride_p, PIXELS)
        x = read(x_ptr, at, ok, FULL)
        mean_c = tl.sum(x, axis=0) / HW
        apart = tl.where(ok, x - mean_c[None, :], 0.)
        m2_c = tl.sum(apart * apart, axis=0)
    else:
        mean_c, m2_c = moments(x_ptr, c, c_ok, 0, HW, stride_c, stride_p, PIXELS, FULL)

    add = row(add_ptr, n, add_stride, c, c_ok)
    mean, rstd = group_moments(mean_c, m2_c, add, c_ok, HW, norm_eps, CPG, LANES, GROUPS)
    write_group(mean_ptr, n, C, mean, c, c_ok, CPG)
    write_group(rstd_ptr, n, C, rstd, c, c_ok, CPG)

    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, c_ok)
    if RESIDENT:
        write(y_ptr, at, normalise(x, mean - add, rstd, gain, offset, SILU), ok, FULL)
    else:
        normalise_pixels(x_ptr, y_ptr, mean - add, rstd, gain, offset, c, c_ok, 0, HW, stride_c, stride_p,
                         SILU, PIXELS, FULL)


@triton.jit
def forward_part_kernel(
    x_ptr,                                                      # (B, C, HW) in either layout
    part_ptr,                                                   # (2, B, chunks, C): mean_c, m2_c of a chunk of pixels
    x_stride, size,                                             # from image to image; B * chunks * C
    C, HW, stride_c, stride_p, CHUNK,
    LANES: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr,
):
    """Split, 1 of 3: the channels' moments over one chunk of pixels."""
    n, k, c, c_ok, chunks = chunk_of(C, HW, CHUNK, LANES)
    start = k * CHUNK
    mean_c, m2_c = moments(x_ptr + n * x_stride, c, c_ok, start, tl.minimum(start + CHUNK, HW), stride_c, stride_p,
                           PIXELS, FULL)
    part_ptr += (n * chunks + k) * C + c
    tl.store(part_ptr, mean_c, mask=c_ok)
    tl.store(part_ptr + size, m2_c, mask=c_ok)


@triton.jit
def chunk_of(C, HW, CHUNK, LANES: tl.constexpr):
    """This program's image, chunk of pixels and channels, when a group is shared; and how many chunks there are."""
    blocks, chunks = tl.cdiv(C, LANES), tl.cdiv(HW, CHUNK)
    pid = tl.program_id(0)
    c = pid % blocks * LANES + tl.arange(0, LANES)
    return (pid // blocks // chunks).to(tl.int64), pid // blocks % chunks, c, c < C, chunks


@triton.jit
def forward_merge_kernel(
    part_ptr,                                                   # (2, B, chunks, C)
    mean_ptr, rstd_ptr,                                         # (B, G)
    add_ptr, add_stride, size,
    C, HW, CHUNK, norm_eps,
    CPG: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr,
):
    """Split, 2 of 3: one group's mean and rstd."""
    G = C // CPG
    n, g = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G
    c, c_ok = channels(g, CPG, LANES, 1)
    k, chunks = tl.arange(0, CHUNKS), tl.cdiv(HW, CHUNK)
    ok = (k < chunks)[:, None] & c_ok[None, :]
    part_ptr += (n * chunks + k)[:, None] * C + c[None, :]
    count = tl.maximum(tl.minimum(HW - k * CHUNK, CHUNK), 0).to(tl.float32)[:, None]
    mean_c, m2_c = merge(tl.load(part_ptr, mask=ok, other=0), tl.load(part_ptr + size, mask=ok, other=0), count, HW)
    add = row(add_ptr, n, add_stride, c, c_ok)
    mean, rstd = group_moments(mean_c, m2_c, add, c_ok, HW, norm_eps, CPG, LANES, 1)
    write_group(mean_ptr, n, C, mean, c, c_ok, CPG)
    write_group(rstd_ptr, n, C, rstd, c, c_ok, CPG)


@triton.jit
def forward_apply_kernel(
    x_ptr, y_ptr,                                               # (B, C, HW) in either layout
    mean_ptr, rstd_ptr,                                         # (B, G)
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, scale_stride, shift_stride, add_stride,           # from image to image
    C, HW, stride_c, stride_p, CHUNK, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr,
):
    """Split, 3 of 3: one chunk of pixels, the statistics being known."""
    n, k, c, c_ok, _ = chunk_of(C, HW, CHUNK, LANES)
    center = of_group(mean_ptr, n, C, c, c_ok, CPG) - row(add_ptr, n, add_stride, c, c_ok)
    rstd = of_group(rstd_ptr, n, C, c, c_ok, CPG)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, c_ok)
    normalise_pixels(x_ptr + n * x_stride, y_ptr + n * C * HW, center, rstd, gain, offset, c, c_ok,
                     k * CHUNK, tl.minimum(k * CHUNK + CHUNK, HW), stride_c, stride_p, SILU, PIXELS, FULL)


# Backward

@triton.jit
def slopes(x, dy, center, rstd, gain, offset, SILU: tl.constexpr):
    """xh and g = dloss/dz."""
    xh = (x - center[None, :]) * rstd[None, :]
    if SILU:
        z = xh * gain[None, :] + offset[None, :]
        s = 1 / (1 + tl.exp(-z))
        dy = dy * (s + z * s * (1 - s))
    return xh, dy


@triton.jit
def sums(x_ptr, dy_ptr, center, rstd, gain, offset, c, c_ok, start, stop, stride_c, stride_p,
         SILU: tl.constexpr, ADD: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr):
    """Each channel's db, dw and, if ADD, sx over the pixels start..stop."""
    db = tl.zeros((PIXELS, c.shape[0]), tl.float32)
    dw = tl.zeros((PIXELS, c.shape[0]), tl.float32)
    sx = tl.zeros((PIXELS, c.shape[0]), tl.float32)
    for p in range(start, stop, PIXELS):
        at, ok = tile(c, c_ok, p, stop, stride_c, stride_p, PIXELS)
        xh, g = slopes(read(x_ptr, at, ok, FULL), read(dy_ptr, at, ok, FULL), center, rstd, gain, offset, SILU)
        db += g
        dw += g * xh
        if ADD:
            sx += xh if FULL else tl.where(ok, xh, 0.)
    return tl.sum(db, axis=0), tl.sum(dw, axis=0), tl.sum(sx, axis=0)


@triton.jit
def group_slopes(db, dw, gain, HW, CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr):
    """Each lane gets its group's c1 and c2."""
    n = CPG * HW
    return over_group(gain * dw, LANES, GROUPS) / n, over_group(gain * db, LANES, GROUPS) / n


@triton.jit
def write_channels(dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, dadd_ptr, weight_ptr, bias_ptr, scale_ptr,
                   db, dw, sx, c1, c2, gain, rstd, n, scale_stride, C, HW, c, ok):
    """The gradients that belong to an image and a channel: (B, C) each, contiguous."""
    at = n * C + c
    more = 1 + row(scale_ptr, n, scale_stride, c, ok)
    tl.store(dweight_ptr + at, dw * more, mask=ok)
    tl.store(dbias_ptr + at, db * more, mask=ok)
    if dscale_ptr is not None:
        dscale = row(weight_ptr, 0, 0, c, ok) * dw + row(bias_ptr, 0, 0, c, ok) * db
        tl.store(dscale_ptr + at, dscale.to(dscale_ptr.dtype.element_ty), mask=ok)
    if dshift_ptr is not None:
        tl.store(dshift_ptr + at, db.to(dshift_ptr.dtype.element_ty), mask=ok)
    if dadd_ptr is not None:
        dadd = rstd * (gain * db - HW * c2 - c1 * sx)
        tl.store(dadd_ptr + at, dadd.to(dadd_ptr.dtype.element_ty), mask=ok)


@triton.jit
def input_slope(xh, g, rstd, gain, c1, c2):
    return rstd[None, :] * (gain[None, :] * g - c2[None, :] - xh * c1[None, :])


@triton.jit
def input_slopes(x_ptr, dy_ptr, dx_ptr, center, rstd, gain, offset, c1, c2, c, c_ok, start, stop, stride_c, stride_p,
                 SILU: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr):
    for p in range(start, stop, PIXELS):
        at, ok = tile(c, c_ok, p, stop, stride_c, stride_p, PIXELS)
        xh, g = slopes(read(x_ptr, at, ok, FULL), read(dy_ptr, at, ok, FULL), center, rstd, gain, offset, SILU)
        write(dx_ptr, at, input_slope(xh, g, rstd, gain, c1, c2), ok, FULL)


@triton.jit
def backward_kernel(
    x_ptr, dy_ptr, dx_ptr,                                      # (B, C, HW) in either layout
    mean_ptr, rstd_ptr,                                         # (B, G)
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    dweight_ptr, dbias_ptr,                                     # (B, C), one term of the sum over images
    dscale_ptr, dshift_ptr, dadd_ptr,                           # (B, C) or None
    x_stride, dy_stride, scale_stride, shift_stride, add_stride,
    C, HW, stride_c, stride_p, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
    RESIDENT: tl.constexpr, FULL: tl.constexpr,
):
    """Whole groups of one image, resident or in a loop."""
    blocks = C // (CPG * GROUPS)
    n = (tl.program_id(0) // blocks).to(tl.int64)
    c, c_ok = channels(tl.program_id(0) % blocks, CPG, LANES, GROUPS)
    x_ptr += n * x_stride
    dy_ptr += n * dy_stride
    dx_ptr += n * C * HW
    center = of_group(mean_ptr, n, C, c, c_ok, CPG) - row(add_ptr, n, add_stride, c, c_ok)
    rstd = of_group(rstd_ptr, n, C, c, c_ok, CPG)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, c_ok)
    if RESIDENT:
        at, ok = tile(c, c_ok, 0, HW, stride_c, stride_p, PIXELS)
        xh, g = slopes(read(x_ptr, at, ok, FULL), read(dy_ptr, at, ok, FULL), center, rstd, gain, offset, SILU)
        db, dw = tl.sum(g, axis=0), tl.sum(g * xh, axis=0)
        sx = tl.sum(tl.where(ok, xh, 0.), axis=0)
    else:
        db, dw, sx = sums(x_ptr, dy_ptr, center, rstd, gain, offset, c, c_ok, 0, HW, stride_c, stride_p,
                          SILU, dadd_ptr is not None, PIXELS, FULL)

    c1, c2 = group_slopes(db, dw, gain, HW, CPG, LANES, GROUPS)
    write_channels(dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, dadd_ptr, weight_ptr, bias_ptr, scale_ptr,
                   db, dw, sx, c1, c2, gain, rstd, n, scale_stride, C, HW, c, c_ok)
    if RESIDENT:
        write(dx_ptr, at, input_slope(xh, g, rstd, gain, c1, c2), ok, FULL)
    else:
        input_slopes(x_ptr, dy_ptr, dx_ptr, center, rstd, gain, offset, c1, c2, c, c_ok, 0, HW, stride_c, stride_p,
                     SILU, PIXELS, FULL)


@triton.jit
def backward_part_kernel(
    x_ptr, dy_ptr,                                              # (B, C, HW) in either layout
    part_ptr,                                                   # (3, B, chunks, C): db, dw, sx of a chunk of pixels
    mean_ptr, rstd_ptr,                                         # (B, G)
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, dy_stride, scale_stride, shift_stride, add_stride, size,
    C, HW, stride_c, stride_p, CHUNK, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr,
):
    """Split, 1 of 3: the channels' sums over one chunk of pixels."""
    n, k, c, c_ok, chunks = chunk_of(C, HW, CHUNK, LANES)
    center = of_group(mean_ptr, n, C, c, c_ok, CPG) - row(add_ptr, n, add_stride, c, c_ok)
    rstd = of_group(rstd_ptr, n, C, c, c_ok, CPG)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, c_ok)
    db, dw, sx = sums(x_ptr + n * x_stride, dy_ptr + n * dy_stride, center, rstd, gain, offset, c, c_ok,
                      k * CHUNK, tl.minimum(k * CHUNK + CHUNK, HW), stride_c, stride_p,
                      SILU, add_ptr is not None, PIXELS, FULL)
    part_ptr += (n * chunks + k) * C + c
    tl.store(part_ptr, db, mask=c_ok)
    tl.store(part_ptr + size, dw, mask=c_ok)
    tl.store(part_ptr + 2 * size, sx, mask=c_ok)


@triton.jit
def backward_merge_kernel(
    part_ptr,                                                   # (3, B, chunks, C)
    c1_ptr, c2_ptr, rstd_ptr,                                   # (B, G)
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr,                                                  # (B, C) or None
    dweight_ptr, dbias_ptr,                                     # (B, C), one term of the sum over images
    dscale_ptr, dshift_ptr, dadd_ptr,                           # (B, C) or None
    scale_stride, size,
    C, HW, CHUNK,
    CPG: tl.constexpr, LANES: tl.constexpr, CHUNKS: tl.constexpr,
):
    """Split, 2 of 3: one group's c1 and c2, and all gradients but dx."""
    G = C // CPG
    n, g = (tl.program_id(0) // G).to(tl.int64), tl.program_id(0) % G
    c, c_ok = channels(g, CPG, LANES, 1)
    k, chunks = tl.arange(0, CHUNKS), tl.cdiv(HW, CHUNK)
    ok = (k < chunks)[:, None] & c_ok[None, :]
    part_ptr += (n * chunks + k)[:, None] * C + c[None, :]
    db = tl.sum(tl.load(part_ptr, mask=ok, other=0), axis=0)
    dw = tl.sum(tl.load(part_ptr + size, mask=ok, other=0), axis=0)
    sx = tl.sum(tl.load(part_ptr + 2 * size, mask=ok, other=0), axis=0)
    rstd = of_group(rstd_ptr, n, C, c, c_ok, CPG)
    gain = row(weight_ptr, 0, 0, c, c_ok) * (1 + row(scale_ptr, n, scale_stride, c, c_ok))
    c1, c2 = group_slopes(db, dw, gain, HW, CPG, LANES, 1)
    write_channels(dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, dadd_ptr, weight_ptr, bias_ptr, scale_ptr,
                   db, dw, sx, c1, c2, gain, rstd, n, scale_stride, C, HW, c, c_ok)
    write_group(c1_ptr, n, C, c1, c, c_ok, CPG)
    write_group(c2_ptr, n, C, c2, c, c_ok, CPG)


@triton.jit
def backward_apply_kernel(
    x_ptr, dy_ptr, dx_ptr,                                      # (B, C, HW) in either layout
    mean_ptr, rstd_ptr, c1_ptr, c2_ptr,                         # (B, G)
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, dy_stride, scale_stride, shift_stride, add_stride,
    C, HW, stride_c, stride_p, CHUNK, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr, FULL: tl.constexpr,
):
    """Split, 3 of 3: dx of one chunk of pixels."""
    n, k, c, c_ok, _ = chunk_of(C, HW, CHUNK, LANES)
    center = of_group(mean_ptr, n, C, c, c_ok, CPG) - row(add_ptr, n, add_stride, c, c_ok)
    rstd = of_group(rstd_ptr, n, C, c, c_ok, CPG)
    c1 = of_group(c1_ptr, n, C, c, c_ok, CPG)
    c2 = of_group(c2_ptr, n, C, c, c_ok, CPG)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, c_ok)
    input_slopes(x_ptr + n * x_stride, dy_ptr + n * dy_stride, dx_ptr + n * C * HW, center, rstd, gain, offset, c1, c2,
                 c, c_ok, k * CHUNK, tl.minimum(k * CHUNK + CHUNK, HW), stride_c, stride_p, SILU, PIXELS, FULL)


# Which way, and with which tile

PROGRAMS = 264              # two a multiprocessor fill a large GPU
SECTOR = 64                 # bytes that must lie together for a read to waste nothing
SLAB = 96 * 1024            # bytes a program may read twice: the second read then comes from a cache
FORWARD = {"resident": 8192, "loop": 4096, "a_thread": 16}          # elements
BACKWARD = {"resident": 4096, "loop": 2048, "a_thread": 8}


class Plan(NamedTuple):
    lanes: int              # a tile: channels of a group, or of a block if split, up to a power of two
    groups: int             # times so many groups
    pixels: int             # times so many pixels
    chunk: int              # pixels of a program if the groups are split, else 0
    warps: int


def pow2(n: int) -> int:
    return triton.next_power_of_2(n)


def plan(x: Tensor, G: int, channels_last: bool, size: dict[str, int]) -> Plan:
    """Resident if whole groups fit the registers, a loop if they fit the caches, else split.

    A program takes so many groups that, in channels_last, its piece of a pixel fills the sectors it touches, and
    that it has a thousand elements; but never so many that too few programs are left, nor more than divide G.
    """
    B, C, H, W = x.shape
    HW, CPG, sector = H * W, C // G, SECTOR // x.element_size()
    lanes, groups = pow2(CPG), 1
    while (G % (2 * groups) == 0 and B * G // (2 * groups) >= PROGRAMS
           and (channels_last and groups * CPG < sector or groups * lanes * pow2(HW) < 1024)):
        groups *= 2
    elements, programs = groups * lanes * pow2(HW), B * G // groups
    if elements <= size["resident"]:
        return Plan(lanes, groups, pow2(HW), 0, warps(elements, 32))
    slab = groups * CPG * HW * x.element_size()
    if slab <= (SLAB if programs >= PROGRAMS else SLAB // 4) and groups * lanes <= size["loop"] // 4:
        return Plan(lanes, groups, size["loop"] // (groups * lanes), 0, warps(size["loop"], size["a_thread"]))
    return split(x, CPG, channels_last, size)


def split(x: Tensor, CPG: int, channels_last: bool, size: dict[str, int]) -> Plan:
    """Blocks of channels and chunks of pixels, enough of them to fill the GPU several times."""
    B, C, H, W = x.shape
    tile = size["loop"]
    pixels = tile // min(64, pow2(C)) if channels_last else min(pow2(H * W), tile)
    lanes = min(tile // pixels, pow2(C))
    tiles = triton.cdiv(H * W, pixels)
    chunk = max(1, min(16, tiles * triton.cdiv(C, lanes) * B // (4 * PROGRAMS)))        # in tiles
    chunk = max(chunk, triton.cdiv(tiles * pow2(CPG), 16384))                           # so that a merge is one tile
    return Plan(lanes, 1, pixels, chunk * pixels, warps(pixels * lanes, size["a_thread"]))


def warps(elements: int, a_thread: int) -> int:
    return max(1, min(16, pow2(elements) // (32 * a_thread)))


# Launchers

def stride(row: Tensor | None) -> int:
    return 0 if row is None else row.stride(0)


def dense(*rows: Tensor | None) -> list[Tensor | None]:
    """Small arguments with their channels side by side; the batch stride may be anything."""
    return [r if r is None or r.stride(-1) == 1 else r.contiguous() for r in rows]


def forward(x: Tensor, y: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
            shift: Tensor | None, add: Tensor | None, norm_eps: float, silu: bool, channels_last: bool) -> None:
    """Fills y, mean and rstd. The images of x and y lie in the layout that channels_last says."""
    B, C, H, W = x.shape
    HW, G = H * W, mean.shape[1]
    if B == 0:
        return
    p = plan(x, G, channels_last, FORWARD)
    weight, bias, scale, shift, add = dense(weight, bias, scale, shift, add)
    image = (C, HW, *((1, C) if channels_last else (HW, 1)))
    rows = (weight, bias, scale, shift, add, x.stride(0), stride(scale), stride(shift), stride(add))
    if not p.chunk:
        forward_kernel[(B * G // p.groups,)](
            x, y, mean, rstd, *rows, *image, norm_eps, silu, C // G, p.lanes, p.groups, p.pixels,
            RESIDENT=p.pixels >= HW, FULL=p.lanes == C // G and HW % p.pixels == 0, num_warps=p.warps)
        return
    chunks = triton.cdiv(HW, p.chunk)
    part = x.new_empty(2, B, chunks, C, dtype=torch.float32)
    grid = (B * chunks * triton.cdiv(C, p.lanes),)
    full = C % p.lanes == 0 and HW % p.pixels == 0
    forward_part_kernel[grid](x, part, x.stride(0), part.stride(0), *image, p.chunk, p.lanes, p.pixels, full,
                              num_warps=p.warps)
    forward_merge_kernel[(B * G,)](part, mean, rstd, add, stride(add), part.stride(0), C, HW, p.chunk, norm_eps,
                                   C // G, pow2(C // G), pow2(chunks), num_warps=merge_warps(C // G, chunks))
    forward_apply_kernel[grid](x, y, mean, rstd, *rows, *image, p.chunk, silu, C // G, p.lanes, p.pixels, full,
                               num_warps=p.warps)


def merge_warps(CPG: int, chunks: int) -> int:
    return warps(pow2(CPG) * pow2(chunks), 16)


def backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
             shift: Tensor | None, add: Tensor | None, silu: bool, channels_last: bool, dx: Tensor, dweight: Tensor,
             dbias: Tensor, dscale: Tensor, dshift: Tensor, dadd: Tensor) -> None:
    """Fills dx to dadd; the last three only if their argument is there. dy, x and dx lie in one layout."""
    B, C, H, W = x.shape
    HW, G = H * W, mean.shape[1]
    parts = x.new_empty(2, B, C, dtype=torch.float32)
    if B:
        p = plan(x, G, channels_last, BACKWARD)
        weight, bias, scale, shift, add = dense(weight, bias, scale, shift, add)
        image = (C, HW, *((1, C) if channels_last else (HW, 1)))
        strides = (x.stride(0), dy.stride(0), stride(scale), stride(shift), stride(add))
        rows = (weight, bias, scale, shift, add)
        slopes = (*parts, *(None if r is None else d for r, d in ((scale, dscale), (shift, dshift), (add, dadd))))
        if not p.chunk:
            backward_kernel[(B * G // p.groups,)](
                x, dy, dx, mean, rstd, *rows, *slopes, *strides, *image, silu, C // G, p.lanes, p.groups, p.pixels,
                RESIDENT=p.pixels >= HW, FULL=p.lanes == C // G and HW % p.pixels == 0, num_warps=p.warps)
        else:
            backward_split(p, dy, x, dx, mean, rstd, rows, slopes, strides, image, silu)
    dw, db = parts.sum(1)
    dweight.copy_(dw)
    dbias.copy_(db)


def backward_split(p: Plan, dy: Tensor, x: Tensor, dx: Tensor, mean: Tensor, rstd: Tensor, rows: tuple, slopes: tuple,
                   strides: tuple, image: tuple, silu: bool) -> None:
    (B, G), (C, HW) = mean.shape, image[:2]
    weight, bias, scale = rows[:3]
    chunks = triton.cdiv(HW, p.chunk)
    part = x.new_empty(3, B, chunks, C, dtype=torch.float32)
    c1, c2 = x.new_empty(2, B, G, dtype=torch.float32)
    grid = (B * chunks * triton.cdiv(C, p.lanes),)
    tail = (*image, p.chunk, silu, C // G, p.lanes, p.pixels, C % p.lanes == 0 and HW % p.pixels == 0)
    backward_part_kernel[grid](x, dy, part, mean, rstd, *rows, *strides, part.stride(0), *tail, num_warps=p.warps)
    backward_merge_kernel[(B * G,)](part, c1, c2, rstd, weight, bias, scale, *slopes, strides[2], part.stride(0),
                                    C, HW, p.chunk, C // G, pow2(C // G), pow2(chunks),
                                    num_warps=merge_warps(C // G, chunks))
    backward_apply_kernel[grid](x, dy, dx, mean, rstd, c1, c2, *rows, *strides, *tail, num_warps=p.warps)
