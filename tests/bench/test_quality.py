import itertools
import json
from dataclasses import replace

import pytest
import torch

import data
from bench import contenders, quality
from bench.packages import installed
from bench.quality import Config, Training, advance, due

OURS = contenders.CONTENDERS["ours"].rates[0]
LINE = {"parameters": 10**6, "form": "bf16", "images": 6000, "pFD": 3., "agree": 0.9, "cpu": "a CPU", "torch": "2.11",
        "commit": "abc"}


def line(name, rate, minutes, FD, seed=0):
    return {"name": name, "rate": rate, "seed": seed, "minutes": minutes, "FD": FD, **LINE}


@pytest.fixture
def digits(monkeypatch, tmp_path):
    """Training on digits, where the clock shows a second more whenever it is looked at."""
    seconds = itertools.count()
    monkeypatch.setattr(quality, "FOLDER", tmp_path / "states")
    monkeypatch.setattr(quality.time, "process_time", lambda: float(next(seconds)))
    monkeypatch.setattr(contenders, "quickest_form", lambda *args: "float32")
    return Config(data="digits", n=20, steps=2)


def state(name):
    return torch.load(quality.FOLDER / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize("name", contenders.CONTENDERS)
def test_a_training_stops_and_goes_on_where_it_stopped(digits, name):
    if name != "ours" and not installed(name):
        pytest.skip(f"{name} is not installed")
    unbroken = advance(Training(name, 1e-3, 1), digits, 6 / 60)
    whole = state(f"{name}, 0.001, seed 1")
    (quality.FOLDER / f"{name}, 0.001, seed 1.pt").unlink()
    first = advance(Training(name, 1e-3, 1), digits, 2 / 60)
    second = advance(Training(name, 1e-3, 1), digits, 7 / 60)             # the stop took a second
    assert 1 <= first["steps"] < second["steps"] == unbroken["steps"]
    assert first["images"] % first["steps"] == 0 and second["FD"] == unbroken["FD"]
    again = state(f"{name}, 0.001, seed 1")
    for part, tensors in whole["parts"].items():
        for (key, one), other in zip(flat(tensors), dict(flat(again["parts"][part])).values(), strict=True):
            assert torch.equal(one, other), (part, key)
    assert second["parameters"] > 10**5 and "FD" in second and "torch" in second


def flat(tree, name=""):
    if isinstance(tree, torch.Tensor):
        yield name, tree
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from flat(value, f"{name}.{key}")


def test_the_average_is_what_is_sampled(digits):
    dataset = data.load("digits")
    for name in ("ours", *filter(installed, ("denoising-diffusion-pytorch", "diffusers"))):
        contender = contenders.CONTENDERS[name].make(dataset, 0, 1e-3)
        x, labels, step = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([10, 1000])
        before = contender.output(x, step, labels)
        with torch.no_grad():
            for weight in contender.network.parameters():
                weight.add_(1.)
        assert torch.equal(contender.output(x, step, labels), before), name


def test_rates_are_tried_first_and_seeds_follow_the_best():
    stops, names = [5, 15, 30], ("ours", "diffusers tuned")
    low, high = (Training("diffusers tuned", rate) for rate in (3e-4, 1e-3))
    assert due(5, stops, names, []) == [Training("ours", OURS), low, high]
    done = [line("ours", OURS, 5, 3.), line("diffusers tuned", 3e-4, 5, 9.)]
    assert due(5, stops, names[1:], done) == [high]
    done.append(line("diffusers tuned", 1e-3, 5, 8.5))
    assert due(5, stops, names, done) == [*(Training("ours", OURS, k) for k in (1, 2)),
                                          *(high._replace(seed=k) for k in (1, 2))]
    assert due(15, stops, names[1:], done) == [high._replace(seed=k) for k in (0, 1, 2)]
    assert due(30, stops, names[1:], done) == [high]
    assert due(30, stops, names[1:], [*done, line("diffusers tuned", 1e-3, 30, 2.)]) == []


def test_the_page_says_what_was_measured(monkeypatch, tmp_path, capsys):
    results = [line("ours", OURS, 5, 3.), line("diffusers", 1e-4, 5, 9.),
               *(line("diffusers tuned", 3e-4, 15, 4. + seed, seed) for seed in range(3))]
    out = tmp_path / "results.jsonl"
    out.write_text("".join(json.dumps(each) + "\n" for each in results))
    for name in ("bench", "docs"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(quality, "ROOT", tmp_path)
    quality.write_page(replace(Config(), data="digits", n=100, out=str(out)), quality.read(out))
    page = (tmp_path / "bench/quality.md").read_text()
    assert "| 5 | 3.00 | ours" in page and "| 15 | 4.00 | diffusers tuned, 0.0003, seed 0" in page
    assert "5.00 (4.00 to 6.00)" in page and "a CPU, torch 2.11" in page
    assert "| diffusers, rate 0.0001 | 1.00 M | bf16 | 20 | 9.00 |" in page
    assert (tmp_path / "docs/quality.png").stat().st_size > 10_000


@pytest.mark.parametrize("flags, message", [
    (["--only", "theirs"], "only is 'theirs'"), (["--minutes", "5,x"], "minutes is '5,x'"),
    (["--minutes", "-5"], "minutes is '-5'; they must"), (["--n", "0"], "n is 0")])
def test_bad_flags_are_one_sentence(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        quality.main(flags)
    assert error.value.code == 2 and message in capsys.readouterr().err
