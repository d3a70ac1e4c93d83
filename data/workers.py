"""Batches prepared by worker processes, which neither hang nor take a run with them when they end."""

import atexit
import contextlib
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]    # of a run


def from_workers(batches: Any, workers: int, pin: bool, **settings) -> Iterator[tuple[Tensor, ...]]:
    """batches[step], tuples of tensors, prepared by `workers` processes, in pinned memory if need be.

    settings: DataLoader's. Raises ValueError for what a worker cannot read, and for workers that die.
    """
    loader = DataLoader(Sent(batches), num_workers=workers, collate_fn=as_it_is, worker_init_fn=ignore_stops,
                        **settings)
    try:
        for sent in started(loader):
            if isinstance(sent, ValueError):
                raise sent
            tensors = map(torch.from_numpy, sent)
            yield tuple(part.pin_memory() for part in tensors) if pin else tuple(tensors)
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]    # the first may be a traceback
        raise ValueError(f"the {workers} processes that load images failed: {reason}; use fewer --workers, or "
                         f"--workers 0") from error


@dataclass(frozen=True)
class Sent:
    """Batches as a worker sends them: arrays, through a pipe, or the error that there is instead.

    Tensors would be sent through /dev/shm, with an open file each; where it is full, or the files are too many, the
    worker's queue would lose a batch and the run wait for it without end.
    """
    batches: Any

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...] | ValueError:
        try:
            return tuple(part.numpy() for part in self.batches[step])
        except (ValueError, OSError) as error:
            return ValueError(str(error))                       # DataLoader would add the worker's traceback


def as_it_is(sent):
    """The identity, where DataLoader would make tensors of arrays."""
    return sent


def ignore_stops(worker: int) -> None:
    """In a worker: Ctrl-C and the signals that stop a run are for its parent, which ends its workers itself."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)


@contextlib.contextmanager
def stops_held_back() -> Iterator[None]:
    """The signals that stop a run wait until the block ends; workers that start in it never get one."""
    if not hasattr(signal, "pthread_sigmask"):                  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def started(loader: DataLoader) -> Iterator:
    """The loader's iterator, its workers running. Raises OSError where there is no room for their queues.

    DataLoader's handler of SIGCHLD is put away: it raises an error when a worker dies, even in the middle of an update.
    Without it the death is noticed when the next batch is waited for. Workers that are left at the end of this process
    are killed: they ignore the SIGTERM by which multiprocessing would end them, and wait for them without end.
    """
    queues = [multiprocessing.Queue() for _ in range(loader.num_workers + 3)]     # a trial: DataLoader's are as many
    del queues
    child = getattr(signal, "SIGCHLD", None)
    handler, others = child and signal.getsignal(child), {*multiprocessing.active_children()}
    try:
        with stops_held_back():
            return iter(loader)
    finally:                                                    # also of those that started before there was no room
        if child and signal.getsignal(child) != handler:
            signal.signal(child, handler)
        for worker in {*multiprocessing.active_children()} - others:
            atexit.register(worker.kill)
