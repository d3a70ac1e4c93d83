"""bench/bench_memory.py counts what it says, and docs/memory.md shows it."""

import torch

from bench import bench_memory as memory
from bench import tables
from bench.lines import append


def test_peak_is_the_most_at_once():
    kept = []

    def run():
        a, b = torch.zeros(1000), torch.zeros(500)                  # 4000 + 2000 bytes
        del a
        kept.append(b + 1)                                          # 2000 + 2000

    assert memory.peak(run) == 6000


def test_recomputing_takes_less():
    found = {name: memory.peak(lambda flags=flags: memory.update("digits", flags))
             for name, flags in memory.TRAINING.items()}
    assert found["float32 `--recompute`"] < 0.65 * found["float32"]
    assert found["bf16 `--recompute`"] < 0.65 * found["bf16"]


class Benchmark:
    """What a case needs of pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, run, args):
        return run(*args)


def test_the_page(tmp_path):
    for work, name in (("training", "float32"), ("sampling", "bf16")):
        benchmark = Benchmark()
        memory.test_memory(benchmark, work, name, "digits")
        line = {"case": work, "outcome": "passed", "name": name, "us": 1., "stamp": {"torch": "2.x"}}
        append(tmp_path / "cpu/bench.jsonl", line | {"group": benchmark.group, **benchmark.extra_info})
    assert 10e6 < 1e9 * benchmark.extra_info["peak GB"] * 5 < 50e6
    tables.main(["--out", str(tmp_path), "--docs", str(tmp_path)])
    page = (tmp_path / "memory.md").read_text()
    assert page.count("| digits | 0.2 M | 64 of 8 x 8 | 0.0") == 2 and "<!-- stamp -->torch 2.x<!-- -->" in page
    assert "| network | parameters | pictures | bf16 |" in page and not (tmp_path / "peers.md").exists()
