"""What the norm kernels take of a GPU does not grow unseen, and the report reads machine code as it says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import static

ROOT = Path(__file__).parents[2]


def rows(text: str) -> dict[tuple[str, str], dict[str, str]]:
    """The lines of Markdown tables, by their heading and first cell."""
    lines, heading, names = {}, "", ()
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("| shape"):
            names = cells
        elif line.startswith("| ") and not line.startswith("| ---"):
            lines[heading, cells[0]] = dict(zip(names, cells, strict=True))
    return lines


@pytest.mark.slow
def test_nothing_grows():
    """On an H200, against bench/static.md; another Triton may need a step of registers more."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-m", "kernels.static", "--archs", "90"], cwd=ROOT, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    held = rows((ROOT / "bench" / "static.md").read_text())
    now = rows(done.stdout)
    assert len(now) == 22 and now.keys() <= held.keys()
    for key, line in now.items():
        before = held[key]
        assert line["spills"] == "0" and all(line[name] == before[name] for name in ("way", "warps", "width")), key
        assert int(line["registers"]) <= int(before["registers"]) + 8, key
        assert int(line["programs"]) >= int(before["programs"]), key
        assert float(line["instructions"]) <= 1.03 * float(before["instructions"]), key
        assert float(line["instructions"]) <= (38 if "backward" in key[0] else 20), key


CODE = """
        /*0000*/                   S2R R0, SR_TID.X ;                 /* 0x0 */
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;   /* 0x0 */
        /*0020*/                   LDG.E.64 R8, desc[UR4][R2.64+0x10] ;
        /*0030*/                   FADD R1, R5, R6 ;
        /*0040*/                   MUFU.EX2 R1, R1 ;
        /*0050*/               @P0 BRA 0x0010 ;
        /*0060*/                   STG.E.64 desc[UR4][R2.64], R4 ;
"""


def test_reading_machine_code():
    code = [(16 * k, line.split("*/", 1)[1].split(";")[0].strip()) for k, line in enumerate(CODE.strip().splitlines())]
    lines = [line for _, line in code]
    assert [len(body) for body in static.loops(code)] == [5]
    assert static.widths(lines, "LDG") == [128, 64] and static.widths(lines, "STG") == [64]
    assert static.executed(code, 192) == 7                                  # the loop once
    assert static.executed(code, 4 * 192) == 2 + 4 * 5
    assert static.executed(code, 4 * 192, "MUFU") == 4


@pytest.mark.parametrize("arch, warps, registers, shared, programs", [
    (90, 8, 64, 1024, 4), (90, 8, 65, 1024, 3), (90, 16, 64, 0, 2), (90, 1, 32, 0, 32), (90, 2, 32, 0, 32),
    (80, 4, 32, 40 * 1024, 4), (90, 4, 32, 40 * 1024, 5)])
def test_programs_of_a_multiprocessor(arch, warps, registers, shared, programs):
    assert static.at_once(arch, warps, registers, shared) == programs
