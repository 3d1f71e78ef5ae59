"""The gate of a run: its readers are trained, its thresholds measured on real images, and all of it is kept in ``gate/``.

    false rejections of all criteria together  <=  gate.false_rejections,      shared equally among the questions that one image is asked

What the gate does not judge, and why, is part of its description and stands in the report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from cfaug.causal import do
from cfaug.config import Recipe
from cfaug.data.files import replace_file
from cfaug.decode import CounterfactualModel, save_decoder
from cfaug.decode.layered.mask_gate import ObjectFound
from cfaug.errors import UsageError, listed, near
from cfaug.offline.criteria import NoTrace, Original, Plausible, Shown, Unchanged, correlation, threshold
from cfaug.offline.gate import CriteriaGate, Criterion
from cfaug.stages.attribute_classifiers import feature_store
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.gate_readers import (
    Embedding,
    HeadReader,
    Learned,
    NetReader,
    Reader,
    RealImages,
    blank_net,
    fold_count,
    folds_of,
    learn_readers,
)
from cfaug.stages.gate_text import MatchesText, TextReader, check_texts, text_digest, text_readers, text_scores
from cfaug.stages.generated_sets import make_pool
from cfaug.stages.image_mechanism import needs_masks
from cfaug.train.features import FeatureStore
from cfaug.train.method_data import group_codes
from cfaug.train.objectives import group_weights

log = logging.getLogger(__name__)

_NULLS = 200  # real images whose null interventions say how much changes without cause


def gate_is_on(recipe: Recipe) -> bool:
    """Whether the recipe's counterfactuals pass the criteria: where it says so, else for layers and functions."""
    kinds = {recipe.decoder.kind, *recipe.decoder.mechanisms.values()}
    return bool(kinds & {"layered", "functional"}) if recipe.gate.enabled is None else recipe.gate.enabled


def check_gate(recipe: Recipe, inputs: Inputs) -> None:
    """UsageError for a care attribute or a region that cannot be."""
    schema, graph = inputs.schema, inputs.graph
    changed = recipe.plan.attributes or list(schema.spurious)
    for name in recipe.gate.care:
        if name not in schema.names:
            raise UsageError(
                f"gate.care: expected attributes of the data, got {name!r}; {near(name, schema.names)}, or name it in attributes.kinds"
            )
        cause = next((one for one in changed if name in graph and name in graph.descendants(one)), None)
        if name in changed or cause is not None:
            why = "is intervened on" if name in changed else f"is a descendant of {cause}, which is intervened on"
            raise UsageError(f"gate.care: expected attributes that must not change, but {name!r} {why}; remove it")
        if schema[name].kind != "categorical":
            raise UsageError(
                f"gate.care: expected attributes with a reader, but {name!r} is {schema[name].kind}, and only categories are read; bin its column"
            )
    check_texts(recipe, schema)
    known = {name: region for region, names in recipe.gate.regions.items() for name in names}
    for name in known:
        if name not in changed:
            raise UsageError(
                f"gate.regions: expected attributes that are intervened on, got {name!r}; {near(name, changed)}"
            )


def make_gate(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, out: Path | None, progress: bool = False
) -> CriteriaGate | None:
    """The gate of a recipe; None where it has none. It is read from ``out/gate``, or made and written there.

    Raises:
        UsageError: what :func:`check_gate` refuses.
    """
    first: tuple[Criterion, ...] = (ObjectFound(),) if needs_masks(recipe) else ()
    if not gate_is_on(recipe):
        return CriteriaGate(first, "object found") if first else None
    check_gate(recipe, inputs)
    store = (
        feature_store(recipe, inputs, None if out is None else out / "features", progress)
        if recipe.train.weights
        else None
    )
    identity = {
        "format": 1,
        "data": inputs.digest, "gate": recipe.identity()["gate"], "text": text_digest(recipe), "seed": recipe.seed, "model": model.digest,
        "net": "small_cnn" if store is None else store.digest,
    }  # fmt: skip
    place = None if out is None else out / "gate"
    if place is not None and (found := _read(place, identity)) is not None:
        description, arrays = found
        learned = _rebuilt(recipe, inputs, description, arrays, store)
    else:
        asked, silent = _asked(recipe, inputs)
        learned_now = learn_readers(recipe, inputs, list(asked), store, progress)
        description = {"identity": identity, "silent": silent, **_measured(recipe, inputs, model, asked, learned_now)}
        arrays = _arrays(learned_now)
        learned = learned_now
        _write(place, description, arrays)
        for line in silent:
            log.warning("gate: %s", line)
    criteria = _criteria(recipe, inputs, description, learned)
    return CriteriaGate((*first, *criteria), save_decoder.digest(description, arrays), recipe.gate.retries)


