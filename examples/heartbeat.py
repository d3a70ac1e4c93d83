"""Binomial diffusion, the other half of Sohl-Dickstein et al. 2015: heartbeats, a one in every fifth of 20 bins.

    python -m examples.heartbeat        about a minute on one CPU core

Forward, every bin forgets itself at rate beta_t = 1/(T - t + 1) and becomes a coin of rate pi = 0.2, so that
alpha_bar_t = 1 - t/T exactly. A network guesses x0 from x_t, Bayes turns the guess into the reverse step, and K is the
paper's bound on the log likelihood, in bits per sequence. x (n, 20) holds 0 and 1, t (n,) runs 1..T.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from examples.common import minimise
from noise import image_seeds
from run.cli import check_range, parse, script
from run.pictures import figure_path, panels, save_figure

T, PI, BINS = 2000, 0.2, 20
BEATS = torch.eye(5).repeat(1, BINS // 5)                   # (5, 20): all the data there are, one for each phase


@dataclass(frozen=True)
class Config:
    """Binary heartbeats (Sohl-Dickstein et al. 2015): learns the reverse rates, prints the bound, samples the chain."""
    steps: int = 8000                                       # optimiser steps
    n: int = 10_000                                         # sequences to sample
    seed: int = 0                                           # of weights, data and samples, 0..2**31-1
    out: str = "out/heartbeat.png"                          # the picture


# Forward

def alpha_bar(t: Tensor) -> Tensor:
    """How much of x0 is left at t, (n,) -> (n, 1) float64: the product of 1 - 1/(T - s + 1) over s = 1..t."""
    return (1 - t.double() / T)[:, None]


def q_rate(x0: Tensor, t: Tensor) -> Tensor:
    """q(x_t = 1 | x0), (n, 20) (Table App.1)."""
    return alpha_bar(t) * x0 + PI * (1 - alpha_bar(t))


def q_step_rate(x_prev: Tensor, t: Tensor) -> Tensor:
    """q(x_t = 1 | x_{t-1}), (n, 20), with beta_t = 1/(T - t + 1) (section 2.4.1)."""
    beta = (1 / (T - t.double() + 1))[:, None]
    return x_prev * (1 - beta) + PI * beta


def flip(rate: Tensor) -> Tensor:
    """Zeros and ones that are one at these rates."""
    return (torch.rand(rate.shape) < rate).float()


# Reverse

def posterior(x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """q(x_{t-1} = 1 | x_t, x0), (n, 20), by Bayes: likelihood of x_t times rate at t-1, over the sum of both cases."""
    one, zero = (torch.where(xt == 1, rate, 1 - rate) for rate in (q_step_rate(torch.ones_like(xt), t),
                                                                   q_step_rate(torch.zeros_like(xt), t)))
    before = q_rate(x0, t - 1)
    return one * before / (one * before + zero * (1 - before))


def p_rate(guess: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """p(x_{t-1} = 1 | x_t): both posteriors, weighed by guess = P(x0 = 1 | x_t)."""
    return guess * posterior(torch.ones_like(xt), xt, t) + (1 - guess) * posterior(torch.zeros_like(xt), xt, t)


def log_odds_gain(t: Tensor) -> Tensor:
    """How much more a one than a zero in x_t speaks for a one in x0, (n, 1): 17 at t = 1, 0 at T."""
    one, zero = (q_rate(torch.full((1, 1), value), t) for value in (1., 0.))
    return one.logit() - zero.logit()


class Guess(nn.Module):
    """P(x0 = 1 | x_t), (n, 20): three layers of 50 as in the paper, answering in units of what x_t can tell."""

    def __init__(self, H=50):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(BINS + 4, H), nn.SiLU(), nn.Linear(H, H), nn.SiLU(),
                                    nn.Linear(H, H), nn.SiLU(), nn.Linear(H, BINS))

    def logits(self, xt: Tensor, t: Tensor) -> Tensor:
        """Log odds of a one in each bin of x0, (n, 20)."""
        gain, time = log_odds_gain(t).float(), t[:, None] / T
        turn = 2 * math.pi * time
        h = self.layers(torch.cat([2 * (xt - PI), time, gain / 5, turn.sin(), turn.cos()], dim=1))
        return h * (1 + gain) + math.log(PI / (1 - PI))

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.logits(xt, t).double().sigmoid()


def exact_guess(xt: Tensor, t: Tensor) -> Tensor:
    """P(x0 = 1 | x_t) without a network, (n, 20) float64: the five beats, weighed by how likely each became x_t."""
    rates = torch.stack([q_rate(beat.double(), t) for beat in BEATS])                  # 5 n 20
    fit = torch.where(xt == 1, rates, 1 - rates).log().sum(2)                           # 5 n
    return fit.softmax(0).T @ BEATS.double()


# The bound

def entropy(rate: Tensor) -> Tensor:
    """Bits of a coin that falls on one at this rate."""
    return (torch.special.entr(rate) + torch.special.entr(1 - rate)) / math.log(2)


def kl(rate1: Tensor, rate2: Tensor) -> Tensor:
    """KL of two coins, in bits."""
    cross = torch.special.xlogy(rate1, rate2) + torch.special.xlogy(1 - rate1, 1 - rate2)
    return -cross / math.log(2) - entropy(rate1)


def first_step_bits(bins: int = BINS) -> float:
    """H(X_1 | X_0) in bits; that of X_T is the same as of p(x_T), because alpha_bar_T = 0."""
    return entropy(q_rate(BEATS[:1, :bins].double(), torch.ones(1))).sum().item()


@torch.no_grad()
def bound(guess, n: int, seed: int) -> float:
    """K (eq. 14) in bits per sequence, from n samples for each of the five beats at every t = 2..T."""
    rng, lost = torch.Generator().manual_seed(seed), 0.
    for times in torch.arange(2, T + 1).split(max(1, 2000 // n)):
        t, x0 = times.repeat_interleave(5 * n), BEATS.repeat(len(times) * n, 1)
        xt = (torch.rand(x0.shape, generator=rng) < q_rate(x0, t)).float()
        lost += kl(posterior(x0, xt, t), p_rate(guess(xt, t), xt, t)).sum().item() / (5 * n)
    return -lost - first_step_bits()


def optimum(bins: int = BINS) -> float:
    """K* in bits, exactly: of x_t only the number of ones in each phase matters, and their order does not.

    The best p(x_{t-1} | x_t) with independent bins is the mixture of the posteriors; it loses the excess of that
    mixture's entropy over theirs.
    """
    many = bins // 5                                                                    # bins of one phase
    counts, lost = torch.combinations(torch.arange(many + 1), 5, with_replacement=True), 0.
    orders = 120 / torch.stack([(counts == k).sum(1) + 1. for k in range(many + 1)]).double().lgamma().exp().prod(0)
    counts, t = counts.double(), torch.arange(2, T + 1)
    ways = math.lgamma(many + 1) - (counts + 1).lgamma() - (many + 1 - counts).lgamma()
    ones = torch.ones(len(t), 1)
    on, off = (ways + counts * rate.log() + (many - counts) * (1 - rate).log()
               for rate in (q_rate(ones, t)[:, None], q_rate(0 * ones, t)[:, None]))    # T-1 ... 5
    joint = on - off + off.sum(2, keepdim=True)                                         # log q(counts | phase)
    weight, often = joint.softmax(2), joint.exp().mean(2) * orders                      # q(phase | counts), q(counts)
    for xt, times in ((ones, counts), (0 * ones, many - counts)):
        one, zero = posterior(ones, xt, t)[:, None], posterior(0 * ones, xt, t)[:, None]
        gain = entropy(weight * one + (1 - weight) * zero) - weight * entropy(one) - (1 - weight) * entropy(zero)
        lost += (often * (times * gain).sum(2)).sum().item()
    return -lost - first_step_bits(bins)


# Learning and sampling

def train(guess: Guess, steps: int, n: int = 2048) -> None:
    """Cross entropy on x0, every batch spread evenly over t: the best guess of x0 is the best reverse step."""
    matrices = [guess.layers[2].weight, guess.layers[4].weight]
    others = [w for w in guess.parameters() if all(w is not matrix for matrix in matrices)]

    def loss(k: int) -> Tensor:
        t = ((torch.arange(n) + torch.rand(n)) * T / n).long().clamp(max=T - 1) + 1
        x0 = BEATS[torch.randint(5, (n,))]
        return cross_entropy(guess.logits(flip(q_rate(x0, t)), t), x0)

    muon, adam = torch.optim.Muon(matrices, lr=0.03, weight_decay=0), torch.optim.Adam(others, lr=5e-3, fused=True)
    minimise(loss, [muon, adam], steps)


@torch.no_grad()
def sample(guess, n: int) -> list[Tensor]:
    """x_0, x_1, ... x_T of n reverse chains, each (n, 20). The first step is fixed: p(x0 | x1) mirrors q(x1 | x0)."""
    chain = [flip(torch.full((n, BINS), PI))]
    for t in range(T, 1, -1):
        now = torch.full((n,), t)
        chain.append(flip(p_rate(guess(chain[-1], now), chain[-1], now)))
    return [flip(q_step_rate(chain[-1], torch.ones(n))), *chain[::-1]]


def valid(x: Tensor) -> float:
    """Per cent of the sequences (n, 20) that are one of the five beats."""
    return 100 * (x[:, None] == BEATS).all(2).any(1).double().mean().item()


def picture(chain: list[Tensor], out: str) -> None:
    """Sixty sequences at six times of the reverse chain, one per row, black for a one, sorted by x_0."""
    order = chain[0][:60].argmax(1).argsort(stable=True)
    times = (T, T // 2, T // 4, T // 10, T // 40, 0)
    figure, axes = panels(1, len(times), (9, 5))
    for axis, t in zip(axes, times, strict=True):
        axis.imshow(chain[t][order].numpy(), cmap="binary", aspect="auto", interpolation="nearest")
        axis.set(title=f"$t = {t}$", xticks=[], yticks=[])
    save_figure(figure, out, dpi=150)


@script
def main(argv=None) -> None:
    """Trains, measures and samples; a flag that cannot be ends in a sentence and exit status 2."""
    config = parse(Config, argv)
    check_range(config, "steps n", 1)
    image_seeds(config.seed, torch.arange(1))               # raises for a seed out of range
    figure_path(config.out)                                 # an impossible name fails now, not at the end
    torch.set_num_threads(1)                                # the matrices are small
    torch.manual_seed(config.seed)
    guess = Guess()
    train(guess, config.steps)
    best = optimum()
    # The same samples for the network and for the exact guess: their difference is known far better than either.
    K = best + bound(guess, 8, config.seed) - bound(exact_guess, 8, config.seed)
    chain = sample(guess, config.n)
    picture(chain, config.out)
    whole = flip(guess(chain[1], torch.ones(len(chain[1]))))
    print(f"K {K:.4f} bits per sequence (paper -2.414), its optimum {best:.4f}, "
          f"the true log likelihood {-math.log2(5):.3f}\n"
          f"valid of {len(whole)}: {valid(chain[0]):.2f} % with the fixed first step, "
          f"{valid(whole):.2f} % with x0 sampled from the network's P(x0 | x1)")


if __name__ == "__main__":
    main()
