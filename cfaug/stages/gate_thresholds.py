"""The thresholds of a gate: what it asks, and the share of real images that each answer would reject.

Every quantile is over training images whose groups count the same; readers' scores are cross-fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cfaug.causal import do
from cfaug.config import Recipe
from cfaug.decode import CounterfactualModel, FunctionalDecoder, LayeredDecoder, PretrainedDecoder
from cfaug.decode.text_image import BATCH
from cfaug.errors import listed
from cfaug.offline.criteria import Boxes, Unchanged, correlation, threshold
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.gate_readers import Learned, fold_count, folds_of
from cfaug.stages.gate_text import TextReader, text_readers
from cfaug.stages.generated_sets import make_pool
from cfaug.stages.image_mechanism import mechanisms_of
from cfaug.train.method_data import group_codes
from cfaug.train.objectives import group_weights

_NULLS = 200  # real images whose null interventions say how much changes without cause


def asked_of(recipe: Recipe, inputs: Inputs) -> tuple[dict[str, list[str]], list[str]]:
    """Attribute -> the values that its reader judges; and what is not judged, in words.

    A value that (nearly) only one class shows cannot be told from that class, nor a class from the one value that it goes with.
    """
    schema, gate, table = inputs.schema, recipe.gate, inputs.schema.canonical(inputs.train.table)
    found: dict[str, list[str]] = {}
    silent: list[str] = []
    if not {"shown", "kept"} & set(gate.criteria):
        return found, silent
    for name in dict.fromkeys([inputs.target, *inputs.graph.parents("image"), *gate.care]):
        if schema[name].kind != "categorical":
            silent.append(f"{name} is {schema[name].kind}: there is no reader of it, so nothing is judged by it")
            continue
        judged = list(schema[name].categories)
        for _, levels in _crossed(inputs, table, name):
            counts = pd.crosstab(table[name], levels)
            elsewhere = counts.sum(axis=1) - counts.max(axis=1)
            judged = [value for value in judged if elsewhere.get(value, 0) >= gate.least]
        if lacking := [value for value in schema[name].categories if value not in judged]:
            silent.append(
                f"{name}: nothing is judged of {listed(lacking)}, which fewer than {gate.least} real images show apart from what usually "
                "goes with it"
            )
        if judged:
            found[name] = judged
    return found, silent


def _crossed(inputs: Inputs, table: pd.DataFrame, name: str) -> list[tuple[str, pd.Series]]:
    """What the cells of an attribute are crossed with: the target with each spurious attribute's levels, others with the target."""
    if name != inputs.target:
        return [(inputs.target, table[inputs.target])]
    return [(other, inputs.grouper.levels(table, other, missing=True)) for other in inputs.schema.spurious]


def measured(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, asked: Mapping[str, list[str]], learned: Learned
) -> dict[str, Any]:
    """Thresholds at the share of false rejections, and how well each reader reads each cell."""
    gate, schema, table = recipe.gate, inputs.schema, inputs.schema.canonical(inputs.train.table)
    texts = text_readers(recipe, schema, recipe.plan.attributes or schema.spurious)
    questions = (
        len(asked)
        + bool(texts) * len({"text", "direction"} & set(gate.criteria))
        + len({"near", "copy"} & set(gate.criteria))
        + bool(exchanged(recipe))
        or 1
    )
    share = gate.false_rejections / questions
    thresholds: dict[str, dict[str, float]] = {}
    accuracy: dict[str, dict[str, list[float]]] = {}
    for name, values in asked.items():
        known = table[name].notna().to_numpy()
        codes = np.full(len(table), -1)
        codes[known] = schema.index(name, table[name][known])
        said, weights = learned.scores[name], _balanced(inputs, [name])
        right = pd.Series(said.argmax(1) == codes, index=table.index)
        thresholds[name], accuracy[name] = {}, {}
        for value in values:
            code = schema[name].categories.index(value)
            here = np.flatnonzero(codes == code)
            thresholds[name][value] = threshold(said[here, code], weights[here], share)
        for other, levels in _crossed(inputs, table, name):
            for cell, rows in right.groupby([table[name], levels]):
                accuracy[name][", ".join(f"{a}={b}" for a, b in zip((name, other), cell))] = [
                    round(float(rows.mean()), 4),
                    len(rows),
                ]
    return {
        "share": share,
        "thresholds": thresholds,
        "accuracy": accuracy,
        "outside": _outside(recipe, inputs, model),
        "texts": {
            name: _text_thresholds(recipe, inputs, name, reader, share)
            for name, reader in texts.items()
            if "text" in gate.criteria
        },
        "directions": {
            name: _direction(recipe, inputs, name, reader, share)
            for name, reader in texts.items()
            if "direction" in gate.criteria
        },
        "trace": _trace(recipe, inputs, share),
        **_distances(recipe, inputs, learned, share),
    }


def _distances(recipe: Recipe, inputs: Inputs, learned: Learned, share: float) -> dict[str, float]:
    """How far real images are from one another: the farthest that is near the data, and the nearest that is no copy."""
    real, features = learned.real, learned.features
    if real is None or features is None:
        return {}
    weights, keys = _balanced(inputs, []), np.asarray(inputs.train.table.index, dtype=object)
    held = np.flatnonzero(folds_of(list(map(str, keys)), fold_count(recipe)) == 0)
    places = np.sort(np.random.default_rng([recipe.seed, 11]).permutation(len(weights))[:_REAL])
    return {
        "near": -threshold(-real.far(features[held]), weights[held], share),
        "copy": threshold(real.near(features[places], list(map(str, keys[places]))), weights[places], share),
    }


