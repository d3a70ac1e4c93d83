"""Tests as a case: run by pytest in a process of its own, with what failed, and where it was when it had to end."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

from bench import packages

KERNELS = ("test_group_norm_silu", "test_sampling_step", "test_compile", "test_conv_tail")
SLOW = "not compiled_loop and not precision"                # they compile for a CPU


def cases(smoke: bool) -> dict[str, partial]:
    """The tests of the kernels and of the captured loop, a case for each file; nothing without pytest-benchmark."""
    if packages.version(packages.TESTS) is None:
        return {}
    chosen = "empty_batch" if smoke else SLOW
    return {f"tests: {name}": partial(suite, [f"tests/kernels/{name}.py", "-k", chosen])
            for name in (KERNELS[1:2] if smoke else KERNELS)}


def suite(arguments: list[str], seconds: float = 300.) -> dict:
    """How many tests passed, failed and were skipped; "failed" says so if some did, or if there was no time for all."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "outcomes")
        command, said, end = [sys.executable, "-m", "bench.suite", str(path), *arguments], "", ""
        try:
            said = subprocess.run(command, cwd=packages.ROOT, text=True, timeout=seconds, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT).stdout
        except subprocess.TimeoutExpired:
            end = f"ended after {seconds:.0f} s"
        seen = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return summary(seen, end or ("" if seen else f"no test ran: {said.strip()[-400:]}"))


def summary(seen: list[dict], end: str) -> dict:
    """seen: a line for each test that began, and one for what came of it."""
    outcomes = {line["test"]: line for line in seen}
    named = {outcome: [name for name, line in outcomes.items() if line.get("outcome") == outcome]
             for outcome in ("passed", "failed", "skipped", None)}
    counts = {outcome: len(names) for outcome, names in named.items() if outcome in ("passed", "skipped")}
    failures = {name: outcomes[name]["why"] for name in named["failed"]}
    reasons = [f"{len(failures)} of {len(outcomes)} tests fail"] if failures else []
    reasons += [end + (f" in {named[None][0]}" if named[None] else "")] if end or named[None] else []
    return counts | ({"failures": failures, "failed": "; ".join(reasons)} if reasons else {})


class Recorder:
    """A plugin of pytest that writes down each test as it begins and as it ends."""

    def __init__(self, path: Path):
        self.path = path

    def add(self, **line: str) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.add(test=nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            lines = str(report.longrepr).strip().splitlines()
            errors = [line[1:].strip() for line in lines if line.startswith("E ")] or lines[-1:]
            self.add(test=report.nodeid, outcome=report.outcome, why=" ".join(errors)[:300])


def main(path: str, *arguments: str) -> int:
    import pytest
    parent = os.getppid()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=end_with_parent, daemon=True).start()
    return pytest.main([*arguments, "-p", "no:cacheprovider"], plugins=[Recorder(Path(path))])


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
