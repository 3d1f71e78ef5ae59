"""Which samples of the shards belong to which image of a data set: by key where keys are known, else by pixels.

    keys    the caller's function, else what the data set knows (key(i), or a path below the root of an ImageFolder)
    pixels  a 16 x 16 grid proposes, all pixels confirm (cfaug.data.pixel_hashes); decodes every image once

A match by key is believed only after the pixels of some images were compared, and in both cases the labels are compared
(:mod:`cfaug.learn.labels`). Not promised: that an image which was matched by key and not looked at has the pixels of its source.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets import DatasetFolder
from tqdm.auto import tqdm

from cfaug.data.pixel_hashes import sample_hash
from cfaug.errors import DataError, UsageError, listed
from cfaug.learn.guard import PATIENCE, probe_indices
from cfaug.learn.image_types import as_picture, is_plain, mode_of, recognisable, said_sizes, size_of
from cfaug.learn.labels import Labels, check_labels
from cfaug.learn.swap.swappable import Swappable, seeded, undrawn
from cfaug.offline.read import ShardReader, key_hashes

log = logging.getLogger(__name__)

PIXELS_CHECKED = (
    16  # images that are compared with their source when matching was by key, and read twice when it was by pixels
)
LABELS_CHECKED = 256  # images whose label is compared with the target in their record
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Matches:
    """Where the samples of N images stand: from ``rows[start[i]]`` on come ``counterfactuals[i]`` counterfactuals of image i,
    then ``nulls[i]`` null interventions. ``rows`` belongs to the reader and is not copied."""

    reader: ShardReader
    table: Literal["by_key", "by_pixels"]
    start: npt.NDArray[np.uint32]
    counterfactuals: Int32s
    nulls: Int32s

    @property
    def rows(self) -> npt.NDArray[np.uint32]:
        table = self.reader.by_key if self.table == "by_key" else self.reader.by_pixels
        return table.rows

    @property
    def total(self) -> Int32s:
        """(N,) samples of each image."""
        return self.counterfactuals + self.nulls

    def pick(
        self, kind: Literal["counterfactual", "null"], sources: Any, fraction: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """(M,) one row for each of ``sources`` (M,), -1 where it has none of the kind; fraction (M,) in [0, 1)."""
        first, count = self.start[sources].astype(np.int64), self.counterfactuals[sources].astype(np.int64)
        if kind == "null":
            first, count = first + count, self.nulls[sources].astype(np.int64)
        place = first + (fraction * count).astype(np.int64)
        chosen = self.rows[np.minimum(place, len(self.rows) - 1)].astype(np.int64)
        return np.where(count > 0, chosen, -1)


def match(base: Swappable, reader: ShardReader, key: Callable[[int], str] | None = None, check: bool = True) -> Matches:
    """The samples of every image of ``base``; DataError when none has any, or when what was compared differs.

    ``check``: compare the labels. No random number generator is advanced.
    """
    if key is not None and not callable(key):
        raise UsageError(f"key: expected a function from an index to a source key, got {type(key).__name__}")
    keys = keys_of(base.dataset) if key is None else [str(key(i)) for i in range(len(base))]
    with undrawn():
        found = None
        if keys is not None:
            found = _matches(reader, "by_key", reader.by_key.find_many(key_hashes(keys)))
            if found.total.any():
                _check_pixels(base, reader, found, keys)
            elif key is None:
                log.info("no key of the data set is a source key of %s: matching by pixels", reader.directory)
                found = None
        if found is None:
            found, keys = _by_pixels(base, reader), None
        matched = np.flatnonzero(found.total)
        if not len(matched):
            why = (
                f"the base's first key is {keys[0]!r}, the shards' first source key {reader.index[0].source_key!r}"
                if keys
                else f"no image has the pixels of a source; {_why_unlike(base, reader, range(len(base)))}"
            )
            raise DataError(
                f"{reader.directory}: expected counterfactuals of this data set's images, got none for {len(base)} of {len(base)}: {why}"
            )
        if check:
            rows = found.rows[found.start[matched]]
            looked_at = probe_indices(len(matched), LABELS_CHECKED)
            check_labels(Labels(base), reader, [(int(matched[k]), int(rows[k])) for k in looked_at])
    # that all have samples is expected, and a table of methods would say it a dozen times
    level = logging.INFO if len(matched) < len(base) else logging.DEBUG
    log.log(level, "%d of %d images have samples in %s", len(matched), len(base), reader.directory)
    return found


def keys_of(dataset: Any) -> Sequence[str] | None:
    """The source key of every item, where a data set knows them; no item is made.

    Of a ConcatDataset None where two folders share a key: it would find the counterfactuals of the wrong image.
    """
    if callable(getattr(dataset, "key", None)):
        return [str(dataset.key(i)) for i in range(len(dataset))]
    if isinstance(dataset, DatasetFolder):
        root = os.path.join(os.path.expanduser(os.fspath(dataset.root)), "")
        # os.path.relpath of every path would take seconds for a million files
        paths = [str(path) for path, _ in dataset.samples]
        keys = [path.removeprefix(root) if path.startswith(root) else os.path.relpath(path, root) for path in paths]
        return keys if os.sep == "/" else [one.replace(os.sep, "/") for one in keys]
    if isinstance(dataset, Subset):
        inner = keys_of(dataset.dataset)
        return None if inner is None else [inner[int(i)] for i in dataset.indices]
    if not isinstance(dataset, ConcatDataset):
        return None
    every: list[str] = []
    of_origin: dict[Any, set[str]] = {}
    for part in dataset.datasets:
        inner = keys_of(part)
        if inner is None:
            return None
        of_origin.setdefault(_origin(part), set()).update(inner)
        every += inner
    return every if len(set(every)) == sum(map(len, of_origin.values())) else None


def _origin(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return os.path.realpath(dataset.root) if hasattr(dataset, "root") else id(dataset)


def _matches(reader: ShardReader, table: Literal["by_key", "by_pixels"], found: Sequence[Any]) -> Matches:
    start, counterfactuals, nulls = found
    counts = (np.asarray(count, dtype=np.int32) for count in (counterfactuals, nulls))
    return Matches(reader, table, np.asarray(start, dtype=np.uint32), *counts)


def _by_pixels(base: Swappable, reader: ShardReader) -> Matches:
    found, twice = np.zeros((3, len(base)), dtype=np.int64), set(probe_indices(len(base), PIXELS_CHECKED))
    for i in tqdm(range(len(base)), desc="matching images with their counterfactuals", delay=PATIENCE, leave=False):
        image = recognisable(base.picture(i))
        if image is None:
            continue
        if i in twice:
            _refuse_random(base, i, sample_hash(image))
        found[:, i] = _find(reader, image) or (0, 0, 0)
    matched = found[1] + found[2] > 0
    if matched.any() and not matched.all():
        missing = np.flatnonzero(~matched)
        turned = sum(_is_turned(base, reader, int(missing[k])) for k in probe_indices(len(missing), PIXELS_CHECKED))
        if turned:
            log.warning(
                "%s: %d of %d images are not matched, and some of them are sources that were rotated or mirrored: apply the EXIF orientation where "
                "the base opens its images, before its transform (PIL.ImageOps.exif_transpose)", reader.directory, len(missing), len(base),
            )  # fmt: skip
    return _matches(reader, "by_pixels", tuple(found))


def _find(reader: ShardReader, image: Any) -> Any:
    """Where the samples of an image stand in ``by_pixels``, None where it is the source of none."""
    table = reader.by_pixels
    found = table.find(reader.lookup(image))
    known = found.counterfactuals + found.nulls and reader.confirms(int(table.rows[found.start]), image)
    return found if known else None


def _refuse_random(base: Swappable, i: int, before: int) -> None:
    """UsageError for a base that augments before its transform: what it does would be missing in counterfactuals alone."""
    for seed in (2 * i, 2 * i + 1):
        with seeded(seed):
            image = recognisable(base.picture(i))
        if image is None or sample_hash(image) != before:
            raise UsageError(
                f"base: expected the same untransformed image {i} whenever it is read, got two: an augmentation before its "
                "transform would be missing in counterfactuals; move it into the transform"
            )


def _check_pixels(base: Swappable, reader: ShardReader, found: Matches, keys: Sequence[str]) -> None:
    matched = np.flatnonzero(found.total)
    for i in matched[probe_indices(len(matched), PIXELS_CHECKED)].tolist():
        try:
            factual = recognisable(base.picture(i))
        except UsageError:
            log.warning("keys are believed unseen: the base shows no untransformed pixels to compare with the sources")
            return
        row = int(found.rows[found.start[i]])
        if factual is None or not reader.confirms(row, factual):
            raise DataError(
                f"{reader.directory}: expected image {keys[i]!r} to have the pixels of the source of its samples, got different ones: "
                f"{_why_unlike(base, reader, [i], [row])}"
            )


def _is_turned(base: Swappable, reader: ShardReader, i: int) -> bool:
    """Whether image i, rotated or mirrored as an EXIF orientation says, is a source."""
    image = base.picture(i)
    if recognisable(image) is None:
        return False
    turned = (as_picture(image).convert("RGB").transpose(how) for how in Image.Transpose)
    return any(_find(reader, one) is not None for one in turned)


def _why_unlike(base: Swappable, reader: ShardReader, images: Sequence[int], rows: Sequence[int] = ()) -> str:
    """The likeliest reason why the images are not the sources: orientation, size, mode, or else other pixels."""
    probed = [images[k] for k in probe_indices(len(images), PIXELS_CHECKED)]
    if any(_is_turned(base, reader, i) for i in probed):
        return "they are rotated or mirrored: apply the EXIF orientation where the base opens its images, before its transform (PIL.ImageOps.exif_transpose)"
    shown = [image for image in map(base.picture, probed) if is_plain(image)]
    samples = [reader.picture(row) for row in (rows or probe_indices(len(reader), PIXELS_CHECKED))]
    sizes, theirs = {size_of(image) for image in shown}, {size_of(sample) for sample in samples}
    if sizes.isdisjoint(theirs):
        return (
            f"they are {said_sizes(sizes)}, the sources {said_sizes(theirs)}; crop or resize in the transform, not before it, or use "
            "the images that the shards were made from"
        )
    modes, theirs_too = {mode_of(image) for image in shown}, {mode_of(sample) for sample in samples}
    if modes.isdisjoint(theirs_too):
        return f"they are of mode {listed(sorted(modes))}, the sources of mode {listed(sorted(theirs_too))}; convert in the transform"
    return (
        "they have other pixels: this is a different version of the images, or they were recoloured, cropped or compressed again; use the "
        "images that the shards were made from, pass key= if you know the source keys, or generate again"
    )
