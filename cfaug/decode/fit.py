"""Training the velocity network: conditional flow matching with rare attribute combinations weighted up.

    loss = E || v(x_t, t, pa, s) - (n - x) ||^2,   x_t = (1 - t) x + t n,   t ~ logit-normal (Esser et al., 2024)

Images are drawn with weight count(cell) ** -cell_power, attribute blocks are hidden independently (a hidden block is
"unknown", which partial labels and decoupled guidance need). The loop around it is :func:`cfaug.decode.training.optimise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cfaug.config import DecoderConfig
from cfaug.decode.network import VelocityNet
from cfaug.decode.processes import join, normal, own_device, uniform
from cfaug.decode.structure import structure_map
from cfaug.decode.training import FitReport, Loss, autocast, optimise

__all__ = ["FitReport", "train_velocity"]


def train_velocity(
    net: VelocityNet,
    images: torch.Tensor,
    condition: torch.Tensor,
    cells: torch.Tensor,
    config: DecoderConfig,
    blocks: list[torch.Tensor],
    seed: int,
    progress: bool = True,
    *,
    checkpoint: Path | None = None,
    score: Callable[[nn.Module], float] | None = None,
    extra_loss: Loss | None = None,
) -> FitReport:
    """Train ``net`` in place and leave it with its averaged weights, in evaluation mode.

    Args:
        net: v(x, t, condition, structure).
        images: shape (N, C, H, W), uint8.
        condition: shape (N, D), encoded parents and presence flags.
        cells: shape (N,), number of images with the same attributes.
        config: budget (``max_steps`` or ``seconds``), batch size, learning rate.
        blocks: for each parent its columns of ``condition``.
        seed: of batches, times and noise.
        checkpoint: directory to resume from, see :func:`cfaug.decode.training.optimise`.
        score: of the averaged network, higher is better, for early stopping.
        extra_loss: added to the flow-matching loss, on the same rows.

    Raises:
        CfaugError: the loss is not finite; the message says at which step.
    """
    join(config.device)
    device = own_device(config.device)
    height, width = images.shape[2:]
    padding = (0, -width % net.multiple, 0, -height % net.multiple)

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        value = _loss(module, images[batch], condition[batch], config, blocks, padding, device, generator)
        return value if extra_loss is None else value + extra_loss(module, batch, generator)

    return optimise(
        net,
        loss,
        cells.pow(-config.cell_power),
        config,
        seed,
        score=score,
        checkpoint=checkpoint,
        identity=_identity(images, condition) if checkpoint else "",
        progress=progress,
    )


def _loss(
    net: nn.Module,
    images: torch.Tensor,
    condition: torch.Tensor,
    config: DecoderConfig,
    blocks: list[torch.Tensor],
    padding: tuple[int, int, int, int],
    device: torch.device,
    generator: torch.Generator,
) -> torch.Tensor:
    x = F.pad(images.float() / 127.5 - 1, padding, mode="replicate")
    structure = structure_map(x, config.structure)
    noise = normal(x.shape, generator)
    t = torch.sigmoid(normal((len(x),), generator))
    for block in blocks:
        hidden = uniform((len(x),), generator) < config.drop_attribute
        condition[hidden[:, None] & torch.isin(torch.arange(condition.shape[1]), block)[None]] = 0
    x, noise, t = x.to(device), noise.to(device), t.to(device)
    at = t.view(-1, 1, 1, 1)
    with autocast(config):
        velocity = net((1 - at) * x + at * noise, t, condition.to(device), structure.to(device))
    return F.mse_loss(velocity.float(), noise - x)


def _identity(images: torch.Tensor, condition: torch.Tensor) -> str:
    content = hashlib.sha256()
    for tensor in (images, condition):
        content.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
        content.update(tensor.contiguous().numpy().data)
    return content.hexdigest()
