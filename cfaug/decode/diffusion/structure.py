r"""Structure: the part of an image that an intervention leaves alone, given to the decoder beside the noise.

A flow that maps pixels to Gaussian noise writes the *shape* of an object along the direction from its own background
colour to its own foreground colour, because that is where the pixels differ. Read under another pair of colours the
same noise means another shape, and what remains of the old direction tells a classifier the old colours. Giving the
decoder a map of the shape that has no colour in it removes the reason to write the shape into the noise.

Two kinds, neither with a trainable part. ``gradient`` (2 channels) is the difference between neighbouring pixels, ``layout``
(3 channels) adds each pixel's contrast to the image's median colour:

.. math:: s_x = \lVert x_{i,j+1} - x_{i,j} \rVert / \max, \quad s_y = \lVert x_{i+1,j} - x_{i,j} \rVert / \max, \quad
          s_c = \lVert x_{i,j} - \operatorname{median} x \rVert / \max.

For an image of two flat layers, :math:`x = m f + (1 - m) b`, they are functions of the mask m alone: exactly free of the
colours f and b. They are *not* free of an attribute that moves edges or changes texture (thickness, land or water): use
``structure: none`` there, and look at the leak figures. Conditioning a diffusion model on a map of edges to keep the layout
follows ControlNet (Zhang et al., 2023, arXiv 2302.05543).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_FLOOR = 0.05  # of the [-1, 1] scale: below this contrast the map fades to zero instead of amplifying noise

CHANNELS = {"layout": 3, "gradient": 2, "none": 0}
"""Channels of each kind of structure map."""


def structure_map(image: torch.Tensor, kind: str) -> torch.Tensor:
    """The structure of a batch of images.

    Args:
        image: x, shape (B, C, H, W), in [-1, 1].
        kind: ``layout``, ``gradient`` or ``none``.

    Returns:
        Shape (B, CHANNELS[kind], H, W), in [-1, 1] (-1: flat).
    """
    if kind == "none":
        return image.new_empty((len(image), 0, *image.shape[2:]))
    across = F.pad(torch.linalg.vector_norm(image[..., :, 1:] - image[..., :, :-1], dim=1, keepdim=True), (0, 1))
    down = F.pad(torch.linalg.vector_norm(image[..., 1:, :] - image[..., :-1, :], dim=1, keepdim=True), (0, 0, 0, 1))
    maps = [_scaled(torch.cat([across, down], dim=1))]
    if kind == "layout":
        # the mean of both middle values: torch's median takes the lower one, which is the upper one of the mask where the
        # background is brighter than the foreground, and that would tell which of them it is (two medians: faster than a sort)
        flat = image.flatten(2)
        typical = ((flat.median(dim=2).values - (-flat).median(dim=2).values) / 2)[..., None, None]
        maps.append(_scaled(torch.linalg.vector_norm(image - typical, dim=1, keepdim=True)))
    return torch.cat(maps, dim=1)


def _scaled(size: torch.Tensor) -> torch.Tensor:
    largest = size.amax(dim=(1, 2, 3), keepdim=True).clamp_min(_FLOOR)
    return size / largest * 2 - 1
