"""Dead leaves: the synthetic natural images of Sohl-Dickstein et al. 2015, discs that hide one another.

    python train.py --data dead-leaves --size 64        endless, rendered on demand; dead-leaves-grey is grey

Discs of one colour each fall one upon the other. Their radii follow a power law, so the picture looks alike at every
scale, as natural images do (Lee, Mumford, Huang 2001). Picture i is a function of i alone: there are as many as noise
has keys, none is stored, and each can be rendered at any size.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import noise
from data.sets import ENDLESS, Data

DISCS = 512                                 # a picture; about one pixel in 700 stays uncovered and shows the first
SMALL, LARGE = 1 / 16, 1 / 2                # radii, in units of the picture's shorter side


def discs(index: Tensor, H: int, W: int) -> Tensor:
    """Squared radius, y, x and three colours in [0, 1) of the discs of pictures `index`, (6, DISCS, B), last on top.

    Radii have density ~ r^-3 between SMALL and LARGE; centres are uniform, as far out as a disc can reach in. The
    picture's shorter side is 1.
    """
    words = noise.words(noise.image_seeds(0, index), 0, 6 * DISCS, noise.LEAVES)
    u = torch.stack([noise.unit(word) for word in words], dim=-1).view(-1, DISCS, 6).permute(2, 1, 0)
    size = torch.tensor([H, W])[:, None, None] / min(H, W)
    r2 = SMALL**2 / (1 - u[:1] * (1 - (SMALL / LARGE)**2))                      # no power, no root: exact to the bit
    return torch.cat([r2, u[1:3] * (size + 2 * LARGE) - LARGE, u[3:]])


def render(index: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pictures `index` (B,) as uint8 (B, C, H, W): occluding discs of one colour each, grey or RGB.

    The scene is a function of the index alone; the shape says how finely it is seen (Sohl-Dickstein et al. 2015, 3.2).
    """
    C, H, W = shape
    r2, y, x, *colours = discs(index, H, W)                                     # each DISCS B
    far = [(c - side / min(H, W) / 2).abs() - side / min(H, W) / 2 for c, side in ((y, H), (x, W))]
    seen = far[0].clamp(min=0).square() + far[1].clamp(min=0).square() <= r2
    seen[0] = True
    seen, order = seen.sort(dim=0, descending=True, stable=True)
    order = order[:seen.sum(0).max()]                                           # those that miss all pictures are left
    r2, y, x, *colours = (d.gather(0, order) for d in (r2, y, x, *colours[:C]))

    dy, dx = (((torch.arange(n) + 0.5) / min(H, W) - c[..., None]).square() for c, n in ((y, H), (x, W)))
    reach, dx = (r2[..., None] - dy)[..., None], dx[:, :, None]                 # D B H 1, D B 1 W
    top, covered = torch.zeros(2, len(index), H, W)
    for k in range(1, len(order)):                                              # each over all before
        torch.le(dx[k], reach[k], out=covered)
        torch.maximum(top, covered.mul_(k), out=top)
    top = top.long().flatten(1).T
    return torch.stack([(c * 256).byte().gather(0, top).T.view(-1, H, W) for c in colours], dim=1)


@dataclass(frozen=True)
class DeadLeaves:
    """Dead leaves without end; indexes like the tensor they would make, and picture i depends on i alone."""
    shape: tuple[int, int, int]

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, indices: Sequence[int]) -> Tensor:
        few = max(1, 2**15 // math.prod(self.shape[1:]))                        # at once: what the cache can hold
        return torch.cat([render(part, self.shape) for part in torch.as_tensor(indices).split(few)])


def load(name: str, size: tuple[int, int] | None) -> Data:
    """The data set dead-leaves, RGB, or dead-leaves-grey, at this (H, W); what `data.load` calls."""
    shape = (1 if name.endswith("grey") else 3, *(size or (32, 32)))
    return Data(name, DeadLeaves(shape), None, (), shape)
