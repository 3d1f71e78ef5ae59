"""``cfaug suspect``: which shortcuts could there be, from images and labels alone.

    properties of the images     against the label, corrected for their number (:mod:`cfaug.judge.properties`)
    clusters                     of the frozen net's features within each class, where the recipe has ``train.weights``; named by words
                                 where it has ``gate.clip``
    errors                       of a plain linear head on them, on images that it was not trained on

Each suspicion becomes a column of ``suspects.csv``, a copy of the table, with a ``?`` behind its name: a column that no recipe can name.
Whoever has looked at the collages takes the ``?`` away, puts the table in place of ``metadata.csv``, and names the column as spurious.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from cfaug.config import Recipe
from cfaug.data import AttributeDataset, open_source
from cfaug.data.files import expand, replace_file
from cfaug.data.images import as_rgb
from cfaug.data.sources.folder import read_metadata
from cfaug.decode.text_image import TextImageModel
from cfaug.errors import DataError
from cfaug.judge.properties import (
    Clusters,
    Floats,
    Suspicion,
    clusters_within,
    file_properties,
    pixel_properties,
    suspicions,
)
from cfaug.stages.cluster_names import name_clusters
from cfaug.train.features import FeatureStore
from cfaug.train.models import build_model

Codes = npt.NDArray[np.int64]
COLUMNS, FIGURES = "suspects.csv", "suspicions.json"
LEAST_STABLE = 0.6
"""Clusters of a class that are less stable than this are not worth a column."""
_SHOWN, _SIDE = 24, 72  # images of a collage, and the side of one


@dataclass(frozen=True)
class Suspects:
    """What was found: suspicious properties, clusters, error rate of a plain classifier by class, and where the columns are."""

    properties: Sequence[Suspicion]
    asked: int
    clusters: Clusters | None
    errors: Mapping[str, float]
    classes: Sequence[str]
    columns: Path
    names: Mapping[str, Mapping[str, str]]
    """Class -> cluster -> a word for it."""

    def __str__(self) -> str:
        lines = [f"{self.asked} properties of the images against the label, {len(self.properties)} of them suspicious"]
        lines += [
            f"  {one.name}: tells the class in {100 * one.told:.1f} % (chance {100 * one.chance:.1f} %), p {one.p:.1g} corrected"
            for one in self.properties
        ]
        if self.clusters is not None:
            for name, count, stable in zip(self.classes, self.clusters.counts, self.clusters.stability):
                lines.append(
                    f"  {name}: {count} clusters of features, stability {stable:.2f}; a plain classifier errs in {100 * self.errors[name]:.1f} %"
                )
                lines += [
                    f"    cluster {code}: more of {word} than the rest"
                    for code, word in self.names.get(name, {}).items()
                ]
        else:
            lines.append("  no clusters and no errors: they need train.weights, a pretrained net")
        lines.append(f"columns with a ? behind their names, and collages: {self.columns.parent}")
        lines.append(
            "Look at the collages. Take the ? away from what is a shortcut, put the table in place of metadata.csv, and name the column as spurious."
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        found = self.clusters
        return {
            "asked": self.asked, "properties": [dict(vars(one)) for one in self.properties], "errors": dict(self.errors), "names": {name: dict(some) for name, some in self.names.items()},
            "clusters": None if found is None else {n: {"count": c, "stability": s} for n, c, s in zip(self.classes, found.counts, found.stability)},
        }  # fmt: skip


def suspect(recipe: Recipe, out: Path, progress: bool = False) -> Suspects:
    """Look for shortcuts in the training images of a recipe, of which only ``data`` and ``attributes.target`` are read.

    Raises:
        UsageError, DataError: what opening the data may raise; fewer than two classes of ten images.
    """
    data, target = recipe.data, recipe.attributes.target
    opened: list[AttributeDataset] = []
    for split in ("train", "val", "test"):
        schema = opened[0].schema if opened else None
        opened.append(
            open_source(
                data.source,
                data.root,
                split,
                target=target,
                spurious=(),
                schema=schema,
                size=data.size,
                fit=data.fit,
                seed=data.seed,
            )
        )
    if recipe.gate.clip is not None:
        TextImageModel(recipe.gate.clip).check()
    train, classes = opened[0], [str(name) for name in opened[0].schema[target].categories]
    labels = [np.asarray(one.schema.index(target, one.table[target]), dtype=np.int64) for one in opened]
    if min(np.bincount(labels[0], minlength=len(classes))) < 10:
        raise DataError(f"suspect: expected 10 training images or more of each class of {target}, got fewer; add some")
    tables = [_properties(one, progress) for one in opened]
    found = suspicions({str(name): tables[0][name].to_numpy() for name in tables[0]}, labels[0], seed=recipe.seed)
    columns = {one.name: [one.levels(table[one.name].to_numpy()) for table in tables] for one in found}
    clusters, errors, names = None, dict[str, float](), dict[str, dict[str, str]]()
    if recipe.train.weights:
        features = _features(recipe, opened, len(classes), out, progress)
        clusters = clusters_within(features[0], labels[0], seed=recipe.seed)
        wrong = _errors(features, labels, recipe.seed)
        errors = {name: float(wrong[0][labels[0] == k].mean()) for k, name in enumerate(classes)}
        if max(clusters.stability) >= LEAST_STABLE:
            columns["cluster"] = [[str(code + 1) for code in clusters.of(*pair)] for pair in zip(features, labels)]
        if recipe.gate.clip is not None:
            named = name_clusters(recipe.gate.clip, train, labels[0], clusters.of(features[0], labels[0]))
            for (label, code), (word, _) in named.items():
                names.setdefault(classes[label], {})[str(code + 1)] = word
        columns["error"] = [["wrong" if one else "right" for one in some] for some in wrong]
    out.mkdir(parents=True, exist_ok=True)
    written = pd.concat(
        [one.table.rename_axis("file_name").reset_index().assign(split=one.split) for one in opened], ignore_index=True
    )
    for name, values in columns.items():
        written[f"{name}?"] = [value for some in values for value in some]
        _collages(out, name, values[0], train, labels[0], classes)
    if data.source == "folder":  # every column of the table is kept
        whole = read_metadata(expand(data.root or "")).rename_axis("file_name").reset_index()
        written = whole.merge(written[["file_name", *(f"{name}?" for name in columns)]], on="file_name", how="left")
    replace_file(out / COLUMNS, written.to_csv(index=False).encode())
    suspects = Suspects(found, len(tables[0].columns), clusters, errors, classes, out / COLUMNS, names)
    replace_file(out / FIGURES, json.dumps(suspects.to_json(), indent=1).encode())
    return suspects


def _properties(dataset: AttributeDataset, progress: bool) -> pd.DataFrame:
    where, rows = getattr(dataset, "where", None), []
    for i in tqdm(range(len(dataset)), desc=f"properties {dataset.split}", unit="img", disable=not progress, delay=2):
        rows.append(
            {**pixel_properties(dataset.image(i)), **({} if where is None else file_properties(Path(where(i))))}
        )
    return pd.DataFrame(rows, dtype=np.float64)


def _features(
    recipe: Recipe, opened: Sequence[AttributeDataset], classes: int, out: Path, progress: bool
) -> list[Floats]:
    (height, width, channels), config = opened[0].image(0).shape, recipe.train
    net = build_model(config.model, channels, (height, width), classes, 0, config.weights, config.normalization)
    store = FeatureStore(
        out / "features",
        net,
        (height, width),
        recipe.data.workers,
        config.device,
        config.bf16,
        config.threads,
        progress,
    )
    return [store.of_dataset(one).double().numpy() for one in opened]


def _errors(features: Sequence[Floats], labels: Sequence[Codes], seed: int) -> list[npt.NDArray[np.bool_]]:
    """Of each split (N,) where a linear head that did not see the image says another class."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, max_iter=200))
    said = [cross_val_predict(head, features[0], labels[0], cv=StratifiedKFold(5, shuffle=True, random_state=seed))]
    head.fit(features[0], labels[0])
    said += [head.predict(some) for some in features[1:]]
    return [np.asarray(one != true) for one, true in zip(said, labels)]


def _collages(
    out: Path,
    name: str,
    values: Sequence[str],
    dataset: AttributeDataset,
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    """For each class and value a picture of some images that have both: ``collages/NAME-CLASS-VALUE.png``."""
    (out / "collages").mkdir(exist_ok=True)
    given = np.asarray(values)
    for k, label in enumerate(classes):
        for value in np.unique(given):
            rows = np.flatnonzero((labels == k) & (given == value))
            if not len(rows):
                continue
            chosen = np.sort(np.random.default_rng([k, 37]).permutation(rows)[:_SHOWN])
            sheet = Image.new("RGB", (6 * _SIDE, -(-len(chosen) // 6) * _SIDE), "white")
            for place, row in enumerate(chosen.tolist()):
                picture = Image.fromarray(as_rgb(dataset.image(row)))
                picture.thumbnail((_SIDE - 2, _SIDE - 2))
                sheet.paste(picture, (place % 6 * _SIDE, place // 6 * _SIDE))
            stream = io.BytesIO()
            sheet.save(stream, "PNG")
            named = "-".join("".join(c if c.isalnum() else "_" for c in part) for part in (name, label, value))
            replace_file(out / "collages" / f"{named}.png", stream.getvalue())
