r"""Training the velocity network: conditional flow matching with rare attribute combinations weighted up.

.. math:: \text{loss} = E\,\frac{w_t}{s^2} \lVert v(x_t, t, pa, g) - (n - x) \rVert^2, \quad x_t = (1 - t) x + t n,

t logit-normal (Esser et al., 2024, arXiv 2403.03206), with :math:`w_t / s^2` the weight that gives every t the same say (see
``network``). A quarter of the rows is shown t = 1 with no noise at all, n = 0: there v is minus the expected image, which is
where a reversible solver ends when it abducts an image that the attributes explain completely.

Images are drawn with weight count(cell) ** -cell_power, attribute blocks are hidden independently (a hidden block is
"unknown", which partial labels and decoupled guidance need). The loop around it is :func:`cfaug.decode.training.optimise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from cfaug.config import DecoderConfig
from cfaug.decode.condition import Condition
from cfaug.decode.network import VelocityNet, variance
from cfaug.decode.processes import join, normal, own_device, uniform
from cfaug.decode.semantic import JITTER, Adversary, SemanticEncoder
from cfaug.decode.structure import CHANNELS
from cfaug.decode.training import FitReport, autocast, optimise

__all__ = ["FitReport", "FlowLoss", "Learner", "Views", "build_learner", "train_velocity"]

_MEAN_SHARE = 0.25  # of the rows: t = 1 without noise


class Views(Protocol):
    """The training images as the network sees them."""

    def __len__(self) -> int: ...

    def __call__(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows (B,) -> x, shape (B, C, H, W), and its structure map, shape (B, S, H, W); both padded."""
        ...


class Learner(nn.Module):
    """The network and, with a semantic latent, its encoder and the adversary: what is trained as one."""

    def __init__(self, net: VelocityNet, encoder: SemanticEncoder | None, adversary: Adversary | None) -> None:
        super().__init__()
        self.net = net
        self.encoder = encoder
        self.adversary = adversary

    def forward(
        self,
        noisy: tuple[torch.Tensor, torch.Tensor],
        clean: torch.Tensor,
        shown: torch.Tensor,
        true: torch.Tensor,
        structure: torch.Tensor,
        jitter: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(velocity, loss of the adversary).

        Args:
            noisy: x_t, shape (B, C, H, W), and t, shape (B,).
            clean: x.
            shown: the condition with hidden blocks, shape (B, D).
            true: the condition as it is.
            structure: shape (B, S, H, W).
            jitter: standard normal, shape (B, K, H, W).
        """
        guide, penalty = structure, clean.new_zeros(())
        if self.encoder is not None and self.adversary is not None:
            z = self.encoder(clean) + JITTER * jitter
            penalty = self.adversary(z, true)
            guide = torch.cat([structure, z], dim=1)
        return self.net(*noisy, shown, guide), penalty


def build_learner(config: DecoderConfig, condition: Condition, channels_in: int, seed: int) -> Learner:
    """New networks on ``config.device``, the same for the same seed.

    Args:
        config: ``patch`` set; structure, semantic, channels.
        condition: the encoding of the image's parents; of the target, it tells the adversary what it may know.
        channels_in: of the image, or of its latents.
        seed: of the weights.
    """
    patch, target = config.patch or 1, condition.schema.target
    blocks = dict(zip(condition.parents, condition.blocks(), strict=True))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guide = CHANNELS[config.structure] + config.semantic
        net = VelocityNet(channels_in, condition.width, guide, patch, config.channels)
        encoder = adversary = None
        if config.semantic:
            encoder = SemanticEncoder(channels_in, config.semantic, patch)
            known = (
                blocks.pop(target, torch.zeros(0, dtype=torch.int64)) if target else torch.zeros(0, dtype=torch.int64)
            )
            adversary = Adversary(config.semantic, condition.width, known, list(blocks.values()))
    learner = Learner(net, encoder, adversary).to(config.device)
    if torch.device(config.device).type == "cuda":  # on a CPU the same layout costs a fifth of the speed
        learner = learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner.eval()


class FlowLoss:
    """The loss of :func:`cfaug.decode.training.optimise`.

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
        self.encoder = learner.encoder
        columns = torch.arange(condition.shape[1])
        self.blocks = [torch.isin(columns, block)[None] for block in blocks]
        self.device = own_device(config.device)

    def __call__(self, module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x, structure = self.views(batch)
        true = self.condition[batch]
        shown = true.clone()
        noise = normal(x.shape, generator)
        t = torch.sigmoid(normal((len(x),), generator))
        mean = uniform((len(x),), generator) < _MEAN_SHARE
        t, noise = torch.where(mean, 1.0, t), noise * ~mean.view(-1, 1, 1, 1)
        for block in self.blocks:
            hidden = uniform((len(x),), generator) < self.config.drop_attribute
            shown[hidden[:, None] & block] = 0
        jitter = self._jitter(x, generator)
        x, noise, t, shown, true = (each.to(self.device) for each in (x, noise, t, shown, true))
        at = t.view(-1, 1, 1, 1)
        with autocast(self.config):
            noisy = ((1 - at) * x + at * noise, t)
            velocity, penalty = module(noisy, x, shown, true, structure.to(self.device), jitter.to(self.device))
        weight = variance(at, self.scale) / self.scale**2
        flow: torch.Tensor = (weight * (velocity.float() - (noise - x)) ** 2).mean() + penalty
        return flow

    def _jitter(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Standard normal, one vector a patch, shape (B, K, H, W); K is 0 without a semantic latent."""
        if self.encoder is None:
            return x.new_zeros(len(x), 0, *x.shape[2:])
        patch = self.encoder.patch
        small = normal((len(x), self.encoder.width, x.shape[2] // patch, x.shape[3] // patch), generator)
        return small.repeat_interleave(patch, dim=2).repeat_interleave(patch, dim=3)


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
        checkpoint: directory to resume from, see :func:`cfaug.decode.training.optimise`.
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
