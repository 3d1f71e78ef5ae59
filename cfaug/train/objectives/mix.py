"""LISA: mixup of images that share the label or share the spurious attribute, never of any two.

    x~ = lambda x_i + (1 - lambda) x_j,    t~ = lambda e_{y_i} + (1 - lambda) e_{y_j},    lambda ~ Beta(alpha, alpha)

with probability p_sel a partner of the same label and another attribute (what differs is then noise to the label), else
one of the same attribute and another label. Yao, Wang, Li, Zhang, Liang, Zou & Finn 2022, Improving Out-of-Distribution
Robustness via Selective Augmentation, algorithm 1, https://arxiv.org/abs/2201.00299.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cfaug.errors import UsageError
from cfaug.train.objectives.checks import (
    as_codes,
    as_columns,
    as_number,
    as_probability,
    as_targets,
    as_whole,
    is_float,
    kind,
    shown,
)


def lisa_mix(
    images: Tensor,
    targets: Tensor,
    attributes: Tensor,
    classes: int,
    alpha: float = 2.0,
    p_sel: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A mixed batch: images of the shape and dtype that came, and soft targets (B, classes) of the images' dtype.

    images (B, ...) float; targets (B,) integer; attributes (B,) integer codes of the SPURIOUS ATTRIBUTE (not crossed with
    the target: then a group had one label, and there were nothing to mix in it), or (B, A) for several, where "same" is
    the same in all of them. -1, not known: the image is not mixed and partners nobody. alpha > 0; p_sel in [0, 1] is the
    probability of intra-label mixing, one coin a batch; one lambda a sample. The partner is drawn evenly from
    the batch; an image without a possible partner stays as it is. ``generator`` (CPU) draws everything; None: torch's own.
    Needs attributes of the training images in every step, and ``soft_target_loss``.
    """
    if not is_float(images) or images.ndim < 2 or not len(images):
        raise UsageError(
            f"images: expected float (B, ...), B > 0, came {kind(images)}; stack them into one float tensor"
        )
    classes = as_whole("classes", classes, 1, "pass the number of classes of the data")
    y = as_targets(targets, len(images), classes).cpu()
    a = as_columns(as_codes(attributes, len(images), "attributes")).cpu()
    alpha = as_number("alpha", alpha, 0.0, "the paper uses 2", above=True)
    p_sel = as_probability("p_sel", p_sel, "it is the share of batches that are mixed within a label")
    if generator is not None and (not isinstance(generator, torch.Generator) or generator.device.type != "cpu"):
        raise UsageError(
            f"generator: expected a torch.Generator on the CPU, came {shown(generator)}; pass torch.Generator()"
        )
    known = (a >= 0).all(dim=1)
    same_label = y[:, None] == y[None]
    same_attribute = (a[:, None] == a[None]).all(dim=2)
    if float(torch.rand((), generator=generator)) < p_sel:
        fits = same_label & ~same_attribute
    else:
        fits = ~same_label & same_attribute
    fits &= known[:, None] & known[None]
    seed = int(torch.randint(2**62, (), generator=generator))
    # torch's Beta takes no generator; numpy's is seeded from ours
    share = torch.from_numpy(np.random.default_rng(seed).beta(alpha, alpha, len(images)))
    alone = ~fits.any(dim=1)
    fits[alone, alone.nonzero()[:, 0]] = True
    partner = torch.multinomial(fits.double(), 1, generator=generator)[:, 0]
    share = share.to(images).reshape(-1, *[1] * (images.ndim - 1))
    soft = functional.one_hot(y, classes).to(images)
    partner = partner.to(images.device)
    flat = share.reshape(-1, 1)
    # lerp is exact where both ends are equal: an image that is its own partner comes back as it was
    return torch.lerp(images[partner], images, share), torch.lerp(soft[partner], soft, flat)
