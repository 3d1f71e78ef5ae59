r"""A learned latent beside the noise: what an image looks like, as far as its attributes do not tell.

.. math:: z = \tanh E(x) + 0.1\,\epsilon, \qquad \min_{E} \max_{R}\; \text{flow loss}(z) + \lambda \log R(a \mid z, y)

E is a small convolutional encoder, one vector a patch of pixels; R tries to read every attribute a other than the target y
from z *and* y, and E is trained against it through a gradient reversal (Ganin & Lempitsky, 2015, arXiv 1409.7495): z may know
what y tells about a, nothing more. A semantic latent beside inverted noise is Preechakul et al. (2022, arXiv 2111.15640) and,
for counterfactuals, Rasal et al. (2025).

Not promised: that an adversary which loses has nothing left to find. ``cfaug evaluate`` asks a fresh probe.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

JITTER = 0.1  # of z in training: information below this amplitude cannot hide there
ADVERSARY = 0.3  # lambda: below 0.1 nothing is removed, above 1 z falls silent (benchmarks/decoder.py compares designs)


class SemanticEncoder(nn.Module):
    """z, shape (B, K, H, W), in [-1, 1], constant over each patch.

    Args:
        channels_in: of the image, or of its latents.
        width: K.
        patch: side of the square that shares one vector.
    """

    def __init__(self, channels_in: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.width = width
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in * patch**2, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, width, 1),
            nn.Tanh(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x, shape (B, C, H, W), H and W multiples of the patch."""
        z: torch.Tensor = self.layers(F.pixel_unshuffle(x, self.patch)).float()
        return z.repeat_interleave(self.patch, dim=2).repeat_interleave(self.patch, dim=3)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(context: object, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(context: object, *gradients: torch.Tensor) -> torch.Tensor:
        return -ADVERSARY * gradients[0]


class Adversary(nn.Module):
    """R: reads the encoded attributes from z and the target, behind a gradient reversal.

    Args:
        width: K.
        condition_width: width of the whole condition.
        known: columns of the condition that belong to the target; given to R, not asked of it.
        asked: for each other attribute its columns, the presence flag last.
    """

    def __init__(self, width: int, condition_width: int, known: torch.Tensor, asked: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.known = known.tolist()
        self.asked = [block.tolist() for block in asked]
        self.maps = nn.Sequential(
            nn.Conv2d(width, 64, 3, padding=1), nn.SiLU(), nn.Conv2d(64, 64, 3, padding=1), nn.SiLU()
        )
        self.read = nn.Sequential(nn.Linear(128 + len(self.known), 128), nn.SiLU(), nn.Linear(128, condition_width))

    def forward(self, z: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """The mean loss of R over the attributes asked, of z (B, K, H, W) and the true condition (B, D)."""
        maps = self.maps(_Reversed.apply(z))
        pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3)), condition[:, self.known]], dim=1)
        read = self.read(pooled).float()
        losses = []
        for *columns, flag in self.asked:
            truth, present = condition[:, columns], condition[:, flag]
            if len(columns) > 1:
                each = F.cross_entropy(read[:, columns], truth, reduction="none")
            else:
                each = F.mse_loss(read[:, columns], truth, reduction="none").mean(1)
            losses.append((each * present).mean())
        return torch.stack(losses).mean() if losses else z.new_zeros(())
