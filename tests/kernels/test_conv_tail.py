"""The end of a residual block as one kernel is the plain lines, and for sm_90 it is wgmma and TMA without spills."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.conv_tail import DTYPES, conv_tail, conv_tail_plain, tail_op
from kernels.tail_cases import SMALL, Tail, tail_arguments, tail_tolerance

ROOT = Path(__file__).parents[2]
TWO_IMAGES = (Tail(64, 192, 64, 8, 8), 3)              # fill a tile of pixels; a third is left over


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("dtype", DTYPES if torch.cuda.is_available() else DTYPES[1:], ids=str)
@pytest.mark.parametrize("tail", SMALL, ids=str)
def test_it_is_the_plain_lines(tail, dtype, device):
    """To one rounding of the result. (The interpreter cannot multiply bfloat16.)"""
    given = tail_arguments(tail, SMALL[tail], dtype, device)
    got = conv_tail(**given)
    want = conv_tail_plain(**{k: v.double() for k, v in given.items()})
    assert got.dtype == dtype and got.is_contiguous(memory_format=torch.channels_last)
    rounding = 2**-11 if dtype == torch.float16 else 2**-8
    atol = max(1e-5, tail_tolerance(tail, torch.device(device)) * want.abs().max().item())
    torch.testing.assert_close(got.double(), want, rtol=1.01 * rounding, atol=atol)


def test_any_layout_and_opcheck(device):
    given = tail_arguments(*TWO_IMAGES, torch.float16, device)
    mixed = {k: v.contiguous() for k, v in given.items()}
    mixed["bias"] = torch.stack([given["bias"], -given["bias"]], dim=1)[:, 0]
    odd = torch.empty(given["h"].numel() + 1, dtype=torch.float16, device=device)[1:].view(3, 8, 8, 64)    # no 16 bytes
    mixed["h"] = odd.copy_(given["h"].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.equal(conv_tail(**mixed), conv_tail(**given))
    none = {k: v[:0] if k in ("h", "x") else v for k, v in given.items()}
    assert conv_tail(**none).shape == (0, 64, 8, 8)
    torch.library.opcheck(tail_op, tuple(given.values()))


@pytest.mark.parametrize("change, message", [
    ({"x": torch.randn(3, 64, 8, 8).half()}, r"skip has shape \(64, 192, 1, 1\).*must have shape \(64, 64, 1, 1\)"),
    ({"skip": None}, r"x has shape \(3, 192, 8, 8\).*must have shape \(3, 64, 8, 8\)"),
    ({"weight": torch.randn(64, 64, 3, 3)}, r"weight is torch.float32; .* all bfloat16 or all float16"),
    ({"h": torch.randn(3, 64, 8, 8).half().requires_grad_()}, r"h requires a gradient"),
    ({"x": torch.randn(3, 192)}, r"x and weight have shapes .*\(3, 192\).* all must have four dimensions"),
])
def test_errors(change, message):
    with pytest.raises(ValueError, match=message):
        conv_tail(**tail_arguments(*TWO_IMAGES, torch.float16, "cpu") | change)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the interpreter alone")
def test_the_interpreter_cannot_multiply_bfloat16():
    with pytest.raises(ValueError, match="h is bfloat16, whose bits"):
        conv_tail(**tail_arguments(*TWO_IMAGES, torch.bfloat16, "cpu"))


@pytest.mark.parametrize("shape, message", [
    ((32, 64, 64, 8, 8), r"32 is no multiple of 64"), ((64, 64, 64, 8, 12), r"8 x 12 pixels; both must be"),
    ((64, 64, 64, 4, 256), r"W at most 128"), ((64, 64, 64, 2, 4), r"2 x 4 pixels")])
def test_shapes_that_it_cannot_do(shape, message):
    with pytest.raises(ValueError, match=message):
        conv_tail(**tail_arguments(Tail(*shape), 1, torch.float16, "cpu"))


def compiled_tails() -> None:
    """Prints a line of JSON for shapes of the cifar10 U-Net, compiled for sm_90."""
    from kernels.conv_tail_triton import conv_tail as launch
    from kernels.static import compiled, machine_code

    def image(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)

    for C, CX, N, H in ((128, 256, 128, 32), (256, 256, 256, 16), (256, 512, 256, 8), (256, 512, 256, 4)):
        arguments = (image(512, C, H, H), image(512, CX, H, H), image(N, C, 3, 3), torch.empty(N, device="meta"),
                     None if CX == N else image(N, CX, 1, 1), image(512, N, H, H))
        (found,) = compiled(90, lambda arguments=arguments: launch(*arguments))
        ptx = found.built.asm["ptx"]
        print(json.dumps({"shape": (C, CX, N, H), "shared": found.built.metadata.shared,
                          "wgmma": len(re.findall(r"wgmma\.mma_async", ptx)),
                          "loads": len(re.findall(r"cp\.async\.bulk\.tensor\.4d\.shared", ptx)),
                          **machine_code(found.built.asm["cubin"])[1]}))


def test_compiles_to_wgmma_and_tma_without_spills():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = list(map(json.loads, done.stdout.splitlines()))
    assert len(lines) == 4
    for line in lines:
        assert line["wgmma"] and line["loads"] and line["stack"] == line["local"] == 0, line
        assert line["shared"] <= 227 * 1024, line


if __name__ == "__main__":
    compiled_tails()
