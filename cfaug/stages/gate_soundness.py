"""How far a gate can be trusted: precision and recall of its criteria on faults that are planted on purpose.

The faults are planted in images that are right: the true counterfactuals where the data know them (the same sources with other
attributes), else the model's own. As many faulty as right images are shown, so precision is recall / (recall + false rejections).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import torch

from cfaug.config import Recipe
from cfaug.data import load_images
from cfaug.data.images import Pixels
from cfaug.data.micro_batch import Sources
from cfaug.decode import CounterfactualModel
from cfaug.offline.gate import CriteriaGate, Floats
from cfaug.stages.attribute_classifiers import to_pixels
from cfaug.stages.checked_inputs import Inputs
from cfaug.stages.generated_sets import Pool, balanced_acts, make_pool
from cfaug.train.models import as_input

JUDGED = 200
"""Sources, at most, in whose counterfactuals faults are planted."""


def gate_soundness(
    recipe: Recipe, inputs: Inputs, model: CounterfactualModel, gate: CriteriaGate, paired: bool, progress: bool
) -> dict[str, Any]:
    """The figures of :func:`soundness`; ``paired``: the clean images have the sources' keys."""
    sources = inputs.sources
    if paired and inputs.clean is not None:
        rows = np.sort(np.random.default_rng([recipe.seed, 15]).permutation(len(inputs.clean))[:JUDGED])
        keys = [inputs.clean.key(int(i)) for i in rows]
        place = {sources.key(i): i for i in range(len(sources))}
        own = [place[key] for key in keys if key in place]
        chosen = [int(i) for i, key in zip(rows, keys) if key in place]
        true, factual = load_images(inputs.clean, chosen, progress=False), load_images(sources, own, progress=False)
        found = [sources.mask(i) for i in own]
        masks = None if any(one is None for one in found) else torch.from_numpy(np.stack(found))[:, None].float() / 255  # type: ignore[arg-type]
        pool = Pool(sources.table.iloc[own], factual, factual, true, masks)
        made = inputs.schema.canonical(inputs.clean.table.iloc[chosen])
    else:
        acts = balanced_acts(sources, JUDGED, recipe.seed)
        pool = make_pool(model, sources, acts, recipe.seed, recipe.generate.batch_size, progress)
        made = inputs.schema.canonical(pool.table)
        for name in inputs.schema.spurious:
            made[name] = [acts[key].assignments.get(name, own) for key, own in zip(pool.sources, made[name])]
        made = inputs.schema.canonical(made)
    return soundness(recipe, inputs, gate, pool, made, paired)