# -- what is asked -----------------------------------------------------------------------------------------------------


def _asked(recipe: Recipe, inputs: Inputs) -> tuple[dict[str, list[str]], list[str]]:
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
        for other in schema.spurious if name == inputs.target else [inputs.target]:
            levels = inputs.grouper.levels(table, other, missing=True) if other != inputs.target else table[other]
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


# -- thresholds --------------------------------------------------------------------------------------------------------


def _measured(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, asked: Mapping[str, list[str]], learned: Learned
) -> dict[str, Any]:
    """Thresholds at the share of false rejections, and how well each reader reads each cell."""
    gate, schema, table = recipe.gate, inputs.schema, inputs.schema.canonical(inputs.train.table)
    texts = text_readers(recipe, schema, recipe.plan.attributes or schema.spurious)
    questions = len(asked) + bool(texts) + len({"near", "copy"} & set(gate.criteria)) + bool(_exchanged(recipe)) or 1
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
        for other in schema.spurious if name == inputs.target else [inputs.target]:
            levels = inputs.grouper.levels(table, other, missing=True) if other != inputs.target else table[other]
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
        "texts": {name: _text_thresholds(recipe, inputs, name, reader, share) for name, reader in texts.items()},
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
    said, weights = text_scores(reader, inputs.train, rows.tolist()), _balanced(inputs, [name])[rows]
    return {
        value: threshold(said[codes == code, code], weights[codes == code], share)
        for code, value in enumerate(inputs.schema[name].categories)
        if (codes == code).sum() >= recipe.gate.least
    }


def _trace(recipe: Recipe, inputs: Inputs, share: float) -> float | None:
    """The correlation that all but ``share`` of real images have, in the background, with another one; None where it cannot be measured."""
    sources, rng = inputs.sources, np.random.default_rng([recipe.seed, 13])
    if not _exchanged(recipe):
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


def _exchanged(recipe: Recipe) -> list[str]:
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


def _regions(recipe: Recipe) -> dict[str, str]:
    given: dict[str, str] = {name: region for region, names in recipe.gate.regions.items() for name in names}
    if given or "layered" not in {recipe.decoder.kind, *recipe.decoder.mechanisms.values()}:
        return given
    places = {"background": "background", "foreground": "object"}
    return {name: places[layer] for layer, names in recipe.decoder.layers.items() for name in names}


def _outside(recipe: Recipe, inputs: Inputs, model: CounterfactualModel) -> float:
    """The share of pixels that null interventions change, which nothing asked for; all but ``share`` of real images have less."""
    if recipe.gate.outside is not None:
        return recipe.gate.outside
    if model.capabilities.null == "exact" or not _regions(recipe):
        return 0.0
    rows = np.sort(np.random.default_rng([recipe.seed, 12]).permutation(len(inputs.sources))[:_NULLS])
    acts = {inputs.sources.key(int(i)): do() for i in rows}
    pool = make_pool(model, inputs.sources, acts, recipe.seed, recipe.generate.batch_size, False)
    made, real = (images.permute(0, 2, 3, 1).numpy() for images in (pool.reconstruction, pool.factual))
    compare, whole = Unchanged({}, 0), np.zeros(made.shape[1:3], np.uint8)
    shares = [compare.share(image, source, whole, None) for image, source in zip(made, real)]
    return float(np.quantile(shares, 1 - recipe.gate.false_rejections))


