"""Scores of samples of a labelled set: in the features of a small classifier (scores/classifier.py), and in pixels.

What each score says is in evaluate.py. Distances are computed block by block, so that tens of thousands of pictures
fit into memory.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

import data
import noise
from scores import classifier, fid
from scores.classifier import Weights

K = 3                               # neighbours that make the manifold of precision and recall
BLOCK = 2**24                       # distances, or numbers of pictures, in memory at once
LARGEST = 4096                      # most numbers of a picture for pFD and Gaussians, which need their covariance


class Reference(NamedTuple):
    """What samples are scored against."""
    weights: Weights                # of the classifier
    train: data.Data
    unseen: Tensor                  # (M, C, H, W) held-out pictures in [-1, 1]
    features: Tensor                # (M, D) of them
    distances: Tensor               # (M,) of each to its nearest training picture


def refer(weights: Weights, train: data.Data, held_out: data.Data) -> Reference:
    """The reference that these two sets make. Raises ValueError for too few held-out pictures."""
    unseen = held_out_pictures(held_out)
    distances, _ = nearest(unseen, train.images)
    return Reference(weights, train, unseen, features(weights, unseen), distances[:, 0])


def of_digits() -> Reference:
    """The reference that the digits are scored against."""
    weights = classifier.load(classifier.FILES["digits"]).weights
    return refer(weights, data.digits(), data.digits(held_out=True))


def held_out_pictures(held_out: data.Data) -> Tensor:
    """All held-out pictures in [-1, 1]. Raises ValueError for too few."""
    if len(held_out.images) <= K:
        raise ValueError(f"{held_out.name} has {len(held_out.images)} held-out pictures; there must be more than {K}")
    return units(held_out)


def units(dataset: data.Data) -> Tensor:
    """All its pictures in [-1, 1]."""
    return data.to_unit(dataset.images[torch.arange(len(dataset.images))])


def score(reference: Reference, x: Tensor, labels: Tensor, distances: Tensor | None = None) -> dict[str, float]:
    """All scores (see evaluate.py) of samples x (N, C, H, W) in [-1, 1], N > K, of the requested labels (N,).

    distances (N,): to the nearest training pictures, where they are known. Of pictures of more than LARGEST numbers
    there is no pFD.
    """
    weights, _, unseen, real, expected = reference
    made = features(weights, x)
    distances = nearest(x, reference.train.images)[0][:, 0] if distances is None else distances
    pixels = {"pFD": frechet(x.flatten(1), unseen.flatten(1))} if x[0].numel() <= LARGEST else {}
    precision, recall = precision_and_recall(real, made)
    return {"FD": frechet(made, real), **pixels, "agree": agreement(weights, made, labels),
            "mem": (distances.median() / expected.median()).item(),
            "dup": (distances < expected.quantile(0.01)).float().mean().item(), "prec": precision, "rec": recall}


def features(weights: Weights, x: Tensor) -> Tensor:
    """Features (N, D) of pictures (N, C, H, W), computed where the weights are, in batches that fit into memory."""
    batch, device = max(1, BLOCK // (16 * x[0].numel())), weights["features"].device
    return torch.cat([classifier.features(weights, part.to(device)).cpu() for part in x.split(batch)])


def agreement(weights: Weights, made: Tensor, labels: Tensor) -> float:
    """The share of features (N, D) that the classifier assigns to the requested class."""
    return ((made @ weights["classes"].cpu()).argmax(1) == labels).float().mean().item()


def frechet(a: Tensor, b: Tensor) -> float:
    """Frechet distance between Gaussians fitted to a and b, each (N, D), in per cent of b's total variance."""
    return (100 * fid.frechet(fid.statistics(a), fid.statistics(b)) / b.double().var(0).sum()).item()


# Manifolds

