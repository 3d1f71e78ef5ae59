r"""The student: the network that answers at once what its teacher takes several evaluations for, and how it learns.

.. math:: x' = x + F(x / s, pa, pa', g), \qquad
          \text{loss} = E\,\frac{\lVert x' - x^* \rVert_2^2}{s^2} + 0.1\,\frac{\lVert x' - x^* \rVert_1}{s}

F is the network of the velocity (see ``network``) at t = 0, where its preconditioning reads v = -x - F(x / s): the student is
-v, a perturbation of the identity. :math:`x^*` is the teacher's counterfactual. A third of the pairs is shown backwards, from
the teacher's counterfactual to the factual image: what is done can then be undone, and those targets are real images.

All randomness is drawn for all processes together; see :func:`cfaug.decode.processes.uniform`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from cfaug.config import DecoderConfig
from cfaug.decode.network import VelocityNet
from cfaug.decode.processes import join, own_device, uniform
from cfaug.decode.semantic import SemanticEncoder
from cfaug.decode.space import Space
from cfaug.decode.training import FitReport, autocast, budget_seconds, optimise
from cfaug.decode.views import views_of

_BACKWARDS = 1 / 3  # of the pairs


@dataclass(frozen=True)
class Pairs:
    """What a teacher has shown: K counterfactuals of each of N images, K N rows, the images in the same order K times.

    Attributes:
        images: factual, uint8 (N, C, H, W).
        made: counterfactual, uint8 (K N, C, H, W).
        factual: encoded attributes, shape (K N, D).
        counterfactual: likewise.
        teacher: its digest.
    """

    images: torch.Tensor
    made: torch.Tensor
    factual: torch.Tensor
    counterfactual: torch.Tensor
    teacher: str

    @property
    def digest(self) -> str:
        """sha256 (hex) over everything."""
        content = hashlib.sha256(self.teacher.encode())
        for tensor in (self.images, self.made, self.factual, self.counterfactual):
            content.update(tensor.contiguous().numpy().data)
        return content.hexdigest()


class Student(nn.Module):
    """x' from (x, pa, pa', g).

    Args:
        net: for twice the condition's width.
        encoder: the teacher's semantic encoder, which is not trained any more, or None.
    """

    def __init__(self, net: VelocityNet, encoder: SemanticEncoder | None) -> None:
        super().__init__()
        self.net = net
        self.encoder = encoder.requires_grad_(False) if encoder is not None else None

    def guide(self, x: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        """The structure map (B, S, H, W) and the semantic latent of x, shape (B, S + K, H, W)."""
        return structure if self.encoder is None else torch.cat([structure, self.encoder(x)], dim=1)

    def forward(
        self, x: torch.Tensor, guide: torch.Tensor, factual: torch.Tensor, counterfactual: torch.Tensor
    ) -> torch.Tensor:
        """(B, C, H, W), (B, G, H, W), (B, D), (B, D) -> (B, C, H, W), float32."""
        condition = torch.cat([factual, counterfactual], dim=1)
        velocity: torch.Tensor = self.net(x, x.new_zeros(len(x)), condition, guide)
        return -velocity.float()


def train_student(
    student: Student,
    pairs: Pairs,
    space: Space,
    cells: torch.Tensor,
    config: DecoderConfig,
    *,
    seed: int,
    progress: bool = True,
    checkpoint: Path | None = None,
    score: Callable[[nn.Module], float] | None = None,
) -> FitReport:
    """Train ``student`` in place; its scale is set here.

    Args:
        student: the network.
        pairs: the K N pairs.
        space: that the network works in.
        cells: shape (K N,), number of images with the same factual attributes.
        config: budget, batch size, learning rate, structure map, device.
        seed: of the batches.
        progress: whether to show a bar.
        checkpoint: directory to resume from, see :func:`cfaug.decode.training.optimise`.
        score: of the averaged student, higher is better, for early stopping.

    Raises:
        CfaugError: the loss is not finite, or the memory does not suffice.
    """
    join(config.device)
    device, sources = own_device(config.device), len(pairs.images)
    net, whole = student.net, torch.cat([pairs.images, pairs.made])
    views = views_of(whole, space, net.multiple, config)
    some = torch.arange(0, sources, max(1, sources // 1000))  # enough for one number
    net.scale.copy_(views(some)[0].std().clamp_min(1e-3))
    scale = net.scale.item()

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        back = uniform((len(batch),), generator) < _BACKWARDS
        factual, made = batch % sources, sources + batch
        x, structure = (part.to(device) for part in views(torch.where(back, made, factual)))
        target = views(torch.where(back, factual, made))[0].to(device)
        first, second = pairs.factual[batch], pairs.counterfactual[batch]
        first, second = torch.where(back[:, None], second, first), torch.where(back[:, None], first, second)
        with autocast(config):
            found = module(x, student.guide(x, structure), first.to(device), second.to(device))
        error = (found.float() - target) / scale
        total: torch.Tensor = (error**2).mean() + 0.1 * error.abs().mean()
        return total

    seconds = config.seconds or (None if config.max_steps else budget_seconds(sources))
    return optimise(
        student,
        loss,
        cells.pow(-config.cell_power),
        dataclasses.replace(config, seconds=seconds),
        seed,
        score=score,
        checkpoint=checkpoint,
        identity=pairs.digest if checkpoint else "",
        progress=progress,
        what="distilled decoder",
    )
