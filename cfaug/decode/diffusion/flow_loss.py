r"""The loss of the velocity network: conditional flow matching with rare attribute combinations weighted up.

.. math:: \text{loss} = E\,\frac{w_t}{s^2} \lVert v(x_t, t, pa, g) - (n - x) \rVert^2, \quad x_t = (1 - t) x + t n,

t logit-normal (Esser et al., 2024, arXiv 2403.03206), with :math:`w_t / s^2` the weight that makes every t count the same
(see ``network``). A quarter of the rows is shown t = 1 without any noise, n = 0: there v is minus the expected image, which
is where a reversible solver ends when it abducts an image that the attributes explain completely.

Images are drawn with weight count(cell) ** -cell_power. Attribute blocks are hidden independently: a hidden block means
"unknown", which partial labels and decoupled guidance need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from cfaug.autocast import autocast
from cfaug.config import DecoderConfig
from cfaug.decode.diffusion.distributed import own_rows
from cfaug.decode.diffusion.network import VelocityNet, variance
from cfaug.decode.diffusion.training import optimise
from cfaug.decode.mechanism import FitReport

Views = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Rows (B,) of the training images -> x, shape (B, C, H, W), and its structure map, shape (B, S, H, W); both padded."""

_MEAN_SHARE = 0.25  # of the rows: t = 1 without noise


def flow_loss(
    velocity: nn.Module,
    scale: torch.Tensor,
    x: torch.Tensor,
    structure: torch.Tensor,
    condition: torch.Tensor,
    blocks: Sequence[torch.Tensor],
    config: DecoderConfig,
    generator: torch.Generator,
) -> torch.Tensor:
    """The loss of one batch.

    Args:
        velocity: v(x_t, t, condition, structure); called once.
        scale: s, the standard deviation of the data.
        x: images, shape (B, C, H, W).
        structure: their structure maps, shape (B, S, H, W).
        condition: shape (B, D), encoded parents and presence flags.
        blocks: for each parent its columns of ``condition``.
        config: share of hidden blocks, device, arithmetic.
        generator: on the CPU.
    """
    noise = own_rows(torch.randn, x.shape, generator)
    t = torch.sigmoid(own_rows(torch.randn, (len(x),), generator))
    mean = own_rows(torch.rand, (len(x),), generator) < _MEAN_SHARE
    t, noise = torch.where(mean, 1.0, t), noise * ~mean.view(-1, 1, 1, 1)
    shown = condition.clone()
    for block in blocks:
        hidden = own_rows(torch.rand, (len(x),), generator) < config.drop_attribute
        shown[hidden.nonzero(), block] = 0
    x, noise, t, shown, structure = (each.to(config.device) for each in (x, noise, t, shown, structure))
    at = t.view(-1, 1, 1, 1)
    with autocast(config.device, config.bf16):
        said = velocity((1 - at) * x + at * noise, t, shown, structure)
    weight = variance(at, scale) / scale**2
    loss: torch.Tensor = (weight * (said.float() - (noise - x)) ** 2).mean()
    return loss


def train_velocity(
    net: VelocityNet,
    views: Views,
    condition: torch.Tensor,
    cells: torch.Tensor,
    config: DecoderConfig,
    blocks: Sequence[torch.Tensor],
    seed: int,
    progress: bool = True,
    *,
    checkpoint: Path | None = None,
    score: Callable[[], float] | None = None,
) -> FitReport:
    """Train ``net`` in place and leave it with its averaged weights, in evaluation mode.

    Args:
        net: v(x, t, condition, guide); its scale is set here.
        views: N training images.
        condition: shape (N, D), encoded parents and presence flags.
        cells: shape (N,), number of images with the same attributes.
        config: budget (``max_steps`` or ``seconds``), batch size, learning rate.
        blocks: for each parent its columns of ``condition``.
        seed: of batches, times and noise.
        progress: whether to show a bar.
        checkpoint: directory to resume from, see :func:`cfaug.decode.diffusion.training.optimise`.
        score: for early stopping, see there.

    Raises:
        CfaugError: the loss is not finite; the message says at which step.
    """
    some = torch.arange(0, len(condition), max(1, len(condition) // 1000))  # enough for one number
    net.scale.copy_(views(some)[0].std().clamp_min(1e-3))

    def loss(module: nn.Module, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return flow_loss(module, net.scale, *views(rows), condition[rows], blocks, config, generator)

    identity = _identity(views, condition) if checkpoint else ""
    weights = cells.pow(-config.cell_power)
    return optimise(
        net, loss, weights, config, seed, score=score, checkpoint=checkpoint, identity=identity, progress=progress
    )


def _identity(views: Views, condition: torch.Tensor) -> str:
    """A digest of the data, every image included."""
    content = hashlib.sha256(str(tuple(condition.shape)).encode())
    content.update(condition.contiguous().numpy().data)
    for rows in torch.split(torch.arange(len(condition)), 512):
        content.update(views(rows)[0].cpu().contiguous().numpy().data)
    return content.hexdigest()