def _text_thresholds(recipe: Recipe, inputs: Inputs, name: str, reader: TextReader, share: float) -> dict[str, float]:
    """Value -> the log-probability of its text that all but ``share`` of real images with the value have."""
    known = np.flatnonzero(inputs.train.table[name].notna().to_numpy())
    rows = np.sort(np.random.default_rng([recipe.seed, 17]).permutation(known)[:_PAIRS])
    codes = np.asarray(inputs.schema.index(name, inputs.train.table[name].iloc[rows]))
    said, weights = reader.of_rows(inputs.train, rows.tolist()), _balanced(inputs, [name])[rows]
    return {
        value: threshold(said[codes == code, code], weights[codes == code], share)
        for code, value in enumerate(inputs.schema[name].categories)
        if (codes == code).sum() >= recipe.gate.least
    }


def _direction(recipe: Recipe, inputs: Inputs, name: str, reader: TextReader, share: float) -> float:
    """The cosine that all but ``share`` of pairs of real images of one class, which differ in the attribute, have."""
    train, rng = inputs.train, np.random.default_rng([recipe.seed, 19])
    table = inputs.schema.canonical(train.table)
    pairs = []
    for _, some in table.reset_index(drop=True).groupby(inputs.target):
        known = np.flatnonzero(some[name].notna())
        if len(known) > 1:
            for a, b in zip(rng.choice(known, _PAIRS), rng.choice(known, _PAIRS)):
                if some[name].iloc[a] != some[name].iloc[b]:
                    pairs.append((int(some.index[a]), int(some.index[b])))
    pairs = [pairs[i] for i in rng.permutation(len(pairs))[:_PAIRS]]
    if not pairs:
        return -1.0
    before, after = (inputs.schema.index(name, table[name].iloc[list(side)]).tolist() for side in zip(*pairs))
    found = [
        reader.directions(
            [train.image(b) for _, b in some],
            [train.image(a) for a, _ in some],
            after[i : i + BATCH],
            before[i : i + BATCH],
        )
        for i, some in ((i, pairs[i : i + BATCH]) for i in range(0, len(pairs), BATCH))
    ]
    return threshold(np.concatenate(found), np.ones(len(pairs)), share)


def _trace(recipe: Recipe, inputs: Inputs, share: float) -> float | None:
    """The correlation that all but ``share`` of real images have, in the background, with another one; None where it cannot be measured."""
    sources, rng = inputs.sources, np.random.default_rng([recipe.seed, 13])
    if not exchanged(recipe):
        return None
    found = []
    for i in rng.permutation(len(sources))[:_PAIRS].tolist():
        mask, other = sources.mask(i), int(rng.integers(len(sources)))
        if mask is not None and other != i:
            found.append(correlation(sources.image(other), sources.image(i), mask))
    known = [value for value in found if value == value]
    return -threshold(-np.array(known), np.ones(len(known)), share) if len(known) > 10 else None


_PAIRS = 1000
_REAL = 5000  # training images, at most, whose distances to the others are measured


def exchanged(recipe: Recipe) -> list[str]:
    """The attributes whose interventions exchange the background for that of another image."""
    by_layers = recipe.decoder.kind == "layered" or "layered" in recipe.decoder.mechanisms.values()
    return list(recipe.decoder.layers.get("background", ())) if by_layers else []


def _balanced(inputs: Inputs, more: Sequence[str]) -> npt.NDArray[np.float64]:
    """(N,) weights of the training images under which every group counts the same; ``more``: attributes that make groups as well."""
    table = inputs.train.table
    found = group_weights(group_codes(table, inputs.grouper, "each")).numpy()
    for name in set(more) - {inputs.target, *inputs.schema.spurious}:
        found = found + group_weights(pd.factorize(table[inputs.target] + "," + table[name])[0]).numpy()
    return np.asarray(found)


def regions_of(recipe: Recipe, model: CounterfactualModel) -> dict[str, str | Boxes]:
    """Attribute -> where an intervention on it may change pixels: as the recipe says, else by its layer, or where its stamps are put."""
    given: dict[str, str | Boxes] = {name: region for region, names in recipe.gate.regions.items() for name in names}
    if given:
        return given
    places = {"background": "background", "foreground": "object"}
    for mechanism in mechanisms_of(model.decoder):
        if isinstance(mechanism, LayeredDecoder | PretrainedDecoder):
            given |= {name: places[layer] for name, layer in mechanism.layers.items()}
        elif isinstance(mechanism, FunctionalDecoder):
            given |= mechanism.boxes
    return given


def _outside(recipe: Recipe, inputs: Inputs, model: CounterfactualModel) -> float:
    """The share of pixels that null interventions change, which nothing asked for; all but ``share`` of real images have less."""
    if recipe.gate.outside is not None:
        return recipe.gate.outside
    if model.capabilities.null == "exact" or not regions_of(recipe, model):
        return 0.0
    rows = np.sort(np.random.default_rng([recipe.seed, 12]).permutation(len(inputs.sources))[:_NULLS])
    acts = {inputs.sources.key(int(i)): do() for i in rows}
    pool = make_pool(model, inputs.sources, acts, recipe.seed, recipe.generate.batch_size, False)
    made, real = (images.permute(0, 2, 3, 1).numpy() for images in (pool.reconstruction, pool.factual))
    compare, whole = Unchanged({}, 0), np.zeros(made.shape[1:3], np.uint8)
    shares = [compare.share(image, source, whole, None) for image, source in zip(made, real)]
    return float(np.quantile(shares, 1 - recipe.gate.false_rejections))
