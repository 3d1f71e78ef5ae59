"""RandomCounterfactual: a torchvision-style transform that swaps a known image for a counterfactual of itself.

It needs no key and no change to the dataset: the input is looked up by the digest of its decoded pixels
(``cfaug.data.pixel_digest``), so it must come first in the Compose, before anything that touches a pixel. An image it
does not know passes through and is counted. A transform has neither epoch nor index: it draws from torch's default
generator, as torchvision's do. Not promised: reproducibility across worker counts; that is CounterfactualDataset's.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cfaug.data.datasets import pixel_digest
from cfaug.errors import UsageError
from cfaug.learn.mixing import _like, as_pixels, open_training_shards
from cfaug.offline.shards import ShardReader

log = logging.getLogger(__name__)

WARN_AFTER = 100  # images seen without one match before the warning: a first batch may well be of another split


class RandomCounterfactual(nn.Module):
    """With probability ``p``, replace an image by one of its counterfactuals (null interventions are never drawn).

    PIL image in, PIL image of the same mode out; uint8 tensor (C, H, W) in, the same out. ``shards``: OUT, OUT/shards
    or a ShardReader. ``seen`` and ``matched`` count images in this process (a DataLoader worker counts for itself).
    Raises UsageError for p outside [0, 1] and for float images, DataError for samples outside the train split.
    """

    def __init__(self, shards: str | Path | ShardReader, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p <= 1.0:
            raise UsageError(f"p: expected a probability from 0 to 1, came {p}")
        self.p = float(p)
        self.reader = open_training_shards(shards)
        self._rows: dict[str, list[int]] = {}
        for number, row in enumerate(self.reader.index):
            if not row.null:
                self._rows.setdefault(row.source_digest, []).append(number)
        self.seen = 0
        self.matched = 0

    def forward(self, image: Any, *rest: Any) -> Any:
        """The image or a counterfactual of it; further arguments (a target) pass through unchanged."""
        chosen = self._swap(image)
        return (chosen, *rest) if rest else chosen

    def _swap(self, image: Any) -> Any:
        # both numbers are always drawn, so an unknown image leaves the stream where a known one would
        u, v = torch.rand(2).tolist()
        rows = self._rows.get(pixel_digest(as_pixels(image)), [])
        self.seen += 1
        self.matched += bool(rows)
        if self.seen == WARN_AFTER and not self.matched:
            log.warning(
                "RandomCounterfactual knew none of the first %d images; put it first in the Compose and give it the "
                "shards of this dataset's train split (%s)", WARN_AFTER, self.reader.directory,
            )  # fmt: skip
        if not rows or u >= self.p:
            return image
        row = rows[min(int(v * len(rows)), len(rows) - 1)]
        return _like(self.reader.image(row), image, self.reader.where(row))

    def extra_repr(self) -> str:
        return f"shards={str(self.reader.directory)!r}, p={self.p}"
