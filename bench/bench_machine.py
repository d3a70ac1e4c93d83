"""What there is to be had: a copy that reads and writes 2 GiB, and matrices of 8192 x 8192 in bf16."""

import pytest
import torch

from bench.measure import CUDA, ROUNDS, captured, copies, device

BYTES, N = (2**31, 8192) if CUDA else (2**24, 256)


@pytest.mark.parametrize("name", ["copy", "matrices"])
def test_machine(benchmark, name):
    a, b = torch.randn(2, N, N, dtype=torch.bfloat16, device=device())
    run, calls = captured(copies(BYTES, 2) if name == "copy" else [lambda: a @ b])
    benchmark.group = "machine"
    benchmark.extra_info |= {"calls": calls, **({"bytes": BYTES} if name == "copy" else {"flop": 2 * N**3})}
    benchmark.pedantic(run, rounds=ROUNDS)