def precision_and_recall(real: Tensor, made: Tensor) -> tuple[float, float]:
    """Precision and recall of features (N, D) made, of the real ones (M, D) (Kynkaanniemi et al. 2019, equation 1).

    A set's manifold is the union of balls around its points that reach to their K-th neighbours. Precision: the share
    of what was made within the real manifold. Recall: the share of the real within that of what was made. Both grow
    with the number of points, so as many are taken of either, evenly spaced.
    """
    n = min(len(real), len(made))
    real, made = (x[data.even_indices(len(x), n)].double() for x in (real, made))
    radii, reach = neighbour_distances(real), neighbour_distances(made)
    precise, recalled = [], torch.zeros(n, dtype=torch.bool)
    for part, radius in zip(blocks(made, n), blocks(reach, n), strict=True):
        distances = torch.cdist(part, real)
        precise.append((distances <= radii).any(1))
        recalled |= (distances <= radius[:, None]).any(0)
    return torch.cat(precise).double().mean().item(), recalled.double().mean().item()


def neighbour_distances(x: Tensor) -> Tensor:
    """The distance (N,) from each of the points (N, D) to its K-th neighbour, itself not counted."""
    return torch.cat([torch.cdist(part, x).kthvalue(K + 1).values for part in blocks(x, len(x))])


def blocks(x: Tensor, n: int) -> tuple[Tensor, ...]:
    """x in parts so small that their distances to n others fit into memory."""
    return x.split(max(1, BLOCK // n))


# Neighbours in pixels

def nearest(x: Tensor, images, k: int = 1) -> tuple[Tensor, Tensor]:
    """Distances (N, k) from x (N, C, H, W) to its k nearest of these uint8 images, least first, and their indices.

    The nearest are found by products of matrices, which is quick but rounds; their distances are then computed from
    differences.
    """
    x = x.flatten(1)
    least, indices = torch.full((len(x), k), math.inf), torch.zeros(len(x), k, dtype=torch.int64)
    for index in torch.arange(len(images)).split(max(1, BLOCK // x.shape[1])):
        y = data.to_unit(images[index]).flatten(1)
        for part in blocks(torch.arange(len(x)), len(y)):
            least[part], order = torch.cat([least[part], torch.cdist(x[part], y)], dim=1).topk(k, largest=False)
            indices[part] = torch.cat([indices[part], index.expand(len(part), -1)], dim=1).gather(1, order)
    distances = torch.stack([(x - data.to_unit(images[index]).flatten(1)).norm(dim=1) for index in indices.T], dim=1)
    return distances, indices


# A baseline

def gaussians(train: data.Data, labels: Tensor, seed: int) -> Tensor:
    """Samples (N, C, H, W) from one Gaussian per class, fitted to the training pictures: a baseline without a network.

    Raises ValueError for a class of fewer than two pictures.
    """
    D = math.prod(train.shape)
    z = noise.normal(noise.image_seeds(seed, torch.arange(len(labels))), 0, (D,))
    out = torch.empty(len(labels), D)
    for k in labels.unique():
        index = (train.labels == k).nonzero()[:, 0]
        if len(index) < 2:
            raise ValueError(f"{train.name} has {len(index)} pictures of class {train.classes[k]}, too few")
        members = data.to_unit(train.images[index]).flatten(1)
        values, vectors = torch.linalg.eigh(members.T.cov())
        out[labels == k] = members.mean(0) + z[labels == k] * values.clamp(min=0).sqrt() @ vectors.T
    return out.view(-1, *train.shape).clamp(-1, 1)


# During training

def scorer(dataset: data.Data, name: str, size: str, fit: str) -> Callable | None:
    """`score_against` the set's held-out pictures; None where weights/ has no classifier of the set.

    name, size, fit: of the data set, as `data.load` takes them; its held-out pictures are read the same way.
    """
    facts = classifier.facts_of(dataset)
    if facts.name not in classifier.FILES or not classifier.FILES[facts.name].is_file():
        return None
    try:
        return score_against(classifier.load_fitting(facts).weights, data.load(data.TEST + name, size, fit))
    except ValueError as error:
        print(f"samples will not be scored: {error}")
        return None


def score_against(weights: Weights, held_out: data.Data) -> Callable:
    """(x, labels) -> FD to these pictures and agree, the second only with labels.

    There are no scores of samples that are not finite: a run may recover from them. Raises ValueError for too few
    held-out pictures.
    """
    real = features(weights, held_out_pictures(held_out))

    def score(x: Tensor, labels: Tensor | None) -> dict[str, float]:
        made = features(weights, x)
        if not made.isfinite().all():
            return {}
        return {"FD": frechet(made, real), **({} if labels is None else {"agree": agreement(weights, made, labels)})}

    return score
