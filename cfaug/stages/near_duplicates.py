"""Near-duplicates among the images, by the features of the frozen net: a test image that training has nearly seen flatters every method.

    two images are nearly the same where their features are no farther apart than those of 95 % of known duplicates,

which are made here: images that are compressed, shifted and made a little smaller. Exact duplicates across splits are refused before.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from cfaug.config import Recipe
from cfaug.data import AttributeDataset
from cfaug.data.images import Pixels
from cfaug.errors import listed
from cfaug.stages.attribute_classifiers import feature_store
from cfaug.stages.checked_inputs import Inputs
from cfaug.train.features import FeatureStore
from cfaug.train.validation import outputs

COPIED = 100
"""Training images of which known duplicates are made."""
MOST = 20_000
"""Images of a split, at most, that are compared."""


def near_duplicates(inputs: Inputs, store: FeatureStore, seed: int) -> dict[str, Any]:
    """How many validation, test and training images nearly are another training image, the pairs that are nearest, and the threshold."""
    rng = np.random.default_rng([seed, 18])
    rows = {d.split: np.sort(rng.permutation(len(d))[:MOST]) for d in (inputs.train, inputs.val, inputs.test)}
    features = {d.split: _units(store.of_dataset(d), rows[d.split]) for d in (inputs.train, inputs.val, inputs.test)}
    train = features["train"]
    chosen = rng.permutation(len(train))[:COPIED]
    originals = [inputs.train.image(int(rows["train"][i])) for i in chosen]
    copies = torch.from_numpy(np.stack([duplicate(image, rng) for image in originals])).permute(0, 3, 1, 2)
    made = nn.functional.normalize(outputs(store.model.embed, store.model, copies, 32).float())
    limit = float((made - train[torch.from_numpy(chosen)]).norm(dim=1).quantile(0.95))
    found: dict[str, Any] = {
        "threshold": limit,
        "compared": {name: len(some) for name, some in rows.items()},
        "pairs": [],
    }
    for dataset in (inputs.val, inputs.test, inputs.train):
        nearest, distance = _nearest(features[dataset.split], train, same=dataset is inputs.train)
        close = np.flatnonzero(distance <= limit)
        found[dataset.split] = len(close)
        for i in close[np.argsort(distance[close])][:5].tolist():
            pair = [_key(dataset, rows[dataset.split], i), _key(inputs.train, rows["train"], int(nearest[i]))]
            found["pairs"].append([dataset.split, *pair])
    return found


def duplicate_notes(figures: dict[str, Any]) -> list[str]:
    """The figures in words; nothing where they were not measured."""
    found = figures.get("near_duplicates")
    if not found:
        return []
    across = {name: found[name] for name in ("val", "test") if found[name]}
    if not across and not found["train"]:
        return ["No two images are nearly the same, by the features of the net."]
    pairs = listed([f"{key} ({split}) and {other} (train)" for split, key, other in found["pairs"]])
    counts = ", ".join(
        f"{count} of {found['compared'][name]} {name} images"
        for name, count in {**across, "train": found["train"]}.items()
    )
    warning = "WARNING: " if across else ""
    return [
        f"{warning}Nearly the same as another training image, by the features of the net: {counts}; the nearest are {pairs}."
    ]


def duplicates_in_run(recipe: Recipe, inputs: Inputs, run: Path) -> list[str]:
    """The near-duplicates in words, where the run's directory has features of its images; else nothing."""
    place = run / "features"
    if recipe.train.mode != "frozen" or not place.is_dir():
        return []
    store = feature_store(recipe, inputs, place, progress=False)
    return duplicate_notes({"near_duplicates": near_duplicates(inputs, store, recipe.seed)})


def duplicate(image: Pixels, rng: np.random.Generator) -> Pixels:
    """The image as another file may have it: a little smaller, shifted and compressed."""
    height, width = image.shape[:2]
    picture = Image.fromarray(image.squeeze())
    edge = max(1, min(height, width) // 32)
    left, top = (int(v) for v in rng.integers(0, edge + 1, 2))
    picture = picture.crop((left, top, width - edge + left, height - edge + top)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=60)
    return np.asarray(Image.open(stream)).reshape(image.shape)


def _nearest(images: Tensor, train: Tensor, same: bool) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    places, distances = [], []
    for start in range(0, len(images), 1000):
        part = torch.cdist(images[start : start + 1000], train)
        if same:
            part[torch.arange(len(part)), torch.arange(start, start + len(part))] = torch.inf
        least = part.min(dim=1)
        places.append(least.indices.numpy())
        distances.append(least.values.double().numpy())
    return np.concatenate(places), np.concatenate(distances)


def _units(features: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    return nn.functional.normalize(features[torch.from_numpy(rows)].float())


def _key(dataset: AttributeDataset, rows: npt.NDArray[np.int64], i: int) -> str:
    return dataset.key(int(rows[i]))
