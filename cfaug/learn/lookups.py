"""Swapping an image that is recognised by its pixels: what the transforms and the collate helper have in common.

    u < p                 a counterfactual of this very image (the floor(v * how many it has)-th)
    p <= u < p + null_p   a null intervention (reconstruction) of it
    else                  the image itself; so too where it has no sample of the kind that was drawn, or is unknown

A 16 x 16 grid of the pixels proposes a source (``ShardReader.lookup``), all of them confirm it before anything is
swapped (``ShardReader.confirms``). ``seen``, ``matched`` and ``swapped`` are counted in memory that forked and spawned
DataLoader workers share with the process that made the lookup. ``matched`` counts proposals that were not refuted: an
image is compared in full only when it is to be swapped.

Not promised: counts from processes that got a copy by ordinary pickling (another machine, a job queue); a copy starts
at zero and counts for itself.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from cfaug.errors import CfaugError, DataError, UsageError
from cfaug.learn.guard import open_training_shards
from cfaug.offline.shards import ShardReader

log = logging.getLogger(__name__)

WARN_AFTER = 100  # images seen without one match before the warning: a first batch may well be of another split
PEEKED = 16  # counterfactuals whose size is looked at when nothing matched
SETTLE = 0.005  # seconds in which two workers that would warn at the same moment notice one another


class SharedCounts:
    """``seen``, ``matched``, ``swapped``, added to by any number of processes that inherited or were sent the object.

    One row of shared memory a process, so no two of them write the same number and no lock is needed.
    """

    ROWS = 1021  # prime: processes that start one after another get rows of their own
    OWNER, SEEN, MATCHED, SWAPPED = range(4)

    _process: int
    _row: int

    def __init__(self) -> None:
        self._share(torch.zeros((self.ROWS + 1, 4), dtype=torch.int64))  # the last row: who gave the warning

    def add(self, matched: bool, swapped: bool) -> None:
        """One more image."""
        at = 4 * self._mine()
        self._numbers[at + self.SEEN] += 1
        self._numbers[at + self.MATCHED] += matched
        self._numbers[at + self.SWAPPED] += swapped

    def total(self, column: int) -> int:
        """The sum over all processes."""
        return int(self._table[: self.ROWS, column].sum())

    @property
    def warned(self) -> bool:
        """Whether some process has the warning."""
        return bool(self._table[self.ROWS, self.OWNER])

    def claim_warning(self) -> bool:
        """True in one process, once: the last that wrote its number while nobody had it yet."""
        if self.warned:
            return False
        self._table[self.ROWS, self.OWNER] = os.getpid()
        time.sleep(SETTLE)
        return int(self._table[self.ROWS, self.OWNER]) == os.getpid()

    def _mine(self) -> int:
        number = os.getpid()
        if number != self._process:
            owners = self._table[: self.ROWS, self.OWNER]
            at = number % self.ROWS
            for _ in range(self.ROWS):  # with more processes than rows the last ones share theirs
                if owners[at] in (0, number):
                    break
                at = (at + 1) % self.ROWS
            owners[at] = number
            self._process, self._row = number, at
        return self._row

    def _share(self, table: torch.Tensor) -> None:
        self._held = table if table.is_shared() else table.zero_().share_memory_()  # type: ignore[no-untyped-call]
        self._table: npt.NDArray[np.int64] = self._held.numpy()
        # the same memory, ten times as quick to count in
        self._numbers: memoryview = self._table.reshape(-1).data
        self._process, self._row = -1, -1

    def __getstate__(self) -> torch.Tensor:
        # sent to a worker it stays the same memory; pickled or copied in the ordinary way it does not, and is zeroed
        return self._held

    def __setstate__(self, table: torch.Tensor) -> None:
        self._share(table)


class PixelLookup:
    """The samples of an image, found by its pixels. Picklable; safe in forked and spawned workers.

    Images: PIL of any mode, uint8 tensors (C, H, W) and tv_tensors.Image, uint8 arrays (H, W), (H, W, 1) or (H, W, 3).
    """

    def __init__(self, reader: ShardReader) -> None:
        self.reader = reader
        self.counts = SharedCounts()
        self._settled = False  # in this process: something matched, or the warning has been given
        self._sizes: set[tuple[int, int]] = set()  # (W, H) of what came while nothing matched

    def key(self, image: Any) -> int | None:
        """The hash under which the shards may know `image`; None for one that no source can be (16 bits, LAB, ...)."""
        return _key(self.reader, _recognisable(image))

    def find(self, image: Any) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """(rows of counterfactuals, rows of null interventions) that are proposed for an image; nothing is counted."""
        start, counterfactuals, nulls = self._proposed(_recognisable(image))
        rows, middle = self.reader.by_pixels.rows, start + counterfactuals
        return rows[start:middle], rows[middle : middle + nulls]

    def _proposed(self, picture: Any) -> tuple[int, int, int]:
        key = _key(self.reader, picture)
        return (0, 0, 0) if key is None else self.reader.by_pixels.find(key)

    def swap(self, image: Any, u: float, v: float, p: float, null_p: float = 0.0) -> Any | None:
        """What stands in for `image`, of the same type, mode and size; None where it stays. Counts, and may warn.

        `u` and `v` are uniform in [0, 1); the rule is in the head of this module.

        Raises:
            UsageError: `image` has been transformed already (a float tensor), or is none.
            ShardError, StorageError: the sample drawn cannot be read.
        """
        picture = _recognisable(image)
        start, counterfactuals, nulls = self._proposed(picture)
        known, made = counterfactuals + nulls > 0, None
        first, many = (start, counterfactuals) if u < p else (start + counterfactuals, nulls if u < p + null_p else 0)
        if many:
            row: int = self.reader.by_pixels.rows.item(first + min(int(v * many), many - 1))
            known = self.reader.confirms(row, picture)
            made = like(self.reader.picture(row), image, partial(self.reader.where, row)) if known else None
        self.counts.add(known, made is not None)
        if not self._settled:
            self._settle(known, picture)
        return made

    def _settle(self, known: bool, picture: Any) -> None:
        if known or self.counts.warned or self.counts.total(SharedCounts.MATCHED):
            self._settled = True
            return
        self._sizes.add(_size(picture))
        if self.counts.total(SharedCounts.SEEN) >= WARN_AFTER:
            self._settled = True
            if self.counts.claim_warning():
                log.warning(
                    "RandomCounterfactual knew none of the first %d images: %s (%s)",
                    WARN_AFTER, self._why(), self.reader.directory,
                )  # fmt: skip

    def _why(self) -> str:
        """The likeliest reason: a counterfactual has the size of its source, so sizes tell a crop from other pixels."""
        try:
            rows = sorted({int(i) for i in np.linspace(0, len(self.reader) - 1, PEEKED)})
            sources = {self.reader.picture(row).size for row in rows}
        except CfaugError as error:  # training on real images goes on; whoever draws this sample is told
            return f"and the shards cannot be read to see why ({error})"
        came = self._sizes
        if sources.isdisjoint(came):
            return (
                f"they are {_sizes(came)}, the shards' sources {_sizes(sources)}: a crop or a resize stands before it, "
                "put it first in the Compose; or these are the shards of another data set"
            )
        return (
            f"they have the size of the shards' sources ({_sizes(came & sources)}) but other pixels: a flip or a colour "
            "change stands before it, the images are other ones (another data set, or not its train split), or they were "
            "decoded by another library or encoded again"
        )


class Counting:
    """What a thing with a ``lookup`` has counted, in this process and in DataLoader workers."""

    lookup: PixelLookup

    @property
    def seen(self) -> int:
        """Images looked up."""
        return self.lookup.counts.total(SharedCounts.SEEN)

    @property
    def matched(self) -> int:
        """Images that the shards know."""
        return self.lookup.counts.total(SharedCounts.MATCHED)

    @property
    def swapped(self) -> int:
        """Images that were replaced."""
        return self.lookup.counts.total(SharedCounts.SWAPPED)


def open_lookup(shards: str | Path | ShardReader, p: float, null_p: float = 0.0, guard: bool = True) -> PixelLookup:
    """A lookup in shards that have what `p` and `null_p` ask for, all of the train split unless ``guard=False``.

    Raises:
        UsageError: a probability outside [0, 1], or a sum above 1.
        DataError: no sample of a kind that is asked for, or (guard) one that is not of the train split.
    """
    for name, value in (("p", p), ("null_p", null_p)):
        if not 0.0 <= value <= 1.0:
            raise UsageError(f"{name}: expected a probability from 0 to 1, came {value}")
    if p + null_p > 1.0 + 1e-9:
        raise UsageError(f"p + null_p: expected at most 1 (the rest is the real fraction), came {p} + {null_p}")
    reader = open_training_shards(shards, guard=guard)
    for kind, asked, there in (("counterfactual", p, not reader.nulls.all()), ("null", null_p, reader.nulls.any())):
        if asked and not there:
            raise DataError(f"{reader.directory}: expected {kind} samples, it has none; plan them or set that p to 0")
    return PixelLookup(reader)


def like(picture: Image.Image, factual: Any, where: Callable[[], str]) -> Any:
    """A sample's picture (mode L or RGB) as what stands at its source's place: same type, mode, channels, device.

    Alpha and EXIF (a rotation that a later step undoes) are the factual image's: an intervention is on neither.
    DataError, naming the sample by `where`, unless it has the size of `factual`.
    """
    if picture.size != _size(factual):
        raise DataError(
            f"{where()}: expected the size of its source, {_sizes({_size(factual)})}, came {_sizes({picture.size})}; "
            "generate again"
        )
    if isinstance(factual, Image.Image):
        return _in_mode_of(factual, picture)
    tensor = isinstance(factual, torch.Tensor)
    channels = factual.shape[0] if tensor else factual.shape[2] if factual.ndim == 3 else 1
    pixels = np.array(picture.convert("L" if channels == 1 else "RGB"))  # a copy: what is handed out is writable
    if not tensor:
        return pixels[..., None] if pixels.ndim < factual.ndim else pixels
    made = torch.from_numpy(pixels.reshape(*pixels.shape[:2], channels)).permute(2, 0, 1).contiguous()
    made = made.to(factual.device)
    if type(factual) is torch.Tensor:
        return made
    from torchvision import tv_tensors

    return tv_tensors.wrap(made, like=factual)


def _in_mode_of(factual: Image.Image, picture: Image.Image) -> Image.Image:
    mode = factual.mode
    if mode == "P":  # a palette of its own: Pillow's default is one fixed palette, with dithering
        made = picture.convert("RGB").quantize(256)
    elif mode == "1":
        made = picture.convert("L").convert("1", dither=Image.Dither.NONE)
    else:
        made = picture if picture.mode == mode else picture.convert(mode)
    if mode in ("RGBA", "LA"):
        made.putalpha(factual.getchannel("A"))
    if "exif" in factual.info:
        made.info["exif"] = factual.info["exif"]
    return made


def _recognisable(image: Any) -> Image.Image | npt.NDArray[np.uint8]:
    """PIL as it is, other images as uint8 (H, W[, C]) that shares memory; UsageError for what is no untransformed image."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, torch.Tensor) and image.dtype == torch.uint8 and image.ndim == 3:
        own: npt.NDArray[np.uint8] = image.detach().permute(1, 2, 0).cpu().numpy()
        return own
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return image
    kind = f"{type(image).__name__} {getattr(image, 'dtype', '')} {list(getattr(image, 'shape', []))}"
    kind = kind.replace("[]", "").strip()
    raise UsageError(
        f"expected an untransformed image (PIL, uint8 tensor CHW or uint8 array HWC), came {kind}; put "
        "RandomCounterfactual first in the Compose, before ToDtype, ToTensor or Normalize, and before batches are made"
    )


def _key(reader: ShardReader, picture: Image.Image | npt.NDArray[np.uint8]) -> int | None:
    if isinstance(picture, Image.Image):
        if picture.mode.startswith(("I", "F")):
            return None
        if picture.mode not in ("L", "RGB"):
            try:
                picture = picture.convert("RGB")
            except ValueError:  # Pillow has no conversion from LAB and the premultiplied modes
                return None
    elif picture.ndim == 3 and picture.shape[2] not in (1, 3):
        return None
    return reader.lookup(picture)


def _size(image: Any) -> tuple[int, int]:
    """(W, H)."""
    if isinstance(image, Image.Image):
        return image.size
    height, width = image.shape[-2:] if isinstance(image, torch.Tensor) else image.shape[:2]
    return int(width), int(height)


def _sizes(sizes: set[tuple[int, int]]) -> str:
    said = [f"{width} x {height}" for width, height in sorted(sizes)[:3]]
    return ", ".join(said) + (" and others" if len(sizes) > 3 else "") + " pixels"
