"""Batches as a function of (seed, step): not of earlier batches, nor of the number of processes that prepare them."""

import functools
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

import noise
from data.sets import ENDLESS, Data


def batch_indices(n: int, batch: int, seed: int, step: int) -> Tensor:
    """Which of n pictures make up the batch of this step, 1 the first: epoch after epoch, each shuffled anew.

    Those of a set without end come one after the other, each once.
    """
    start = (step - 1) * batch
    if n == ENDLESS:
        return torch.arange(start, start + batch) % n
    epochs = range(start // n, (start + batch - 1) // n + 1)
    return torch.cat([permutation(n, seed, epoch) for epoch in epochs])[start % n:][:batch]


@functools.lru_cache(maxsize=2)
def permutation(n: int, seed: int, epoch: int) -> Tensor:
    """The shuffle of an epoch."""
    return noise.uniform(seed, epoch, n, noise.SHUFFLE).argsort(stable=True)


@dataclass(frozen=True)
class Batches:
    """The batch of every step: steps[k] is (pixels uint8 (B, C, H, W), labels int64 (B,) or empty), or a share."""
    data: Data
    batch: int
    seed: int
    flip: bool
    share: slice = field(default_factory=lambda: slice(None))      # what this process takes of a batch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = batch_indices(len(self.data.images), self.batch, self.seed, step)[self.share]
        pixels = self.data.images[chosen]
        if self.flip:
            coin = noise.uniform(self.seed, step, self.batch, noise.FLIPS)[self.share] < 0.5
            pixels = torch.where(coin[:, None, None, None], pixels.flip(-1), pixels)
        return pixels, chosen[:0] if self.data.labels is None else self.data.labels[chosen]


def batches(data: Data, batch: int, seed: int, steps: range, flip: bool = False, workers: int = 0,
            share: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of these steps, or a share of each, in order, prepared by `workers` processes (0: this one).

    They lie in pinned memory if there is a GPU. Raises ValueError for what cannot be read, and for workers that die.
    """
    if workers and hasattr(data.images, "first"):
        raise ValueError(f"workers is {workers}; a stream is read by one process, leave it at 0")
    wanted, pin = Batches(data, batch, seed, flip, share), torch.cuda.is_available()
    for pixels, labels in from_workers(wanted, steps, workers) if workers else map(wanted.__getitem__, steps):
        yield (pixels.pin_memory(), labels.pin_memory()) if pin else (pixels, labels)


def from_workers(wanted: Batches, steps: range, workers: int) -> Iterator[Iterable[Tensor]]:
    """The batches of these steps, prepared by this many processes of a DataLoader."""
    loader = DataLoader(wanted, batch_size=None, sampler=steps, num_workers=workers, collate_fn=to_arrays,
                        worker_init_fn=leave_group, generator=torch.Generator(),
                        multiprocessing_context="fork" if sys.platform == "linux" else None)     # shares the pixels
    try:
        for arrays in start(loader):
            yield map(torch.from_numpy, arrays)
    except ValueError as error:                         # of a worker: its traceback, which ends in the sentence
        raise ValueError(str(error).splitlines()[-1].removeprefix("ValueError: ")) from error
    except (RuntimeError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[-1]
        raise ValueError(f"the {workers} processes that load images failed: {reason}; use fewer --workers, or "
                         f"--workers 0") from error


def to_arrays(tensors: tuple[Tensor, ...]) -> list[np.ndarray]:
    """A batch as a worker sends it, through a pipe: tensors go through /dev/shm, and are lost where that is full."""
    return [x.numpy() for x in tensors]


def leave_group(worker: int) -> None:
    """In a worker: Ctrl-C and a closed terminal, which signal a whole group of processes, are for its parent alone."""
    if hasattr(os, "setpgrp"):                          # not on Windows
        os.setpgrp()


def start(loader: DataLoader) -> Iterator:
    """The loader's iterator, its workers running, without DataLoader's handler of SIGCHLD.

    The handler raises an error when a worker dies, even in the middle of an update. Without it the death is noticed
    when the next batch is waited for.
    """
    child = getattr(signal, "SIGCHLD", None)            # not on Windows
    handler = child and signal.getsignal(child)
    iterator = iter(loader)
    if child and signal.getsignal(child) is not handler:
        signal.signal(child, handler)
    return iterator
