"""Triton kernels of group_norm_silu, forward and backward, NCHW and channels_last.

A program works on one image n and on a tile of it: pixels p down, channels c across. Element (c, p) of an image lies
at c + p * C in channels_last and at c * HW + p in NCHW; that is all that tells the two layouts apart.

`add` moves the mean of a channel and nothing else, so x + add is never formed:

    mean = mean over c, p of x + add_c,    center_c = mean - add_c,    var = mean over c, p of (x - center_c)^2
    xh = (x - center_c) rstd,    rstd = 1 / sqrt(var + norm_eps)
    gain_c = weight_c (1 + scale_c),    offset_c = bias_c (1 + scale_c) + shift_c
    z = gain_c xh + offset_c,    y = z s,    s = sigmoid(z)

Backwards, from x and dy alone (the mean and rstd of each group are kept):

    g = dy s (1 + z (1 - s));    db_c = sum_p g,    dw_c = sum_p g xh,    sx_c = sum_p xh
    c1 = sum_c gain_c dw_c / n,    c2 = sum_c gain_c db_c / n,    n = HW channels of the group
    dx = rstd (gain_c g - c2 - xh c1),    dadd_c = sum_p dx = rstd (gain_c db_c - HW c2 - c1 sx_c)
    dshift_c = db_c,    dscale_c = weight_c dw_c + bias_c db_c,    dweight, dbias = sum_n (1 + scale_c) (dw_c, db_c)

Few instructions an element, or they would bind before memory does (bench/static.md counts them before and after).
u = -log2(e) z is one multiply-add of x, and s = 1 / (1 + 2^u) = rsqrt(1 + 2^u)^2 two quick instructions, where a
division has guards. A bfloat16 is the upper half of a float32: a shift or a mask unpacks it. All that depends on the
shape is constant, so most addresses are too.

Three ways to do either, see `plan`. Resident: the tile holds whole groups and x is read once. Loop: one program walks
over the pixels of its groups twice, the second time backwards, so as to begin with what the caches hold. Split: many
programs share a group, through partial sums in memory. No sum depends on the order in which programs run.

A tile's sides are powers of two. A group of 12 channels, say, is 3 parts of 4: a tuple of tiles, without idle lanes.
"""

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E, LN2 = tl.constexpr(1.4426950408889634), tl.constexpr(0.6931471805599453)


# Tiles

