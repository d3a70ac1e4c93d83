"""Several processes as one: torchrun starts them, torch.distributed joins them. Without torchrun there is one.

    torchrun --nproc-per-node=4 -- train.py --batch 256         # one machine; what follows -- is the script's

    # several machines, HOST one of them: the same command on each; --out lies where all of them can read it
    torchrun --nnodes=2 --nproc-per-node=4 --rdzv-id=7 --rdzv-backend=c10d --rdzv-endpoint=HOST:29500 -- train.py
"""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # noqa: F401  (imported later, as by DDP, its default arguments would keep the group)
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel

from run.cli import choose_device

T = TypeVar("T")
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]    # of a run
INTERRUPTED = threading.Event()     # whether one of them has come
TIMEOUT = timedelta(minutes=30)     # the longest wait for another process, as for the first while it samples and saves


@contextlib.contextmanager
def group(device: str) -> Iterator[None]:
    """The processes work together inside: on GPUs, one each, or on CPUs. Raises ValueError for too few GPUs."""
    if not dist.is_torchelastic_launched():
        yield
        return
    cuda = choose_device(device).type == "cuda"
    if cuda:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise ValueError(f"process {local} has no GPU, there are {gpus}; start at most {gpus} processes here")
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    yield
    gc.collect()                    # ends gloo's threads with the group: one that outlives Python aborts the process
    dist.destroy_process_group()    # not after an error: the others may never come


def rank() -> int:
    """Which process this is; 0 writes for all."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_slice(n: int) -> slice:
    """This process's part of n positions; n is a multiple of the processes."""
    each = n // world_size()
    return slice(rank() * each, (rank() + 1) * each)


def all_gather(part: Tensor, dim: int = 0) -> Tensor:
    """The parts of all processes, of one shape, side by side in order; on every process."""
    if world_size() == 1:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts, dim)


def broadcast_first(value: T) -> T:
    """The first process's value, on every process."""
    if world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def any_process(yes: bool) -> bool:
    """Whether any process says yes; all must ask."""
    if world_size() == 1:
        return yes
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return bool(all_gather(torch.tensor([yes], dtype=torch.uint8, device=device)).any())


def average_gradients(model: nn.Module) -> nn.Module:
    """The model, the gradients that its backward leaves being the mean of all processes'."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=True)  # else a resumed run would add in another order


class Interrupted(Exception):
    """Ctrl-C or another signal asked the run to end."""


def unless_interrupted(value: T = None) -> T:
    """The value; raises Interrupted once a signal has come, unless other processes would wait for this one."""
    if INTERRUPTED.is_set() and world_size() == 1:
        raise Interrupted
    return value


@contextlib.contextmanager
def interruptible(gradients: bool) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP set INTERRUPTED, instead of ending the process.

    gradients: whether their computation, which may take minutes on a CPU, is left by Interrupted, at the next tensor
    that it saves or needs. A signal that is ignored stays so, as SIGHUP for a process that nohup started.
    """
    INTERRUPTED.clear()
    before = {stop: signal.getsignal(stop) for stop in STOPS if signal.getsignal(stop) not in (signal.SIG_IGN, None)}
    for stop in before:
        signal.signal(stop, lambda *_: INTERRUPTED.set())
    try:
        with saved_tensors_hooks(*[unless_interrupted] * 2) if gradients else contextlib.nullcontext():
            yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler)
