"""bench.quality: trainings go on where they stopped, are scored as they say, and the page says what was measured."""

import itertools
import json

import pytest
import torch
from torch.utils import _pytree as pytree

import data
import train
from bench import contenders, quality, quality_page
from bench.contenders import Training
from bench.measure import skip_missing
from bench.quality import Config, advance, due
from run import tensors

OURS = contenders.CONTENDERS["ours"].rates[0]
LINE = {"data": "digits", "n": 100, "sampler_steps": 10, "parameters": 10**6,
        "form": "bf16", "images": 6000, "pFD": 3., "agree": 0.9, "core": 400., "cpu": "a CPU", "torch": "2.11",
        "commit": "abc"}


def line(name, rate, minutes, FD, seed=0):
    return {"name": name, "rate": rate, "seed": seed, "minutes": minutes, "FD": FD, **LINE}


@pytest.fixture(params=["ours", "denoising-diffusion-pytorch tuned", "diffusers tuned"])
def name(request):
    """A training, if its package is there; the others differ from these in sizes and rates."""
    skip_missing(request.param)
    return request.param


@pytest.fixture
def digits(monkeypatch, tmp_path):
    """Training on digits, where the clock shows a second more whenever it is looked at."""
    seconds = itertools.count()
    monkeypatch.setattr(quality, "FOLDER", tmp_path / "states")
    monkeypatch.setattr(quality.time, "process_time", lambda: float(next(seconds)))
    monkeypatch.setattr(quality, "yardstick", lambda dataset: 400.)
    return Config(data="digits", n=20, steps=2)


def path_of(training):
    return quality.FOLDER / "quality" / f"{training}.safetensors"


def test_a_training_stops_and_goes_on_where_it_stopped(digits, name):
    training = Training(name, 1e-3, 1)
    unbroken = advance(training, digits, 6 / 60)
    whole, facts = tensors.load(path_of(training))
    path_of(training).unlink()
    first = advance(training, digits, 2 / 60)
    second = advance(training, digits, 7 / 60)                          # the stop took a second
    assert 1 <= first["steps"] < second["steps"] == unbroken["steps"]
    assert first["images"] % first["steps"] == 0 and second["FD"] == unbroken["FD"]
    resumed, resumed_facts = tensors.load(path_of(training))
    assert resumed.keys() == whole.keys() and resumed_facts["values"] == facts["values"]
    for part, one in whole.items():
        assert torch.equal(one, resumed[part]), part
    assert second["parameters"] > 10**5 and "FD" in second and "torch" in second


def inputs(B=2):
    return torch.linspace(-1, 1, 64 * B).view(B, 1, 8, 8), torch.tensor([1, 1000])[:B], torch.tensor([1, 2])[:B]


def updated(name, steps):
    contender = contenders.CONTENDERS[name].make(data.load("digits"), 0, 1e-2)
    batches = data.Batches(data.load("digits"), contender.batch, 0, False)
    for step in range(1, steps + 1):
        contender.update(step, *batches[step])
    return contender


def test_the_average_is_what_is_sampled_and_follows_the_weights(name):
    x, t, labels = inputs()
    contender = updated(name, 1)
    before = contender.output(x, t, labels)
    with torch.no_grad():
        for weight in contender.network.parameters():
            weight.add_(0.1)
    assert torch.equal(contender.output(x, t, labels), before)
    contender.update(2, *data.Batches(data.load("digits"), contender.batch, 0, False)[2])
    contender.network.eval()
    assert name.startswith("denoising") or not torch.equal(contender.output(x, t, labels), before)


def test_networks_are_given_their_own_times_labels_and_pixels(name):
    """Times from 0 for the packages, pictures in [-1, 1] and noise for all, and the labels asked for."""
    contender, seen = updated(name, 1), []
    contender.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    contender.update(2, *data.Batches(data.load("digits"), contender.batch, 0, False)[2])
    assert seen[0].min() < -0.9 and 0.5 < seen[0].std() < 1.2
    x, t, labels = inputs()
    fresh, network = updated(name, 0), updated(name, 0).network
    with torch.no_grad():
        expected = {"ours": lambda: network(x, t, labels),
                    "denoising-diffusion-pytorch tuned": lambda: network(x, t - 1, labels, cond_drop_prob=0.),
                    "diffusers tuned": lambda: network(x, t - 1, class_labels=labels).sample}[name]
        for parts in (network, fresh.network):
            parts.eval()
        assert torch.allclose(fresh.output(x, t, labels), expected(), atol=1e-6)
        assert name == "ours" or not torch.equal(fresh.output(x, t, labels), fresh.output(x, t, labels.flip(0)))


