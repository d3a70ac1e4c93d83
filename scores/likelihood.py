"""Bits per dimension of a data set under a trained model, term by term (Ho et al. 2020, equation 5).

    python evaluate.py nll                                        # the held-out digits under weights/digits.safetensors
    python evaluate.py nll --checkpoint runs/x/last.safetensors --held_out photos/ --n 500 --times 100

The bound has T + 1 terms: the prior L_T, a KL at each t = T..2, and the decoder at t = 1. The prior and the decoder
are computed for every picture. The timesteps 2..T are partitioned into intervals, shorter near the data where the terms
are large, and each picture samples one t per interval: an unbiased estimate of the sum. The noise is a function of
(seed, picture, t), so the result does not depend on the batch.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.special import ndtr
from tqdm import tqdm

import data
import ddpm
import noise
from run.checkpoint import WEIGHTS, Checkpoint, load, load_unet
from run.cli import check_range, choose_device, parse
from run.pictures import figure_path, panels, save_figure
from scores.classifier import trained_on
from scores.pictures import HELD_OUT, load_pictures, relabel


@dataclass(frozen=True)
class Config:
    """Bits/dim of a data set under a trained model: the terms of the bound, their sum, and two plots."""
    checkpoint: str = "weights/digits.safetensors"  # a checkpoint of train.py
    held_out: str = HELD_OUT                    # pictures, as for train.py; by default the set's own. --data is it, too
    fit: str = ""                               # how pictures reach the model's size, crop or pad; empty is its own
    n: int = 0                                  # number of pictures, from the first; 0 is all
    times: int = 50                             # intervals of 2..T at most, one t sampled in each; 0 is every t
    labels: bool = True                         # condition a class-conditional model on the labels
    variance: str = ""                          # beta_tilde, beta or learned; empty is the model's own
    clip: bool = True                           # clip the predicted x0 to [-1, 1]
    weights: str = "ema"                        # the averaged weights, or raw
    seed: int = 0                               # seed of the noise and of the sampled t
    batch: int = 256                            # (picture, t) pairs per batch; does not change the results
    device: str = "auto"                        # cuda, cpu, or auto: cuda if there is one
    out: str = "out/nll.png"                    # the two plots


class Terms(NamedTuple):
    """The bound of n pictures over S intervals in increasing t; the first is the decoder, t = 1."""
    prior: Tensor                   # (n,) bits/dim
    total: Tensor                   # (n,) bits/dim, the sum of all terms
    t: Tensor                       # (S,) midpoint of each interval
    width: Tensor                   # (S,) number of timesteps in each interval
    bits: Tensor                    # (S,) mean bits/dim per timestep
    distortion: Tensor              # (S,) root mean square error of x0_hat, in pixel values 0..255


def partition(T: int, times: int) -> Tensor:
    """Interval boundaries (S + 1,) of 1..T: [1, 2) for the decoder, then at most `times` intervals that end at T + 1.

    Their lengths grow as the square root of t; with times = 0 every t is an interval.
    """
    if not times:
        return torch.arange(1, T + 2)
    edges = 2 + (T - 1) * (torch.arange(times + 1, dtype=torch.float64) / times)**2
    return torch.cat([torch.ones(1).long(), edges.round().long().unique()])


def sample_timesteps(parts: Tensor, seeds: Tensor, k: Tensor) -> Tensor:
    """t (B,) uniform in interval k (B,), for images with these seeds (B,)."""
    u = ndtr(noise.normal(seeds, k, (1,), noise.TIMES)[..., 0].double())          # in (0, 1)
    return (parts[k] + u * (parts[k + 1] - parts[k])).long()


@torch.no_grad()
def bound(schedule: ddpm.Schedule, model: Callable, images, labels: Tensor | None, *, parts: Tensor,
          seed: int = 0, batch: int = 256, **choice) -> Terms:
    """The bound of uint8 images (see `data.Data`) under model(xt, t, labels); choice: as for `ddpm.bound_terms`.

    parts: from `partition`. The (picture, interval) pairs are visited in order, so few pictures are in memory.
    """
    device, n, S, width = schedule.beta.device, len(images), len(parts) - 1, parts.diff()
    prior, total = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    bits, error = torch.zeros(2, S, dtype=torch.float64)
    for pairs in tqdm(torch.arange(n * S).split(batch), unit=" batches", leave=False):
        i, k = pairs // S, pairs % S
        index, inverse = i.unique(return_inverse=True)
        x = data.to_unit(images[index]).to(device)
        prior[index] = ddpm.prior_bits(schedule, x).cpu()
        seeds = noise.image_seeds(seed, i).to(device)
        t, x0 = sample_timesteps(parts.to(device), seeds, k.to(device)), x[inverse.to(device)]
        y = None if labels is None else labels[i].to(device)
        term, squares = pair_terms(schedule, model, x0, t, y, seeds, **choice)
        total.index_add_(0, i, term * width[k])
        bits.index_add_(0, k, term / n)
        error.index_add_(0, k, squares / n)
    return Terms(prior, total + prior, (parts[1:] + parts[:-1] - 1) / 2, width, bits, 127.5 * error.sqrt())


def pair_terms(schedule: ddpm.Schedule, model: Callable, x0: Tensor, t: Tensor, y: Tensor | None, seeds: Tensor, *,
               target: str, variance: str, clip: bool) -> tuple[Tensor, Tensor]:
    """The bound's term in bits/dim and the mean squared error of x0_hat, each (B,) float64 on the CPU."""
    eps = noise.normal(seeds, t, x0.shape[1:], noise.TRAIN)
    xt = ddpm.q_sample(schedule, x0, t, eps)
    output = model(xt, t, y)
    term = ddpm.bound_terms(schedule, lambda xt, t: output, x0, t, eps, target=target, variance=variance, clip=clip)
    x0_hat, _ = ddpm.predict(schedule, output[:, :x0.shape[1]], xt, t, target)
    error = (x0_hat.clamp(-1, 1) if clip else x0_hat) - x0
    return term.double().cpu(), error.square().flatten(1).mean(1).double().cpu()


