import contextlib
import importlib
import io
import itertools
import os
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


@dataclass(frozen=True)
class Settings:
    """What it does."""
    every_n: int = 1                # a number
    last_one: bool = True           # or not
    name: str = ""                  # a name


def test_fields_are_flags_and_comments_their_help(capsys):
    assert parse(Config, []) == Config()
    assert parse(Config, ["--n", "5", "--no-flip", "--name", "y"]) == Config(5, False, "y")
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], choices={"name": ["x", "y"]})
    said = capsys.readouterr().out
    assert parse(Config, ["--from", "z"]) == Config(from_="z") and "--from FROM " in said
    assert "What it does." in said and "how many, at 100 % (3)" in said and "a name: x, y ('x')" in said


@pytest.mark.parametrize("argv", ["--every_n 4 --no-last_one --name a-b", "--every-n 4 --no-last-one --name=a-b",
                                  "--every-n=4 --no_last_one --name a-b", "--every_n=4 --no_last-one --name=a-b"])
def test_dashes_and_underscores_are_the_same_in_flags_not_in_values(argv):
    assert parse(Settings, argv.split()) == Settings(4, False, "a-b")


@pytest.mark.parametrize("argv", [["--n", "many"], ["--unknown", "1"], ["extra"]])
def test_argparse_refuses(argv):
    with pytest.raises(SystemExit) as stop:
        parse(Config, argv)
    assert stop.value.code == 2


def test_defaults_follow_from_what_is_typed_and_flags_change_them():
    def defaults(typed):
        return Config(n=100, name=typed.name * 2, from_="here")

    assert parse(Config, ["--name", "big", "--n", "7"], defaults) == Config(7, True, "big", "here")
    assert parse(Config, [], defaults) == Config(100, True, "xx", "here")


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


def test_ctrl_c_is_a_sentence(capsys):
    @script
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 130 and capsys.readouterr().err == "test_cli.py: interrupted\n"


@pytest.mark.parametrize("command", ["train.py", "sample.py", "evaluate.py", "convert.py", *(
    f"evaluate.py {name}" for name in ("classes", "nll", "neighbours", "fid", "classifier"))])
def test_help_is_the_same_without_torch(command, capsys, monkeypatch):
    name, *words = [*command.split(), "--help"]
    script = subprocess.Popen([sys.executable, "-X", "importtime", name, *words], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"COLUMNS": "80"})
    monkeypatch.setattr(sys, "argv", [name])
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        importlib.import_module(name.removesuffix(".py")).main(words)
    said, imported = script.communicate()
    assert script.returncode == 0 and said == capsys.readouterr().out and "--" in said
    assert " torch\n" in imported and " torch._utils\n" not in imported    # the stand-in


@pytest.mark.slow
@pytest.mark.parametrize("event, name", [("import", "torch.version"), ("open", "1.png")])
def test_ctrl_c_while_a_script_imports_or_reads_is_a_sentence(event, name, tmp_path):
    (tmp_path / "pictures").mkdir()
    for k in range(3):
        Image.new("L", (8, 8), 200).save(tmp_path / "pictures" / f"{k}.png")
    code = f"""
import os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)        # a shell's background jobs ignore it
sys.argv = ["train.py", "--data", {str(tmp_path / "pictures")!r}, "--out", {str(tmp_path / "run")!r}]
sys.addaudithook(lambda event, args: event == {event!r} and str(args[0]).endswith({name!r})
                 and os.kill(os.getpid(), signal.SIGINT))
runpy.run_path("train.py", run_name="__main__")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 130 and done.stderr == "train.py: interrupted\n"


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
