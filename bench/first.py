"""The first half hour on a GPU as one command, for a machine that is there for a short time.

    python -m bench.first --minutes 25              # all of it at once
    python -m bench.first --minutes 25 --part 1     # the first of parts that end within 8 minutes each; then 2, 3, ...

First it says which packages are missing. Then come the tests, and cases in the order of their value, each one a line of
bench/results/<gpu>/first.jsonl as soon as it ends; --out names another folder than bench/results.
No case begins that may not end in time. The same command, after any kind of end, measures what is not yet in
bench/results/<gpu> or in --out. `python -m bench.tables` makes pages and plots of it, anywhere.
"""

import sys
from collections.abc import Sequence

from bench import packages


def main(argv: Sequence[str] | None = None) -> None:
    try:
        sentences = packages.check()
    except ValueError as error:
        print(f"first.py: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(*sentences, sep="\n", flush=True)
    from bench import half_hour  # takes seconds, and is nothing without the packages
    half_hour.main(argv)


if __name__ == "__main__":
    main()
