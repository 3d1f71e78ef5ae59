"""What an image is like apart from what it shows: numbers that a label should not follow from, and whether it does.

    p(property)   Kruskal and Wallis' test (1952) of the property between the classes, corrected for all properties (Holm, 1979)
    told          balanced accuracy, cross-validated, of the class as a tree of as many leaves as there are classes reads it off the property

A property may belong to the class by right (a dress is larger than a shoe): a suspicion is a question for a person. Not promised: that a
shortcut which none of these numbers sees is not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from cfaug.data.images import Pixels

Floats = npt.NDArray[np.float64]
CORNERS = ("top left", "top right", "bottom left", "bottom right")
_FOLDS = 5


def pixel_properties(image: Pixels) -> dict[str, float]:
    """Name -> number, of a uint8 image (H, W, 1 or 3); lengths are shares of the image, levels in [0, 1]."""
    values = image.astype(np.float32) / 255
    grey = values.mean(axis=2)
    height, width = grey.shape
    edge, corner = max(1, min(height, width) // 25), (max(2, height // 5), max(2, width // 5))
    inner = grey[edge : height - edge, edge : width - edge]
    border = np.concatenate(
        [grey[:edge].ravel(), grey[-edge:].ravel(), grey[:, :edge].ravel(), grey[:, -edge:].ravel()]
    )
    strokes = cv2.morphologyEx(grey, cv2.MORPH_TOPHAT, np.ones((5, 5), np.uint8))
    found = {
        "brightness": float(grey.mean()),
        "contrast": float(grey.std()),
        "sharpness": float(np.log(cv2.Laplacian(grey, cv2.CV_32F).var() + 1e-8)),
        "border brightness": float(border.mean() - inner.mean()),
        "border evenness": float(border.std() - inner.std()),
        "text-like strokes": float((strokes > 0.15).mean()),
    }
    if image.shape[2] == 3:
        red, green, blue = (float(values[..., c].mean()) for c in range(3))
        found |= {
            "redness": red - green, "blueness": blue - (red + green) / 2,
            "saturation": float((values.max(axis=2) - values.min(axis=2)).mean()),
        }  # fmt: skip
    for k, name in enumerate(CORNERS):
        rows = slice(None, corner[0]) if k < 2 else slice(height - corner[0], None)
        columns = slice(None, corner[1]) if k % 2 == 0 else slice(width - corner[1], None)
        part = values[rows, columns]
        found[f"{name} brightness"] = float(part.mean() - grey.mean())
        found[f"{name} edges"] = float(strokes[rows, columns].mean() - strokes.mean())
        if image.shape[2] == 3:
            found[f"{name} saturation"] = float((part.max(axis=2) - part.min(axis=2)).mean()) - found["saturation"]
    return found


def file_properties(path: Path) -> dict[str, float]:
    """Name -> number of a file: size of the picture, bytes, quality of a JPEG; empty where there is no such file."""
    from PIL import Image

    if not path.is_file():
        return {}
    with Image.open(path) as opened:
        width, height = opened.size
        tables = getattr(opened, "quantization", None) or {}
    found = {
        "file width": float(width), "file height": float(height), "file aspect": width / height,
        "file bytes per pixel": path.stat().st_size / (width * height),
    }  # fmt: skip
    if tables:
        found["JPEG coarseness"] = float(np.mean(next(iter(tables.values()))))
    return found


@dataclass(frozen=True)
class Suspicion:
    """A property that follows the label.

    Attributes:
        name: the property's.
        p: corrected for all properties that were asked.
        told, chance: balanced accuracy of the class from the property alone; in [0, 1].
        cuts: where a tree cuts it, ascending.
    """

    name: str
    p: float
    told: float
    chance: float
    cuts: tuple[float, ...]

    def levels(self, values: Floats) -> list[str]:
        """The property as categories, from "1" up."""
        return [str(k + 1) for k in np.searchsorted(self.cuts, values, side="left")]


def suspicions(
    table: Mapping[str, Floats], labels: npt.NDArray[np.int64], alpha: float = 0.05, least: float = 0.05, seed: int = 0
) -> list[Suspicion]:
    """Properties whose dependence on the labels chance does not explain, and that tell them at least ``least`` better; best first.

    Args:
        table: property -> (N,) values, NaN where an image has none.
        labels: (N,) codes.
        alpha: the probability that any property is named where none depends on the labels.
        least: balanced accuracy above chance that is worth a person's time.
        seed: of the folds.
    """
    asked = {name: values for name, values in table.items() if np.isfinite(values).all() and len(np.unique(values)) > 1}
    raw = {name: _dependence(values, labels) for name, values in asked.items()}
    found, worst = [], 0.0
    for rank, name in enumerate(sorted(raw, key=lambda one: raw[one])):
        worst = min(1.0, max(worst, raw[name] * (len(raw) - rank)))
        if worst >= alpha:
            break
        told, cuts = _told(asked[name], labels, seed)
        chance = 1 / len(np.unique(labels))
        if told - chance >= least:
            found.append(Suspicion(name, worst, told, chance, cuts))
    return sorted(found, key=lambda one: -one.told)


def _dependence(values: Floats, labels: npt.NDArray[np.int64]) -> float:
    from scipy.stats import kruskal

    return float(kruskal(*(values[labels == k] for k in np.unique(labels))).pvalue)


def _told(values: Floats, labels: npt.NDArray[np.int64], seed: int) -> tuple[float, tuple[float, ...]]:
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    classes, counts = np.unique(labels, return_counts=True)
    tree = DecisionTreeClassifier(
        max_leaf_nodes=len(classes), class_weight="balanced", min_samples_leaf=5, random_state=0
    )
    folds = StratifiedKFold(max(2, min(_FOLDS, int(counts.min()))), shuffle=True, random_state=seed)
    told = float(cross_val_score(tree, values[:, None], labels, cv=folds, scoring="balanced_accuracy").mean())
    cut = tree.fit(values[:, None], labels).tree_
    return told, tuple(sorted(float(t) for t in cut.threshold[cut.children_left >= 0]))


@dataclass(frozen=True, eq=False)
class Clusters:
    """Clusters within each class: how many by class, how stable each class's are, and where their centres lie."""

    counts: Sequence[int]
    stability: Sequence[float]
    models: Sequence[Any]
    """Of each class scikit-learn's PCA and KMeans."""

    def of(self, features: Floats, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(N,) the cluster of each image in its class."""
        codes = np.zeros(len(labels), dtype=np.int64)
        for label, (axes, means) in enumerate(self.models):
            if (rows := np.flatnonzero(labels == label)).size:
                codes[rows] = means.predict(axes.transform(_units(features[rows])))
        return codes


def _units(features: Floats) -> Floats:
    return np.asarray(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))


def clusters_within(
    features: Floats, labels: npt.NDArray[np.int64], most: int = 5, seed: int = 0, rounds: int = 5
) -> Clusters:
    """k-means within each class, of as many clusters (2 to ``most``) as the silhouette prefers (Rousseeuw, 1987).

    Stability: mean adjusted Rand index (Hubert & Arabie, 1985) with the clusters of ``rounds`` random four fifths of the class; 1 is
    perfect, 0 chance. Features (N, D) are brought to length 1 and to 20 principal components.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    counts, stability, models = [], [], []
    for label in range(int(labels.max()) + 1):
        rows = np.flatnonzero(labels == label)
        units = _units(features[rows])
        axes = PCA(min(20, *units.shape), random_state=0).fit(units)
        seen = axes.transform(units)
        tried = {k: KMeans(k, n_init=5, random_state=seed).fit(seen) for k in range(2, min(most, len(rows) - 1) + 1)}
        best = max(
            tried,
            key=lambda k: silhouette_score(seen, tried[k].labels_, sample_size=min(1000, len(rows)), random_state=0),
        )
        own = tried[best].labels_
        rng, scores = np.random.default_rng([seed, int(label), 31]), []
        for _ in range(rounds):
            part = np.sort(rng.permutation(len(rows))[: 4 * len(rows) // 5])
            scores.append(
                adjusted_rand_score(own[part], KMeans(best, n_init=5, random_state=seed).fit(seen[part]).labels_)
            )
        models.append((axes, tried[best]))
        counts.append(best)
        stability.append(float(np.mean(scores)))
    return Clusters(counts, stability, models)