def soundness(
    recipe: Recipe, inputs: Inputs, gate: CriteriaGate, pool: Pool, made: pd.DataFrame, true: bool
) -> dict[str, Any]:
    """Precision and recall of the criteria on planted faults.

    Args:
        recipe: the recipe.
        inputs: the data; copies are of its training images.
        gate: the gate.
        pool: sources and counterfactuals that are taken to be right.
        made: the counterfactuals' attributes, one row per source.
        true: whether they are the true ones, or the model's.
    """
    table = inputs.schema.canonical(pool.table)
    spurious = list(inputs.schema.spurious)
    other = np.flatnonzero((made[spurious].to_numpy() != table[spurious].to_numpy()).any(axis=1))
    sources, right = to_pixels(pool.factual)[other], to_pixels(pool.counterfactual)[other]
    table, made = table.iloc[other], made.iloc[other]
    records = [
        {"do": {name: row[name] for name in spurious if row[name] is not None}, "attributes": dict(row)}
        for _, row in made.astype(object).where(made.notna(), None).iterrows()
    ]
    masks = None if pool.masks is None else pool.masks[torch.from_numpy(other)]
    given = Sources(
        as_input(torch.from_numpy(sources).permute(0, 3, 1, 2)).contiguous(), table, list(map(str, table.index)),
        [0] * len(table), masks,
    )  # fmt: skip

    def asked(images: Sequence[Pixels], rows: Sequence[int]) -> dict[str, Any]:
        if not len(rows):
            return {"n": 0}
        places = torch.tensor(list(rows))
        some = replace(
            given, images=given.images[places], table=table.iloc[list(rows)], keys=[given.keys[i] for i in rows],
            seeds=[0] * len(rows), masks=None if masks is None else masks[places],
        )  # fmt: skip
        return summed(gate.margins(images, [records[i] for i in rows], some))

    def summed(margins: Mapping[str, Floats]) -> dict[str, Any]:
        by = {name: float(np.mean(one[~np.isnan(one)] < 0)) for name, one in margins.items() if not np.isnan(one).all()}
        rejected = np.any([one < 0 for one in margins.values()], axis=0)
        return {"n": len(rejected), "found": float(rejected.mean()), "by": by}

    of_right = gate.margins(list(right), records, given)
    # a source that cannot be used is no fault of the image
    every = np.flatnonzero(~(of_right.get("object found", np.zeros(len(other))) < 0)).tolist()
    plain = summed({name: one[every] for name, one in of_right.items()}) if every else {"n": 0}
    faults = {
        what: asked(images, rows)
        for what, (images, rows) in _planted(inputs, sources, right, table, made, masks, every, recipe.seed).items()
    }
    for row in faults.values():
        if row["n"]:  # as many faulty images as right ones
            false = plain["found"]
            row["precision"] = row["found"] / (row["found"] + false) if row["found"] + false else None
    return {
        "n": len(every), "basis": "true counterfactuals" if true else "the model's own, taken to be right",
        "false_rejections": plain.get("found", 0.0), "false_by": plain.get("by", {}), "faults": faults,
    }  # fmt: skip


def _planted(
    inputs: Inputs,
    sources: Pixels,
    right: Pixels,
    table: pd.DataFrame,
    made: pd.DataFrame,
    masks: torch.Tensor | None,
    every: list[int],
    seed: int,
) -> dict[str, tuple[list[Pixels], list[int]]]:
    """Fault -> faulty images, and the rows that they stand for."""
    rng = np.random.default_rng([seed, 14])
    target, spurious = made[inputs.target].to_numpy(), made[list(inputs.schema.spurious)].to_numpy()
    others, copies = {}, {}
    train = inputs.schema.canonical(inputs.train.table)
    for i in every:
        same = (spurious == spurious[i]).all(axis=1)
        if len(found := np.flatnonzero(same & (target != target[i]))):
            others[i] = right[int(rng.choice(found))]
        alike = (train[inputs.target] == target[i]).to_numpy() & (train.index != table.index[i])
        if len(found := np.flatnonzero(alike)):
            copies[i] = inputs.train.image(int(rng.choice(found)))
    sigma = max(1.0, right.shape[1] / 64)
    found_: dict[str, tuple[list[Pixels], list[int]]] = {
        "ignores do": ([sources[i] for i in every], every),
        "shows half of the old": (
            [((a.astype(int) + b) // 2).astype(np.uint8) for a, b in zip(sources[every], right[every])],
            every,
        ),
        "changes the label": (list(others.values()), list(others)),
        "is blurred": ([cv2.GaussianBlur(image, (0, 0), sigma).reshape(image.shape) for image in right[every]], every),
        "copies a training image": (list(copies.values()), list(copies)),
    }
    if masks is not None:
        found_["paints on the object"] = (
            [_patched(image, mask[0].numpy() > 0.5, rng) for image, mask in zip(right[every], masks[every])], every
        )  # fmt: skip
    return found_


def _patched(image: Pixels, inside: Any, rng: np.random.Generator) -> Pixels:
    rows, columns = np.nonzero(inside if inside.any() else np.ones_like(inside))
    place, side = int(rng.integers(len(rows))), max(2, len(image) // 10)
    top, left = max(0, int(rows[place]) - side // 2), max(0, int(columns[place]) - side // 2)
    image = image.copy()
    image[top : top + side, left : left + side] = rng.integers(0, 256, image.shape[2])
    return image