def labels_for(config: Config, checkpoint: Checkpoint, pictures: data.Data) -> Tensor | None:
    """Labels (N,) for the network, all null with --no-labels; None for an unconditional network."""
    classes = len(checkpoint.data["classes"])
    if not checkpoint.network.classes:
        return None
    has_null = checkpoint.network.classes > classes
    if config.labels:
        try:
            return relabel(pictures, trained_on(checkpoint)).labels
        except ValueError as error:
            raise ValueError(f"{error}{', or use --no-labels' if has_null else ''}") from error
    if not has_null:
        raise ValueError(f"{config.checkpoint} has no null class; omit --no-labels")
    return torch.full((len(pictures.images),), classes)


def score(config: Config) -> Terms:
    """The terms of the bound that the settings ask for; prints what they are of."""
    device, checkpoint = choose_device(config.device), load(config.checkpoint)
    ddpm.check_choice("weights", config.weights, WEIGHTS)
    check_range(config, "times n", 0)
    check_range(config, "batch", 1)
    if (T := len(checkpoint.beta)) < 2:
        raise ValueError(f"{config.checkpoint} has T = {T}; the bound needs a T of 2 or more")
    parts = partition(T, min(config.times, T - 1))
    unet = load_unet(checkpoint, weights=config.weights, device=config.device)
    pictures = data.first(load_pictures(checkpoint, config.held_out, config.fit), config.n)
    labels, variance = labels_for(config, checkpoint, pictures), config.variance or checkpoint.variance
    print(f"{config.checkpoint} on {len(pictures.images)} pictures of {pictures.name} ({config.held_out}): "
          f"{len(parts) - 1} of {T} timesteps per picture, variance {variance}, seed {config.seed}")
    return bound(ddpm.from_betas(checkpoint.beta.to(device)), unet, pictures.images, labels, parts=parts,
                 seed=config.seed, batch=config.batch, target=checkpoint.settings["target"], variance=variance,
                 clip=config.clip and checkpoint.clip)


def nll(argv: Sequence[str]) -> None:
    """Prints the terms of the bound and saves the two plots."""
    config = parse(Config, [re.sub("^--data(?==|$)", "--held_out", flag) for flag in argv])     # its older name
    figure_path(config.out)                                                       # fails now, not at the end
    terms = score(config)
    print_table(terms)
    save_figure(plot_terms(terms), config.out, dpi=120)
    print(f"see {config.out}")


def print_table(terms: Terms) -> None:
    """Prints the terms and their sum; the KL terms by quarter of their intervals."""
    error = (terms.total.std() / len(terms.total)**0.5).item() if len(terms.total) > 1 else 0.
    print(f"{'term':28}{'bits/dim':>10}")
    print(f"{'prior, L_T':28}{terms.prior.mean():10.2g}")
    for part in torch.arange(1, len(terms.t)).flip(0).chunk(4):
        span = f"KL, t about {terms.t[part[0]]:.0f} to {terms.t[part[-1]]:.0f}"
        print(f"{span:28}{(terms.bits * terms.width)[part].sum():10.5f}")
    print(f"{'decoder, L_0, t = 1':28}{terms.bits[0]:10.5f}")
    print(f"{'sum':28}{terms.total.mean():10.5f} +- {error:.5f} over pictures")


def plot_terms(terms: Terms):
    """Figure of two plots: the bound's terms against t, and distortion against rate (Ho et al. 2020, figure 5)."""
    figure, (left, right) = panels(1, 2, (9, 3.5), grid=True)
    left.plot(terms.t, terms.bits, marker=".", markersize=3)
    left.set(xlabel="t", ylabel="bits/dim per timestep", yscale="log", xlim=(0, int(terms.width.sum())),
             title="terms of the bound")
    bits = terms.bits * terms.width
    rate = terms.prior.mean() + bits.sum() - bits.cumsum(0)
    right.plot(rate, terms.distortion, marker=".", markersize=3)
    right.plot(rate[0] + terms.bits[0], 0, "o", color="C1", label="after the decoder: lossless")
    right.set(xlabel="rate: bits/dim of the terms above t", ylabel="rms error of x0_hat (0..255)",
              title="rate and distortion", ylim=(0, None))
    right.legend(fontsize=8)
    return figure
