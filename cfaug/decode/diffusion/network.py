r"""The velocity network: a diffusers U-Net on space-to-depth pixels, with a head that the attributes colour pixel by pixel.

Flow matching (Lipman et al., 2023, arXiv 2210.02747; Liu et al., 2023, arXiv 2209.03003) in the form

.. math:: x_t = (1 - t) x + t n, \qquad v(x_t, t) = E[n - x \mid x_t],

t = 0 the image, t = 1 the noise n ~ N(0, I). As in EDM (Karras et al., 2022, arXiv 2206.00364) the network does not have to
learn what a linear map knows: with data of standard deviation s and :math:`w_t = (1 - t)^2 s^2 + t^2`,

.. math:: v = \frac{t - (1 - t) s^2}{w_t} x_t - \frac{s}{\sqrt{w_t}} F(x_t / \sqrt{w_t}, t, pa),

F has targets of unit variance at every t, and v(x, 0) = -x exactly when F vanishes there, as it must (n is independent of x).

Space-to-depth folds p x p pixels into channels: on a CPU this is the difference between 85 and 560 training images a second
at 32 px. What it costs is pixel precision, and the head gives it back: features of the unfolded input stand beside the
U-Net's, and two 1 x 1 convolutions whose *weights* depend on attributes and time (modulated as in StyleGAN2's toRGB, Karras et
al., 2020, arXiv 1912.04958) turn both into the image. A region times a colour is one product there. Nothing here knows
what the attributes mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_FEATURES = 8  # full-resolution maps that the U-Net hands to the head
_STEM = 16  # full-resolution maps of the input itself
_HIDDEN = 16  # maps between the two modulated convolutions


class VelocityNet(nn.Module):
    """v(x_t, t, attributes, guide).

    Args:
        channels_in: of the image, or of its latents.
        condition_width: width of the encoded attributes, presence flags included.
        guide_channels: channels of what stands beside the noise (the structure map); 0 for nothing.
        patch: space-to-depth factor p.
        channels: U-Net channels, one a resolution, each a multiple of 8.
    """

    scale: torch.Tensor
    """s, the standard deviation of the data in [-1, 1] units; a buffer, saved with the weights."""

    def __init__(
        self, channels_in: int, condition_width: int, guide_channels: int, patch: int, channels: Sequence[int]
    ) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.patch = patch
        self.multiple = patch * 2 ** (len(channels) - 1)
        """Height and width of an input must be multiples of this."""
        folded = patch * patch
        self.unet = UNet2DModel(
            in_channels=(channels_in + guide_channels) * folded,
            out_channels=_FEATURES * folded,
            block_out_channels=tuple(channels),
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            layers_per_block=1,
            add_attention=False,
            norm_num_groups=8,
            class_embed_type="identity",
            resnet_time_scale_shift="scale_shift",
        )
        width = channels[0] * 4
        self.embed = nn.Sequential(nn.Linear(condition_width, width), nn.SiLU(), nn.Linear(width, width))
        self.stem = nn.Conv2d(channels_in + guide_channels, _STEM, 3, padding=1)
        self.head = _ModulatedHead(_FEATURES + _STEM, _HIDDEN, channels_in, width)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: torch.Tensor, t: torch.Tensor, condition: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """The velocity.

        Args:
            x: x_t, shape (B, C, H, W).
            t: shape (B,), in [0, 1].
            condition: shape (B, condition_width).
            guide: shape (B, guide_channels, H, W), about [-1, 1].

        Returns:
            Shape (B, C, H, W), float32.
        """
        at = t.view(-1, 1, 1, 1)
        spread = variance(at, self.scale).sqrt()
        seen = torch.cat([x / spread, guide], dim=1)
        embedded = self.embed(condition)
        maps = self.unet(F.pixel_unshuffle(seen, self.patch), t * 1000, class_labels=embedded).sample
        features = torch.cat([F.pixel_shuffle(maps, self.patch), F.silu(self.stem(seen))], dim=1)
        raw = self.head(features, embedded, t).float()
        velocity: torch.Tensor = (at - (1 - at) * self.scale**2) / spread**2 * x - self.scale / spread * raw
        return velocity


def variance(t: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """w_t, the variance of x_t for data of standard deviation ``scale``."""
    return (1 - t) ** 2 * scale**2 + t**2


class _ModulatedHead(nn.Module):
    """Two 1 x 1 convolutions whose weights are a function of the embedded attributes and the time."""

    def __init__(self, features: int, hidden: int, out: int, width: int) -> None:
        super().__init__()
        self.shapes = (features, hidden, out)
        self.sizes = [hidden * features, hidden, out * hidden, out]
        self.time = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, width))
        last = nn.Linear(width, sum(self.sizes))
        self.weights = nn.Sequential(nn.SiLU(), last)
        nn.init.normal_(last.weight, std=0.02)  # at first hardly modulated: the usual random convolution is the bias
        with torch.no_grad():
            for part, fan_in in zip(torch.split(last.bias, self.sizes), (features, 0, hidden, 0), strict=True):
                part.copy_(torch.randn(len(part)) / fan_in**0.5 if fan_in else torch.zeros(len(part)))

    def forward(self, features: torch.Tensor, embedded: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """(B, features, H, W), (B, width), (B,) -> (B, out, H, W)."""
        height, width = features.shape[2:]
        into, hidden, out = self.shapes
        weights = self.weights(embedded + self.time(t[:, None])).to(features.dtype)
        first, shift, second, offset = weights.split(self.sizes, dim=1)
        maps = torch.baddbmm(shift[:, :, None], first.view(-1, hidden, into), features.flatten(2))
        image = torch.baddbmm(offset[:, :, None], second.view(-1, out, hidden), F.silu(maps))
        return image.view(-1, out, height, width)
