"""The criteria of a gate: what a counterfactual must show, must keep, and must not resemble.

    Shown          the reader of an attribute finds the value that the record states: effectiveness of what was intervened on,
                   and keeping of everything else (the target and the care set among it)
    Unchanged      pixels outside the region of what was intervened on are those of the source
    NoTrace        the background that was exchanged does not shine through
    Plausible      the image is as near to real images as real images are to one another
    Original       the image is not nearly another training image

A threshold is a quantile of what real images score, so each criterion would reject a stated share of them, and nothing is set by
hand. Every cell of target and attribute weighs the same in it, because a quantile over confounded images would be that of their
majority. Readers and neighbours are handed in; nothing here is trained. A value without a threshold is not judged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels
from cfaug.offline.format import Record
from cfaug.offline.gate import Candidates, Floats

Measure = Callable[[Candidates], Floats]
"""Candidates -> a number for each (B,)."""
Boxes = tuple[tuple[float, float, float, float], ...]
"""Places in an image: (left, top, right, bottom), each as a share of its width or height."""


def threshold(scores: npt.ArrayLike, weights: npt.ArrayLike, share: float) -> float:
    """The largest t such that scores below t have at most `share` of the weight."""
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    ranked = np.asarray(scores, dtype=np.float64)[order]
    below = np.cumsum(np.asarray(weights, dtype=np.float64)[order])
    place = int(np.searchsorted(below, share * below[-1] * (1 + 1e-12), side="right"))
    return float(ranked[min(place, len(ranked) - 1)])


@dataclass(frozen=True, eq=False)
class Shown:
    """Whether the image shows the value of `attribute` that its record states: it is read as that, or about as surely as real images.

    Attributes:
        read: candidates -> (B, K) log-probabilities of the values, by a reader that has not seen their sources.
        thresholds: value -> the least log-probability; of a value without one it abstains.
        intervened: whether it asks only about interventions on the attribute (effectiveness), or only about all other images
            (keeping).
        region: where the attribute shows, ``object``, ``background`` or boxes; None where that is not known.
        unchanged: what proves, where it is passed, that pixels outside an intervention's region are the source's. An attribute that
            shows there is kept, however a reader reads it: rejecting what is hard to read would leave training the easy images.
    """

    attribute: str
    values: Sequence[str]
    read: Measure
    thresholds: Mapping[str, float]
    intervened: bool
    region: str | Boxes | None = None
    unchanged: Unchanged | None = None

    @property
    def name(self) -> str:
        return f"{self.attribute} {'shown' if self.intervened else 'kept'}"

    def margins(self, seen: Candidates) -> Floats:
        said, proven = seen.once(self.read, self.read), self._proven(seen)
        found = np.full(len(seen), np.nan)
        for i, record in enumerate(seen.records):
            value = record["attributes"].get(self.attribute)
            if (self.attribute in record["do"]) != self.intervened or value is None or proven[i]:
                continue
            if str(value) not in self.thresholds:
                continue
            code = self.values.index(str(value))
            others = np.delete(said[i], code).max(initial=-np.inf)
            # what is read as stated is never rejected, however sure the reader was of real images
            found[i] = said[i, code] - min(self.thresholds[str(value)], others)
        return found

    def _proven(self, seen: Candidates) -> npt.NDArray[np.bool_]:
        """(B,) whether the attribute is kept because the pixels that show it are."""
        if self.unchanged is None or self.region is None:
            return np.zeros(len(seen), dtype=bool)
        passed = seen.once(self.unchanged, self.unchanged.margins) >= 0  # False where it abstains
        elsewhere = [self.region not in self.unchanged.touched(record) for record in seen.records]
        return np.asarray(passed & np.array(elsewhere))


LEVELS = 8
"""Grey levels by which a pixel must differ to count as changed; rounding and lossy codecs change less."""
CODEC = 8
"""Pixels beside a box that may change too: a block of JPEG, in which a mark that was encoded leaves ripples."""
SURE = 250
"""A pixel with at least this much mask is all object, and one with at most 255 - SURE all background; between them both layers show."""


@dataclass(frozen=True, eq=False)
class Unchanged:
    """Whether at most `most` of the pixels outside the region of the intervention have changed.

    Attributes:
        regions: attribute -> ``object``, ``background`` or boxes; interventions on others are not judged.
        margin: pixels beside the object's border that either layer may change.
        most: in [0, 1].
    """

    regions: Mapping[str, str | Boxes]
    margin: int
    most: float = 0.0
    name = "unchanged outside the region"

    def margins(self, seen: Candidates) -> Floats:
        found = np.full(len(seen), np.nan)
        for i, (image, source) in enumerate(zip(seen.images, seen.pixels)):
            touched = self.touched(seen.records[i])
            if None in touched or len(touched) > 1:  # a region that nobody knows, or both
                continue
            region = next(iter(touched), None)
            mask = None if seen.masks is None else seen.masks[i]
            if isinstance(region, str) and mask is None:
                continue
            found[i] = self.most - self.share(image, source, mask, region)
        return np.where(np.abs(found) < 1e-12, 0.0, found)

    def touched(self, record: Record) -> set[str | Boxes | None]:
        """The regions of what a record's image was intervened on; None among them where one is not known."""
        return {self.regions.get(name) for name in record["do"]}

    def share(self, image: Pixels, source: Pixels, mask: Pixels | None, region: str | Boxes | None) -> float:
        """The share of the pixels outside the region (None: all pixels) that differ by more than LEVELS."""
        height, width = source.shape[:2] if mask is None else mask.shape
        protected = np.ones((height, width), dtype=bool)
        size = 2 * self.margin + 1
        element = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
        if isinstance(region, tuple):
            for left, top, right, bottom in region:
                rows = slice(max(0, int(top * height) - CODEC), int(np.ceil(bottom * height)) + CODEC)
                protected[rows, max(0, int(left * width) - CODEC) : int(np.ceil(right * width)) + CODEC] = False
        elif mask is not None and region == "background":
            protected = cv2.erode(mask, element, borderType=cv2.BORDER_REPLICATE) >= SURE
        elif mask is not None and region == "object":
            protected = cv2.dilate(mask, element) <= 255 - SURE
        if not protected.any():
            return 0.0
        changed = cv2.absdiff(image[:height, :width], source[:height, :width])
        worst = changed.max(axis=2) if changed.ndim == 3 else changed
        return float((worst > LEVELS)[protected].mean())


