"""LISA: mixup of images that share the label or share the spurious attribute, never of any two.

    x~ = lambda x_i + (1 - lambda) x_j,    t~ = lambda e_{y_i} + (1 - lambda) e_{y_j},    lambda ~ Beta(alpha, alpha)

with probability p_sel a partner of the same label and a different attribute (what differs is then noise to the label), else
one of the same attribute and a different label. Yao, Wang, Li, Zhang, Liang, Zou & Finn 2022, Improving Out-of-Distribution
Robustness via Selective Augmentation, algorithm 1, https://arxiv.org/abs/2201.00299.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cfaug.train.objectives.checks import as_codes, as_columns, as_floats, as_targets


def lisa_mix(
    images: Tensor,
    targets: Tensor,
    attributes: Tensor,
    classes: int,
    alpha: float = 2.0,
    p_sel: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """A mixed batch: images of the given shape and dtype, and soft targets (B, classes) of the images' dtype.

    Args:
        images: float, shape (B, ...).
        targets: whole numbers below ``classes``, shape (B,).
        attributes: codes of the SPURIOUS ATTRIBUTE, shape (B,), or (B, A) for several, where "same" means the same in all of them.
            Do not cross them with the target: every group would then have one label, and there would be nothing to mix within
            it. -1 is unknown: that image is not mixed and is nobody's partner.
        classes: the number of classes.
        alpha: parameter of the Beta distribution, above 0; one share is drawn per sample.
        p_sel: probability of mixing within a label; one coin is tossed per batch.
        generator: a generator on the CPU that draws everything; None: torch's own.

    The partner is drawn evenly from the batch; an image without a possible partner stays as it is. Train with
    ``erm_loss(logits, soft targets)``. Raises UsageError where shapes or dtypes do not fit.
    """
    as_floats(images, "images", 2)
    y = as_targets(targets, len(images)).cpu()
    a = as_columns(as_codes(attributes, len(images), "attributes")).cpu()
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
