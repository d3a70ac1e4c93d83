"""The swiss roll with other choices than swiss_roll.py's, each beside the best that its data and schedule allow.

    python -m examples.swiss_roll_variants      a few minutes on one CPU core: a table of K's, Figure 1 each way

K alone says little: every schedule has its own optimum K*, the bound of the best Gaussian reverse steps, found here by
quadrature over the curve. What a model loses against it is its own fault; what K* loses against -H(X_1) is the
schedule's. Shapes are those of swiss_roll.py.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor, nn

import swiss_roll as roll
from ddpm import Schedule, broadcast_to, from_alpha_bar, from_betas, normal_kl
from noise import image_seeds
from run.cli import check_range, make_parent, parse, script


@dataclass(frozen=True)
class Config:
    """The swiss roll of Sohl-Dickstein et al. 2015 with other schedules and networks: one table, a figure each."""
    steps: int = 2000                       # optimiser steps of each variant
    seed: int = 0                           # of weights, data and samples, 0..2**31-1
    only: str = ""                          # names of variants, with commas between; all of them if empty
    out: str = "out/swiss_roll_variants"    # folder of the figures


# Schedules

def even_schedule(T: int, noise: float = roll.NOISE, beta_1: float = roll.BETA_1) -> Schedule:
    """T steps, all even in the log of the variance noise^2 + lambda that hides the curve; lambda_T = 20."""
    tau2 = torch.linspace(math.log(noise**2 + beta_1 * (1 + noise**2)), 3, T, dtype=torch.float64).exp()
    return from_alpha_bar((1 + noise**2) / (1 + torch.cat([tau2.new_tensor([noise**2]), tau2])))


def paper_schedule(T: int = 40, beta_1: float = 1.44e-5) -> Schedule:
    """beta_t = 1/(T - t + 1) after the first (section 2.4.1), so that alpha_bar_T = 0."""
    return from_betas([beta_1, *(1 / (T - t + 1) for t in range(2, T + 1))])


def sigmoid_betas(T: int = 40) -> Schedule:
    """The betas of the widely copied 100-line version, a sigmoid from 1e-5 to 0.3."""
    return from_betas(torch.linspace(-18, 10, T, dtype=torch.float64).sigmoid() * (0.3 - 1e-5) + 1e-5)


# The optimum, by quadrature

class Optimum(NamedTuple):
    """Limits in bits: K of the best diagonal and the best full Gaussian steps, and -H(X_1), which no p can pass."""
    diagonal: float
    full: float
    limit: float


def spread(schedule: Schedule, t: int, noise: float) -> Tensor:
    """Variance of x_t, in each dimension, about the point of the curve that it came from."""
    return schedule.alpha_bar[t] * noise**2 / (1 + noise**2) + 1 - schedule.alpha_bar[t]


def fits(schedule: Schedule, xt: Tensor, t: int, noise: float) -> tuple[Tensor, Tensor]:
    """The curve (N, 2) on a grid as fine as spread(t) asks, and log q(x_t | u) of xt (n, 2) at each point, (n, N)."""
    bar, V = schedule.alpha_bar[t], spread(schedule, t, noise)
    N = int(max(256, 20 * (bar / V).sqrt()))                # the curve is 13 long, its steps up to twice the mean
    curve = roll.data((torch.arange(N, dtype=torch.float64) + 0.5) / N, xt.new_zeros(2), noise)
    return curve, -(xt[:, None] - bar.sqrt() * curve).square().sum(2) / (2 * V) - (2 * math.pi * V).log()


def posterior(schedule: Schedule, xt: Tensor, t: int, noise: float = roll.NOISE) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (n, 2), variance (n, 2) and covariance (n,) of q(x_{t-1} | x_t) at xt (n, 2) float64, t in 1..T.

    Given u it is Gaussian, because x_{t-1} and x_t are jointly; the curve is summed over.
    """
    curve, log_q = fits(schedule, xt, t, noise)
    before, now, alpha = spread(schedule, t - 1, noise), spread(schedule, t, noise), schedule.alpha[t]
    pull = alpha.sqrt() * before / now                      # d x_{t-1} / d x_t given u, then d x_{t-1} / d curve
    lift = schedule.alpha_bar[t - 1].sqrt() - pull * schedule.alpha_bar[t].sqrt()
    weight = log_q.softmax(1)
    c, cc = weight @ curve, weight @ torch.cat([curve**2, curve.prod(1, keepdim=True)], dim=1)
    var = before - pull**2 * now + lift**2 * (cc[:, :2] - c**2)
    return pull * xt + lift * c, var, lift**2 * (cc[:, 2] - c.prod(1))


