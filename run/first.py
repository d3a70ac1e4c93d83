"""Imported before torch, whose import takes seconds: what answers --help without it, and Ctrl-C while it lasts.

Help needs a script's settings alone. So where it is asked for, torch and what is built on it are imported as stand-ins,
as Sphinx's autodoc_mock_imports does it: classes of which every attribute, call and item is a stand-in, too.
"""

import os
import signal
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

SLOW = {"torch", "triton", "matplotlib", "kernels"}


class Kind(type):
    """What may be done to a stand-in while modules are imported: it is a base class, a decorator, a type."""

    def __getattr__(cls, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn

    def __call__(cls, *args, **kwargs) -> type:
        return StandIn

    __getitem__ = __or__ = __ror__ = __call__


class StandIn(metaclass=Kind):
    """In place of anything that a slow module has."""


class Finder:
    """Finds and makes stand-ins, as `import` asks for it."""

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in SLOW else None

    def create_module(self, spec: ModuleSpec) -> type:
        return type(spec.name, (StandIn,), {})

    def exec_module(self, module: type) -> None:
        pass


def leave(*_) -> None:
    """Ends a script that is still importing: an exception may be swallowed by a library, or is a traceback."""
    print(f"{MAIN.name}: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


MAIN = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve()
if MAIN.parent == Path(__file__).resolve().parents[1]:                              # a script, not its tests
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:               # ignored, it stays so
        signal.signal(signal.SIGINT, leave)                                         # until run.cli.script begins
    if {"-h", "--help"} & {*sys.argv[1:]}:
        sys.meta_path.insert(0, Finder())
