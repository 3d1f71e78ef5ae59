"""Images that are stored encoded (in files, a table, a tar): decoded one at a time, and brought to the working size where there is one."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pandas as pd

from cfaug.data.datasets import Indexed
from cfaug.data.images import FITS, Decoded, Fit, Pixels, as_rgb, pixel_digest, resize
from cfaug.data.schema import Attribute, Schema
from cfaug.errors import DataError, UsageError, near, shown

log = logging.getLogger(__name__)

Size = int | tuple[int, int] | list[int]
THREADS = 2  # that decode at once where all images are checked: Pillow and hashlib let go of Python's lock
AHEAD = 64  # images that are decoded ahead of the check


def working_size(size: Size | None) -> tuple[int, int] | None:
    """``size`` as (height, width); one number is both. UsageError for anything but one or two whole numbers of at least 4."""
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2 or not all(type(side) is int and side >= 4 for side in sides):
        raise UsageError(f"size: expected one number of pixels of at least 4, or [height, width], got {shown(size)}")
    return sides[0], sides[1]


class StoredImages(Indexed):
    """A data set whose subclass says where image ``i`` is (``decoded``) and how an error names it (``where``).

    ``size``: the working size to which every image is brought (see :func:`cfaug.data.images.resize` for ``fit``); images are
    RGB then. Without one they stay as they are: grey ones with one channel, other modes as RGB.
    """

    digests: tuple[str, ...] = ()
    """The pixel digest of every image as it is stored, after ``check_images``."""

    def __init__(
        self,
        table: pd.DataFrame,
        schema: Schema,
        split: str,
        transform: Callable[[Any], Any] | None = None,
        size: Size | None = None,
        fit: Fit = "crop",
    ) -> None:
        if fit not in FITS:
            raise UsageError(f"fit: expected one of {', '.join(FITS)}, got {fit!r}; {near(str(fit), FITS)}")
        self.transform, self.size, self.fit = transform, working_size(size), fit
        self._prepare(table, schema, split)

    def decoded(self, i: int) -> Decoded:
        """Image ``i`` as it is stored, upright. DataError naming it where it cannot be decoded."""
        raise NotImplementedError

    def where(self, i: int) -> str:
        """How an error names image ``i``."""
        return self._keys[i]

    def image(self, i: int, /) -> Pixels:
        """Image ``i``, decoded now and of the working size: uint8 (H, W, C). DataError naming it where it cannot be decoded."""
        pixels = self.decoded(i).pixels
        if self.size is None:
            return pixels
        sized = resize(pixels, self.size, self.fit)
        return as_rgb(sized)

    def original(self, i: int, /) -> Pixels:
        """Image ``i`` before it is brought to the working size: what a data set sees that reads the file itself."""
        return self.decoded(i).pixels

    def check_images(self, progress: Callable[[Iterator[int]], Iterator[int]] = iter) -> str:
        """Decode every image, and look at every mask; sha256 (hex) of all pixels in order, masks included.

        ``progress`` wraps the iterator over indices (for instance ``functools.partial(tqdm, total=len(dataset))``). The log
        says how many images have transparency or 16 bits, and to what size they are brought. Raises DataError naming the
        first image that is unreadable, truncated or, without a working size, of a different shape.
        """
        first: tuple[int, ...] = ()
        digests: list[str] = []
        masks: list[str] = []
        shapes: Counter[tuple[int, ...]] = Counter()
        transparent: list[str] = []
        deep: list[str] = []
        with ThreadPoolExecutor(THREADS) as pool:
            for i in progress(iter(range(len(self)))):
                if i % AHEAD == 0:
                    looks = iter(list(pool.map(self._look, range(i, min(i + AHEAD, len(self))))))
                look = next(looks)
                first = first or look.shape
                if self.size is None and look.shape != first:
                    raise DataError(
                        f"{self.where(i)}: expected height x width x channels {'x'.join(map(str, first))} as in {self._keys[0]}, got "
                        f"{'x'.join(map(str, look.shape))}; give a working size (data.size), or make all images the same"
                    )
                digests.append(look.digest)
                masks += [look.mask] if look.mask else []
                shapes[look.shape[:2]] += 1
                transparent += [self._keys[i]] if look.transparent else []
                deep += [self._keys[i]] if look.deep else []
        if transparent:
            log.warning(
                "%d %s images have transparency and are shown on white (first: %s); save them without, if another ground is meant",
                len(transparent), self.split, transparent[0],
            )  # fmt: skip
        if deep:
            log.warning(
                "%d %s images have 16 bits per channel (first: %s), which are scaled to 8",
                len(deep),
                self.split,
                deep[0],
            )
        if self.size is not None and set(shapes) != {self.size}:
            (height, width), many = shapes.most_common(1)[0]
            log.info(
                "%d %s images of %d sizes (%d of them %dx%d) are brought to %dx%d (%s)", len(self), self.split, len(shapes),
                many, width, height, self.size[1], self.size[0], self.fit,
            )  # fmt: skip
        self.digests = tuple(digests)
        channels = first[2:] if self.size is None else (3,)
        return hashlib.sha256(" ".join([str(channels), *digests, *masks]).encode()).hexdigest()

    def _look(self, i: int) -> _Look:
        mask = self.mask(i)
        drawn = "" if mask is None else hashlib.sha256(mask.tobytes()).hexdigest()
        if type(self).image is not StoredImages.image:  # a subclass of the user's is checked by its own pixels
            pixels = self.image(i)
            return _Look(pixels.shape, pixel_digest(pixels), False, False, drawn)
        found = self.decoded(i)
        return _Look(found.pixels.shape, pixel_digest(found.pixels), found.transparent, found.deep, drawn)


class _Look(NamedTuple):
    """What the check of all images keeps of one."""

    shape: tuple[int, ...]
    digest: str
    transparent: bool
    deep: bool
    mask: str
    """sha256 of its mask; empty without one."""


def column_schema(
    whole: pd.DataFrame,
    target: str | None,
    spurious: Sequence[str],
    kinds: Mapping[str, str],
    values: Mapping[str, Sequence[str]],
    attributes: Sequence[str],
    where: object,
) -> Schema:
    """The fitted schema of named columns of a table that has a column ``split`` too.

    Categories are those of all rows, means and standard deviations those of the train rows. UsageError, naming ``where`` the table
    is, without an attribute or for a column that is not there; DataError without train rows and as ``Schema.fit``.
    """
    spurious = [spurious] if isinstance(spurious, str) else list(spurious)
    names = list(dict.fromkeys([*([] if target is None else [target]), *spurious, *kinds, *values, *attributes]))
    if not names:
        raise UsageError("expected at least one attribute, got none; give target= and spurious= as column names")
    columns = [str(column) for column in whole.columns if column != "split"]
    for name in names:
        if name not in columns:
            cure = near(name, columns)
            if name in attributes and name not in (target, *spurious, *kinds, *values):
                cure += (
                    "; the graph names it, and a cause that no column has is written a <-> b, between what it causes"
                )
            raise UsageError(f"{where}: expected a column {name!r}; {cure}")
    declared = [Attribute(n, kinds.get(n, "categorical"), tuple(values[n]) if n in values else None) for n in names]
    train = whole[whole["split"] == "train"]
    if train.empty:
        raise DataError(
            f"{where}: expected rows with split train, got none: the training split is empty; mark at least one row train"
        )
    # categories over every split (a test value unseen in training is still a value), statistics from train alone;
    # which rows may lack a value is judged when a split is opened
    everything = Schema([a for a in declared if a.kind != "continuous"])
    everything = everything.fit(whole, [name for name in everything.names if name != target])
    numbers = Schema([a for a in declared if a.kind == "continuous"])
    numbers = numbers.fit(train, numbers.names)
    merged = [numbers[a.name] if a.kind == "continuous" else everything[a.name] for a in declared]
    return Schema(merged, target, spurious)