def _criteria(recipe: Recipe, inputs: Inputs, description: Mapping[str, Any], learned: Learned) -> list[Criterion]:
    wanted, schema = set(recipe.gate.criteria), inputs.schema
    found: list[Criterion] = []
    regions, unchanged = _regions(recipe), None
    if "unchanged" in wanted and regions:
        margin = int(np.ceil(recipe.decoder.composite.feather)) + 1
        unchanged = Unchanged(regions, margin, description["outside"])
        found.append(unchanged)
    # masks that were made may have lost half of the object, and only a reader sees that
    proof = unchanged if recipe.decoder.mask.get("from", "given") == "given" else None
    for name, reader in learned.readers.items():
        for intervened in (True, False):
            if ("shown" if intervened else "kept") not in wanted or (intervened and name == inputs.target):
                continue
            place = "object" if name == inputs.target else regions.get(name)
            found.append(
                Shown(name, schema[name].categories, reader, description["thresholds"][name], intervened, place, proof)
            )
    if "text" in wanted:
        for name, text in text_readers(recipe, schema, list(description["texts"])).items():
            found.append(MatchesText(name, schema[name].categories, text, description["texts"][name], True))
    if "trace" in wanted and description["trace"] is not None:
        found.append(NoTrace(frozenset(_exchanged(recipe)), description["trace"]))
    if "near" in wanted and learned.real is not None:
        found.append(Plausible(learned.real.distance, description["near"]))
    if "copy" in wanted and learned.real is not None:
        found.append(Original(learned.real.nearest, description["copy"]))
    return found


# -- disk --------------------------------------------------------------------------------------------------------------


def _arrays(learned: Learned) -> dict[str, Tensor]:
    real = {} if learned.real is None else learned.real.arrays()
    found = {f"real.{name}": value for name, value in real.items()}
    for attribute, reader in learned.readers.items():
        found.update({f"read.{attribute}.{name}": value for name, value in reader.arrays().items()})
    return found


def _write(place: Path | None, description: Mapping[str, Any], arrays: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save as serialise

    if place is None:
        return
    place.mkdir(parents=True, exist_ok=True)
    replace_file(place / "gate.safetensors", serialise({name: one.contiguous() for name, one in arrays.items()}))
    content = {**description, "digest": save_decoder.digest(description, arrays)}
    replace_file(place / "gate.json", json.dumps(content, indent=1, sort_keys=True).encode())


def _read(place: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What :func:`_write` wrote for this identity; None where it is not there, damaged or of something else."""
    from safetensors.torch import load_file

    if not (place / "gate.json").exists():
        return None
    try:
        description = json.loads((place / "gate.json").read_text(encoding="utf-8"))
        digest, arrays = description.pop("digest"), load_file(place / "gate.safetensors")
        whole = save_decoder.digest(description, arrays) == digest
    except Exception as error:  # JSON and safetensors each raise their own
        log.warning("%s cannot be read (%s) and is made again", place, " ".join(str(error).split())[:120])
        return None
    if not whole:
        log.warning("%s is damaged and made again", place)
    same = json.dumps(description.get("identity"), sort_keys=True) == json.dumps(identity, sort_keys=True)
    return (description, arrays) if whole and same else None


def _rebuilt(
    recipe: Recipe,
    inputs: Inputs,
    description: Mapping[str, Any],
    arrays: Mapping[str, Tensor],
    store: FeatureStore | None,
) -> Learned:
    def part(prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: value for name, value in arrays.items() if name.startswith(prefix)}

    readers: dict[str, Reader] = {}
    embedding = None if store is None else Embedding(store.model)
    for name in description["thresholds"]:
        own = part(f"read.{name}.")
        if embedding is not None:
            readers[name] = HeadReader(embedding, own["weight"], own["bias"])
            continue
        nets = []
        for fold in range(fold_count(recipe)):
            net = blank_net(recipe, inputs, name)
            mine = f"{fold}."
            net.load_state_dict({key[len(mine) :]: value for key, value in own.items() if key.startswith(mine)})
            nets.append(net.requires_grad_(False))
        readers[name] = NetReader(nets)
    if embedding is None and inputs.target in readers:
        embedding = Embedding(readers[inputs.target].nets[0])  # type: ignore[attr-defined]
    if embedding is None:
        return Learned(readers, {}, None)
    keys = [str(key) for key in inputs.train.table.index]
    return Learned(readers, {}, RealImages(embedding, **part("real."), keys=keys))
