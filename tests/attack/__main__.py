"""Plays all cases: damaged and wrong files, flags, disks and streams against every script.

    python -m tests.attack                          # about ten minutes of two cores
    python -m tests.attack --only images --seed 3   # other cases of one kind

The cases are data, in the other files here: files, a command, and what is expected; harness.py says what is a failure.
Exits 1 after any.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from run import cli
from tests.attack.cases import every_case, lay
from tests.attack.harness import attack, table


@dataclass(frozen=True)
class Config:
    """Plays damaged and wrong files, flags, disks and streams against every script."""
    only: str = ""                      # one kind of case; empty is all
    seed: int = 0                       # of the cases
    jobs: int = 2                       # processes at a time
    limit: float = 600.                 # seconds after which a process hangs


def main(argv: Sequence[str] | None = None) -> None:
    config = cli.parse(Config, argv)
    with tempfile.TemporaryDirectory() as base:
        lay(Path(base))
        cases = every_case(Path(base), config.seed)
        kinds = dict.fromkeys(case.kind for case in cases)
        if config.only and config.only not in kinds:
            raise SystemExit(f"attack: only is {config.only!r}; it must be one of {', '.join(kinds)}")
        ends = attack([case for case in cases if config.only in ("", case.kind)], config.jobs, config.limit)
    print(table(ends))
    raise SystemExit(not all(end.well for end in ends))


if __name__ == "__main__":
    main()