def test_an_annealed_training_begins_anew_for_each_stop_and_its_rate_falls(digits, monkeypatch):
    rates, rate = [], train.learning_rate
    monkeypatch.setattr(train, "learning_rate", lambda *args: rates.append(rate(*args)) or rates[-1])
    training = Training("ours annealed with Muon", 1e-3)
    steps = [advance(training, digits, minutes)["steps"] for minutes in (0.35, 0.7)]
    assert steps == [20, 41] and {path.name for path in path_of(training).parent.iterdir()} == {
        f"{training}, 0.35 minutes.safetensors", f"{training}, 0.7 minutes.safetensors"}
    share = [rates[k] / (1e-3 * (k % 20 + 1) / 100) for k in (0, 9, 19, 20)]         # of the rate, but for its warm-up
    assert share == pytest.approx([1, 0.5, 0.01, 1], abs=0.1)


def test_the_yardstick_is_pictures_in_a_second(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(quality.time, "process_time", lambda: next(clock) / 2)
    assert quality.yardstick(data.load("digits"), 3.) == 5 * 64 / 3.       # five updates and a look at the clock


def test_a_state_beyond_its_results_is_not_scored_as_less(digits):
    empty = pytree.treespec_dumps(pytree.tree_structure({}))
    tensors.save(path_of(Training("ours", 1e-3)), {}, {"tree": empty, "values": [], "step": 9, "seconds": 100.})
    with pytest.raises(ValueError, match="ours, 0.001, seed 0.safetensors is beyond 0.5 minutes"):
        advance(Training("ours", 1e-3), digits, 0.5)


def test_times_are_trailing_and_one_more():
    assert quality.sampling_times(1000, 4) == [1000, 980, 750, 500, 250]
    assert quality.sampling_times(1000, 50) == list(range(1000, 0, -20))


def test_other_rates_stop_first_then_other_seeds():
    names, stops = ("ours", "diffusers tuned"), {}
    best, low, high = (Training("diffusers tuned", rate) for rate in (1e-3, 3e-4, 3e-3))
    for minutes in (5, 15, 30):
        stops[minutes] = due(minutes, names, [])
    seeds = [training._replace(seed=k) for training in (Training("ours", OURS), best) for k in range(3)]
    assert stops == {5: [*seeds, low, high], 15: seeds, 30: [seeds[0], best]}
    assert [training.seed for training in due(60, ["ours annealed"], [])] == [0, 1, 2]
    done = [line("diffusers tuned", 3e-4, 5, 9.), line("ours", OURS, 15, 3., 2), line("ours", OURS, 5, 3., 1)]
    assert due(5, names[1:], done) == [*seeds[3:], high] and due(15, names[:1], done) == seeds[:2]


def test_the_page_says_what_was_measured(monkeypatch, tmp_path):
    results = [line("ours", OURS, 5, 3.), line("ours", OURS, 15, 2.), line("diffusers", 1e-4, 15, 3.),
               line("denoising-diffusion-pytorch", 1e-4, 15, 1.5),
               *(line("diffusers tuned", 3e-4, 15, 4. + seed, seed) | {"core": 300. + 50 * seed} for seed in range(3))]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(each) + "\n" for each in results))
    for name in ("bench", "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / "bench/quality.md").write_text((quality_page.ROOT / "bench/quality.md").read_text())
    monkeypatch.setattr(quality_page, "ROOT", tmp_path)
    quality.main(["--data", "digits", "--n", "100", "--out", str(tmp_path / "results.jsonl"), "--minutes", ""])
    page = (tmp_path / "bench/quality.md").read_text()
    for row in ("15 | 1.50 | denoising-diffusion-pytorch, rate 0.0001, seed 0 | abc",
                f"ours, rate {OURS:g} | 1.00 M | bf16 | 7 | 3.00 | 2.00 |  | 0.900 | 400",
                "diffusers, rate 0.0001 | 1.00 M | bf16 | 7 |  | 3.00 | 5 min | 0.900 | 400",
                "denoising-diffusion-pytorch, rate 0.0001 | 1.00 M | bf16 | 7 |  | 1.50 | not yet | 0.900 | 400",
                "7 |  | 5.00 (4.00 to 6.00) | 5 min | 0.900 | 300 to 400"):
        assert f"{row} |\n" in page
    assert "- not measured yet: ours annealed, ours annealed with Muon, denoising-diffusion-pytorch tuned\n" in page
    assert (tmp_path / "docs/quality.png").stat().st_size > 10_000


def test_scores_of_another_kind_are_not_mixed(tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    out.write_text(json.dumps(line("ours", OURS, 5, 3.)) + "\n")
    with pytest.raises(SystemExit):
        quality.main(["--data", "digits", "--n", "200", "--out", str(out), "--minutes", ""])
    assert "has scores of {'data': 'digits', 'n': 100, 'sampler_steps': 10}" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["--only", "theirs"], "only is 'theirs'"), (["--minutes", "5,x"], "minutes is '5,x'"),
    (["--minutes", "-5"], "minutes is '-5'; they must"), (["--n", "0"], "n is 0")])
def test_bad_flags_are_one_sentence(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        quality.main(flags)
    assert error.value.code == 2 and message in capsys.readouterr().err
