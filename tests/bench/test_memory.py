"""bench/memory.py counts what it says."""

import torch

from bench import memory

CPU = torch.device("cpu")


def test_peak_is_the_most_at_once():
    kept = []

    def run():
        a, b = torch.zeros(1000), torch.zeros(500)                  # 4000 + 2000 bytes
        del a
        kept.append(b + 1)                                          # 2000 + 2000

    assert memory.peak(run, CPU) == 6000


def test_recomputing_takes_less(monkeypatch):
    found = {name: memory.peak(memory.update("digits", CPU, flags), CPU)
             for name, flags in memory.TRAINING.items()}
    assert found["float32 `--recompute`"] < 0.65 * found["float32"]
    assert found["bf16 `--recompute`"] < 0.65 * found["bf16"]


def test_the_page(tmp_path):
    memory.main(["--networks", "digits", "--device", "cpu", "--out", str(tmp_path / "memory.md")])
    page = (tmp_path / "memory.md").read_text()
    assert page.count("| digits | 0.2 M | 64 of 8 x 8 | 0.0") == 2 and "torch 2" in page
