"""Which samples of the shards belong to which image of a data set: by key where keys are known, else by pixels.

    keys    the caller's function, else what the data set knows (key(i), or a path below the root of an ImageFolder)
    pixels  a 16 x 16 grid proposes, all pixels confirm (cfaug.data.lookup); decodes every image once

A match by key is believed only after the pixels of some images were compared, and the labels are: target names and the
base's labels must correspond one to one wherever they are looked at. Labels that are no classes (several numbers, fractions,
captions, indices) are not compared, which is told. Not promised: that an image which was matched by key and not looked at has
the pixels of its source.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tqdm.auto import tqdm

from cfaug.data.lookup import sample_hash
from cfaug.errors import DataError, UsageError
from cfaug.learn.bases import Swappable
from cfaug.learn.bases.base import undrawn
from cfaug.learn.bases.facts import scalar
from cfaug.learn.guard import PATIENCE
from cfaug.learn.pictures import MODES, as_pixels, recognisable, said, said_sizes, size_of
from cfaug.offline.shards import ShardReader, key_hashes

log = logging.getLogger(__name__)

PIXELS_CHECKED = 16  # sources whose pixels are compared when matching was by key
LABELS_CHECKED = 256  # sources whose label is compared with the target in their record
ALL_DIFFERENT = 16  # labels from which on all of them being different says that they are an index or a name
LONGEST = 200  # characters in the name of a class; longer texts are captions
NOISE = 0.1  # share of them that may disagree: labels are corrected, and some are wrong
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Matches:
    """For N images, where their samples stand: image i has ``counterfactuals[i]`` and then ``nulls[i]`` of ``rows`` from
    ``start[i]``. ``rows`` belongs to the reader and is not copied."""

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
        counterfactuals = self.counterfactuals[sources].astype(np.int64)
        null = kind == "null"
        count = self.nulls[sources].astype(np.int64) if null else counterfactuals
        place = (
            self.start[sources].astype(np.int64)
            + (counterfactuals if null else 0)
            + (fraction * count).astype(np.int64)
        )
        chosen = self.rows[np.minimum(place, len(self.rows) - 1)].astype(np.int64)
        return np.where(count > 0, chosen, -1)


def match(base: Swappable, reader: ShardReader, key: Callable[[int], str] | None = None, guard: bool = True) -> Matches:
    """The samples of every image of ``base``; DataError when none has any, or when what was compared differs."""
    if key is not None and not callable(key):
        raise UsageError(f"key: expected a function from an index to a source key, came {type(key).__name__}")
    _refuse_random(base)
    keys: Sequence[str] | None = [str(key(i)) for i in range(len(base))] if key is not None else base.keys()
    found = None if keys is None else _by_key(keys, reader)
    if found is not None and not found.total.any() and key is None:
        log.info("no key of the data set is a source key of %s: matching by pixels", reader.directory)
        found = None
    if found is None:
        found, how = _by_pixels(base, reader), ""
    else:
        how = f"the base's first key is {_first(keys)!r}, the shards' first source key {reader.index[0].source_key!r}"
    matched = np.flatnonzero(found.total)
    if not len(matched):
        how = how or f"no image has the pixels of a source{_unlike_all(base, reader)}; {_WHY_NO_PIXELS}"
        raise DataError(f"{reader.directory}: expected counterfactuals of this dataset's images, none matches: {how}")
    if found.table == "by_key" and keys is not None:
        _check_pixels(base, reader, found, matched, keys)
    if guard:
        _check_labels(base, reader, found, matched)
    some = len(matched) < len(
        base
    )  # that all have is what one expects, and a table of methods would say it a dozen times
    log.log(
        logging.INFO if some else logging.DEBUG,
        "%d of %d images have samples in %s",
        len(matched),
        len(base),
        reader.directory,
    )
    return found


_WHY_NO_PIXELS = (
    "a base that resizes, crops or recolours (grey, a palette) before its transform hides them, and so does compressing "
    "them again; pass key= if you know the source keys"
)


def _refuse_random(base: Swappable) -> None:
    """UsageError for a base that augments before its transform: what it does would be missing in counterfactuals alone."""
    for i in _spread(np.arange(len(base)), PIXELS_CHECKED):
        shown = []
        for seed in (2 * i, 2 * i + 1):
            with undrawn():
                random.seed(seed)
                np.random.seed(seed)
                torch.manual_seed(seed)
                try:
                    image = recognisable(base.picture(i))
                except UsageError:
                    return  # it shows floats only
                shown.append(None if image is None else sample_hash(image))
        if shown[0] != shown[1]:
            raise UsageError(
                f"base: expected the same untransformed image {i} whenever it is read, came two: an augmentation before its "
                "transform would be missing in counterfactuals; move it into the transform"
            )


def _by_key(keys: Sequence[str], reader: ShardReader) -> Matches:
    return _matches(reader, "by_key", reader.by_key.find_many(key_hashes(keys)))


def _by_pixels(base: Swappable, reader: ShardReader) -> Matches:
    table, found = reader.by_pixels, np.zeros((3, len(base)), dtype=np.int64)
    for i in tqdm(range(len(base)), desc="matching images with their counterfactuals", delay=PATIENCE, leave=False):
        image = recognisable(base.picture(i))
        if image is None:
            continue
        proposed = table.find(reader.lookup(image))
        if proposed.counterfactuals + proposed.nulls and reader.confirms(int(table.rows[proposed.start]), image):
            found[:, i] = proposed
    return _matches(reader, "by_pixels", tuple(found))


def _matches(reader: ShardReader, table: Literal["by_key", "by_pixels"], found: Sequence[Any]) -> Matches:
    start, counterfactuals, nulls = found
    return Matches(reader, table, *_narrow(start, counterfactuals, nulls))


def _narrow(start: Any, *counts: Any) -> Any:
    """The columns in four bytes a number: as many rows as a reader can have fit uint32, those of one image int32."""
    return np.asarray(start, dtype=np.uint32), *(np.asarray(count, dtype=np.int32) for count in counts)


def _check_pixels(
    base: Swappable, reader: ShardReader, found: Matches, matched: npt.NDArray[np.int64], keys: Sequence[str]
) -> None:
    for i in _spread(matched, PIXELS_CHECKED):
        try:
            image = base.picture(i)
            factual = recognisable(image)
        except UsageError:
            log.warning("keys are believed unseen: the base shows no untransformed pixels to compare with the sources")
            return
        row = int(found.rows[found.start[i]])
        if factual is None or not reader.confirms(row, factual):
            raise DataError(
                f"{reader.directory}: image {keys[i]!r} differs from the source of its samples{_unlike([image], reader, [row])}; "
                "use the same version of the images, or generate again"
            )


def _unlike(images: Sequence[Any], reader: ShardReader, rows: Sequence[int]) -> str:
    """In what all images differ from all of these samples, which have the size of their sources; nothing else."""
    samples = [reader.picture(row) for row in rows]
    told = []
    for look in (_said_mode, _said_size):
        came, theirs = ({look(image) for image in some} for some in (images, samples))
        if images and came.isdisjoint(theirs):
            told.append(f"came {_few(came)}, the samples are {_few(theirs)}")
    return f" ({'; '.join(told)})" if told else ""


def _unlike_all(base: Swappable, reader: ShardReader) -> str:
    rows, images = _spread(np.arange(len(reader)), PIXELS_CHECKED), _spread(np.arange(len(base)), PIXELS_CHECKED)
    return _unlike([base.picture(i) for i in images], reader, rows)


def _said_mode(image: Any) -> str:
    if isinstance(image, Image.Image):
        return f"mode {image.mode}"
    channels = as_pixels(image).shape[2]
    return f"mode {MODES[channels]}" if channels in MODES else said(image)


def _said_size(image: Any) -> str:
    return said_sizes([size_of(image)])


def _few(words: Iterable[str]) -> str:
    ordered = sorted(words)
    return ", ".join(ordered[:3]) + (" and others" if len(ordered) > 3 else "")


def _check_labels(base: Swappable, reader: ShardReader, found: Matches, matched: npt.NDArray[np.int64]) -> None:
    """Targets in records and labels of the base, one to one, on at most LABELS_CHECKED images spread over all.

    A few that disagree (labels that somebody corrected) are told; more are other classes: DataError. Labels that are no
    classes are not compared, and that is told.
    """
    looked: list[tuple[Hashable | None, Any, int]] = []
    for i in _spread(matched, LABELS_CHECKED):
        row = int(found.rows[found.start[i]])
        label, target = base.label(i), reader.record(row)["target"]
        if label is None or target is None or isinstance(target, float) or (isinstance(label, float) and isnan(label)):
            continue  # nothing to compare
        looked.append((class_in(label), target, row))
        if looked[-1][0] is None:
            _tell_unlabelled(base, reader, f"that of image {i} is {_short(label)}")
            return
    if len(looked) >= ALL_DIFFERENT and len({label for label, _, _ in looked}) == len(looked):
        if len({target for _, target, _ in looked}) < len(looked):
            _tell_unlabelled(base, reader, f"all {len(looked)} that were looked at are different")
        return
    pairs: Counter[tuple[Hashable, Any]] = Counter()
    seen: dict[tuple[Hashable, Any], str] = {}
    for label, target, row in looked:
        pairs[label, target] += 1
        seen.setdefault((label, target), reader.where(row))
    agreed: dict[Hashable, Any] = {}
    for label, target in [pair for pair, _ in pairs.most_common()]:
        if label not in agreed and target not in agreed.values():
            agreed[label] = target
    others = [(label, target) for label, target in pairs if agreed.get(label, _NONE) != target]
    if not others:
        return
    odd = sum(pairs[pair] for pair in others)
    label, target = max(others, key=lambda pair: pairs[pair])
    same_label = [pair for pair in pairs if pair[0] == label and pair != (label, target)]
    other = (
        same_label[0] if same_label else next(pair for pair in pairs if pair[1] == target and pair != (label, target))
    )
    what, of = ("target", f"label {label!r}") if same_label else ("label of the base", f"target {target!r}")
    said = [repr(pair[1] if same_label else pair[0]) + f" ({seen[pair]})" for pair in (other, (label, target))]
    line = f"expected one {what} for each {of.split()[0]}, came {said[0]} and {said[1]} for {of}"
    if odd <= NOISE * pairs.total():
        log.warning(
            "%s: %s; so in %d of %d images: the base's label counts", reader.directory, line, odd, pairs.total()
        )
        return
    raise DataError(
        f"{reader.directory}: {line}: these are not the classes that the shards were made for ({odd} of {pairs.total()} images "
        f"disagree, labels taken from {base.label_from()}; check_labels=False if these are no labels, or if you regrouped them "
        "on purpose)"
    )


def _tell_unlabelled(base: Swappable, reader: ShardReader, why: str) -> None:
    log.warning(
        "%s: the labels of the base (%s) are not compared with the classes of the shards: %s, so they are no classes; "
        "check_labels=False if that is right", reader.directory, base.label_from(), why,
    )  # fmt: skip


def _short(label: Any) -> str:
    return (
        repr(label)
        if isinstance(label, float)
        else f"{said(label)} of {len(label)} characters"
        if isinstance(label, str)
        else said(label)
    )


_NONE = object()


def class_in(label: Any) -> Hashable | None:
    """The class that a label means: a number, a text, the only one of an array or list, a whole float, the place of the one in
    a one-hot row. None for what means none: other floats and rows, long texts, mappings."""
    label = scalar(label)
    if isinstance(label, torch.Tensor):
        label = label.detach().cpu()
        label = (label.float() if label.is_floating_point() else label).numpy()
    if isinstance(label, list | tuple):
        try:
            label = np.asarray(label)
        except (TypeError, ValueError, RuntimeError):  # of several lengths
            return None
    if isinstance(label, np.ndarray):
        row = label.reshape(-1)
        if row.size == 1:
            return class_in(row[0])
        hot = (
            max(label.shape) == row.size > 1
            and row.dtype.kind in "biuf"
            and np.isin(row, (0, 1)).all()
            and row.sum() == 1
        )
        return int(row.argmax()) if hot else None
    if isinstance(label, float):
        return int(label) if label.is_integer() else None
    return label if isinstance(label, int) or (isinstance(label, str) and len(label) <= LONGEST) else None


def class_of(label: Any) -> Hashable | None:
    """A label as a plain int, float or text; None where it is none of these (several labels, a mask)."""
    label = scalar(label)
    return label if isinstance(label, int | float | str) else None


def _spread(matched: npt.NDArray[np.int64], most: int) -> list[int]:
    """At most ``most`` of them, evenly spread."""
    return [int(i) for i in matched[:: max(1, -(-len(matched) // most))]]


def _first(keys: Sequence[str] | None) -> str:
    return keys[0] if keys else ""
