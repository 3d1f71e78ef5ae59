r"""Training the velocity network: conditional flow matching with rare attribute combinations weighted up.

.. math:: \text{loss} = E\,\frac{w_t}{s^2} \lVert v(x_t, t, pa, g) - (n - x) \rVert^2, \quad x_t = (1 - t) x + t n,

t logit-normal (Esser et al., 2024, arXiv 2403.03206), with :math:`w_t / s^2` the weight that gives every t the same say (see
``network``). A quarter of the rows is shown t = 1 with no noise at all, n = 0: there v is minus the expected image, which is
where a reversible solver ends when it abducts an image that the attributes explain completely.

Images are drawn with weight count(cell) ** -cell_power, attribute blocks are hidden independently (a hidden block is
"unknown", which partial labels and decoupled guidance need). The loop around it is :func:`cfaug.decode.diffusion.training.optimise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from cfaug.config import DecoderConfig
from cfaug.decode.diffusion.condition import Condition
from cfaug.decode.diffusion.distributed import join, normal, own_device, uniform
from cfaug.decode.diffusion.network import VelocityNet, variance
from cfaug.decode.diffusion.structure import CHANNELS
from cfaug.decode.diffusion.training import FitReport, autocast, optimise

__all__ = ["FitReport", "FlowLoss", "Learner", "Views", "build_learner", "train_velocity"]

_MEAN_SHARE = 0.25  # of the rows: t = 1 without noise


class Views(Protocol):
    """The training images as the network sees them."""

    def __len__(self) -> int: ...

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B,) -> x, shape (B, C, H, W), and its structure map, shape (B, S, H, W); both padded."""
        ...


class Learner(nn.Module):
    """The network as it is trained."""

    def __init__(self, net: VelocityNet) -> None:
        super().__init__()
        self.net = net

    def forward(
        self,
        noisy: tuple[torch.Tensor, torch.Tensor],
        shown: torch.Tensor,
        structure: torch.Tensor,
    ) -> torch.Tensor:
        """The velocity, shape (B, C, H, W).

        Args:
            noisy: x_t, shape (B, C, H, W), and t, shape (B,).
            shown: the condition with hidden blocks, shape (B, D).
            structure: shape (B, S, H, W).
        """
        velocity: torch.Tensor = self.net(*noisy, shown, structure)
        return velocity


def build_learner(config: DecoderConfig, condition: Condition, channels_in: int, seed: int) -> Learner:
    """New networks on ``config.device``, the same for the same seed.

    Args:
        config: ``patch`` set; structure, channels.
        condition: the encoding of the image's parents.
        channels_in: of the image, or of its latents.
        seed: of the weights.
    """
    patch = config.patch or 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = VelocityNet(channels_in, condition.width, CHANNELS[config.structure], patch, config.channels)
    learner = Learner(net).to(config.device)
    if torch.device(config.device).type == "cuda":  # on a CPU the same layout costs a fifth of the speed
        learner = learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner.eval()


class FlowLoss:
    """The loss of :func:`cfaug.decode.diffusion.training.optimise`.

    Args:
        learner: only its sizes and its scale are read here; what is trained comes with every call.
        views: N training images.
        condition: shape (N, D), encoded parents and presence flags.
        config: share of hidden blocks, device, arithmetic.
        blocks: for each parent its columns of ``condition``.
    """

    def __init__(
        self,
        learner: Learner,
        views: Views,
        condition: torch.Tensor,
        config: DecoderConfig,
        blocks: Sequence[torch.Tensor],
    ) -> None:
        self.views, self.condition, self.config = views, condition, config
        self.scale = learner.net.scale
        columns = torch.arange(condition.shape[1])
        self.blocks = [torch.isin(columns, block)[None] for block in blocks]
        self.device = own_device(config.device)

    def __call__(self, module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, structure = self.views(batch)
        shown = self.condition[batch].clone()
        noise = normal(x.shape, generator)
        t = torch.sigmoid(normal((len(x),), generator))
        mean = uniform((len(x),), generator) < _MEAN_SHARE
        t, noise = torch.where(mean, 1.0, t), noise * ~mean.view(-1, 1, 1, 1)
        for block in self.blocks:
            hidden = uniform((len(x),), generator) < self.config.drop_attribute
            shown[hidden[:, None] & block] = 0
        x, noise, t, shown = (each.to(self.device) for each in (x, noise, t, shown))
        at = t.view(-1, 1, 1, 1)
        with autocast(self.config):
            noisy = ((1 - at) * x + at * noise, t)
            velocity = module(noisy, shown, structure.to(self.device))
        weight = variance(at, self.scale) / self.scale**2
        flow: torch.Tensor = (weight * (velocity.float() - (noise - x)) ** 2).mean()
        return flow


def train_velocity(
    learner: Learner,
    views: Views,
    condition: torch.Tensor,
    cells: torch.Tensor,
    config: DecoderConfig,
    blocks: Sequence[torch.Tensor],
    seed: int,
    progress: bool = True,
    *,
    checkpoint: Path | None = None,
    score: Callable[[Learner], float] | None = None,
) -> FitReport:
    """Train ``learner`` in place and leave it with its averaged weights, in evaluation mode.

    Args:
        learner: v(x, t, condition, guide) and what belongs to it; its scale is set here.
        views: N training images.
        condition: shape (N, D), encoded parents and presence flags.
        cells: shape (N,), number of images with the same attributes.
        config: budget (``max_steps`` or ``seconds``), batch size, learning rate.
        blocks: for each parent its columns of ``condition``.
        seed: of batches, times and noise.
        progress: whether to show a bar.
        checkpoint: directory to resume from, see :func:`cfaug.decode.diffusion.training.optimise`.
        score: of the averaged learner, higher is better, for early stopping.

    Raises:
        CfaugError: the loss is not finite; the message says at which step.
    """
    join(config.device)
    some = torch.arange(0, len(views), max(1, len(views) // 1000))  # enough for one number
    learner.net.scale.copy_(views(some)[0].std().clamp_min(1e-3))
    return optimise(
        learner,
        FlowLoss(learner, views, condition, config, blocks),
        cells.pow(-config.cell_power),
        config,
        seed,
        score=score,  # type: ignore[arg-type]
        checkpoint=checkpoint,
        identity=_identity(views, condition) if checkpoint else "",
        progress=progress,
    )


def _identity(views: Views, condition: torch.Tensor) -> str:
    """A digest of the data, every image included."""
    content = hashlib.sha256(str(tuple(condition.shape)).encode())
    content.update(condition.contiguous().numpy().data)
    for rows in torch.split(torch.arange(len(views)), 512):
        content.update(views(rows)[0].contiguous().numpy().data)
    return content.hexdigest()
