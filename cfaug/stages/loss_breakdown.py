"""Where the worst group is lost: the same classifier trained on four kinds of images of the same sources.

    codec loss     = accuracy(unconfounded images)  - accuracy(their reconstructions)
    mechanism loss = accuracy(reconstructions)      - accuracy(counterfactuals of unconfounded sources)
    leak loss      = accuracy(those)                - accuracy(counterfactuals of the confounded sources)

Accuracies are on the unconfounded test split: the average, and the worst group of every spurious attribute, over several
classifier seeds. The sum of the losses is what training on counterfactuals alone costs compared with clean images. The
measure needs a data set that can be made unconfounded. A loss smaller than the spread over seeds may be chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from cfaug.config import Recipe
from cfaug.data import load_images
from cfaug.judge.accuracy import average_accuracy, group_accuracy, worst_group_accuracy
from cfaug.stages.attribute_classifiers import settings_of
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.generated_sets import Pool
from cfaug.train import TensorImages, train_classifier

LOSSES = {
    "codec": ("unconfounded", "reconstruction"),
    "mechanism": ("reconstruction", "counterfactual"),
    "leak": ("counterfactual", "counterfactual_of_confounded"),
}
"""loss -> the two kinds whose difference it is, in the order in which the losses occur."""

Scores = dict[str, dict[str, list[float]]]
"""kind -> {"average" or "worst by ATTRIBUTE": accuracy by seed}"""


def three_losses(recipe: Recipe, inputs: Inputs, clean: Pool, confounded: Pool, progress: bool) -> dict[str, Any]:
    """Train and test; ``clean`` and ``confounded`` are pools of the same sources in the same order.

    The classifier is the recipe's, with as many gradient steps as in the run (hence more epochs of fewer images) and the
    weights of the last epoch, because selection on validation would hide part of a loss.

    Returns:
        ``images``, ``seeds``, ``epochs``; ``accuracy``: kind -> measure -> {mean, by_seed}; ``losses``: loss -> the same for
        the differences, seed by seed. All are fractions.
    """
    kinds: dict[str, tuple[Tensor, Pool]] = {
        "unconfounded": (clean.factual, clean),
        "reconstruction": (clean.reconstruction, clean),
        "counterfactual": (clean.counterfactual, clean),
        "counterfactual_of_confounded": (confounded.counterfactual, confounded),
    }
    settings = settings_of(recipe)
    settings = replace(settings, epochs=max(1, round(settings.epochs * len(inputs.train) / len(clean.factual))))
    test = load_images(inputs.test, progress=False)
    seeds = range(recipe.evaluate.loss_seeds)
    scores: Scores = {kind: {} for kind in kinds}
    todo = [(kind, seed) for seed in seeds for kind in kinds]
    for kind, seed in tqdm(todo, desc="losses", unit="classifier", disable=not progress, leave=False):
        images, pool = kinds[kind]
        targets = torch.from_numpy(np.asarray(inputs.schema.index(inputs.target, pool.table[inputs.target])))
        classes = inputs.schema[inputs.target].categories
        trained = train_classifier("erm", TensorImages(images, targets), None, settings, seed=seed, classes=classes)
        for measure, value in _scores(inputs, trained.predict(test)).items():
            scores[kind].setdefault(measure, []).append(value)
    return {
        "images": len(clean.factual),
        "seeds": len(seeds),
        "epochs": settings.epochs,
        "accuracy": {kind: _summary(found) for kind, found in scores.items()},
        "losses": {
            name: _summary({m: [x - y for x, y in zip(scores[a][m], scores[b][m], strict=True)] for m in scores[a]})
            for name, (a, b) in LOSSES.items()
        },
    }


def _scores(inputs: Inputs, predictions: Tensor) -> dict[str, float]:
    targets = inputs.schema.index(inputs.target, inputs.test.table[inputs.target])
    labels = inputs.grouper.labels(inputs.test.table)
    said = predictions.numpy()
    found = {"average": average_accuracy(targets, said)}
    for name in labels:
        found[f"worst by {name}"] = worst_group_accuracy(group_accuracy(targets, said, labels[[name]])).accuracy
    return found


def _summary(found: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {measure: {"mean": float(np.mean(values)), "by_seed": values} for measure, values in found.items()}
