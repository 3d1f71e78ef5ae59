"""Whether a base's labels are the classes that the shards were made for: one label a target, one target a label.

Labels are numbers, names, arrays of one, whole floats or one-hot rows. What is no class (several numbers, fractions, captions,
indices) is not compared, which is told; so too where items have more than an image and nothing of it is known as a label.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Hashable, Iterable
from math import isnan
from typing import Any

import numpy as np
import torch

from cfaug.errors import DataError
from cfaug.learn.image_types import few, said
from cfaug.learn.swap import Swappable
from cfaug.learn.swap.metadata import scalar
from cfaug.offline.read import ShardReader

log = logging.getLogger(__name__)

ALL_DIFFERENT = 16  # labels from which on all of them being different says that they are an index or a name
LONGEST = 200  # characters in the name of a class; longer texts are captions
NOISE = 0.1  # share of them that may disagree: labels are corrected, and some are wrong


def check_labels(base: Swappable, reader: ShardReader, images: Iterable[tuple[int, int]]) -> None:
    """Targets in records and labels of the base, one to one, on ``images``: (index, row of one of its samples) each.

    A few that disagree (labels that somebody corrected) are told; more are other classes: DataError. Labels that are no
    classes, or are not found in items with more than an image, are not compared, and that is told.
    """
    pairs: Counter[tuple[Hashable, Any]] = Counter()
    seen: dict[tuple[Hashable, Any], str] = {}
    for label, target, row in _comparable(base, reader, images):
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
    both = [repr(pair[1] if same_label else pair[0]) + f" ({seen[pair]})" for pair in (other, (label, target))]
    line = f"expected one {what} for each {of.split()[0]}, came {both[0]} and {both[1]} for {of}"
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


def _comparable(
    base: Swappable, reader: ShardReader, images: Iterable[tuple[int, int]]
) -> list[tuple[Hashable, Any, int]]:
    """(class, target, row) of every image that has both; empty, and told, where labels are no classes or are not found."""
    looked: list[tuple[Hashable, Any, int]] = []
    without = 0
    for i, row in images:
        label, target = base.label(i), reader.record(row)["target"]
        if target is None or isinstance(target, float) or (isinstance(label, float) and isnan(label)):
            continue  # nothing to compare
        if label is None:
            without += 1
            continue
        known = class_in(label)
        if known is None:
            _tell_unlabelled(base, reader, f"that of image {i} is {_short(label)}")
            return []
        looked.append((known, target, row))
    if len(looked) >= ALL_DIFFERENT and len({label for label, _, _ in looked}) == len(looked):
        if len({target for _, target, _ in looked}) < len(looked):
            _tell_unlabelled(base, reader, f"all {len(looked)} that were looked at are different")
        return []
    beside = base.unlabelled() if without and not looked else []
    if beside:
        log.warning(
            "%s: the labels of the base are not compared with the classes of the shards: none is found among %s; call it "
            "'label', or put it behind the image (check_labels=False if there is none)", reader.directory, few(beside),
        )  # fmt: skip
    return looked


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
