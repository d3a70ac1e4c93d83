"""Scores of digit samples: a small classifier, Frechet distances, class agreement, memorisation, neighbours."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import data
import noise
from data.files import reading
from run.checks import load_tensors
from scores import fid

CLASSIFIER = {"conv1": (32, 1, 3, 3), "conv2": (64, 32, 3, 3), "features": (1024, 32), "classes": (32, 10)}    # shapes


def features(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Features (N, 32) of digits (N, 1, 8, 8) in [-1, 1]: the last hidden layer."""
    h = F.relu(F.conv2d(x, weights["conv1"], padding=1))                          # N 32 8 8
    h = F.max_pool2d(F.relu(F.conv2d(h, weights["conv2"], padding=1)), 2)         # N 64 4 4
    return F.relu(h.flatten(1) @ weights["features"])


def classify(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits (N, 10) of digits (N, 1, 8, 8) in [-1, 1]."""
    return features(weights, x) @ weights["classes"]


def load_classifier(path: Path) -> dict[str, Tensor]:
    """The weights that `evaluate.py classifier` saved. Raises ValueError for any others."""
    mend = "train it with: python evaluate.py classifier"
    if not path.is_file():
        raise ValueError(f"no {path}; {mend}")
    with reading(path, mend):
        weights = load_tensors(path)
        if {name: tuple(w.shape) for name, w in weights.items()} != CLASSIFIER or not all(
                w.dtype == torch.float32 and w.isfinite().all() for w in weights.values()):
            raise ValueError(f"its tensors are not the classifier's, {CLASSIFIER}")
        return weights


def train_classifier(steps: int) -> dict[str, Tensor]:
    """Deterministic training on the 1200 training digits, shifted by up to one pixel, with Gaussian noise (std 0.2)."""
    fan_in = {"conv1": 9, "conv2": 288, "features": 1024, "classes": 32}
    seeds = noise.image_seeds(0, torch.arange(64))
    weights = {name: (noise.normal(seeds[k], 0, shape) * (2 / fan_in[name]) ** 0.5).requires_grad_()
               for k, (name, shape) in enumerate(CLASSIFIER.items())}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for step, (pixels, labels) in enumerate(data.batches(data.digits(), 64, 0, range(1, steps + 1)), 1):
        dy, dx = (noise.uniform(0, step, 2, noise.FLIPS) * 3).int().tolist()
        x = F.pad(data.to_unit(pixels), (1, 1, 1, 1), value=-1)[:, :, dy:dy + 8, dx:dx + 8]
        x = x + 0.2 * noise.normal(seeds, step, (1, 8, 8), noise.TRAIN)
        loss = F.cross_entropy(classify(weights, x), labels, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: w.detach() for name, w in weights.items()}


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to a and b, each (N, D), in per cent of b's total variance."""
    return 100 * fid.frechet(fid.statistics(a), fid.statistics(b)) / b.double().var(0).sum().item()


def gaussians(train: data.Data, labels: Tensor, seed: int) -> Tensor:
    """Samples (N, 1, 8, 8) from one Gaussian per class, fitted to the training digits: a baseline without a network."""
    x = data.to_unit(train.images).flatten(1)
    z = noise.normal(noise.image_seeds(seed, torch.arange(len(labels))), 0, (64,))
    out = torch.empty(len(labels), 64)
    for k in range(10):
        members = x[train.labels == k]
        values, vectors = torch.linalg.eigh(members.T.cov())
        out[labels == k] = members.mean(0) + z[labels == k] * values.clamp(min=0).sqrt() @ vectors.T
    return out.view(-1, 1, 8, 8).clamp(-1, 1)


def score(weights: dict[str, Tensor], x: Tensor, labels: Tensor) -> dict[str, float]:
    """All scores (see evaluate.py) of samples x (N, 1, 8, 8), in [-1, 1], of the requested labels (N,)."""
    train, test = data.digits(), data.digits(held_out=True)
    seen, unseen = data.to_unit(train.images), data.to_unit(test.images)
    distances, reference = (torch.cdist(y.flatten(1), seen.flatten(1)).min(1).values for y in (x, unseen))
    return {"FD": frechet(features(weights, x), features(weights, unseen)),
            "pFD": frechet(x.flatten(1), unseen.flatten(1)),
            "agree": (classify(weights, x).argmax(1) == labels).float().mean().item(),
            "mem": (distances.median() / reference.median()).item(),
            "dup": (distances < reference.quantile(0.01)).float().mean().item()}


def nearest(x: Tensor, images, k: int, batch: int = 1000) -> tuple[Tensor, Tensor]:
    """Root mean square distances (N, k) from x (N, C, H, W) to its k nearest uint8 images, and their indices."""
    distances, indices = torch.empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.int64)
    for index in torch.arange(len(images)).split(batch):
        y = data.to_unit(images[index]).flatten(1)
        new = torch.cdist(x.flatten(1), y, compute_mode="donot_use_mm_for_euclid_dist") / y.shape[1]**0.5
        distances, order = torch.cat([distances, new], dim=1).sort(dim=1, stable=True)
        indices = torch.cat([indices, index.expand(len(x), -1)], dim=1).gather(1, order[:, :k])
        distances = distances[:, :k]
    return distances, indices
