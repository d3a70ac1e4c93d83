from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import data
import evaluate
import noise
import train
from scores import classes, classifier


def test_frechet_of_gaussians_has_its_closed_form():
    z = noise.normal(noise.image_seeds(0, torch.arange(4000)), 0, (3,)).double()
    a = z - z.mean(0)
    a = a @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov())).T                  # mean 0 and covariance I, exactly
    shift = torch.tensor([1., 2., 2.])
    assert_close(classes.frechet(a, a), 0., atol=1e-6, rtol=0)
    assert_close(classes.frechet(a + shift, a), 100 * 9 / 3)
    assert_close(classes.frechet(3 * a, a), 100 * 4.)                            # (3 - 1)^2 per dimension, variance 1


@pytest.fixture(scope="module")
def digits():
    return classes.of_digits()


def test_scores_tell_copies_noise_and_new_digits_apart(digits):
    train, test = data.digits(), data.digits(held_out=True)
    x = data.to_unit(train.images)
    copies = classes.score(digits, x, train.labels)
    fresh = classes.score(digits, data.to_unit(test.images), test.labels)
    junk = classes.score(digits, noise.normal(noise.image_seeds(0, torch.arange(300)), 0, (1, 8, 8)).clamp(-1, 1),
                         torch.arange(300) % 10)
    wrong = classes.score(digits, x, (train.labels + 1) % 10)
    gaussian = classes.score(digits, classes.gaussians(train, train.labels, 0), train.labels)
    assert copies["mem"] == 0 and copies["dup"] == 1 and copies["agree"] > 0.99 and copies["FD"] < 1.5
    assert abs(fresh["FD"]) < 1e-3 and fresh["mem"] == 1 and 0.005 < fresh["dup"] < 0.015
    assert junk["FD"] > 30 and junk["pFD"] > 100 and junk["agree"] < 0.3 and junk["mem"] > 2
    assert wrong["agree"] < 0.02
    assert fresh["prec"] == fresh["rec"] == 1 and max(junk["prec"], junk["rec"]) < 0.3
    assert copies["prec"] > gaussian["prec"] > junk["prec"] and copies["rec"] > gaussian["rec"]
    assert copies["FD"] < gaussian["FD"] < junk["FD"] and copies["pFD"] < gaussian["pFD"]


@pytest.mark.parametrize("command", ["classes", "digits"])
def test_the_model_is_between_floor_and_ceiling(command, capsys):
    evaluate.main([command, "--n", "200", "--steps", "10"])
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = {line[:24].strip(): [float(v) for v in line[24:].split()] for line in lines}
    floor, model, gaussian, untrained = (rows[name] for name in (
        "training set (floor)", "weights/digits.safetensors", "a Gaussian per class", "untrained network"))
    assert floor[1] < model[1] < gaussian[1] < untrained[1]                       # pFD
    assert model[2] > 0.97                                                        # agree
    assert 0.85 < model[3] < 1.2                                                  # mem
    assert min(model[5:]) > 0.6 > 0.3 > max(untrained[5:])                        # prec, rec


@pytest.mark.parametrize("batch", [7, 1000])
def test_nearest_are_the_nearest(batch):
    images = data.digits().images[:50]
    x = data.to_unit(images[[3, 20, 41]]) + 0.01
    distances, index = classes.nearest(x, images, 4, batch)
    distances_to_all = (x[:, None] - data.to_unit(images)).square().flatten(2).mean(2).sqrt()
    assert_close(distances, distances_to_all.sort(1).values[:, :4])
    assert_close(distances_to_all.gather(1, index), distances)
    assert index[:, 0].tolist() == [3, 20, 41]


def test_neighbours_draws_each_sample_beside_its_own(tmp_path, capsys):
    evaluate.main(["neighbours", "--n", "3", "--k", "2", "--steps", "5", "--out", str(tmp_path / "n.png")])
    assert Image.open(tmp_path / "n.png").size == (3 * 68 + 4, 24 + 3 * 68)
    assert "3 samples to their nearest picture 0." in capsys.readouterr().out


@pytest.mark.parametrize("command", [
    ["nll", "--data", "pictures", "--times", "0"], ["neighbours", "--n", "2", "--k", "2", "--steps", "2"]])
def test_pictures_reach_the_model_s_size_as_its_own_did(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for k in range(4):
        Image.new("L", (6, 6), 60 * k).save(f"pictures/{k}.png")
    train.main(["--data", "pictures", "--size", "8", "--fit", "pad", "--steps", "1", "--batch", "2", "--T", "5",
                "--out", "run"])
    said = []
    for flags in ([], ["--fit", "pad"], ["--fit", "crop"]):
        capsys.readouterr()
        evaluate.main([*command, "--checkpoint", "run/last.safetensors", *flags])
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("argv, message", [
    ([], "no command ''"), (["is"], "no command 'is'"),
    (["digits", "--checkpoint", "no.safetensors"], "no checkpoint no.safetensors"),
    (["neighbours", "--k", "0"], "k is 0"), (["neighbours", "--out", "n.txt"], "n.txt is no name of a picture"),
    (["classifier", "--size", "16"], "digits_classifier.safetensors is the digits' classifier"),
    (["fid", "--pictures", "dead-leaves"], "dead-leaves has no end")])
def test_bad_requests_are_one_sentence_and_exit_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


FACTS = classifier.facts_of(data.digits())._asdict()


@pytest.mark.parametrize("spoil", [
    lambda w: b"", lambda w: b"no zip", lambda w: [w], lambda w: {}, lambda w: {**w, "more": torch.zeros(1)},
    lambda w: {**w, "conv1": w["conv1"][:-1]}, lambda w: {**w, "conv1": w["conv1"].double()},
    lambda w: {**w, "conv1": 3}, lambda w: {**w, "conv1": w["conv1"] * torch.nan},
    lambda w: {**w, "conv1": torch.zeros(1).expand(32, 1, 3, 3)}, lambda w: {**w, "conv1": w["conv1"].to_sparse()},
    lambda w: {**w, 1: w["conv1"]}, lambda w: None, lambda w: {**w, "data": 3}, lambda w: {**w, "data": {}},
    lambda w: {**w, "data": {**FACTS, "name": 3}}, lambda w: {**w, "data": {**FACTS, "shape": (1, 8)}},
    lambda w: {**w, "data": {**FACTS, "shape": (1, 10**9, 10**9)}}, lambda w: {**w, "data": {**FACTS, "classes": ()}},
    lambda w: {**w, "data": {**FACTS, "shape": (1, 28, 28)}}, lambda w: {**w, "data": {**FACTS, "classes": (1, 2)}},
    lambda w: {**w, "data": {**FACTS, "more": 1}}, lambda w: {k: w[k] for k in w if k != "data"}], ids=range(23))
def test_a_file_of_other_weights_is_no_classifier(tmp_path, refused, spoil):
    path = tmp_path / "c.safetensors"
    content = spoil(torch.load(classifier.FILES["digits"], weights_only=True))
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    said = refused(evaluate.main, ["classes", "--classifier", str(path), "--n", "20", "--steps", "1"])
    assert str(path) in said and said.count("\n") == 1


@pytest.mark.largest_file(4096)
def test_a_full_disk_leaves_the_old_classifier(tmp_path, refused):
    path = tmp_path / "c.safetensors"
    path.write_bytes(b"old")
    said = refused(evaluate.main, ["classifier", "--steps", "1", "--out", str(path)])
    assert "c.safetensors: File too large; what was there is unchanged" in said
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]
