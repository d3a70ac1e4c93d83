"""Command lines from dataclasses: a field is a flag, its comment the help, its value the default."""

import argparse
import contextlib
import dataclasses
import functools
import inspect
import math
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import torch

from run import first

T = TypeVar("T")
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NO_MEMORY = "can't allocate memory|out of memory|bad_alloc|Storage size calculation overflowed"    # as torch says it


def parse(kind: type[T], argv: Sequence[str] | None, defaults: Callable[[T], T] | None = None,
          choices: Mapping[str, Iterable[str]] = MappingProxyType({})) -> T:
    """An instance of the dataclass `kind` from the command line: --field value, or --field / --no-field.

    A field's last underscore is no part of its flag, so from_, which Python would not take without, is --from; the
    others may be typed as dashes.
    defaults: from the settings as typed, those that the flags change. choices: of a field, listed by --help.
    """
    comments = dict(re.findall(r"^    (\w+):.*?# (.*)$", inspect.getsource(kind), re.M))
    parser = argparse.ArgumentParser(description=inspect.getdoc(kind))
    for field in dataclasses.fields(kind):
        flag, listed = field.name.rstrip("_"), ", ".join(choices.get(field.name, ()))
        text = f"{comments[field.name]}{listed and f': {listed}'} ({field.default!r})".replace("%", "%%")
        how = {"action": argparse.BooleanOptionalAction} if field.type is bool else {
            "type": field.type, "metavar": flag.upper()}
        parser.add_argument(f"--{flag}", dest=field.name, default=argparse.SUPPRESS, help=text, **how)
    words = sys.argv[1:] if argv is None else argv
    flags = vars(parser.parse_args([re.sub(
        r"^--(no[-_])?([\w-]+)(?=$|=)", lambda flag: f"--{'no-' if flag[1] else ''}{flag[2].replace('-', '_')}", word)
        for word in words]))
    for name, value in flags.items():
        if isinstance(value, int) and abs(value) >= 2**31:
            raise ValueError(f"{name} is {value}; it must be less than 2**31 in size")
    settings = kind(**flags)
    return dataclasses.replace(defaults(settings), **flags) if defaults else settings


def as_flag(name: str, value: str | float | bool) -> str:
    """A setting as it is typed: --n 7, --flip, --no-flip, --size ''."""
    name = name.rstrip("_")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {shlex.quote(str(value))}"


def command(script: str, *words: object) -> str:
    """The command line that runs a script of this folder, as it is typed where the user is."""
    path = Path(__file__).parents[1] / script
    return shlex.join(map(str, ["python", script if path.parent == Path.cwd() else path, *words]))


def script(main: Callable) -> Callable:
    """A main(argv) whose bad input ends in one sentence on stderr and exit status 2, Ctrl-C in one and 130.

    It ends quietly if the reader of what it prints has left, as head does. A RuntimeError is a bug, and keeps its
    traceback, unless the machine has too little memory.
    """
    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None):
        with contextlib.suppress(AttributeError, OSError):                        # a notebook's stream cannot
            sys.stdout.reconfigure(errors="backslashreplace")                     # spells out what an encoding lacks
        if signal.getsignal(signal.SIGINT) is first.leave:                           # nothing is imported any more
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            result = main(argv)
            print(end="", flush=True)
            return result
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())        # Python flushes once more at its end
            raise SystemExit(1) from None
        except (KeyboardInterrupt, ValueError, OSError, MemoryError, RuntimeError) as error:
            status, text = 2, " ".join(str(error).split())
            if isinstance(error, KeyboardInterrupt):
                status, text = 130, "interrupted"                                 # the status of what a SIGINT ends
            elif isinstance(error, MemoryError) or isinstance(error, RuntimeError) and re.search(NO_MEMORY, text):
                text = "there is not enough memory; use a smaller batch, size, network or number of pictures"
            elif isinstance(error, RuntimeError):
                raise
            hook, sys.unraisablehook = sys.unraisablehook, lambda _: None         # half-made objects complain
        sys.unraisablehook = hook
        print(f"{Path(sys.modules[main.__module__].__file__).name}: {text}", file=sys.stderr)
        raise SystemExit(status)
    return run


def check_range(config, names: str, least: float, most: float = math.inf) -> None:
    """Raises ValueError unless these settings, with spaces between, lie between least and most, naming the first."""
    for name in names.split():
        if not least <= getattr(config, name) <= most:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be "
                             f"{f'at least {least}' if most == math.inf else f'between {least} and {most}'}")


def parse_numbers(name: str, text: str, number: type[int | float] = int) -> list[int | float]:
    """[1000, 500, 0] of "1000,500,0". Raises ValueError for other text."""
    try:
        return [number(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ValueError(f"{name} is {text!r}; it must be "
                         f"{'whole numbers, as 1000,500,0' if number is int else 'numbers, as 0.2,5'}") from None


def choose_device(name: str) -> torch.device:
    """The device of this name; "auto" is cuda if there is one, else cpu. Raises ValueError for one not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda") or name == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {name!r}; here it must be {'cpu or cuda' if torch.cuda.is_available() else 'cpu'}")
    return torch.device(name)


def limit_threads(network: torch.nn.Module) -> None:
    """One CPU thread for a network of under a million parameters: two gain little, and on a busy machine lose much."""
    if sum(w.numel() for w in network.parameters()) < 1e6:
        torch.set_num_threads(1)


def make_parent(path: Path) -> Path:
    """The path, its folder made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
