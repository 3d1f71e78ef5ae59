"""Images without their colours, and a net that sees nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfaug.train.models import as_input


def shapes(images: Tensor) -> Tensor:
    """Images (B, C, H, W) without their colours, uint8 (B, 1, H, W): how far each pixel is along the image's own main axis of colour.

    The first principal component of an image's pixels, stretched from 0 to 255; more of every channel is brighter.
    """
    pixels = images.flatten(2).float()
    pixels = pixels - pixels.mean(2, keepdim=True)
    axis = torch.linalg.eigh((pixels @ pixels.transpose(1, 2)).double())[1][:, :, -1].float()
    axis = axis * torch.where(axis.sum(1, keepdim=True) < 0, -1.0, 1.0)
    along = torch.einsum("bc,bcn->bn", axis, pixels)
    low, high = along.amin(1, keepdim=True), along.amax(1, keepdim=True)
    stretched = (along - low) / (high - low).clamp(min=1e-6)
    return (255 * stretched).round().to(torch.uint8).reshape(-1, 1, *images.shape[2:])


class ShapeNet(nn.Module):
    """A net that is given the shapes of images alone."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        said: Tensor = self.net(as_input(shapes(images)))
        return said

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, D)."""
        found: Tensor = self.net.embed(as_input(shapes(images)))  # type: ignore[operator]
        return found


def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images as their negatives: whether a shape is darker than its ground says nothing."""
    return torch.where(torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5, 255 - images, images)
