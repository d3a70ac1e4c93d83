"""evaluate.py: its commands, and what they print and save; the scores have tests in tests/scores."""

import re
from pathlib import Path

import pytest
from PIL import Image

import data
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


COMMANDS = ("classes", "classifier", "nll", "neighbours", "fid")


@pytest.mark.parametrize("flags", [["-h"], ["--help"], []])
def test_help_has_a_line_for_each_command(flags, capsys):
    evaluate.main(flags)
    output = capsys.readouterr().out
    assert all(re.search(rf"^    python evaluate.py {command} +# \w+", output, re.M) for command in COMMANDS)


def test_every_command_has_the_same_words(capsys):
    flags = {}
    for command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            evaluate.main([command, "--help"])
        assert end.value.code == 0
        flags[command] = {*re.findall(r"^  (--\w+)", capsys.readouterr().out, re.M)}
    assert all("--device" in names for names in flags.values())
    assert {command for command in COMMANDS if "--data" not in flags[command]} == {"nll"}
    assert {command for command in COMMANDS if "--held_out" in flags[command]} == {"classes", "classifier", "nll"}


def test_device_is_read_by_every_command_with_a_network(tmp_path, refused):
    out = str(tmp_path / "out.png")
    for flags in (["classes"], ["nll", "--out", out], ["neighbours", "--out", out], ["classifier", "--out", out]):
        assert "device is 'tpu'" in refused(evaluate.main, [*flags, "--device", "tpu"])


def test_an_older_name_of_held_out_and_what_its_default_lacks(tmp_path, capsys, refused):
    nll = ["nll", "--n", "3", "--times", "2", "--out", str(tmp_path / "n.png")]
    printed = []
    for flags in (["--held_out", "digits"], ["--data", "digits"], ["--data=digits"], []):
        evaluate.main([*nll, *flags])
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2] != printed[3]
    (tmp_path / "own").mkdir()
    for k in range(4):
        Image.new("L", (8, 8), 60 * k).save(tmp_path / "own" / f"{k}.png")
    train.main(["--data", str(tmp_path / "own"), "--steps", "1", "--batch", "2", "--T", "5", "--out",
                str(tmp_path / "run")])
    own = [*nll, "--checkpoint", str(tmp_path / "run" / "last.safetensors")]
    assert "name the folder or the .npz file that has them, as --held_out of evaluate.py" in refused(evaluate.main, own)
    evaluate.main([*own, "--held_out", str(tmp_path / "own")])
    assert "on 3 pictures of own" in capsys.readouterr().out


def save_pictures(folder, pictures, side, mode):
    """In folders by label, enlarged or not: 8 x 8 as blocks."""
    for k, (x, label) in enumerate(zip(pictures.images, pictures.labels.tolist(), strict=True)):
        path = folder / str(label) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[0].numpy()).resize((side, side), Image.Resampling.BOX).convert(mode).save(path)


def test_held_out_pictures_take_the_form_of_the_model_s(tmp_path, capsys):
    """Grey digits that were saved in colour are the same digits; larger ones are made smaller."""
    pictures = data.first(data.digits(held_out=True), 40)
    printed = []
    for side, mode in ((8, "L"), (8, "RGB"), (12, "RGBA")):
        folder = tmp_path / f"{side} {mode}" / "more"
        save_pictures(folder, pictures, side, mode)
        capsys.readouterr()
        evaluate.main(["nll", "--held_out", str(folder), "--times", "3", "--out", str(tmp_path / "n.png")])
        printed.append(capsys.readouterr().out.split("seed 0")[1])
        evaluate.main(["classifier", "--data", str(tmp_path / "8 L" / "more"), "--held_out", str(folder), "--steps",
                       "30", "--out", str(tmp_path / "c.safetensors")])
        printed[-1] += capsys.readouterr().out
    assert all("sum" in text and "of the 40 held-out" in text for text in printed) and printed[0] == printed[1]


@pytest.mark.parametrize("argv, message", [
    (["is"], "no command 'is'"), (["digits", "--checkpoint", "none"], "no checkpoint none"),
    (["neighbours", "--k", "0"], "k is 0"), (["neighbours", "--out", "n.txt"], "n.txt is no name of a picture"),
    (["classifier", "--size", "16"], "digits_classifier.safetensors is the digits' classifier"),
    (["fid", "--pictures", "dead-leaves"], "dead-leaves has no end")])
def test_bad_requests_are_one_sentence_and_exit_2(argv, message, refused):
    assert message in refused(evaluate.main, argv)
