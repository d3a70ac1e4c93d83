import io
import itertools
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from run.cli import as_flag, choose_device, limit_threads, parse, script

ROOT = Path(__file__).parents[2]


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
    assert "preset big: --n 7 --flip --name big --from" in capsys.readouterr().out


@pytest.mark.parametrize("config", [Config(), Config(3, True, "two words"), Config(-2, False, "", "it's")])
def test_a_setting_is_spelled_as_it_is_typed(config):
    assert parse(Config, shlex.split(" ".join(itertools.starmap(as_flag, asdict(config).items())))) == config


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


# Streams

@pytest.mark.parametrize("reader", ["true", pytest.param("head -1", marks=pytest.mark.slow)])
def test_a_reader_that_left_ends_it_quietly(tmp_path, reader):
    command = f"{sys.executable} {ROOT}/sample.py --checkpoint {ROOT}/weights/digits.safetensors --n 2 --steps 1"
    done = subprocess.run(f"{command} | {reader}", shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "Broken" not in done.stderr and "Traceback" not in done.stderr
    with Image.open(tmp_path / "out" / "grid.png") as image:
        image.load()


@pytest.mark.parametrize("encoding, text, written", [
    ("ascii", "ü", b"\\xfc\n"), ("utf-8", "\udcff", b"\\udcff\n"), ("utf-8", "ü", "ü\n".encode())])
def test_names_that_cannot_be_printed_are_spelled_out(monkeypatch, encoding, text, written):
    """Linux's names are any bytes, and a stream of another encoding lacks many characters, too."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    script(lambda argv: print(text))([])
    assert stream.buffer.getvalue() == written
