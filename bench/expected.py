"""How long a case takes: a guess, corrected by what the cases before it took."""

import re
from statistics import median

# Seconds on an H100 with 16 CPU cores, compilation included, by the first pattern that occurs in a case's name. These
# are guesses; they decide what is begun, and no result depends on them.
SECONDS = {
    "^tests": 90, "^machine": 10, "max-autotune": 420, "^bytes|^replays": 90, "^pictures:": 150,
    "^training .*(compiled|kernels)": 120, "^training": 40, "^DDPM-1000": 150,
    r"batch \d+: (eager|bf16|channels_last|diffusers nchw|diffusers channels_last)$": 40, "batch .*: ": 75,
    "^tail": 30, "batch": 45, "^chain": 30, "backward": 20, "forward": 15, "^step": 25, "": 60}


def kind(case: str) -> str:
    return next(pattern for pattern in SECONDS if re.search(pattern, case))


def expected(case: str, lines: dict[str, dict]) -> float:
    """Seconds that a case will take, given the lines of those that have been measured.

    Its guess times what the slowest of its kind took of theirs; before one of its kind is known, times what all took in
    the median, if they took longer. At least as long as the case itself took when it failed.
    """
    ratios = {}
    for other, line in lines.items():
        if "failed" not in line:
            ratios.setdefault(kind(other), []).append(line["seconds"] / SECONDS[kind(other)])
    own, every = ratios.get(kind(case)), [ratio for each in ratios.values() for ratio in each]
    factor = max(own) if own else max(1., median(every)) if every else 1.
    return max(SECONDS[kind(case)] * factor, lines.get(case, {}).get("seconds", 0.))