@triton.jit
def channels(block, CPG, LANES, GROUPS):
    """The channels of the first parts of GROUPS groups; those of part j are j * LANES further."""
    lane = tl.arange(0, GROUPS * LANES)
    if LANES == CPG:
        return block * (GROUPS * LANES) + lane                  # so the compiler sees one long run
    else:
        return (block * GROUPS + lane // LANES) * CPG + lane % LANES


@triton.jit
def tile(c, start, stop, C, HW, LAST, PIXELS):
    """Where the tile's elements lie in an image, (PIXELS, channels), and which pixels there are, (PIXELS, 1)."""
    p = start + tl.arange(0, PIXELS)
    every = tl.full((PIXELS, 1), True, tl.int1)                 # a constant, with which all masks vanish
    ok = every if HW % PIXELS == 0 else (p < stop)[:, None]
    return (p[:, None] * C + c[None, :] if LAST else p[:, None] + c[None, :] * HW), ok


@triton.jit
def read(ptr, at, ok):
    """A tile in float32, zero where there is nothing."""
    x = tl.load(ptr + at, mask=ok, other=0)
    if x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def write(ptr, at, value, ok):
    tl.store(ptr + at, value.to(ptr.dtype.element_ty), mask=ok)


@triton.jit
def fold(v, DOWN, ACROSS):
    """Sums of blocks of DOWN x ACROSS elements: what one load brings lies in one thread, which adds it up alone."""
    v = tl.reshape(v, (v.shape[0] // DOWN, DOWN, v.shape[1] // ACROSS, ACROSS))
    return tl.sum(tl.sum(v, axis=3), axis=1)


@triton.jit
def unfold(v, DOWN, ACROSS):
    """The reverse: each element of a block gets the block's entry."""
    wide = tl.broadcast_to(v[:, None, :, None], (v.shape[0], DOWN, v.shape[1], ACROSS))
    return tl.reshape(wide, (v.shape[0] * DOWN, v.shape[1] * ACROSS))


@triton.jit
def over_tile(v, GROUPS):
    """(rows, columns) -> (GROUPS,): sums over the columns of each group, and over rows."""
    return tl.sum(tl.sum(tl.reshape(v, (v.shape[0], GROUPS, v.shape[1] // GROUPS)), axis=2), axis=0)


# Vectors over the channels, and tuples of them: one a part

@triton.jit
def row(ptr, n, stride, c, ok=True):
    """Image n's row of a (B, C) argument, or zeros without one."""
    if ptr is None:
        return tl.zeros(c.shape, tl.float32)
    else:
        return tl.load(ptr + n * stride + c, mask=ok, other=0).to(tl.float32)


@triton.jit
def rows(ptr, n, stride, c, LANES, PARTS):
    found = ()
    for j in tl.static_range(PARTS):
        found += (row(ptr, n, stride, c + j * LANES),)
    return found


@triton.jit
def lines(mean, rstd, adds, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c, LANES, SILU):
    """Each part's (center, a, b) of u = a (x - center) + b, or, without SiLU, of z; and its gain."""
    found, gains = (), ()
    for j in tl.static_range(len(adds)):
        gain, offset = row(weight_ptr, 0, 0, c + j * LANES), row(bias_ptr, 0, 0, c + j * LANES)
        if scale_ptr is not None:
            more = 1 + row(scale_ptr, n, scale_stride, c + j * LANES)
            gain, offset = gain * more, offset * more
        if shift_ptr is not None:
            offset += row(shift_ptr, n, shift_stride, c + j * LANES)
        factor = -LOG2E if SILU else 1.
        found += ((mean - adds[j], rstd * gain * factor, offset * factor),)
        gains += (gain,)
    return found, gains


@triton.jit
def over_lanes(v, LANES):
    """(GROUPS,) -> (GROUPS * LANES,): each lane gets its group's entry."""
    return tl.reshape(tl.broadcast_to(v[:, None], (v.shape[0], LANES)), (v.shape[0] * LANES,))


@triton.jit
def of_groups(ptr, n, c, C, CPG):
    """Each channel's pair of entries of a (B, 2, G) argument."""
    ptr += n * (2 * (C // CPG)) + c // CPG
    return tl.load(ptr), tl.load(ptr + C // CPG)


@triton.jit
def in_group(v, GROUPS):
    """(channels,) -> (GROUPS,): sums."""
    return tl.sum(tl.reshape(v, (GROUPS, v.shape[0] // GROUPS)), axis=1)


# Forward

@triton.jit
def pixels_of(n, DOWN, PIXELS):
    """How many of a tile's first n pixels each row of blocks has."""
    return tl.minimum(tl.maximum(n - DOWN * tl.arange(0, PIXELS // DOWN), 0), DOWN)[:, None].to(tl.float32)


@triton.jit
def moments(x_ptr, adds, c, start, stop, C, HW, LAST, PART, PIXELS, DOWN, ACROSS):
    """Each block's mean of x + add over the pixels start..stop, its centred sum of squares, and its elements.

    A block adds up x and x^2 less its own mean in the first tile. Of T tiles that mean is within sqrt(T - 1)
    deviations of the final one, whatever x is, so cancellation costs at most T roundings.
    """
    SIZE: tl.constexpr = ACROSS * len(adds)
    at, ok = tile(c, start, stop, C, HW, LAST, PIXELS)
    shift = tl.zeros((PIXELS // DOWN, c.shape[0] // ACROSS), tl.float32)
    for j in tl.static_range(len(adds)):
        first = read(x_ptr, at + j * PART, ok) + adds[j][None, :]
        shift += fold(tl.where(ok, first, 0.), DOWN, ACROSS)
    shift /= tl.maximum(SIZE * pixels_of(stop - start, DOWN, PIXELS), 1)
    centers = ()
    for j in tl.static_range(len(adds)):
        centers += (unfold(shift, DOWN, ACROSS) - adds[j][None, :],)

    s1, s2 = tl.zeros_like(shift), tl.zeros_like(shift)
    for p in range(start, stop, PIXELS):
        at, ok = tile(c, p, stop, C, HW, LAST, PIXELS)
        for j in tl.static_range(len(adds)):
            apart = tl.where(ok, read(x_ptr, at + j * PART, ok) - centers[j], 0.)
            s1 += fold(apart, DOWN, ACROSS)
            s2 += fold(apart * apart, DOWN, ACROSS)
    n = stop - start
    size = SIZE * (n // PIXELS * DOWN + pixels_of(n % PIXELS, DOWN, PIXELS))
    mean = s1 / tl.maximum(size, 1)
    return shift + mean, s2 - s1 * mean, size


@triton.jit
def merge(mean, m2, size, total, GROUPS):
    """The moments of groups of total elements, from those of their blocks (Chan et al. 1979)."""
    together = over_tile(mean * size, GROUPS) / total
    apart = mean - over_lanes(together, mean.shape[1] // GROUPS)[None, :]
    return together, over_tile(m2 + size * apart * apart, GROUPS)


@triton.jit
def normalise(x, line, SILU):
    u = (x - line[0][None, :]) * line[1][None, :] + line[2][None, :]
    if SILU:
        r = tl.rsqrt(tl.exp2(u) * LOG2E + LOG2E)                # r^2 = s / log2(e), so y = -u r^2
        return -(u * r) * r
    else:
        return u


@triton.jit
def normalise_pixels(x_ptr, y_ptr, line, c, start, stop, C, HW, LAST, PART, PIXELS, SILU):
    last = start + (stop - start - 1) // PIXELS * PIXELS
    for p in range(start, stop, PIXELS):
        at, ok = tile(c, last - (p - start), stop, C, HW, LAST, PIXELS)
        for j in tl.static_range(len(line)):
            write(y_ptr, at + j * PART, normalise(read(x_ptr, at + j * PART, ok), line[j], SILU), ok)


@triton.jit
def forward_kernel(
    x_ptr, y_ptr,                                               # (B, C, HW) in either layout
    stats_ptr,                                                  # (B, 2, G): mean, rstd
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, scale_stride, shift_stride, add_stride,           # from image to image
    norm_eps,
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
):
    """Whole groups of one image, resident or in a loop."""
    PARTS: tl.constexpr = CPG // LANES
    PART: tl.constexpr = LANES if LAST else LANES * HW
    VECTOR: tl.constexpr = 128 // x_ptr.dtype.element_ty.primitive_bitwidth
    DOWN: tl.constexpr = 1 if LAST else min(VECTOR, PIXELS)
    ACROSS: tl.constexpr = min(VECTOR, LANES) if LAST else 1
    BLOCKS: tl.constexpr = C // (CPG * GROUPS)
    n, block = (tl.program_id(0) // BLOCKS).to(tl.int64), tl.program_id(0) % BLOCKS
    c = channels(block, CPG, LANES, GROUPS)
    x_ptr += n * x_stride
    y_ptr += n * (C * HW)
    adds = rows(add_ptr, n, add_stride, c, LANES, PARTS)
    if PIXELS >= HW:
        at, ok = tile(c, 0, HW, C, HW, LAST, PIXELS)
        x = ()
        for j in tl.static_range(PARTS):
            x += (read(x_ptr, at + j * PART, ok),)
        mean, m2 = resident_moments(x, adds, ok, HW, CPG * HW, DOWN, ACROSS, GROUPS)
    else:
        mean, m2, size = moments(x_ptr, adds, c, 0, HW, C, HW, LAST, PART, PIXELS, DOWN, ACROSS)
        mean, m2 = merge(mean, m2, size, CPG * HW, GROUPS)

    rstd = tl.rsqrt(m2 / (CPG * HW) + norm_eps)
    stats_ptr += n * (2 * (C // CPG)) + block * GROUPS + tl.arange(0, GROUPS)
    tl.store(stats_ptr, mean)
    tl.store(stats_ptr + C // CPG, rstd)

    line, _ = lines(over_lanes(mean, LANES), over_lanes(rstd, LANES), adds, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
                    n, scale_stride, shift_stride, c, LANES, SILU)
    if PIXELS >= HW:
        for j in tl.static_range(PARTS):
            write(y_ptr, at + j * PART, normalise(x[j], line[j], SILU), ok)
    else:
        normalise_pixels(x_ptr, y_ptr, line, c, 0, HW, C, HW, LAST, PART, PIXELS, SILU)


@triton.jit
def resident_moments(x, adds, ok, HW, total, DOWN, ACROSS, GROUPS):
    """Each group's mean of x + add and centred sum of squares, x being all of it, a tile a part."""
    LANES: tl.constexpr = adds[0].shape[0] // GROUPS
    s1, added = fold(x[0], DOWN, ACROSS), adds[0]
    for j in tl.static_range(1, len(x)):
        s1 += fold(x[j], DOWN, ACROSS)
        added += adds[j]
    mean = (over_tile(s1, GROUPS) + HW * in_group(added, GROUPS)) / total
    s2 = tl.zeros_like(s1)
    for j in tl.static_range(len(x)):
        apart = tl.where(ok, x[j] - (over_lanes(mean, LANES) - adds[j])[None, :], 0.)
        s2 += fold(apart * apart, DOWN, ACROSS)
    return mean, over_tile(s2, GROUPS)


@triton.jit
def chunk_of(C, HW, CHUNK, LANES):
    """Where a group is shared: this program's image, chunk of pixels, and channels; and how many chunks there are."""
    BLOCKS: tl.constexpr = C // LANES
    CHUNKS: tl.constexpr = (HW + CHUNK - 1) // CHUNK
    pid = tl.program_id(0)
    c = pid % BLOCKS * LANES + tl.arange(0, LANES)
    return (pid // BLOCKS // CHUNKS).to(tl.int64), pid // BLOCKS % CHUNKS, c, CHUNKS


@triton.jit
def forward_part_kernel(
    x_ptr,                                                      # (B, C, HW) in either layout
    part_ptr,                                                   # (2, B, chunks, C): mean, m2 of a chunk of pixels
    x_stride, size,                                             # from image to image; B * chunks * C
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
    CHUNK: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr,
):
    """Split, 1 of 3: the channels' moments over one chunk of pixels."""
    DOWN: tl.constexpr = 1 if LAST else min(128 // x_ptr.dtype.element_ty.primitive_bitwidth, PIXELS)
    n, k, c, chunks = chunk_of(C, HW, CHUNK, LANES)
    start, stop = k * CHUNK, tl.minimum(k * CHUNK + CHUNK, HW)
    none = tl.zeros((LANES,), tl.float32)
    mean, m2, size_b = moments(x_ptr + n * x_stride, (none,), c, start, stop, C, HW, LAST, 0, PIXELS, DOWN, 1)
    mean, m2 = merge(mean, m2, size_b, stop - start, LANES)
    part_ptr += (n * chunks + k) * C + c
    tl.store(part_ptr, mean)
    tl.store(part_ptr + size, m2)


@triton.jit
def parts_of_group(part_ptr, C, HW, CHUNK, CPG):
    """Where the partial sums of this program's group lie, (chunks, channels), and which are there; then its image and
    group, its chunks, its channels, and which of those are there."""
    CHUNKS: tl.constexpr = (HW + CHUNK - 1) // CHUNK
    n, g = (tl.program_id(0) // (C // CPG)).to(tl.int64), tl.program_id(0) % (C // CPG)
    lane, k = tl.arange(0, triton.next_power_of_2(CPG)), tl.arange(0, triton.next_power_of_2(CHUNKS))
    c, there = g * CPG + lane, lane < CPG
    part_ptr += (n * CHUNKS + k)[:, None] * C + c[None, :]
    return part_ptr, (k < CHUNKS)[:, None] & there[None, :], n, g, k, c, there


@triton.jit
def forward_merge_kernel(
    part_ptr,                                                   # (2, B, chunks, C)
    stats_ptr,                                                  # (B, 2, G): mean, rstd
    add_ptr, add_stride, size, norm_eps,
    C: tl.constexpr, HW: tl.constexpr, CHUNK: tl.constexpr, CPG: tl.constexpr,
):
    """Split, 2 of 3: one group's mean and rstd."""
    part_ptr, ok, n, g, k, c, there = parts_of_group(part_ptr, C, HW, CHUNK, CPG)
    pixels = tl.where(ok, tl.minimum(HW - k * CHUNK, CHUNK)[:, None], 0).to(tl.float32)
    mean = tl.load(part_ptr, mask=ok, other=0) + row(add_ptr, n, add_stride, c, there)[None, :]
    mean, m2 = merge(mean, tl.load(part_ptr + size, mask=ok, other=0), pixels, CPG * HW, 1)
    stats_ptr += n * (2 * (C // CPG)) + g + tl.arange(0, 1)
    tl.store(stats_ptr, mean)
    tl.store(stats_ptr + C // CPG, tl.rsqrt(m2 / (CPG * HW) + norm_eps))


@triton.jit
def forward_apply_kernel(
    x_ptr, y_ptr,                                               # (B, C, HW) in either layout
    stats_ptr,                                                  # (B, 2, G): mean, rstd
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, scale_stride, shift_stride, add_stride,           # from image to image
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
    CPG: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr,
):
    """Split, 3 of 3: one chunk of pixels, the statistics being known."""
    n, k, c, _ = chunk_of(C, HW, CHUNK, LANES)
    mean, rstd = of_groups(stats_ptr, n, c, C, CPG)
    adds = rows(add_ptr, n, add_stride, c, LANES, 1)
    line, _ = lines(mean, rstd, adds, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c,
                    LANES, SILU)
    normalise_pixels(x_ptr + n * x_stride, y_ptr + n * (C * HW), line, c, k * CHUNK,
                     tl.minimum(k * CHUNK + CHUNK, HW), C, HW, LAST, 0, PIXELS, SILU)


# Backward

@triton.jit
def slope(apart, dy, line, SILU):
    """g = dloss/dz; apart is x - center."""
    if SILU:
        u = apart * line[1][None, :] + line[2][None, :]
        r = tl.rsqrt(1 + tl.exp2(u))
        s = r * r
        us = u * s
        return dy * (s - (us - us * s) * LN2)
    else:
        return dy


@triton.jit
def sums(x_ptr, dy_ptr, rstd, line, c, start, stop, C, HW, LAST, PART, PIXELS, SILU, ADD):
    """Each channel's db, dw and, if ADD, sx over the pixels start..stop: a flat tuple, three a part."""
    DOWN: tl.constexpr = 1 if LAST else min(128 // x_ptr.dtype.element_ty.primitive_bitwidth, PIXELS)
    found = ()
    for _ in tl.static_range(3 * len(line)):
        found += (tl.zeros((PIXELS // DOWN, c.shape[0]), tl.float32),)
    for p in tl.range(start, stop, PIXELS, loop_unroll_factor=2):
        at, ok = tile(c, p, stop, C, HW, LAST, PIXELS)
        more = ()
        for j in tl.static_range(len(line)):
            apart = read(x_ptr, at + j * PART, ok) - line[j][0][None, :]
            g = slope(apart, read(dy_ptr, at + j * PART, ok), line[j], SILU)
            more += (found[3 * j] + fold(g, DOWN, 1), found[3 * j + 1] + fold(g * apart, DOWN, 1))
            more += (found[3 * j + 2] + fold(tl.where(ok, apart, 0.), DOWN, 1) if ADD else found[3 * j + 2],)
        found = more
    totals = ()
    for j in tl.static_range(len(line)):
        totals += (tl.sum(found[3 * j], axis=0), tl.sum(found[3 * j + 1], axis=0) * rstd,
                   tl.sum(found[3 * j + 2], axis=0) * rstd)
    return totals


@triton.jit
def write_channels(sums_ptr, size, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, db, dw, sx, c1, c2, gain, rstd,
                   n, scale_stride, C, HW, c, ok=True):
    """The gradients that belong to an image and a channel, of the arguments that are there."""
    sums_ptr += n * C + c
    more = 1 + row(scale_ptr, n, scale_stride, c, ok)
    tl.store(sums_ptr, dw * more, mask=ok)
    sums_ptr += size
    tl.store(sums_ptr, db * more, mask=ok)
    if scale_ptr is not None:
        sums_ptr += size
        tl.store(sums_ptr, row(weight_ptr, 0, 0, c, ok) * dw + row(bias_ptr, 0, 0, c, ok) * db, mask=ok)
    if shift_ptr is not None:
        sums_ptr += size
        tl.store(sums_ptr, db, mask=ok)
    if add_ptr is not None:
        sums_ptr += size
        tl.store(sums_ptr, rstd * (gain * db - HW * c2 - c1 * sx), mask=ok)


@triton.jit
def input_slope(apart, g, rstd, gain, c1, c2):
    """dx = rstd (gain g - c2 - xh c1), multiplied out: what belongs to the channel alone comes first."""
    return (rstd * gain)[None, :] * g + ((-rstd * rstd * c1)[None, :] * apart + (-rstd * c2)[None, :])


@triton.jit
def input_slopes(x_ptr, dy_ptr, dx_ptr, rstd, line, gains, c1, c2, c, start, stop, C, HW, LAST, PART, PIXELS, SILU):
    last = start + (stop - start - 1) // PIXELS * PIXELS
    for p in tl.range(start, stop, PIXELS, loop_unroll_factor=2):
        at, ok = tile(c, last - (p - start), stop, C, HW, LAST, PIXELS)
        for j in tl.static_range(len(line)):
            apart = read(x_ptr, at + j * PART, ok) - line[j][0][None, :]
            g = slope(apart, read(dy_ptr, at + j * PART, ok), line[j], SILU)
            write(dx_ptr, at + j * PART, input_slope(apart, g, rstd, gains[j], c1, c2), ok)


@triton.jit
def backward_kernel(
    x_ptr, dy_ptr, dx_ptr,                                      # (B, C, HW) in either layout
    stats_ptr,                                                  # (B, 2, G): mean, rstd
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    sums_ptr,                                                   # (2 to 5, B, C): dweight, dbias, dscale, dshift, dadd
    x_stride, dy_stride, scale_stride, shift_stride, add_stride, size,          # from image to image; B * C
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
    CPG: tl.constexpr, LANES: tl.constexpr, GROUPS: tl.constexpr, PIXELS: tl.constexpr,
):
    """Whole groups of one image, resident or in a loop."""
    PARTS: tl.constexpr = CPG // LANES
    PART: tl.constexpr = LANES if LAST else LANES * HW
    BLOCKS: tl.constexpr = C // (CPG * GROUPS)
    n, block = (tl.program_id(0) // BLOCKS).to(tl.int64), tl.program_id(0) % BLOCKS
    c = channels(block, CPG, LANES, GROUPS)
    x_ptr += n * x_stride
    dy_ptr += n * dy_stride
    dx_ptr += n * (C * HW)
    mean, rstd = of_groups(stats_ptr, n, c, C, CPG)
    adds = rows(add_ptr, n, add_stride, c, LANES, PARTS)
    line, gains = lines(mean, rstd, adds, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c,
                        LANES, SILU)
    if PIXELS >= HW:
        at, ok = tile(c, 0, HW, C, HW, LAST, PIXELS)
        apart, g, found = (), (), ()
        for j in tl.static_range(PARTS):
            apart += (tl.where(ok, read(x_ptr, at + j * PART, ok) - line[j][0][None, :], 0.),)
            g += (slope(apart[j], read(dy_ptr, at + j * PART, ok), line[j], SILU),)
            dw = tl.sum(g[j] * apart[j], axis=0) * rstd
            found += (tl.sum(g[j], axis=0), dw, tl.sum(apart[j], axis=0) * rstd)
    else:
        found = sums(x_ptr, dy_ptr, rstd, line, c, 0, HW, C, HW, LAST, PART, PIXELS, SILU,
                     add_ptr is not None)

    c1, c2 = tl.zeros((GROUPS,), tl.float32), tl.zeros((GROUPS,), tl.float32)
    for j in tl.static_range(PARTS):
        c1 += in_group(gains[j] * found[3 * j + 1], GROUPS) / (CPG * HW)
        c2 += in_group(gains[j] * found[3 * j], GROUPS) / (CPG * HW)
    c1, c2 = over_lanes(c1, LANES), over_lanes(c2, LANES)
    for j in tl.static_range(PARTS):
        write_channels(sums_ptr, size, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, found[3 * j],
                       found[3 * j + 1], found[3 * j + 2], c1, c2, gains[j], rstd, n, scale_stride, C, HW,
                       c + j * LANES)
    if PIXELS >= HW:
        for j in tl.static_range(PARTS):
            write(dx_ptr, at + j * PART, input_slope(apart[j], g[j], rstd, gains[j], c1, c2), ok)
    else:
        input_slopes(x_ptr, dy_ptr, dx_ptr, rstd, line, gains, c1, c2, c, 0, HW, C, HW, LAST, PART, PIXELS, SILU)


@triton.jit
def backward_part_kernel(
    x_ptr, dy_ptr,                                              # (B, C, HW) in either layout
    part_ptr,                                                   # (3, B, chunks, C): db, dw, sx of a chunk of pixels
    stats_ptr,                                                  # (B, 2, G): mean, rstd
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, dy_stride, scale_stride, shift_stride, add_stride, size,
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
    CPG: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr,
):
    """Split, 1 of 3: the channels' sums over one chunk of pixels."""
    n, k, c, chunks = chunk_of(C, HW, CHUNK, LANES)
    mean, rstd = of_groups(stats_ptr, n, c, C, CPG)
    adds = rows(add_ptr, n, add_stride, c, LANES, 1)
    line, gains = lines(mean, rstd, adds, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c,
                        LANES, SILU)
    found = sums(x_ptr + n * x_stride, dy_ptr + n * dy_stride, rstd, line, c, k * CHUNK,
                 tl.minimum(k * CHUNK + CHUNK, HW), C, HW, LAST, 0, PIXELS, SILU, add_ptr is not None)
    part_ptr += (n * chunks + k) * C + c
    for j in tl.static_range(3):
        tl.store(part_ptr + j * size, found[j])


@triton.jit
def backward_merge_kernel(
    part_ptr,                                                   # (3, B, chunks, C)
    stats_ptr, slopes_ptr,                                      # (B, 2, G): mean, rstd; c1, c2
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    sums_ptr,                                                   # (2 to 5, B, C): dweight, dbias, dscale, dshift, dadd
    scale_stride, part_size, size,
    C: tl.constexpr, HW: tl.constexpr, CHUNK: tl.constexpr, CPG: tl.constexpr,
):
    """Split, 2 of 3: one group's c1 and c2, and all gradients but dx."""
    part_ptr, ok, n, g, _, c, there = parts_of_group(part_ptr, C, HW, CHUNK, CPG)
    db = tl.sum(tl.load(part_ptr, mask=ok, other=0), axis=0)
    dw = tl.sum(tl.load(part_ptr + part_size, mask=ok, other=0), axis=0)
    sx = tl.sum(tl.load(part_ptr + 2 * part_size, mask=ok, other=0), axis=0)
    gain = row(weight_ptr, 0, 0, c, there) * (1 + row(scale_ptr, n, scale_stride, c, there))
    c1, c2 = tl.sum(gain * dw) / (CPG * HW), tl.sum(gain * db) / (CPG * HW)
    g += n * (2 * (C // CPG))
    rstd = tl.load(stats_ptr + g + C // CPG)
    write_channels(sums_ptr, size, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, db, dw, sx, c1, c2, gain, rstd,
                   n, scale_stride, C, HW, c, there)
    tl.store(slopes_ptr + g, c1)
    tl.store(slopes_ptr + g + C // CPG, c2)


@triton.jit
def backward_apply_kernel(
    x_ptr, dy_ptr, dx_ptr,                                      # (B, C, HW) in either layout
    stats_ptr, slopes_ptr,                                      # (B, 2, G): mean, rstd; c1, c2
    weight_ptr, bias_ptr,                                       # (C,)
    scale_ptr, shift_ptr, add_ptr,                              # (B, C) or None
    x_stride, dy_stride, scale_stride, shift_stride, add_stride,
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr, SILU: tl.constexpr,
    CPG: tl.constexpr, CHUNK: tl.constexpr, LANES: tl.constexpr, PIXELS: tl.constexpr,
):
    """Split, 3 of 3: dx of one chunk of pixels."""
    n, k, c, _ = chunk_of(C, HW, CHUNK, LANES)
    mean, rstd = of_groups(stats_ptr, n, c, C, CPG)
    c1, c2 = of_groups(slopes_ptr, n, c, C, CPG)
    adds = rows(add_ptr, n, add_stride, c, LANES, 1)
    line, gains = lines(mean, rstd, adds, weight_ptr, bias_ptr, scale_ptr, shift_ptr, n, scale_stride, shift_stride, c,
                        LANES, SILU)
    input_slopes(x_ptr + n * x_stride, dy_ptr + n * dy_stride, dx_ptr + n * (C * HW), rstd, line, gains, c1, c2, c,
                 k * CHUNK, tl.minimum(k * CHUNK + CHUNK, HW), C, HW, LAST, 0, PIXELS, SILU)


# Which way, and with which tile

SECTOR = 64                 # bytes that must lie together for a read to waste nothing


class Sizes(NamedTuple):
    resident: int           # elements of a program whose groups stay in registers
    loop: int               # elements of a tile otherwise
    a_thread: int           # of them a thread's
    share: int              # elements of a program for each thread, or sums over threads cost more than the elements
    channels: int           # a thread may have of a group in parts, or registers spill
    slab: int = 96 * 1024   # bytes a program may read twice: the second read then comes from a cache
    programs: int = 264     # two a multiprocessor fill a large GPU


FORWARD, BACKWARD = Sizes(8192, 8192, 16, 64, 24), Sizes(4096, 4096, 8, 128, 12)


class Plan(NamedTuple):
    lanes: int              # a tile: channels of a part of a group, or of a block if split
    groups: int             # times so many groups
    pixels: int             # times so many pixels
    chunk: int              # pixels of a program if the groups are split, else 0
    warps: int


def pow2(n: int) -> int:
    """The largest power of two up to n, and 1 for less."""
    return 1 << max(n, 1).bit_length() - 1


def warps(elements: int, a_thread: int) -> int:
    return min(16, pow2(elements // (32 * a_thread)))


@cache
def plan(shape: tuple[int, ...], G: int, itemsize: int, last: bool, sizes: Sizes) -> Plan:
    """Resident if whole groups fit the registers, a loop if they fit the caches, else split.

    A program takes so many groups that, in channels_last, its piece of a pixel fills the sectors it touches, and
    that it has a thousand elements; but never so many that too few programs are left, nor more than divide G.
    """
    B, C, H, W = shape
    HW, CPG, groups = H * W, C // G, 1
    lanes, whole = CPG & -CPG, triton.next_power_of_2(HW)
    while (G % (2 * groups) == 0 and B * G // (2 * groups) >= sizes.programs
           and (last and groups * CPG * itemsize < SECTOR or groups * CPG * whole < 1024)):
        groups *= 2
    width, vector = groups * CPG, min(16 // itemsize, lanes) if last else 16 // itemsize
    if lanes < CPG and CPG // lanes * (vector if last else 1) > sizes.channels:
        return split(shape, G, itemsize, last, sizes)
    if width * whole <= sizes.resident:
        most = warps(triton.next_power_of_2(width) * whole, 32)
        return Plan(lanes, groups, whole, 0, min(most, warps(groups * lanes * whole, vector)))
    slab = sizes.slab if B * G // groups >= sizes.programs else sizes.slab // 4
    if width * HW * itemsize <= slab and width <= sizes.loop // 4:
        most = min(warps(sizes.loop, sizes.a_thread), warps(width * HW, sizes.share))
        loads = max(1, sizes.a_thread // (vector * (CPG // lanes)))                     # of a thread, from each part
        pixels = pow2(min(sizes.loop // width, 32 * most * vector * loads // (groups * lanes)))
        return Plan(lanes, groups, pixels, 0, min(most, warps(groups * lanes * pixels, vector)))
    return split(shape, G, itemsize, last, sizes)


def split(shape: tuple[int, ...], G: int, itemsize: int, last: bool, sizes: Sizes) -> Plan:
    """Blocks of channels and chunks of pixels, enough of them to fill the GPU several times."""
    B, C, H, W = shape
    most, lanes = sizes.loop, C & -C
    pixels = most // min(64, lanes) if last else min(triton.next_power_of_2(H * W), most)
    lanes = min(most // pixels, lanes)
    tiles = triton.cdiv(H * W, pixels)
    chunk = max(1, min(16, tiles * (C // lanes) * B // (4 * sizes.programs)))                 # in tiles
    chunk = max(chunk, triton.cdiv(tiles * triton.next_power_of_2(C // G), 16384))      # so that a merge is one tile
    return Plan(lanes, 1, pixels, chunk * pixels, warps(pixels * lanes, sizes.a_thread))


# Launchers

def stride(row: Tensor | None) -> int:
    return 0 if row is None else row.stride(0)


def dense(*rows: Tensor | None) -> list[Tensor | None]:
    """Small arguments with their channels side by side; the batch stride may be anything."""
    return [r if r is None or r.stride(-1) == 1 else r.contiguous() for r in rows]


def forward(x: Tensor, y: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
            shift: Tensor | None, add: Tensor | None, norm_eps: float, silu: bool, last: bool) -> None:
    """Fills y and stats, (B, 2, G) float32. last: the images of x and y are channels_last, else contiguous."""
    (B, C, *pixels), G = x.shape, stats.shape[2]
    HW = pixels[0] * pixels[1]
    if B == 0:
        return
    p = plan(x.shape, G, x.element_size(), last, FORWARD)
    weight, bias, scale, shift, add = dense(weight, bias, scale, shift, add)
    rows = (weight, bias, scale, shift, add, x.stride(0), stride(scale), stride(shift), stride(add))
    if not p.chunk:
        forward_kernel[(B * G // p.groups,)](x, y, stats, *rows, norm_eps, C, HW, last, silu, C // G, p.lanes,
                                             p.groups, p.pixels, num_warps=p.warps)
        return
    chunks = triton.cdiv(HW, p.chunk)
    part = x.new_empty(2, B, chunks, C, dtype=torch.float32)
    grid, size = (B * chunks * (C // p.lanes),), part.stride(0)
    forward_part_kernel[grid](x, part, x.stride(0), size, C, HW, last, p.chunk, p.lanes, p.pixels, num_warps=p.warps)
    forward_merge_kernel[(B * G,)](part, stats, add, stride(add), size, norm_eps, C, HW, p.chunk, C // G,
                                   num_warps=warps(C // G * chunks, 16))
    forward_apply_kernel[grid](x, y, stats, *rows, C, HW, last, silu, C // G, p.chunk, p.lanes, p.pixels,
                               num_warps=p.warps)


def backward(dy: Tensor, x: Tensor, stats: Tensor, weight: Tensor, bias: Tensor, scale: Tensor | None,
             shift: Tensor | None, add: Tensor | None, silu: bool, last: bool, dx: Tensor, sums: Tensor) -> None:
    """Fills dx, which lies as dy and x do, and sums: of each image the terms of dweight and dbias, and those of
    dscale, dshift and dadd whose argument is there, (2 to 5, B, C) float32."""
    (B, C, *pixels), G = x.shape, stats.shape[2]
    HW = pixels[0] * pixels[1]
    if B == 0:
        return
    p = plan(x.shape, G, x.element_size(), last, BACKWARD)
    weight, bias, scale, shift, add = rows = dense(weight, bias, scale, shift, add)
    strides = (x.stride(0), dy.stride(0), stride(scale), stride(shift), stride(add))
    if not p.chunk:
        backward_kernel[(B * G // p.groups,)](x, dy, dx, stats, *rows, sums, *strides, B * C, C, HW, last, silu, C // G,
                                              p.lanes, p.groups, p.pixels, num_warps=p.warps)
        return
    chunks = triton.cdiv(HW, p.chunk)
    part, slopes = x.new_empty(3, B, chunks, C, dtype=torch.float32), torch.empty_like(stats)
    grid, size = (B * chunks * (C // p.lanes),), part.stride(0)
    shape = (C, HW, last, silu, C // G, p.chunk, p.lanes, p.pixels)
    backward_part_kernel[grid](x, dy, part, stats, *rows, *strides, size, *shape, num_warps=p.warps)
    backward_merge_kernel[(B * G,)](part, stats, slopes, *rows, sums, stride(scale), size, B * C, C, HW, p.chunk,
                                    C // G, num_warps=warps(C // G * chunks, 16))
    backward_apply_kernel[grid](x, dy, dx, stats, slopes, *rows, *strides, *shape, num_warps=p.warps)
