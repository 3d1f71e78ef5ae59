"""Judging the counterfactuals themselves, on training sources, where the classifier would look.

Readers are classifiers of one attribute each. They are trained on unconfounded images where the source can make them; otherwise
on the confounded ones with groups resampled, and the result says so, because such a reader may share the shortcut.
The shortcut probe asks what a lazy classifier would ask: is the target told by colour statistics alone?
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm.auto import tqdm

from cfaug.causal import Intervention, do
from cfaug.config import Recipe
from cfaug.data import AttributeDataset, load_images
from cfaug.decode import CounterfactualModel
from cfaug.judge import axioms
from cfaug.learn import TensorImages, TrainedClassifier, TrainSettings, train_classifier
from cfaug.learn.assembly import group_codes
from cfaug.offline import Plan, ShardReader
from cfaug.stages.inputs import Inputs

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """Figures for ``evaluation/figures.json`` and, row by row, the images behind them, each uint8 (N, H, W, C)."""

    figures: dict[str, Any]
    factual: Pixels
    reconstruction: Pixels
    counterfactual: Pixels


def settings_of(recipe: Recipe) -> TrainSettings:
    """The classifier settings of a recipe."""
    train = recipe.train
    return TrainSettings(
        epochs=train.epochs,
        batch_size=train.batch_size,
        lr=train.learning_rate,
        weight_decay=train.weight_decay,
        model=train.model,
        device=train.device,
        threads=train.threads,
        bf16=train.bf16,
    )


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> Pixels:
    """(N, C, H, W), uint8 or float in [-1, 1], to uint8 (N, H, W, C)."""
    if images.dtype != torch.uint8:
        images = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def evaluate_counterfactuals(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, plan: Plan, shards: ShardReader, progress: bool
) -> Evaluation:
    """Composition, reversibility, effectiveness, preservation and the shortcut probe on the first planned sources."""
    position = {inputs.train.key(i): i for i in range(len(inputs.train))}
    rows = [row for row in plan if not row.do.is_null][: recipe.evaluate.images]
    wanted = [position[row.source_key] for row in rows]
    acts: list[Intervention] = [row.do for row in rows]
    bar = tqdm(total=4, desc="evaluate", disable=not progress, bar_format="{desc}: {n}/{total} {postfix} [{elapsed}]")
    images = load_images(inputs.train, wanted, progress=False)
    factual, table = to_float(images), inputs.train.table.iloc[wanted]
    table = table.set_axis([row.key for row in rows])  # one source may occur in several rows
    bar.set_postfix_str("counterfactuals")
    made, attributes = axioms.counterfactuals(model, factual, table, acts, recipe.seed)
    rebuilt, _ = axioms.counterfactuals(model, factual, table, [do()] * len(acts), recipe.seed)
    made, rebuilt = (torch.from_numpy(to_pixels(part)).permute(0, 3, 1, 2) for part in (made, rebuilt))
    _next(bar, "readers")
    readers, basis = _readers(recipe, inputs, progress)
    _next(bar, f"{recipe.evaluate.cycles} null cycles")
    test = load_images(inputs.test, progress=False)
    figures: dict[str, Any] = {
        "images": len(rows),
        "reader_basis": basis,
        "composition_l1": float(axioms.l1(factual, to_float(rebuilt)).mean()),
        f"composition_l1_{recipe.evaluate.cycles}_cycles": float(
            axioms.composition(model, factual, table, recipe.evaluate.cycles, recipe.seed).mean()
        ),
        "reversibility_l1": float(axioms.reversibility(model, factual, table, acts, recipe.seed).mean()),
        "attributes": {},
        "rows": [
            {"source": row.source_key, "do": str(row.do), "reconstruction_l1": float(error), "misread": []}
            for row, error in zip(rows, axioms.l1(factual, to_float(rebuilt)), strict=True)
        ],
    }
    predictors = {name: reader.predict for name, reader in readers.items()}
    read = axioms.read_attributes(predictors, made, attributes, inputs.schema)
    read_real = axioms.read_attributes(predictors, test, inputs.test.table, inputs.schema)
    for name, agrees in read.items():
        intervened = np.array([name in act.assignments for act in acts])
        on_real = float(read_real[name].mean())
        figures["attributes"][name] = {
            "intervened": bool(intervened.any()),
            "agreement": float(agrees.mean()),
            "reader_on_real": on_real,
            "relative": float(agrees.mean() / on_real) if on_real else None,
        }
        for row, right in zip(figures["rows"], agrees, strict=True):
            if not right:
                row["misread"].append(name)
    _next(bar, "shortcut probe")
    figures["shortcut_probe"] = _shortcut_probe(inputs, shards, recipe.seed)
    _next(bar, "")
    bar.close()
    return Evaluation(figures, to_pixels(images), to_pixels(rebuilt), to_pixels(made))


def _next(bar: tqdm[Any], what: str) -> None:
    bar.update()
    bar.set_postfix_str(what)


def _readers(recipe: Recipe, inputs: Inputs, progress: bool) -> tuple[dict[str, TrainedClassifier], str]:
    """A reader for each categorical parent of the image, and what it was trained on."""
    source: AttributeDataset = inputs.oracle or inputs.train
    basis = (
        "unconfounded images" if inputs.oracle else "the confounded training images, groups resampled: a weaker witness"
    )
    images = load_images(source, progress=False)
    groups = torch.from_numpy(group_codes(source.table, inputs.grouper, "each"))
    readers = {}
    for name in inputs.graph.parents("image"):
        attribute = inputs.schema[name]
        if attribute.kind == "categorical":
            codes = torch.from_numpy(np.asarray(inputs.schema.index(name, source.table[name])))
            readers[name] = train_classifier(
                "erm" if inputs.oracle else "group_resampling",
                TensorImages(images, codes, groups),
                None,
                settings_of(recipe),
                seed=recipe.seed,
                classes=attribute.categories,
                progress=progress,
            )
    return readers, basis


def _shortcut_probe(inputs: Inputs, shards: ShardReader, seed: int, most: int = 2000) -> dict[str, float | None]:
    """Accuracy of the target read from colour statistics alone, by five-fold cross-validation."""
    generated = [i for i in range(len(shards)) if not shards.index[i].null][:most]
    target = inputs.target
    found: dict[str, float | None] = {
        "chance": 1 / len(inputs.schema[target].categories),
        "factual": _told_by_colour(
            [inputs.train.image(i) for i in range(min(most, len(inputs.train)))],
            inputs.train.table[target].tolist()[:most],
            seed,
        ),
        "counterfactual": _told_by_colour(
            [shards.image(i) for i in generated], [str(shards.record(i)["target"]) for i in generated], seed
        ),
    }
    if inputs.oracle is not None:
        rows = range(min(most, len(inputs.oracle)))
        found["unconfounded"] = _told_by_colour(
            [inputs.oracle.image(i) for i in rows], inputs.oracle.table[target].tolist()[:most], seed
        )
    return found


def _told_by_colour(images: list[Pixels], targets: list[str], seed: int) -> float | None:
    """Cross-validated accuracy, or None where there are too few images to say."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rarest = min(Counter(targets).values(), default=0)
    if len(images) < 50 or rarest < 5 or len(set(targets)) < 2:
        return None
    flat = np.stack([image.reshape(-1, image.shape[-1]) for image in images]).astype(np.float64)
    statistics = np.concatenate(
        [flat.mean(1), flat.std(1), np.quantile(flat, [0.1, 0.9], axis=1).transpose(1, 0, 2).reshape(len(flat), -1)],
        axis=1,
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, random_state=seed))
    return float(
        cross_val_score(
            probe, statistics, np.asarray(targets), cv=StratifiedKFold(5, shuffle=True, random_state=seed)
        ).mean()
    )