@dataclass(frozen=True)
class NoTrace:
    """Whether the fine structure of an exchanged background correlates with that of the source's no more than `most`.

    Attributes:
        attributes: those that live in the background; it judges interventions on them alone.
        most: the correlation, in [-1, 1], that real images have with one another in the same region.
    """

    attributes: frozenset[str]
    most: float
    name = "no trace of the old background"

    def margins(self, seen: Candidates) -> Floats:
        found = np.full(len(seen), np.nan)
        masks = seen.masks
        if masks is None:
            return found
        for i, (image, source) in enumerate(zip(seen.images, seen.pixels)):
            if self.attributes & set(seen.records[i]["do"]):
                found[i] = self.most - correlation(image, source, masks[i])
        return found


def correlation(first: Pixels, second: Pixels, mask: Pixels) -> float:
    """Correlation of two images' Laplacians where the mask is all background; NaN where one of them is flat there."""
    where = cv2.dilate(mask, np.ones((5, 5), np.uint8)) <= 255 - SURE
    grey = [
        image[..., 0] if image.shape[2] == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)
    ]
    a, b = (cv2.Laplacian(one, cv2.CV_32F)[where] for one in grey)
    scale = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / scale if scale > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class Plausible:
    """Whether the image is no farther from real images than `most`; where a layer is hidden it abstains, as no real image looks so."""

    distance: Measure
    most: float
    name = "near the data"

    def margins(self, seen: Candidates) -> Floats:
        hidden = [None in record["do"].values() for record in seen.records]
        return np.where(hidden, np.nan, self.most - self.distance(seen))


@dataclass(frozen=True, eq=False)
class Original:
    """Whether the image is at least `least` from every training image but its source."""

    nearest: Measure
    least: float
    name = "no copy"

    def margins(self, seen: Candidates) -> Floats:
        return np.asarray(self.nearest(seen) - self.least)
