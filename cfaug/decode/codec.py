r"""A small autoencoder trained on the user's own images, for a decoder that works in latents.

.. math:: L = \lVert x - D(z) \rVert_1 + \beta \, \mathrm{KL}(q(z \mid x) \,\Vert\, N(0, I)), \quad z \sim q(z \mid x),

both terms per pixel value (Kingma & Welling, 2014, arXiv 1312.6114; the L1 form with a small beta as in Rombach et al., 2022,
arXiv 2112.10752, without their perceptual and adversarial terms: these invent detail, and a counterfactual must keep it).
It is convolutional without attention, so crops train it as well as whole images do, and faster.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from cfaug.config import DecoderConfig

if TYPE_CHECKING:
    from cfaug.decode.training import FitReport

_BETA = 1e-3  # keeps latents centred and smooth; three nats a latent then cost a hundredth of the reconstruction term
_LOG_VARIANCE = -5.0  # of the posterior at the start of training
_BATCH = 8  # small: in the same 20 s on one core, 66 steps of 8 reached an L1 of 0.10 and 39 of 32 one of 0.13
_CROP = 64  # px: larger images train on crops
_SHARE = 1 / 3  # of the decoder's own budget, in seconds or steps
_LEVELS = {2: ((32, 32), 4), 4: ((16, 32, 48), 8), 8: ((16, 32, 48, 64), 16)}
"""Factor: (U-Net channels, one a resolution; latent channels). Each keeps a third to a twelfth of the RGB numbers."""


def factor_for(side: int) -> int:
    """Image pixels a latent pixel for images of that longer side: 2 up to 48 px, 4 up to 128 px, 8 beyond."""
    return 2 if side <= 48 else 4 if side <= 128 else 8


def budget(config: DecoderConfig, images: int) -> DecoderConfig:
    """The settings of the autoencoder's own training: a third of the decoder's time or steps, on top of them."""
    from cfaug.decode import processes
    from cfaug.decode.training import budget_seconds

    seconds = None if config.max_steps and not config.seconds else (config.seconds or budget_seconds(images)) * _SHARE
    steps = config.max_steps and max(1, round(config.max_steps * _SHARE))
    world = processes.join(config.device)[1]
    batch = min(config.batch_size, max(world, _BATCH // world * world))
    # float32 on a CPU: measured there, bfloat16 trains 64 images a second where float32 trains 74
    bf16 = config.bf16 and not config.device.startswith("cpu")
    return dataclasses.replace(
        config, seconds=seconds, max_steps=steps, batch_size=batch, validate_every=None, bf16=bf16
    )


class Trainee(nn.Module):
    """An AutoencoderKL with its training pass in ``forward``, where wrappers (compilation, several processes) see it."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x in [-1, 1], (B, C, H, W), and noise ~ N(0, I), (B, c, H / f, W / f) -> (D(z), KL per pixel value, (B,))."""
        posterior = self.autoencoder.encode(x).latent_dist
        image = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
        return image, posterior.kl() / x[0].numel()


def train_autoencoder(
    images: torch.Tensor,
    config: DecoderConfig,
    seed: int = 0,
    progress: bool = True,
    checkpoint: Path | None = None,
) -> tuple[Any, FitReport]:
    """A trained AutoencoderKL and what its training did.

    Args:
        images: uint8, shape (N, C, H, W), C in {1, 3}.
        config: device, learning rate, precision, and the decoder's budget (see :func:`budget`).
        seed: of weights, batches, crops and posterior draws.
        progress: show it.
        checkpoint: directory where the training keeps its state.

    Raises:
        CfaugError: the loss is not finite.
    """
    from diffusers import AutoencoderKL

    from cfaug.decode import processes
    from cfaug.decode.training import autocast, optimise

    factor = factor_for(max(images.shape[2:]))
    channels, latent_channels = _LEVELS[factor]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        autoencoder = AutoencoderKL(
            in_channels=images.shape[1],
            out_channels=images.shape[1],
            block_out_channels=channels,
            down_block_types=("DownEncoderBlock2D",) * len(channels),
            up_block_types=("UpDecoderBlock2D",) * len(channels),
            latent_channels=latent_channels,
            norm_num_groups=8,
            scaling_factor=1.0,
            mid_block_add_attention=False,
        )
        with torch.no_grad():  # a posterior as wide as the prior would drown what the encoder cannot say yet
            autoencoder.quant_conv.bias[latent_channels:] = _LOG_VARIANCE
    settings = budget(config, len(images))
    device = processes.own_device(config.device)
    trainee = Trainee(autoencoder).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(module: nn.Module, batch: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        x = _crops(images[batch], factor, generator).float() / 127.5 - 1
        places = (len(x), latent_channels, x.shape[2] // factor, x.shape[3] // factor)
        noise = processes.normal(places, generator)
        x = x.to(device, memory_format=torch.channels_last)
        with autocast(settings):
            made, divergence = module(x, noise.to(device))
        total: torch.Tensor = F.l1_loss(made.float(), x) + _BETA * divergence.float().mean()
        return total

    report = optimise(
        trainee,
        loss,
        torch.ones(len(images), dtype=torch.float64),
        settings,
        seed,
        checkpoint=checkpoint,
        identity=hashlib.sha256(images.contiguous().numpy().data).hexdigest(),
        progress=progress,
        what="autoencoder",
    )
    return autoencoder.eval(), report


def _crops(images: torch.Tensor, factor: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops of at most ``_CROP`` px, one place for the batch, padded by replication to a multiple of ``factor``."""
    starts = [int(torch.randint(max(n - _CROP, 0) + 1, (), generator=generator)) for n in images.shape[2:]]
    top, left = starts
    crop = images[..., top : top + _CROP, left : left + _CROP]
    padding = (0, -crop.shape[-1] % factor, 0, -crop.shape[-2] % factor)
    return F.pad(crop.float(), padding, mode="replicate") if any(padding) else crop
