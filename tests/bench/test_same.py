"""The trained digits sampled by `--compile`, captured on a GPU, are the plain ones, and twice the same bytes."""

from dataclasses import replace

import pytest
import torch

import sample


@pytest.mark.slow
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bf16", 0.05)])       # one of 256 shades is 0.008
def test_compiled_pictures_are_the_plain_ones(dtype, tolerance):
    config = sample.Config(n=20, batch=20, steps="20")
    plain = sample.generate(config).x
    once, again = (sample.generate(replace(config, dtype=dtype, compile=True)).x for _ in range(2))
    assert torch.equal(once, again) and (once - plain).abs().max() <= tolerance
