"""One real training, in full precision and fast: train.py itself, the same seed, data and number of steps.

The cifar10 U-Net on digits of 32 x 32. Digits because they lie in memory, so that no step waits for data, and because
anyone sees whether a digit is right; a stream of dead leaves, rendered on the CPU, is slower than the fast run needs.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import sample
from bench.plots import picture_rows
from run import folder

ROOT = Path(__file__).parents[1]
RUNS = {"float32": (), "bf16 compiled": ("--dtype", "bf16", "--compile")}
WORK = ["--data", "digits", "--size", "32", "--network", "cifar10", "--batch", "128", "--lr", "2e-4"]
TINY = ["--batch", "8", "--log_every", "2", "--warmup", "2"]


def cases(folder: Path, steps: int, minutes: float, smoke: bool) -> dict[str, Callable[[], dict]]:
    """Both runs, then pictures of both."""
    deadline, work = time.monotonic() + 60 * minutes, TINY if smoke else WORK
    outs = {name: folder / "runs" / name.replace(" ", "-") for name in RUNS}
    return {**{name: partial(trained, [*work, *flags[:2 if smoke else None]], outs[name], steps, deadline)
               for name, flags in RUNS.items()}, "pictures": partial(compare, outs, folder)}


def trained(flags: list[str], out: Path, steps: int, deadline: float) -> dict:
    """The run's log, once it is done; raises ValueError if it had to stop before."""
    out = out.resolve()
    run_until(deadline, [sys.executable, "train.py", *flags, "--steps", str(steps), "--out", str(out)])
    lines = [line for line in folder.read_log(out) if "loss" in line]
    step = lines[-1]["step"] if lines else 0
    if step < steps:
        raise ValueError(f"stopped at step {step} of {steps}; the next run resumes there")
    return {"flags": " ".join(flags), "steps": step, "images/s": lines[-1]["images_per_second"],
            "losses": [[line["step"], line["loss"]] for line in lines]}


def run_until(deadline: float, command: list[str]) -> None:
    """Runs a script, at the deadline asks it to save and stop; raises ValueError with its last words if it fails."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=max(0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.terminate()
        _, said = process.communicate()
    if process.returncode > 0:
        raise ValueError(said.strip().splitlines()[-1] if said.strip() else f"it ended with {process.returncode}")


def compare(outs: dict[str, Path], folder: Path) -> dict:
    """Pictures of both models from the same noise, both sampled in float32."""
    x = {name: sample.generate(sample.Config(checkpoint=str(out / "last.safetensors"), n=20)).x
         for name, out in outs.items()}
    picture_rows(folder / "training_pictures.png", x)
    one, other = x.values()
    return {"n": len(one), "largest": (one - other).abs().max().item(), "mean": (one - other).abs().mean().item()}
