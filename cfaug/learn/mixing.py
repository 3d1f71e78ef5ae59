"""CounterfactualDataset: any labelled image dataset, with counterfactuals of its own images mixed in.

At index i in epoch e two numbers u, v ~ U[0, 1) are drawn from (seed, e, i) alone:

    u < p                 a counterfactual of the same source (row floor(v * how many it has))
    p <= u < p + null_p   a null intervention (reconstruction) of the same source
    else                  the real image: the real fraction is 1 - p - null_p

so worker count, batch order and restart change nothing. A source without rows of the drawn kind shows its real image.
The label always comes from the base; so does everything else a sample carries. Not promised: that the mixture helps.
That is what the null control and the counterfactuals-only control are for.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset

from cfaug.data.datasets import pixel_digest, to_pil
from cfaug.errors import DataError, UsageError
from cfaug.learn.guard import open_training_shards
from cfaug.learn.pictures import as_pixels
from cfaug.learn.sources import MixedImages
from cfaug.offline.shards import ShardReader

log = logging.getLogger(__name__)

Kind = Literal["real", "counterfactual", "null"]
CHECKED = 16  # sources whose pixels are compared with the shards' digest when matching was by key


@dataclass(frozen=True)
class Draw:
    """What stands at an index: the real image (``row`` None), or row ``row`` of the shards."""

    kind: Kind
    row: int | None = None


class _Rows:
    """For N sources, the shard rows of one kind: those of source i are rows[start[i] : start[i] + count[i]]."""

    def __init__(self, per_source: list[list[int]]) -> None:
        self.count: npt.NDArray[np.int64] = np.array([len(rows) for rows in per_source], dtype=np.int64)
        self.start: npt.NDArray[np.int64] = np.concatenate([[0], np.cumsum(self.count)[:-1]]).astype(np.int64)
        self.rows: npt.NDArray[np.int64] = np.array(
            [row for rows in per_source for row in rows] or [-1], dtype=np.int64
        )

    def pick(self, fraction: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """(N,) one row a source, -1 where it has none; fraction (N,) in [0, 1)."""
        place = self.start + (fraction * self.count).astype(np.int64)
        chosen = self.rows[np.minimum(place, len(self.rows) - 1)]
        return np.where(self.count > 0, chosen, -1)


class CounterfactualDataset(Dataset[Any]):
    """A map-style wrapper that yields what ``base`` yields, some images swapped for counterfactuals of themselves.

    ``base``: anything with ``len`` and ``base[i] -> (image, target, ...)``; ``shards``: OUT, OUT/shards or a reader.
    ``p``, ``null_p``: probabilities of a real counterfactual and of a null intervention, p + null_p <= 1.
    Sources are matched by ``key(i)`` (given here, or the base's own method), else by the digest of the base's
    untransformed pixels. ``transform``: how a PIL image becomes the image that ``base`` yields; needed only when the
    base hides its own. A base's ``transform`` is applied after the swap, as its ``target_transform`` is to the label.

    ``set_epoch(e)`` changes the draw, in persistent workers too. Raises UsageError for probabilities out of range or a
    base without length, DataError when nothing matches, when a row is not of the train split, or when the shards were
    made from other pixels.
    """

    def __init__(
        self,
        base: Any,
        shards: str | Path | ShardReader,
        p: float = 0.5,
        seed: int = 0,
        null_p: float = 0.0,
        key: Callable[[int], str] | None = None,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        for name, value in (("p", p), ("null_p", null_p)):
            if not 0.0 <= value <= 1.0:
                raise UsageError(f"{name}: expected a probability from 0 to 1, came {value}")
        if p + null_p > 1.0 + 1e-9:
            raise UsageError(f"p + null_p: expected at most 1 (the rest is the real fraction), came {p} + {null_p}")
        if not hasattr(base, "__len__") or not hasattr(base, "__getitem__"):
            raise UsageError(
                f"base: expected a dataset with len() and [i], came {type(base).__name__}; iterables have no index"
            )
        self.base, self.p, self.null_p, self.seed = base, float(p), float(null_p), int(seed)
        self.reader = open_training_shards(shards)
        self._raw, self._transform = _untransformed(base)
        self._transform = transform or self._transform
        # shared memory: a worker that was spawned once sees the epoch that the training loop sets later
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._drawn: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        if len(base) and self._transform is None and not _is_plain(self._raw[0][0]):
            raise UsageError(
                "base: expected PIL or uint8 images, or a transform that makes others; it hides how it makes them: "
                "pass transform= (from a PIL image to what it yields) and key="
            )
        matched = self._match(key)
        null = [row.null for row in self.reader.index]
        self._rows = {
            "counterfactual": _Rows([[row for row in rows if not null[row]] for rows in matched]),
            "null": _Rows([[row for row in rows if null[row]] for rows in matched]),
        }
        for kind, wanted in (("counterfactual", p), ("null", null_p)):
            without = int((self._rows[kind].count == 0).sum())
            if wanted and without == len(self):
                raise DataError(
                    f"{self.reader.directory}: expected {kind} samples, it has none; plan them or set that p to 0"
                )
            if wanted and without:
                log.warning("%d of %d images have no %s sample: they stay real", without, len(self), kind)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def epoch(self) -> int:
        """The epoch whose draw is shown."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Show epoch ``epoch``'s draw from now on, in every worker."""
        self._epoch.fill_(int(epoch))

    def draws(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(kinds, rows), each (N,) int64: kind 0 real, 1 counterfactual, 2 null; the shard row, -1 for real."""
        if self._drawn is None or self._drawn[0] != epoch:
            # one stream a (seed, epoch), read in index order: the numbers of index i depend on nothing else
            u, v = np.random.default_rng([self.seed, epoch]).random((len(self), 2)).T
            counterfactual, null = self._rows["counterfactual"].pick(v), self._rows["null"].pick(v)
            kinds = np.where(u < self.p, 1, np.where(u < self.p + self.null_p, 2, 0))
            rows = np.where(kinds == 1, counterfactual, np.where(kinds == 2, null, -1))
            self._drawn = (epoch, np.where(rows < 0, 0, kinds), rows)
        return self._drawn[1], self._drawn[2]

    def provenance(self, i: int, epoch: int | None = None) -> Draw:
        """What stands at index i (in the present epoch unless said otherwise)."""
        kinds, rows = self.draws(self.epoch if epoch is None else epoch)
        kind: Kind = ("real", "counterfactual", "null")[int(kinds[i])]
        return Draw(kind, None if kind == "real" else int(rows[i]))

    def attributes(self, i: int, epoch: int | None = None) -> Mapping[str, Any]:
        """The attributes of what stands at index i: the record's, or the base table's row for a real image."""
        row = self.provenance(i, epoch).row
        if row is not None:
            return dict(self.reader.record(row)["attributes"])
        return dict(_table(self.base).iloc[i])

    def __getitem__(self, i: int) -> Any:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        draw = self.provenance(i)
        if draw.row is None:
            return self.base[i]
        factual, *rest = self._raw[i]
        swapped = _like(self.reader.image(draw.row), factual, self.reader.where(draw.row))
        if self._transform is not None:
            swapped = self._transform(swapped)
        return (swapped, *rest)

    def _pixels(self, i: int) -> npt.NDArray[np.uint8]:
        """The base's untransformed image, uint8 (H, W, C)."""
        if hasattr(self._raw, "image"):
            own: npt.NDArray[np.uint8] = self._raw.image(i)
            return own
        return as_pixels(self._raw[i][0])

    def _match(self, key: Callable[[int], str] | None) -> list[list[int]]:
        by_key = key if key is not None else getattr(self.base, "key", None)
        if callable(by_key):
            rows_of = self.reader.by_source()
            keys = [str(by_key(i)) for i in range(len(self))]
            matched = [rows_of.get(k, []) for k in keys]
            how = (
                f"the base's first key is {keys[0]!r}, the shards' first source key {self.reader.index[0].source_key!r}"
            )
        else:
            rows_of = rows_by_digest(self.reader)
            matched = [rows_of.get(pixel_digest(self._pixels(i)), []) for i in range(len(self))]
            how = "no image has the pixels of a source; a base that resizes or crops before its transform hides them"
        found = [i for i, rows in enumerate(matched) if rows]
        if not found:
            raise DataError(
                f"{self.reader.directory}: expected counterfactuals of this dataset's images, none matches: {how}"
            )
        if callable(by_key) and (hasattr(self._raw, "image") or _is_plain(self._raw[0][0])):
            for i in found[:: max(1, len(found) // CHECKED)]:
                if pixel_digest(self._pixels(i)) != self.reader.index[matched[i][0]].source_digest:
                    raise DataError(
                        f"{self.reader.directory}: image {by_key(i)!r} differs from the source of its samples; "
                        "use the same version of the images, or generate again"
                    )
        log.info("%d of %d images have samples in %s", len(found), len(self), self.reader.directory)
        return matched

    def materialise(
        self,
        groups: Callable[[pd.DataFrame], npt.NDArray[np.int64]] | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        held: MixedImages | None = None,
    ) -> MixedImages:
        """The same mixture held in memory as uint8 (one copy of every image and every sample that can be drawn).

        The draw of (seed, epoch, index) is that of ``__getitem__``; the base's transform is NOT applied, ``transform``
        (on uint8 batches) is. ``groups`` maps an attribute table to group codes; with it a drawn counterfactual counts
        in the group of its own attributes. The base must be an AttributeDataset when ``groups`` is given. ``held`` is
        what another mixture of the same base, shards and groups gave: its images are shared, not decoded again.
        """
        if held is not None and isinstance(held.draw, _PoolDraw):
            return held.redrawn(replace(held.draw, dataset=self), transform)
        real = np.stack([self._pixels(i) for i in range(len(self))])
        used = np.unique(np.concatenate([self._rows["counterfactual"].rows, self._rows["null"].rows]))
        used = used[used >= 0]
        drawable = np.stack(
            [_same_shape(self.reader.image(int(row)), real[0], self.reader.where(int(row))) for row in used]
        )
        pool = torch.from_numpy(np.concatenate([real, drawable])).permute(0, 3, 1, 2).contiguous()
        place = np.full(len(self.reader) + 1, -1, dtype=np.int64)
        place[used] = len(real) + np.arange(len(used))
        draw = _PoolDraw(self, place)
        codes = None
        if groups is not None:
            drawn = pd.DataFrame([self.reader.record(int(row))["attributes"] for row in used])
            table = pd.concat([_table(self.base), drawn], ignore_index=True)
            codes = torch.from_numpy(np.ascontiguousarray(groups(table)))
        return MixedImages(pool, torch.as_tensor(_targets(self._raw), dtype=torch.int64), draw, codes, transform)


@dataclass(frozen=True)
class _PoolDraw:
    """epoch -> pool rows: the dataset's draw, with real images first in the pool; ``place`` maps shard rows to it."""

    dataset: CounterfactualDataset
    place: npt.NDArray[np.int64]

    def __call__(self, epoch: int) -> torch.Tensor:
        _, rows = self.dataset.draws(epoch)
        return torch.from_numpy(np.where(rows < 0, np.arange(len(rows)), self.place[rows]))


def rows_by_digest(reader: ShardReader) -> dict[str, list[int]]:
    """Source digest -> indices of its samples, ascending."""
    found: dict[str, list[int]] = {}
    for number, row in enumerate(reader.index):
        found.setdefault(row.source_digest, []).append(number)
    return found


def _is_plain(image: Any) -> bool:
    """PIL or uint8: pixels as they are on disk."""
    return isinstance(image, Image.Image) or str(getattr(image, "dtype", "")).endswith("uint8")


def _same_shape(pixels: npt.NDArray[np.uint8], factual: npt.NDArray[np.uint8], where: str) -> npt.NDArray[np.uint8]:
    if pixels.shape[2] == 1 and factual.shape[2] == 3:
        pixels = np.repeat(pixels, 3, axis=2)
    if pixels.shape != factual.shape:
        raise DataError(f"{where}: expected an image of shape {factual.shape} as its source has, came {pixels.shape}")
    return pixels


def _like(pixels: npt.NDArray[np.uint8], factual: Any, where: str) -> Any:
    """The shard's pixels in the type and mode of the factual image (float images: as PIL, for the transform)."""
    if isinstance(factual, torch.Tensor) and factual.dtype == torch.uint8:
        pixels = _same_shape(pixels, factual.permute(1, 2, 0).numpy(), where)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    if isinstance(factual, np.ndarray) and factual.dtype == np.uint8:
        flat = factual.ndim == 2
        pixels = _same_shape(pixels, factual[..., None] if flat else factual, where)
        return pixels[..., 0] if flat else pixels
    picture = to_pil(pixels)
    return (
        picture.convert(factual.mode) if isinstance(factual, Image.Image) and factual.mode != picture.mode else picture
    )


def _untransformed(base: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    """A shallow copy of the base that yields untransformed images (labels as ever), and the transform taken off."""
    if isinstance(base, Subset):
        inner, transform = _untransformed(base.dataset)
        return Subset(inner, base.indices), transform
    transform = getattr(base, "transform", None)
    if transform is None:
        if getattr(base, "transforms", None) is not None and getattr(base, "target_transform", None) is None:
            raise UsageError("base: expected transform=, came joint transforms=; give the image transform on its own")
        return base, None
    raw = copy.copy(base)
    raw.transform = None
    if getattr(raw, "transforms", None) is not None:  # torchvision keeps the pair in a second place
        from torchvision.datasets.vision import StandardTransform

        raw.transforms = StandardTransform(None, getattr(raw, "target_transform", None))
    return raw, transform


def _table(base: Any) -> pd.DataFrame:
    if isinstance(base, Subset):
        return _table(base.dataset).iloc[list(base.indices)]
    table = getattr(base, "table", None)
    if not isinstance(table, pd.DataFrame):
        raise UsageError("attributes of real images: expected a base with a .table (an AttributeDataset), it has none")
    return table


def _targets(raw: Any) -> list[int]:
    schema, table = getattr(raw, "schema", None), getattr(raw, "table", None)
    if schema is not None and table is not None and schema.target is not None:
        codes: list[int] = schema.index(schema.target, table[schema.target]).tolist()
        return codes
    return [int(raw[i][1]) for i in range(len(raw))]