def optimum(schedule: Schedule, noise: float = roll.NOISE, points: int = 128, nodes: int = 4) -> Optimum:
    """The limits for this data and schedule, by quadrature over u (points) and the noise of x_t (nodes^2); to 0.001.

    KL(q(x_{t-1} | x_t, x0) || p) is least, on average over x0, for the p with the posterior's moments, and is then half
    the log of their variance over beta_tilde. Near the ends of the curve x_t tells more, so u is denser there.
    """
    angle = (torch.arange(points, dtype=torch.float64) + 0.5) / points * math.pi
    node, share = (torch.from_numpy(a) for a in hermegauss(nodes))          # a Gauss rule for one normal number
    z, weight = torch.cartesian_prod(node, node), (share[:, None] * share).flatten()
    weight = (angle.sin()[:, None] * weight).flatten()
    x0 = roll.data((1 - angle.cos()) / 2, z.new_zeros(2), noise)[:, None]

    def mean(values: Tensor) -> float:
        return (weight @ values / weight.sum() / math.log(2)).item()

    def xt(t: int) -> Tensor:
        return (schedule.alpha_bar[t].sqrt() * x0 + spread(schedule, t, noise).sqrt() * z).flatten(0, 1)

    _, log_q = fits(schedule, xt(1), 1, noise)
    diagonal = full = ((1 - schedule.alpha_bar[-1]) / (1 - schedule.alpha_bar[1])).log2().item() - roll.H_NORMAL
    for t in range(2, len(schedule.beta)):
        _, var, cov = posterior(schedule, xt(t), t, noise)
        var, cov = var / schedule.beta_tilde[t], cov / schedule.beta_tilde[t]
        diagonal -= mean(var.log().sum(1)) / 2
        full -= mean((var.prod(1) - cov**2).log()) / 2
    return Optimum(diagonal, full, mean(log_q.logsumexp(1) - math.log(log_q.shape[1])))


# Models

def turn(x: Tensor, ahead: Tensor) -> Tensor:
    """x (..., 2) turned so that its first axis points along ahead (..., 2), of any length but 0."""
    cos, sin = nn.functional.normalize(ahead, dim=-1).chunk(2, -1)
    return cos * x + sin * torch.stack([-x[..., 1], x[..., 0]], dim=-1)


def turned_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor, ahead: Tensor) -> Tensor:
    """KL from a round Gaussian to one with turned axes: turning both back changes the first one's mean alone."""
    back = ahead * ahead.new_tensor([1, -1])
    return normal_kl(turn(mean1 - mean2, back), log_var1, torch.zeros_like(mean2), log_var2)


class LearnedBeta(roll.Reverse):
    """swiss_roll.py's network, and beta_2..beta_T learned with it as in the paper, from even ones; beta_1 stays."""

    def __init__(self, T: int = 40):
        super().__init__(T)
        self.odds = nn.Parameter(even_schedule(T).beta[2:].logit())

    def schedule(self) -> Schedule:
        """The schedule as it is now, with a gradient."""
        return from_betas(torch.cat([self.odds.new_tensor([roll.BETA_1]), self.odds.sigmoid()]))


