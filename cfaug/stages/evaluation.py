"""Judging the counterfactuals themselves, on training sources, where the classifier would look.

Readers are classifiers of one attribute each. They are trained on unconfounded images where the source can make them; otherwise
on the confounded ones with groups resampled, and the result says so, because such a reader may share the shortcut.
The shortcut probe asks what a lazy classifier would ask: is the target told by colour statistics alone?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm.auto import tqdm

from cfaug.causal import Intervention, do
from cfaug.config import Recipe
from cfaug.data import AttributeDataset, load_images
from cfaug.decode import CounterfactualModel
from cfaug.judge import axioms
from cfaug.learn import TensorImages, TrainedClassifier, TrainSettings, train_classifier
from cfaug.learn.assembly import group_codes
from cfaug.offline import Plan, PlanRow, ShardReader
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
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def evaluate_counterfactuals(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, plan: Plan, shards: ShardReader, progress: bool
) -> Evaluation:
    """Composition, reversibility, effectiveness, preservation and the shortcut probe, on what was generated."""
    bar = tqdm(total=4, desc="evaluate", disable=not progress, bar_format="{desc}: {n}/{total} {postfix} [{elapsed}]")
    rows = judged_rows(plan, recipe.evaluate.images, len(inputs.train) // 2)
    position = {inputs.train.key(i): i for i in range(len(inputs.train))}
    wanted = [position[row.source_key] for row in rows]
    images = load_images(inputs.train, wanted, progress=False)
    factual = to_float(images)
    table = inputs.train.table.iloc[wanted].set_axis([row.key for row in rows])  # a source may have several rows
    place = {entry.key: i for i, entry in enumerate(shards.index)}
    made = torch.from_numpy(np.stack([shards.image(place[row.key]) for row in rows])).permute(0, 3, 1, 2)
    attributes = inputs.schema.canonical(
        pd.DataFrame([shards.record(place[row.key])["attributes"] for row in rows], index=table.index)
    )
    acts: list[Intervention] = [row.do for row in rows]
    bar.set_postfix_str(f"{recipe.evaluate.cycles} null cycles")
    rebuilt, _ = axioms.counterfactuals(model, factual, table, [do()] * len(acts), recipe.seed)
    rebuilt = torch.from_numpy(to_pixels(rebuilt)).permute(0, 3, 1, 2)
    errors = axioms.l1(factual, to_float(rebuilt))
    figures: dict[str, Any] = {
        "images": len(rows),
        "composition_l1": float(errors.mean()),
        f"composition_l1_{recipe.evaluate.cycles}_cycles": float(
            axioms.composition(model, factual, table, recipe.evaluate.cycles, recipe.seed).mean()
        ),
        "reversibility_l1": float(axioms.reversibility(model, factual, table, acts, recipe.seed).mean()),
        "rows": [
            {"source": row.source_key, "do": str(row.do), "reconstruction_l1": float(error), "misread": []}
            for row, error in zip(rows, errors, strict=True)
        ],
    }
    _next(bar, "readers")
    readers, figures["reader_basis"] = _readers(recipe, inputs, {row.source_key for row in rows}, progress)
    figures["not_measured"] = [name for name in inputs.graph.parents("image") if name not in readers]
    predictors = {name: reader.predict for name, reader in readers.items()}
    read = axioms.read_attributes(predictors, made, attributes, inputs.schema)
    _next(bar, "real test images")
    test = load_images(inputs.test, progress=False)
    read_real = axioms.read_attributes(predictors, test, inputs.test.table, inputs.schema)
    figures["attributes"] = {}
    for name, agrees in read.items():
        intervened = any(name in act.assignments for act in acts)
        # an intervention to the value that the image has already proves nothing: an identity would pass it
        counted = (attributes[name] != table[name]).to_numpy() if intervened else np.ones(len(rows), dtype=bool)
        figures["attributes"][name] = {
            "intervened": intervened,
            "n": int(counted.sum()),
            "agreement": float(agrees[counted].mean()) if counted.any() else None,
            "reader_on_real": float(read_real[name].mean()),
        }
        for row, right in zip(figures["rows"], agrees, strict=True):
            if not right:
                row["misread"].append(name)
    _next(bar, "shortcut probe")
    figures["shortcut_probe"] = shortcut_probe(inputs, shards, recipe.seed)
    _next(bar, "")
    bar.close()
    return Evaluation(figures, to_pixels(images), to_pixels(rebuilt), to_pixels(made))


def judged_rows(plan: Plan, most: int, sources: int) -> list[PlanRow]:
    """The first ``most`` real interventions of the (shuffled) plan, of at most ``sources`` different images.

    The readers are trained on the other images, so that none of them can have learned an answer by heart.
    """
    rows: list[PlanRow] = []
    known: set[str] = set()
    for row in plan:
        if row.do.is_null or (row.source_key not in known and len(known) >= max(sources, 1)):
            continue
        known.add(row.source_key)
        rows.append(row)
        if len(rows) == most:
            break
    return rows


def _next(bar: tqdm[Any], what: str) -> None:
    bar.update()
    bar.set_postfix_str(what)


def _readers(
    recipe: Recipe, inputs: Inputs, judged: set[str], progress: bool
) -> tuple[dict[str, TrainedClassifier], str]:
    """A reader for each categorical parent of the image, trained on other sources than those judged, and on what."""
    source: AttributeDataset = inputs.oracle or inputs.train
    basis = (
        "unconfounded images" if inputs.oracle else "the confounded training images, groups resampled: a weaker witness"
    )
    kept = [i for i in range(len(source)) if source.key(i) not in judged]
    table = source.table.iloc[kept]
    images = load_images(source, kept, progress=False)
    groups = torch.from_numpy(group_codes(table, inputs.grouper, "each"))
    readers = {}
    for name in inputs.graph.parents("image"):
        attribute = inputs.schema[name]
        if attribute.kind == "categorical":
            codes = torch.from_numpy(np.asarray(inputs.schema.index(name, table[name])))
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


def shortcut_probe(inputs: Inputs, shards: ShardReader, seed: int, most: int = 2000) -> dict[str, float | None]:
    """Balanced accuracy of the target read from colour statistics alone; chance is one over the number of classes.

    Up to ``most`` images of each kind, drawn at random; five folds, and no source on both sides of one.
    """
    generator = np.random.default_rng(seed)
    generated = [i for i in range(len(shards)) if not shards.index[i].null]
    count = min(most, len(generated), len(inputs.train))

    def drawn(rows: Sequence[int]) -> list[int]:
        return [int(i) for i in generator.choice(np.asarray(rows), count, replace=False)]

    def of(dataset: AttributeDataset) -> float | None:
        rows = drawn(range(len(dataset)))
        targets = dataset.table[inputs.target].iloc[rows].tolist()
        return _told_by_colour([dataset.image(i) for i in rows], targets, [dataset.key(i) for i in rows], seed)

    rows = drawn(generated)
    records = [shards.record(i) for i in rows]
    found: dict[str, float | None] = {
        "chance": 1 / len(inputs.schema[inputs.target].categories),
        "factual": of(inputs.train),
        "counterfactual": _told_by_colour(
            [shards.image(i) for i in rows],
            [str(record["target"]) for record in records],
            [str(record["source_key"]) for record in records],
            seed,
        ),
    }
    if inputs.oracle is not None:
        found["unconfounded"] = of(inputs.oracle)
    return found


def _told_by_colour(images: list[Pixels], targets: list[str], sources: list[str], seed: int) -> float | None:
    """Cross-validated balanced accuracy, or None where there are too few images to say."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rarest = min(Counter(targets).values(), default=0)
    if len(images) < 50 or rarest < 10 or len(set(targets)) < 2:
        return None
    flat = np.stack([image.reshape(-1, image.shape[-1]) for image in images]).astype(np.float64)
    tails = np.quantile(flat, [0.1, 0.9], axis=1).transpose(1, 0, 2).reshape(len(flat), -1)
    statistics = np.concatenate([flat.mean(1), flat.std(1), tails], axis=1)
    probe = make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=300, random_state=seed, class_weight="balanced")
    )
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    said = cross_val_predict(probe, statistics, np.asarray(targets), groups=np.asarray(sources), cv=folds)
    return float(balanced_accuracy_score(targets, said))
