"""Muon for convolutions and matrices, Adam for the rest (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

Adam divides each number of a gradient by its usual size. Muon does so with the gradient of a whole matrix, whose sizes
are its singular values: they all become about 1.
"""

from collections import defaultdict

import torch
from torch import Tensor

from ddpm import check_choice

OPTIMIZERS = ("adam", "muon")
BETAS = (0.9, 0.99)                             # of Adam
MOMENTUM, STEPS, COEFFICIENTS = 0.9, 5, (3.4445, -4.7750, 2.0315)
RATE = 4                                        # times Adam's


def matrices(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that Muon takes: the blocks' that have outputs and inputs. The network's ends and time are Adam's."""
    return {name: w for name, w in weights.items() if w.ndim > 1 and name.startswith(("downs", "middle", "ups"))}


def orthogonal(g: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of each g = U S V^T (k, m, n): singular values between 0.7 and 1.2, by five Newton-Schulz steps.

    dtype: of the products.
    """
    a, b, c = COEFFICIENTS
    x = (g / (torch.linalg.matrix_norm(g, keepdim=True) + 1e-7)).to(dtype)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(STEPS):
        A = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(A, A, A, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(g.dtype)


def optimizer_of(name: str, weights: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The optimizer of these weights; its rate is set before every step. Raises ValueError for another name."""
    check_choice("optimizer", name, OPTIMIZERS)
    return Muon(weights) if name == "muon" else torch.optim.Adam(weights.values(), betas=BETAS, fused=True)


class Muon(torch.optim.Adam):
    """The optimizer of named weights. As fused Adam, it changes nothing if `found_inf` is 1, and waits for no GPU."""

    def __init__(self, weights: dict[str, Tensor]):
        super().__init__(weights.values(), betas=BETAS, fused=True)
        self.matrices = defaultdict(list)       # by shape: those of one are multiplied in one call
        for w in matrices(weights).values():
            self.matrices[w.shape].append(w)

    @torch.no_grad()
    def step(self) -> None:
        """One update; the gradients of matrices are used up."""
        sound = 1 - self.found_inf
        rate = RATE * self.param_groups[0]["lr"] * sound
        for same in self.matrices.values():
            for w in same:
                if not self.state[w]:
                    self.state[w] = {"step": w.new_zeros(()), "exp_avg": torch.zeros_like(w)}
            averages = [self.state[w]["exp_avg"] for w in same]
            average = torch.stack(averages)
            gradient = torch.where(sound > 0, torch.stack([w.grad for w in same]), average)
            average.lerp_(gradient, 1 - MOMENTUM)
            ahead = gradient.lerp_(average, MOMENTUM).flatten(2)                  # Nesterov's
            _, m, n = ahead.shape
            dtype = torch.bfloat16 if ahead.is_cuda else torch.float32            # many CPUs are slow in bf16
            change = rate * max(1, m / n)**0.5 * orthogonal(ahead, dtype)
            torch._foreach_sub_(same, [*change.view_as(average)])
            torch._foreach_copy_(averages, [*average])
            torch._foreach_add_([self.state[w]["step"] for w in same], sound)
            for w in same:
                w.grad = None                                                     # Adam passes over what has none
        super().step()
