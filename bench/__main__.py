"""The first session on a GPU as one command: the kernels' tests, then cases in the order of their value, then tables.

    python -m bench --minutes 9                     # the same command again resumes

Where a case takes its process down, another one goes on. All that is measured is in bench/results/<gpu>.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import tables
from bench.conftest import GRACE, LOST
from bench.measure import RESULTS, machine_name
from run.cli import check_range, parse, script

ROOT = Path(__file__).parents[1]
TESTS = [*(f"tests/kernels/test_{name}.py" for name in ("group_norm_silu", "sampling_step", "compile")),
         "tests/bench/test_same.py", "-k", "not compiled_loop and not precision"]           # those compile for a CPU
END = 15.                               # seconds that tables and plots take


@dataclass(frozen=True)
class Config:
    """Tests the kernels on this machine, measures the most valuable cases first, and makes the tables."""
    minutes: float = 9.             # for everything; what would end later is left out
    out: str = str(RESULTS)         # the machine's folder is made in this one


def pytest(arguments: Sequence[str], seconds: float) -> int | None:
    """pytest's exit status, negative where a signal ended it; None where it was ended after so many seconds."""
    try:
        return subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return None


def measure_until(deadline: float, out: str) -> None:
    """`pytest bench` in another process after every one that a case took down."""
    status = LOST
    while (status == LOST or status is None or status < 0) and (left := deadline - time.monotonic()) > 0:
        status = pytest(["bench", "--minutes", str(left / 60), "--out", out], left + 2 * GRACE)


@script
def main(argv: Sequence[str] | None = None) -> None:
    began, config = time.monotonic(), parse(Config, argv)
    check_range(config, "minutes", 0)
    out = str(Path(config.out).resolve())
    deadline = began + 60 * config.minutes - GRACE - END
    pytest([*TESTS, f"--junitxml={out}/{machine_name()}/tests.xml"], max(1., min(180., (deadline - began) / 2)))
    measure_until(deadline, out)
    tables.main(["--out", out])


if __name__ == "__main__":
    main()
