"""The equivalence report sees what is equal, and what is not; its cases pair every way with every choice."""

import json
from itertools import product

import pytest
import torch

from kernels import equivalence, static
from kernels.__main__ import main
from kernels.equivalence import NORMS, SHAPES, STEPS, WAYS, sound


@pytest.fixture
def few(monkeypatch):
    """One norm and one kind of row instead of all."""
    monkeypatch.setattr(equivalence, "NORMS", [case for case in NORMS if case.norm.rows == ("add",)][:1])
    monkeypatch.setattr(equivalence, "STEPS", [case for case in STEPS if str(case) == "2m sde, z"])


def test_the_cases_are_pairs_of_everything():
    layouts = {(case.way, case.layout, case.norm.C) for case in NORMS}
    assert {(way, C) for way, _, C in layouts} >= set(product(WAYS, [C for _, C, *_ in SHAPES.values()]))
    assert {(way, layout) for way, layout, _ in layouts} == set(product(WAYS, equivalence.LAYOUTS))
    assert {(case.way, case.dtype) for case in NORMS} == set(product(WAYS, equivalence.DTYPES))
    assert {(case.noise, case.dtype) for case in STEPS} == set(product(("seeds", "z", "neither"), equivalence.DTYPES))


def test_the_report_passes_and_can_be_read(few, tmp_path, capsys):
    main(["--networks", "digits", "--json", str(tmp_path / "report.json")])
    noise, step, norm = json.loads((tmp_path / "report.json").read_text())
    assert all(map(sound, (noise, step, norm)))
    assert norm["errors"].keys() == {"y", "dx", "dweight", "dbias", "dadd"} and norm["way"] == "resident/resident"
    assert noise["errors"]["z"]["kernel"] < 1e-6 and step["case"] == "2m sde, z"
    printed = capsys.readouterr()
    assert "3 cases, 0 fail" in printed.out
    assert "sampling_step noise:   0%" in printed.err and "group_norm_silu" in printed.err


@pytest.mark.parametrize("name, fault", [
    ("group_norm_silu", lambda right: lambda x, *args, **kwargs: right(x, *args, **kwargs) * (1 + 2e-5)),
    ("sampling_step", lambda right: lambda *args, **kwargs: tuple(2e-5 + 1.00002 * x for x in right(*args, **kwargs))),
    ("sampling_step", lambda right: lambda *args, **kwargs: tuple(x + torch.nan for x in right(*args, **kwargs))),
], ids=["norm", "step", "nan"])
def test_a_wrong_kernel_fails(name, fault, few, monkeypatch, capsys):
    monkeypatch.setattr(equivalence, name, fault(getattr(equivalence, name)))
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 1 and f"fails: {name}" in capsys.readouterr().out


def test_what_cannot_work_is_one_sentence_before_the_work(refused, tmp_path, monkeypatch):
    monkeypatch.setattr("kernels.__main__.comparisons", lambda *_: 1 / 0)
    assert "networks is 'nowhere'" in refused(main, ["--networks", "nowhere"])
    assert "there is a folder" in refused(main, ["--json", str(tmp_path)])
    monkeypatch.setattr(equivalence, "find_spec", lambda name: None)
    for command in (main, static.main):
        assert "Triton is not installed" in refused(command, [])
