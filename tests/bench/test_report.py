"""The equivalence report sees what is equal, and what is not."""

import json

import pytest
import torch

from kernels import equivalence, tail_cases
from kernels.__main__ import main, sound
from kernels.equivalence import Norm
from kernels.tail_cases import Tail


@pytest.fixture
def small(monkeypatch):
    """One norm of the digits U-Net and three kinds of row instead of all."""
    norm = Norm(8, 4, 3, 2, ("add",), True)
    monkeypatch.setattr(equivalence, "norms", lambda network: {norm: 1})
    monkeypatch.setattr(equivalence, "SAMPLERS", {k: equivalence.SAMPLERS[k] for k in ("2m", "learned")})
    monkeypatch.setattr(equivalence.ddpm, "TARGETS", ("v",))
    monkeypatch.setattr(tail_cases, "SMALL", {Tail(64, 64, 64, 8, 16): 1})


def test_every_network_has_its_norms():
    assert [equivalence.SIDES[name] for name in ("digits", "fashion", "cifar10", "lsun256", "adm64")] == [
        8, 28, 32, 256, 64]
    assert equivalence.norms("cifar10").total() == 51
    assert equivalence.norms("cifar10")[Norm(256, 16, 16, 32, (), False)] == 5
    assert equivalence.norms("digits")[Norm(32, 4, 4, 8, ("add", "scale", "shift"), True)] == 5


def test_what_is_interpreted_is_small():
    for network in ("cifar10", "mnist32"):
        found = equivalence.cropped(list(equivalence.norms(network)))
        assert all(norm.groups <= 4 and norm.H <= 32 for norm in found)
        assert {norm.C // norm.groups for norm in found} == {n.C // n.groups for n in equivalence.norms(network)}


def test_the_report_passes_and_can_be_read(small, tmp_path, capsys):
    main(["--networks", "digits", "--json", str(tmp_path / "report.json")])
    cases = json.loads((tmp_path / "report.json").read_text())
    assert all(map(sound, cases)) and {case["kernel"] for case in cases} == {
        "group_norm_silu", "sampling_step", "conv_tail"}
    norms = [case for case in cases if case["kernel"] == "group_norm_silu"]
    assert {(case["dtype"], case["layout"]) for case in norms} == {
        (dtype, layout) for dtype in ("float32", "bfloat16", "float16") for layout in ("nchw", "channels_last")}
    assert norms[0]["errors"].keys() == {"y", "dx", "dweight", "dbias", "dadd"}
    assert next(case for case in cases if case.get("case") == "noise")["errors"]["z"]["kernel"] < 1e-6
    assert f"{len(cases)} cases, 0 fail" in capsys.readouterr().out


@pytest.mark.parametrize("file, name, fault", [
    (equivalence, "group_norm_silu", lambda right: lambda x, *args, **kwargs: right(x, *args, **kwargs) * (1 + 2e-5)),
    (equivalence, "sampling_step",
     lambda right: lambda *args, **kwargs: tuple(2e-5 + 1.00002 * x for x in right(*args, **kwargs))),
    (equivalence, "sampling_step",
     lambda right: lambda *args, **kwargs: tuple(x + torch.nan for x in right(*args, **kwargs))),
    (tail_cases, "conv_tail", lambda right: lambda **kwargs: right(**kwargs) * (1 + 2e-3)),
], ids=["norm", "step", "nan", "tail"])
def test_a_wrong_kernel_fails(file, name, fault, small, monkeypatch, capsys):
    monkeypatch.setattr(file, name, fault(getattr(file, name)))
    monkeypatch.setattr(equivalence, "DTYPES", (torch.float32,))
    with pytest.raises(SystemExit) as stop:
        main(["--networks", "digits"])
    assert stop.value.code == 1 and f"fails: {name}" in capsys.readouterr().out


def test_other_bits_the_second_time_fail(small, monkeypatch):
    calls = iter(range(99))
    right = equivalence.group_norm_silu
    monkeypatch.setattr(equivalence, "DTYPES", (torch.float32,))
    monkeypatch.setattr(equivalence, "group_norm_silu", lambda x, **kwargs: right(x, **kwargs) + next(calls) * 1e-7)
    assert not any(case["repeats"] for case in equivalence.norm_cases(["digits"], torch.device("cpu")))


def test_an_unknown_network_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--networks", "nowhere"])
    assert stop.value.code == 2 and "networks is 'nowhere'" in capsys.readouterr().err