class RadialBasis(nn.Module):
    """The paper's network: 16 radial basis functions, and at every t a linear readout of mean and log variance."""

    def __init__(self, T: int, H: int = 16):
        super().__init__()
        self.centres, self.log_width = nn.Parameter(torch.randn(H, 2)), nn.Parameter(torch.zeros(H))
        self.readout, self.bias = nn.Parameter(torch.zeros(T + 1, H, 4)), nn.Parameter(torch.zeros(T + 1, 1, 4))

    def forward(self, schedule: Schedule, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, in units of beta_t: with a zero readout p is the forward step."""
        far = (xt[..., None, :] - self.centres).square().sum(-1)                            # T-1 n 16
        h = (-far / (2 * (2 * self.log_width).exp())).exp()
        f, g = torch.baddbmm(self.bias[t], h, self.readout[t]).chunk(2, -1)
        alpha, beta = schedule.alpha[t], schedule.beta[t]
        keep, std, log_beta = broadcast_to(xt, alpha.sqrt(), beta.sqrt(), beta.log())
        return keep * xt + std * f, log_beta + g


class HundredLines(nn.Module):
    """The network of the widely copied 100-line version: a shared head and a tail for each t, which say all bare."""

    def __init__(self, T: int, H: int = 64):
        super().__init__()
        self.head = nn.Sequential(nn.Linear(2, H), nn.ReLU(), nn.Linear(H, H), nn.ReLU())
        tails = [nn.Sequential(nn.Linear(H, H), nn.ReLU(), nn.Linear(H, 4)) for _ in range(T + 1)]
        self.weights = nn.ParameterList(torch.stack([tail[i].weight.detach().mT for tail in tails]) for i in (0, 2))
        self.biases = nn.ParameterList(torch.stack([tail[i].bias.detach()[None] for tail in tails]) for i in (0, 2))

    def forward(self, schedule: Schedule, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance as they come out of the network, whatever the noise."""
        h = torch.baddbmm(self.biases[0][t], self.head(xt), self.weights[0][t]).relu()
        return torch.baddbmm(self.biases[1][t], h, self.weights[1][t]).chunk(2, -1)


# The table

class Variant(NamedTuple):
    """A row of the table: what changed, and how to build the model and its schedule."""
    about: str
    model: Callable[[], nn.Module]
    schedule: Callable[[nn.Module], Schedule]
    full: bool = False                      # full covariance instead of a diagonal one


VARIANTS = {
    "default": Variant("as swiss_roll.py", lambda: roll.Reverse(40), lambda model: roll.tuned_schedule()),
    "learned": Variant("beta learned from even", LearnedBeta, lambda model: model.schedule()),
    "even": Variant("beta even, not learned", lambda: roll.Reverse(40), lambda model: even_schedule(40)),
    "full": Variant("full covariance", lambda: roll.Reverse(40, outputs=6), lambda model: roll.tuned_schedule(), True),
    "T100": Variant("T = 100, beta even", lambda: roll.Reverse(100), lambda model: even_schedule(100)),
    "rbf": Variant("16 radial basis functions", lambda: RadialBasis(40), lambda model: roll.tuned_schedule()),
    "hundred": Variant("100-line version's choices", lambda: HundredLines(40), lambda model: sigmoid_betas()),
}

UNTRAINED = {                               # schedules whose optimum is worth knowing, on a roll without noise
    "1/(T - t + 1), no noise": paper_schedule(),
    "sigmoid betas, no noise": sigmoid_betas(),
}


def row(about: str, schedule: Schedule, limits: Optimum, best: float, K: float | None = None) -> str:
    """A line of the table; K* is `best`, of diagonal or of full steps."""
    learned = "" if K is None else f"{K:9.3f}{best - K:8.3f}"
    return f"{about:28}{len(schedule.beta) - 1:4}{limits.limit:10.3f}{best:8.3f}{learned}"


def optimisers(model: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of a Reverse and Adam for what remains, as in swiss_roll.py; else Adam alone."""
    matrices = [w for name, w in model.named_parameters() if name.startswith("hidden")]
    others = [w for name, w in model.named_parameters() if not name.startswith("hidden")]
    muon = [torch.optim.Muon(matrices, lr=0.03, weight_decay=0)] if matrices else []
    return [*muon, torch.optim.Adam(others, lr=0.01 if matrices else 0.003, betas=(0.9, 0.99))]


def learn(variant: Variant, steps: int, seed: int) -> tuple[nn.Module, Schedule, float]:
    """Trains a variant; returns the model, its schedule and K in bits on fresh points."""
    torch.manual_seed(seed)
    model, sobol = variant.model(), torch.quasirandom.SobolEngine(5, scramble=True, seed=seed)
    kl = turned_kl if variant.full else normal_kl
    T = len(variant.schedule(model).beta) - 1

    def K(n: int = 5000 // (T - 1)) -> Tensor:
        return roll.bound(model, variant.schedule(model), *roll.batch(sobol, n, T), kl)

    with torch.no_grad():
        start = optimum(variant.schedule(model))
    roll.train(model, K, optimisers(model), steps, start.full if variant.full else start.diagonal)
    with torch.no_grad():
        return model, variant.schedule(model), sum(K(512).item() for _ in range(64)) / 64


@script
def main(argv=None) -> None:
    """Trains each variant, prints its row and plots its figure; a flag that cannot be ends in a sentence."""
    config = parse(Config, argv)
    names = config.only.split(",") if config.only else list(VARIANTS)
    check_range(config, "steps", 1)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise ValueError(f"only names {', '.join(unknown)}; it takes some of {', '.join(VARIANTS)}")
    seeds = image_seeds(config.seed, torch.arange(5000))
    torch.set_num_threads(1)                # the matrices are small
    paths = {name: make_parent(Path(config.out) / f"{name}.png") for name in names}
    print(f"{'bits':28}{'T':>4}{'-H(X_1)':>10}{'K*':>8}{'K':>9}{'excess':>8}")
    for name, path in paths.items():
        variant = VARIANTS[name]
        model, schedule, K = learn(variant, config.steps, config.seed)
        limits = optimum(schedule)
        best = limits.full if variant.full else limits.diagonal
        print(row(variant.about, schedule, limits, best, K), flush=True)
        chain = roll.sample(model, schedule, seeds, turn if variant.full else lambda z: z)
        real = roll.data(torch.rand(5000), torch.randn(5000, 2))
        roll.figure(model, schedule, real, chain, path)
    for about, schedule in ({} if config.only else UNTRAINED).items():
        limits = optimum(schedule, noise=0.)
        print(row(about, schedule, limits, limits.diagonal))


if __name__ == "__main__":
    main()
