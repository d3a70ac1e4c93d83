"""evaluate.py: its commands, and what they print and save; the scores have tests in tests/scores."""

from pathlib import Path

import pytest
from PIL import Image

import evaluate
import train


@pytest.mark.parametrize("command", ["classes", "digits"])
def test_the_model_is_between_floor_and_ceiling(command, capsys):
    evaluate.main([command, "--n", "200", "--steps", "10"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    rows = {" ".join(words[:-7]): [float(value) for value in words[-7:]] for words in lines}
    floor, model, gaussian, untrained = (rows[name] for name in (
        "training set (floor)", "weights/digits.safetensors", "a Gaussian per class", "untrained network"))
    assert floor[1] < model[1] < gaussian[1] < untrained[1]                       # pFD
    assert model[2] > 0.97                                                        # agree
    assert 0.85 < model[3] < 1.2                                                  # mem
    assert min(model[5:]) > 0.6 > 0.3 > max(untrained[5:])                        # prec, rec


def test_neighbours_draws_each_sample_beside_its_own(tmp_path, capsys):
    evaluate.main(["neighbours", "--n", "3", "--k", "2", "--steps", "5", "--out", str(tmp_path / "n.png")])
    assert Image.open(tmp_path / "n.png").size == (3 * 68 + 4, 24 + 3 * 68)
    assert "3 samples to their nearest picture 0." in capsys.readouterr().out


def test_pictures_reach_the_model_s_size_as_its_own_did(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("pictures").mkdir()
    for k in range(4):
        Image.new("L", (6, 6), 60 * k).save(f"pictures/{k}.png")
    train.main(["--data", "pictures", "--size", "8", "--fit", "pad", "--steps", "1", "--batch", "2", "--T", "5",
                "--out", "run"])
    for command in ("nll --data pictures --times 0", "neighbours --n 2 --k 2 --steps 2"):
        printed = []
        for flags in ([], ["--fit", "pad"], ["--fit", "crop"]):
            capsys.readouterr()
            evaluate.main([*command.split(), "--checkpoint", "run/last.safetensors", *flags])
            printed.append(capsys.readouterr().out)
        assert printed[0] == printed[1] != printed[2]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_commands(flag, capsys):
    evaluate.main([flag])
    output = capsys.readouterr().out
    assert all(f"evaluate.py {command}" in output for command in ("classes", "classifier", "nll", "neighbours", "fid"))


@pytest.mark.parametrize("argv, message", [
    ([], "no command ''"), (["is"], "no command 'is'"), (["digits", "--checkpoint", "none"], "no checkpoint none"),
    (["neighbours", "--k", "0"], "k is 0"), (["neighbours", "--out", "n.txt"], "n.txt is no name of a picture"),
    (["classifier", "--size", "16"], "digits_classifier.safetensors is the digits' classifier"),
    (["fid", "--pictures", "dead-leaves"], "dead-leaves has no end")])
def test_bad_requests_are_one_sentence_and_exit_2(argv, message, refused):
    assert message in refused(evaluate.main, argv)
