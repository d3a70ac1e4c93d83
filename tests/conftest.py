"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported.

One thread: at test sizes two are slower on a busy machine. No TF32, which PyTorch's convolutions use on a GPU: its 11
bits are fewer than the tolerances of float32 allow. The workspace is what cuBLAS needs to be deterministic.
"""

import os
import resource
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("OMP_NUM_THREADS", "1")           # for the processes that tests start
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from data.files import writing  # noqa: E402
from run import folder  # noqa: E402


@pytest.fixture
def poison():
    """Uninitialised memory is NaN: what a kernel leaves unwritten, or reads too early, shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


def blank(out: Path, path: Path | None = None) -> None:
    """A loss.png without curves: to draw them takes longer than all else of a small run."""
    with writing(path or out / "loss.png") as file:
        Image.new("L", (1600, 200)).save(file, "PNG")


PLOT_LOG, folder.plot_log = folder.plot_log, blank


@pytest.fixture
def curves(monkeypatch):
    """In this test loss.png has its curves."""
    monkeypatch.setattr(folder, "plot_log", PLOT_LOG)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """The kernel's own limit, around the test alone: a fixture would also limit the file that pytest prints to."""
    marker = pyfuncitem.get_closest_marker("largest_file")
    if not marker:
        return (yield)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (*marker.args, before[1]))
    try:
        return (yield)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def refused(capsys):
    """main, flags -> what is said of flags that must end in a sentence and exit status 2."""
    def refused(main, flags):
        with pytest.raises(SystemExit) as end:
            main(flags)
        error = capsys.readouterr().err
        assert end.value.code == 2 and "Traceback" not in error
        return error
    return refused


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
