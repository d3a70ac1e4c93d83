"""Triton kernel of sampling_step: one read of x_t and the output, one write of x_s, noise in between.

A program takes one image n and BLOCK of its elements, e in logical C, H, W order. Element e's noise is word e % 4 of
Philox block e // 4, so a block of counters serves four neighbours. The row of the step is read from memory: the index,
the table and the seeds may change under a captured graph.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def normal(seed, s, e4):
    """noise.normal for the elements 4 e4, 4 e4 + 1, 4 e4 + 2, 4 e4 + 3 of each counter e4, in that order."""
    c0 = e4.to(tl.uint32)
    none = c0 * 0
    whole = s.to(tl.uint32)
    fraction = ((s - whole.to(tl.float32)) * 4294967296.0).to(tl.uint32)         # 2^32 of it, exact
    u0, u1, u2, u3 = tl.philox(seed, c0, none + whole, none, none + fraction)
    n0, n1 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(u0), tl.uint_to_uniform_float(u1))
    n2, n3 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(u2), tl.uint_to_uniform_float(u3))
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def column(row_ptr, k: tl.constexpr):
    return tl.load(row_ptr + k).to(tl.float32)


@triton.jit
def step_kernel(
    rows_ptr, i_ptr,                            # (S, COLUMNS), one row per network evaluation; (1,) int64
    xt_ptr, xs_ptr,                             # (B, C, N), contiguous float32; N = pixels of an image
    output_ptr,                                 # (B, C or 2C, N), element at n * stride_n + c * stride_c + p * stride_p
    prev_ptr, prev2_ptr, z_ptr, x0_ptr,         # like xt, or None
    seeds_ptr,                                  # (B,) int64 or None
    C, N, stride_n, stride_c, stride_p,
    COLUMNS: tl.constexpr, LEARNED: tl.constexpr, IN_ORDER: tl.constexpr, BLOCK: tl.constexpr,
):
    """x0_hat = clamp(a xt + b output, -clip, clip); xs = c0 x0_hat + ct xt + cp x0_prev + cp2 x0_prev2 + cz sigma z."""
    blocks = tl.cdiv(C * N, BLOCK)
    n, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    e = block * BLOCK + tl.arange(0, BLOCK)
    ok = e < C * N
    at = n * C * N + e
    output_ptr += n * stride_n + (e if IN_ORDER else e // N * stride_c + e % N * stride_p)

    row_ptr = rows_ptr + tl.load(i_ptr) * COLUMNS
    a, b, clip = column(row_ptr, 2), column(row_ptr, 3), column(row_ptr, 4)
    c0, ct, cp, cp2 = column(row_ptr, 5), column(row_ptr, 6), column(row_ptr, 7), column(row_ptr, 8)
    cz = column(row_ptr, 9)

    xt = tl.load(xt_ptr + at, mask=ok)
    output = tl.load(output_ptr, mask=ok).to(tl.float32)
    x0 = tl.clamp(a * xt + b * output, -clip, clip, propagate_nan=tl.PropagateNan.ALL)
    if x0_ptr is not None:
        tl.store(x0_ptr + at, x0, mask=ok)
    xs = c0 * x0 + ct * xt
    if prev_ptr is not None and cp != 0:
        xs += cp * tl.load(prev_ptr + at, mask=ok)
    if prev2_ptr is not None and cp2 != 0:
        xs += cp2 * tl.load(prev2_ptr + at, mask=ok)
    if (z_ptr is not None or seeds_ptr is not None) and cz != 0:
        if z_ptr is not None:
            noise = cz * tl.load(z_ptr + at, mask=ok)
        else:
            s, e4 = column(row_ptr, 1), block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
            noise = cz * normal(tl.load(seeds_ptr + n), s, e4)
        if LEARNED:
            v = tl.load(output_ptr + C * stride_c, mask=ok).to(tl.float32)
            log_min, log_max = column(row_ptr, 10), column(row_ptr, 11)
            noise *= tl.exp((log_min + (v + 1) / 2 * (log_max - log_min)) / 2)
        xs += noise
    tl.store(xs_ptr + at, xs, mask=ok)


WARPS = 4
BLOCK = 4 * 32 * WARPS              # four elements per thread, one Philox block: no exchange between threads


def step(rows: Tensor, i: Tensor, xt: Tensor, output: Tensor, x0_prev: Tensor | None, x0_prev2: Tensor | None,
         seeds: Tensor | None, z: Tensor | None, xs: Tensor, x0_hat: Tensor | None) -> None:
    """Fills xs and, unless None, x0_hat."""
    B, C = xt.shape[:2]
    if B == 0:
        return
    output = output.reshape(B, output.shape[1], -1)             # a view, if the pixels are evenly spaced
    N = output.shape[2]
    xt, x0_prev, x0_prev2, seeds, z = (None if r is None else r.contiguous() for r in (xt, x0_prev, x0_prev2, seeds, z))
    step_kernel[(B * triton.cdiv(C * N, BLOCK),)](
        rows.contiguous(), i, xt, xs, output, x0_prev, x0_prev2, z, x0_hat, seeds, C, N, *output.stride(),
        COLUMNS=rows.shape[1], LEARNED=output.shape[1] == 2 * C, IN_ORDER=output.stride()[1:] == (N, 1), BLOCK=BLOCK,
        num_warps=WARPS)
