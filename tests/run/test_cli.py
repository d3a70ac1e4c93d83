from dataclasses import dataclass

import pytest
import torch

from run.cli import choose_device, figure_path, limit_threads, parse, script


@dataclass(frozen=True)
class Config:
    """What it does."""
    n: int = 3                      # how many, at 100 %
    flip: bool = True               # mirror
    name: str = "x"                 # a name
    from_: str = ""                 # named as a keyword


def test_fields_are_flags_and_comments_their_help(capsys):
    assert parse(Config, []) == Config()
    assert parse(Config, ["--n", "5", "--no-flip", "--name", "y"]) == Config(5, False, "y")
    with pytest.raises(SystemExit):
        parse(Config, ["--help"])
    said = capsys.readouterr().out
    assert parse(Config, ["--from", "z"]) == Config(from_="z") and "--from FROM" in said
    assert "What it does." in said and "how many, at 100 % (3)" in said and "a name ('x')" in said


@pytest.mark.parametrize("argv", [["--n", "many"], ["--unknown", "1"], ["extra"]])
def test_argparse_refuses(argv):
    with pytest.raises(SystemExit) as stop:
        parse(Config, argv)
    assert stop.value.code == 2


def test_presets_are_defaults_that_flags_change_and_are_printed(capsys):
    presets = {"big": Config(n=100, name="big")}
    assert parse(Config, ["--preset", "big", "--n", "7"], presets) == Config(7, True, "big")
    assert "preset big: --n 7 --flip True --name big --from" in capsys.readouterr().out


@pytest.mark.parametrize("error, code", [(ValueError("n is 0"), 2), (PermissionError(13, "Permission denied", "f"), 2)])
def test_bad_input_is_a_sentence(error, code, capsys):
    @script
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == code and capsys.readouterr().err == f"test_cli.py: {error}\n"


def test_a_bug_keeps_its_traceback():
    @script
    def main(argv):
        return {}["missing"]

    with pytest.raises(KeyError):
        main([])


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="device is 'tpu'"):
        choose_device("tpu")


@pytest.mark.parametrize("width, threads", [(10, 1), (1100, 2)])
def test_small_networks_run_on_one_thread(width, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    limit_threads(torch.nn.Linear(width, width, device="meta"))
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == threads


def test_a_picture_s_name_is_tried_before_the_work_and_its_old_picture_kept(tmp_path):
    old = tmp_path / "new" / "a.png"
    assert figure_path(str(old)) == old and old.exists()
    old.write_bytes(b"a picture")
    figure_path(str(old))
    assert old.read_bytes() == b"a picture"
    for bad, error in ((tmp_path / "a.xyz", ValueError), (old / "b.png", OSError)):
        with pytest.raises(error):
            figure_path(str(bad))
